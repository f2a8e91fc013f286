"""Peak memory of whole commands, and that evaluating more images does not take more of it.

    python benchmarks/memory.py quantize MODEL --weights FILE --data DIR [--recon-samples 1000]
    python benchmarks/memory.py evaluate [--images 50000]

``evaluate`` uses the bundled model and digits, linked over and over.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from fimaq.toolchain.data.demo_set import materialise

TOOL = Path(sys.executable).with_name("fimaq-tool")


def peak(*arguments: object) -> float:
    """Run fimaq-tool; peak resident memory in GB of the largest process run so far."""
    subprocess.run([str(TOOL), *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9


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
    other = commands.add_parser("evaluate")
    other.add_argument("--images", type=int, default=50000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if arguments.command == "evaluate":
            evaluate(arguments.images, Path(name))
            return
        options = {"--weights": arguments.weights, "--data": arguments.data, "-o": Path(name, "run")}
        options |= {"--recipe": "fast-w4a4", "--recon-samples": arguments.recon_samples, "--iters": arguments.iters}
        gigabytes = peak("quantize", arguments.model, *(part for pair in options.items() for part in pair))
        sys.stdout.write(f"quantize {arguments.model}, {arguments.recon_samples} images: {gigabytes:.2f} GB peak\n")


if __name__ == "__main__":
    main()
