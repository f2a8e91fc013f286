"""Runs and results as one HTML page that needs nothing else: no script, no font, no image from anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from . import charts
from .read import Block, Grid, Run, Step

TEMPLATES = Path(__file__).parent / "templates"

STYLES = ("chart.css", "page.css")

NONE = "\N{EN DASH}"
"""Stands for a figure that was not measured."""


@final
@dataclass(frozen=True)
class Result:
    """RESULT.json and where it lies."""

    path: Path
    figures: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The file's, without its ending."""
        return self.path.stem


def page(runs: Sequence[Run], results: Sequence[Result]) -> str:
    """The page. Whatever comes from files is escaped: the template does so for all that is not ``Markup``."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"as_json": as_json, "figure": figure, "megabytes": megabytes, "span": span}
    environment.globals |= {
        "accuracy_chart": accuracy_chart,
        "beta_chart": beta_chart,
        "block_snr_chart": block_snr_chart,
        "grid_chart": grid_chart,
        "layer_snr_chart": layer_snr_chart,
        "loss_chart": loss_chart,
        "of_block": of_block,
        "styles": Markup("").join(Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in STYLES),
        "version": version("fimaq-tool"),
    }
    return environment.get_template("page.html").render(runs=runs, datasets=_by_dataset(results), results=results)


def _by_dataset(results: Sequence[Result]) -> list[list[Result]]:
    """Results on the same images together, in the order of first mention: only those can be compared."""
    order: dict[str, list[Result]] = {}
    for result in results:
        order.setdefault(result.figures["dataset"]["sample_ids_sha256"], []).append(result)
    return list(order.values())


def of_block(lines: Iterable[Any], block: Block) -> list[Any]:
    """The log lines of one block."""
    return [line for line in lines if line.block == block.name]


def as_json(value: Mapping[str, Any]) -> str:
    """Nested values, a line each."""
    return json.dumps(value, indent=1, ensure_ascii=False)


def figure(value: float | None, digits: int = 1) -> str:
    """A number with that many decimals, or a dash."""
    return NONE if value is None else f"{value:,.{digits}f}"


def megabytes(count: int | None, digits: int = 2) -> str:
    """Bytes in MB, as ``figure`` writes them."""
    return figure(None if count is None else count / 1e6, digits)


def span(ends: Sequence[float]) -> str:
    """A number, or the two between which several lie."""
    low, high = ends
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def accuracy_chart(results: Sequence[Result]) -> Markup:
    """Top-1 with its interval, a row a result."""
    data = [
        charts.Row(
            result.name,
            (charts.Mark(result.figures["top1"], interval=tuple(result.figures["top1_interval"])),),
        )
        for result in results
    ]
    return charts.rows(data, "top-1, %", label_width=150)


def block_snr_chart(blocks: Sequence[Block]) -> Markup:
    """The output's signal-to-noise ratio of every block, before and after."""
    return charts.rows([row for block in blocks if (row := _snr_row(block)).marks], "dB")


def _snr_row(block: Block) -> charts.Row:
    marks = (
        None if block.snr_db_first is None else charts.Mark(block.snr_db_first, "open"),
        None if block.snr_db_last is None else charts.Mark(block.snr_db_last),
    )
    return charts.Row(block.name, tuple(mark for mark in marks if mark is not None))


def layer_snr_chart(block: Block, grids: Sequence[Grid]) -> Markup:
    """Signal-to-noise ratio of what one block's layers quantize; all blocks of a run on one axis."""
    every = [_grid_row(grid) for grid in grids if grid.snr_db is not None]
    own = [_grid_row(grid) for grid in of_block(grids, block) if grid.snr_db is not None]
    return charts.rows(own, "dB", label_width=130, over=every)


def _grid_row(grid: Grid) -> charts.Row:
    assert grid.snr_db is not None
    shape: charts.Shape = "filled" if grid.operand == "weight" else "open"
    inside = grid.layer.removeprefix(f"{grid.block}.")
    return charts.Row(f"{inside} {grid.operand}", (charts.Mark(grid.snr_db, shape),))


def grid_chart(grid: Grid) -> Markup:
    """How a weight or an input lies on its grid."""
    return charts.histogram(grid.counts, grid.range[0], grid.range[1], 2**grid.bits)


def loss_chart(steps: Sequence[Step]) -> Markup:
    """The loss over one block's steps."""
    return charts.curve([(step.step, step.loss) for step in steps], "step", "loss")


def beta_chart(steps: Sequence[Step]) -> Markup | None:
    """The exponent of the rounding regularizer over the steps of the first block; it is the same for all."""
    first = next((list(group) for _, group in groupby(steps, lambda step: step.block)), [])
    points = [(float(step.step), step.beta) for step in first if step.beta is not None]
    return charts.curve(points, "step", "beta") if points else None
