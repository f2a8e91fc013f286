"""How many images does each step need? Accuracy against Fisher and reconstruction images (the paper's Table A).

python benchmarks/accuracy.py run benchmarks/plans/image-counts.toml FOLDER --data DIR --out RESULTS.jsonl
python benchmarks/image_counts.py table RESULTS.jsonl
python benchmarks/image_counts.py plot RESULTS.jsonl -o docs/image-counts.svg
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from markupsafe import Markup
from tabulate import tabulate

from fimaq.toolchain.recipe import load_recipe
from fimaq.toolchain.report.axis import Axis, around
from fimaq.toolchain.report.charts import dot, left_ticks, line, svg, text
from fimaq.toolchain.report.scatter import standalone

STEPS = {"Fisher": "fisher-samples", "reconstruction": "recon-samples"}


def counted(results: Path) -> dict[str, dict[int, list[float]]]:
    """Top-1 of the seeds, by step and number of images; runs where both numbers are the usual ones count for both.

    A number that a run's command leaves out is its recipe's. Steps with one number of images are left out.
    """
    rows = []
    for row in map(json.loads, results.read_text().splitlines()):
        recipe = load_recipe(row["config"]["recipe"])
        own = {"fisher-samples": recipe.fisher.samples, "recon-samples": recipe.reconstruct.samples}
        rows.append(own | row["config"] | {"top1": row["top1"]})
    usual = {option: statistics.mode(row[option] for row in rows) for option in STEPS.values()}
    found: dict[str, dict[int, list[float]]] = {step: defaultdict(list) for step in STEPS}
    for row in sorted(rows, key=lambda row: row["seed"]):
        for step, option in STEPS.items():
            if all(row[other] == usual[other] for other in usual if other != option):
                found[step][row[option]].append(row["top1"])
    return {step: counts for step, counts in found.items() if len(counts) > 1}


def table(results: Path) -> str:
    """Markdown: a line for each step and number of images."""
    rows = [
        [step, images, len(top1), f"{statistics.mean(top1):.2f}", ", ".join(f"{value:.2f}" for value in top1)]
        for step, counts in counted(results).items()
        for images, top1 in sorted(counts.items())
    ]
    return tabulate(
        rows, ["images of", "number", "seeds", "top-1, mean", "each"], tablefmt="github", disable_numparse=True
    )


def plot(results: Path) -> str:
    """An SVG file with a panel a step: every seed a ring, means filled and joined, over the logarithm of the number."""
    found = counted(results)
    width, height, left, right, top, bottom = 520.0, 260.0, 44.0, 240.0, 40.0, 210.0
    up = around([value for counts in found.values() for top1 in counts.values() for value in top1], bottom, top)
    parts = [text(0, 11, "top-1, %")]
    for number, (step, counts) in enumerate(found.items()):
        aside = number * (right - left + 60)
        across = Axis(math.log2(min(counts)), math.log2(max(counts)), left + aside + 12, right + aside - 12)
        means = [
            (across.at(math.log2(images)), up.at(statistics.mean(top1))) for images, top1 in sorted(counts.items())
        ]
        parts += left_ticks(up, left + aside)
        parts.append(line(left + aside, bottom, right + aside, bottom, "axis"))
        parts.append(Markup('<path class="join" d="M{}"/>').format("L".join(f"{x:.1f} {y:.1f}" for x, y in means)))
        for (x, y), (images, top1) in zip(means, sorted(counts.items()), strict=True):
            parts += [dot(x, up.at(value), "open") for value in top1]
            parts += [dot(x, y, "filled"), text(x, bottom + 16, str(images), "middle")]
        parts.append(text((left + right) / 2 + aside, height - 12, f"{step} images", "middle"))
    return standalone(svg(width, height, "Top-1 over the number of images of each step", *parts))


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("table", "plot"):
        command = commands.add_parser(name)
        command.add_argument("results", type=Path)
    command.add_argument("-o", "--svg", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "table":
        sys.stdout.write(table(arguments.results) + "\n")
    else:
        arguments.svg.write_text(plot(arguments.results))


if __name__ == "__main__":
    main()
