"""Peak memory of whole commands, and that evaluating more images does not take more of it.

    python benchmarks/memory.py quantize MODEL --weights FILE --data DIR [--recon-samples 1000] [--cache ram disk]
    python benchmarks/memory.py evaluate [--images 50000]

``quantize`` compares the estimate of each cache mode with the memory that was taken, files that are mapped left out
(Linux), sampled every 20 ms. ``evaluate`` uses the bundled model and digits, linked over and over.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fimaq.toolchain.data.demo_set import materialise

TOOL = Path(sys.executable).with_name("fimaq-tool")


def peak(*arguments: object) -> int:
    """Run fimaq-tool; the most anonymous memory it held, in bytes."""
    process = subprocess.Popen([str(TOOL), *map(str, arguments)], stdout=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        found = re.search(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
        most = max(most, int(found[1]) * 1024 if found else 0)
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(process.returncode)
    return most


def evaluate(images: int, folder: Path) -> None:
    """Peaks for 797 and for ``images`` images."""
    data = materialise(folder / "digits")
    onnx = folder / "demo.onnx"
    subprocess.run([str(TOOL), "export", "demo_vit", "--float", "-o", str(onnx)], check=True, stdout=subprocess.DEVNULL)
    files = sorted(data.val.rglob("*.png"))
    many = folder / "many"
    for number in range(images):
        source = files[number % len(files)]
        target = many / source.parent.name / f"{number:06}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)
    for name, where in ((f"{len(files)} images", data.val), (f"{images} images", many)):
        code = (
            "import resource, sys; from fimaq.cli.main import main\n"
            "try: main()\n"
            "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "evaluate", str(onnx), "--data", str(where)],
            check=True,
            capture_output=True,
            text=True,
        )
        sys.stdout.write(f"evaluate, {name}: {float(done.stderr.split()[-1]):.2f} GB peak\n")


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("quantize")
    one.add_argument("model")
    one.add_argument("--weights", type=Path, required=True)
    one.add_argument("--data", type=Path, required=True)
    one.add_argument("--recon-samples", type=int, default=1000)
    one.add_argument("--iters", type=int, default=10)
    one.add_argument("--recipe", default="fast-w4a4")
    one.add_argument("--cache", nargs="+", default=["ram", "disk"], choices=["auto", "device", "ram", "disk"])
    other = commands.add_parser("evaluate")
    other.add_argument("--images", type=int, default=50000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if arguments.command == "evaluate":
            evaluate(arguments.images, Path(name))
            return
        for cache in arguments.cache:
            run = Path(name, cache)
            options = {"--weights": arguments.weights, "--data": arguments.data, "-o": run, "--cache": cache}
            options |= {"--recipe": arguments.recipe, "--iters": arguments.iters}
            options |= {"--recon-samples": arguments.recon_samples}
            most = peak("quantize", arguments.model, *(part for pair in options.items() for part in pair))
            plan = json.loads((run / "log.jsonl").read_text().splitlines()[0])
            wanted = plan["held"] + plan["needs"]["memory"]
            sys.stdout.write(
                f"quantize {arguments.model}, {arguments.recon_samples} images, cache {cache}: estimated "
                f"{wanted / 1e9:.2f} GB of memory and {plan['needs']['disk'] / 1e9:.2f} of disk, {most / 1e9:.2f} GB "
                f"were taken ({most / wanted:.2f} of the estimate)\n"
            )


if __name__ == "__main__":
    main()
