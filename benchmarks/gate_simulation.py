"""How often the gate is wrong: verdicts on simulated models whose true drop is known.

    python benchmarks/gate_simulation.py [--repeats 5000] [--out benchmarks/results/gate-simulation.jsonl]

A baseline that is right on 80 % of images and a candidate that differs from it on 6 to 10 % in being right; only the
counts are drawn. Prints the tables of docs/gate.md; every number is a share of repeats, in percent.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from fimaq.deploy.gate.rules.class_counts import ClassCounts
from fimaq.deploy.gate.rules.judgement import Estimate, judge
from fimaq.deploy.gate.rules.mean_class import mean_difference
from fimaq.deploy.gate.statistics import class_p_values, holm, paired_interval, paired_score, unpaired_interval

TOP1, MARGIN = 0.80, 1.0
IMAGES = (1_000, 5_000, 50_000)
FLIPS = (6, 8, 10)
DROPS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
RULES = {
    "strict, 90 %": ("strict", 0.90, True),
    "strict, 95 %": ("strict", 0.95, True),
    "lenient, 90 %": ("lenient", 0.90, True),
    "point": ("point", 0.90, True),
    "strict, 90 %, unpaired": ("strict", 0.90, False),
}
"""Policy, confidence, paired."""


def draw(rng: np.random.Generator, n: int, flips: float, drop: float, repeats: int) -> np.ndarray:
    """Images fixed, broken, right with both, and wrong with both, ``[repeats, 4]``."""
    fixed, broken = (flips - drop) / 200, (flips + drop) / 200
    return rng.multinomial(n, [fixed, broken, TOP1 - broken, 1 - TOP1 - fixed], repeats)


def intervals(counts: np.ndarray, n: int, confidence: float, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    """Both ends in points, for each repeat."""
    fixed, broken, both, _ = counts.T
    if paired:
        low, high = paired_interval(fixed, broken, n, confidence)
        return 100 * low, 100 * high
    rights = zip((both + fixed).tolist(), (both + broken).tolist(), strict=True)
    ends = np.array([unpaired_interval((candidate, n), (baseline, n), confidence) for candidate, baseline in rights])
    return 100 * ends[:, 0], 100 * ends[:, 1]


def top1(rng: np.random.Generator, repeats: int) -> Iterator[dict[str, Any]]:
    """The verdicts of every rule, and how often its interval holds the truth."""
    for n in IMAGES:
        for flips in FLIPS:
            for drop in DROPS:
                counts = draw(rng, n, flips, drop, repeats)
                values = 100 * (counts[:, 0] - counts[:, 1]) / n
                for name, (policy, confidence, paired) in RULES.items():
                    low, high = intervals(counts, n, confidence, paired)
                    verdicts = [
                        judge(Estimate(*ends, needed=lambda bound: None), -MARGIN, "", policy, confidence).verdict
                        for ends in zip(values.tolist(), low.tolist(), high.tolist(), strict=True)
                    ]
                    shares = {each: 100 * verdicts.count(each) / repeats for each in ("pass", "fail", "inconclusive")}
                    yield {
                        "rule": name,
                        "n": n,
                        "flips": flips,
                        "drop": drop,
                        **shares,
                        "covered": 100 * float(np.mean((low <= -drop) & (-drop <= high))),
                        "half_width": float(np.mean(high - low)) / 2,
                    }


def worst_class(rng: np.random.Generator, repeats: int) -> Iterator[dict[str, Any]]:
    """How often any class is called worse: where all dropped by exactly the limit, and where one dropped by 40."""
    for classes, n in ((10, 100), (100, 50), (1_000, 50)):
        for drop, one_broke in ((10, False), (0, True)):
            called = np.zeros(3)
            for _ in range(repeats):
                fixed, broken = rng.multinomial(n, [0.02, 0.02 + drop / 100, 0.96 - drop / 100], classes)[:, :2].T
                if one_broke:
                    fixed[0], broken[0], _ = rng.multinomial(n, [0.02, 0.42, 0.56])
                normal = np.array([0.5 * math.erfc(-z / math.sqrt(2)) for z in paired_score(fixed, broken, n, -0.1)])
                exact = class_p_values(fixed, broken, np.full(classes, n), 0.1)
                called += [(holm(exact) <= 0.05).any(), (holm(normal) <= 0.05).any(), (exact <= 0.05).any()]
            truth = "one class dropped by 40" if one_broke else "every class dropped by 10, the limit"
            shares = dict(
                zip(("exact, Holm", "normal, Holm", "exact, uncorrected"), 100 * called / repeats, strict=True)
            )
            yield {"classes": classes, "images a class": n, "truth": truth, **shares}


def mean_class(rng: np.random.Generator, repeats: int) -> Iterator[dict[str, Any]]:
    """How often the interval of the mean over classes of unequal size holds the truth, a drop of 2 points in all."""
    for n, classes in ((1_000, 10), (1_000, 100), (5_000, 100)):
        weights = np.geomspace(1, 10, classes)
        shares = np.outer(weights / weights.sum(), [0.03, 0.05, 0.75, 0.17]).ravel()
        covered, widths = 0, []
        for _ in range(repeats):
            counts = rng.multinomial(n, shares).reshape(classes, 4)
            counts = counts[counts.sum(axis=1) > 0]
            fixed, broken, both, _ = counts.T
            found = ClassCounts(np.arange(len(counts)), counts.sum(axis=1), both + fixed, fixed, broken)
            estimate = mean_difference(found, 0.90)
            covered += estimate.low <= -2 <= estimate.high
            widths.append((estimate.high - estimate.low) / 2)
        yield {"n": n, "classes": classes, "covered": 100 * covered / repeats, "half_width": float(np.mean(widths))}


def by_drop(rows: list[dict[str, Any]]) -> str:
    """Pass and fail of each rule by true drop, the smallest and largest over the rates of flips."""

    def shown(rule: str, n: int, drop: float) -> str:
        those = [row for row in rows if (row["rule"], row["n"], row["drop"]) == (rule, n, drop)]
        return " / ".join(_span([row[verdict] for row in those]) for verdict in ("pass", "fail"))

    table = [[f"{n:,}", rule, *(shown(rule, n, drop) for drop in DROPS)] for n in IMAGES for rule in RULES]
    return tabulate(table, ["images", "rule", *(f"drop {drop:g}" for drop in DROPS)], tablefmt="github")


def _span(values: list[float]) -> str:
    low, high = (f"{value:.0f}" for value in (min(values), max(values)))
    return low if low == high else f"{low}-{high}"


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = list(top1(rng, arguments.repeats))
    few = max(1, arguments.repeats // 10)
    classes, means = list(worst_class(rng, few)), list(mean_class(rng, few))
    covered = [
        [f"{n:,}", rule, _span([row["covered"] for row in those]), f"{max(row['half_width'] for row in those):.2f}"]
        for n in IMAGES
        for rule in RULES
        if rule not in ("lenient, 90 %", "point")
        for those in [[row for row in rows if (row["rule"], row["n"]) == (rule, n)]]
    ]
    write = sys.stdout.write
    write(f"pass / fail in percent of {arguments.repeats:,} repeats\n\n{by_drop(rows)}\n\n")
    write(tabulate(covered, ["images", "rule", "covered", "largest half-width"], tablefmt="github") + "\n\n")
    write(f"{few:,} repeats\n\n" + tabulate(classes, "keys", tablefmt="github", floatfmt=".1f") + "\n\n")
    write(tabulate(means, "keys", tablefmt="github", floatfmt=".2f") + "\n")
    if arguments.out is not None:
        lines = [json.dumps(row) for row in (*rows, *classes, *means)]
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
