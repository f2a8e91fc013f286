"""PLAN.toml: which runs a sweep makes, checked before the first begins. No torch."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

from ..errors import InputError, UsageError
from ..recipe import DEFAULT_RECIPE, Recipe, load_recipe
from ..recipe_fields import nearest

FLOAT = "float"
"""The recipe of a run that quantizes nothing: the model as it is, to compare with."""

OVERRIDES = (
    "wbits",
    "abits",
    "fisher",
    "rank",
    "calib-samples",
    "fisher-samples",
    "recon-samples",
    "iters",
    "batch-size",
    "seed",
)
"""Options of `fimaq-tool quantize` that a ``[[run]]`` table may hold."""

RUN_KEYS = ("model", "recipe", *OVERRIDES)
DATA_KEYS = ("calib", "val", "weights")


@final
@dataclass(frozen=True)
class Configuration:
    """One run: its table with one value a key, and the recipe that comes of it (None: float)."""

    table: Mapping[str, Any]
    recipe: Recipe | None

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.table["model"])

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the model."""
        return {key: value for key, value in self.table.items() if key != "model"}


@final
@dataclass(frozen=True)
class Plan:
    """The runs of a plan in its order, each once, and the data they share.

    ``calib`` and ``val`` are what `--data` of quantize and evaluate takes; ``weights`` is a folder of state dicts named
    ``<model>.safetensors`` (None: pretrained weights from the hub).
    """

    calib: str
    val: str
    weights: Path | None
    configurations: tuple[Configuration, ...]

    def weights_of(self, model: str) -> Path | None:
        """The model's state dict."""
        return None if self.weights is None else self.weights / f"{model}.safetensors"


def load_plan(path: Path, *, calib: str | None = None, val: str | None = None, weights: Path | None = None) -> Plan:
    """Read a plan; what is given here comes before what the plan says. Paths in a plan are relative to it.

    A list as a value makes one run for each of its entries; several lists multiply. Raises InputError for a plan that
    cannot be read, UsageError for a key, value or recipe that quantize would refuse, and where data is named nowhere.
    """
    values = _read(path)
    for key in values:
        if key not in (*DATA_KEYS, "run"):
            known = ", ".join((*DATA_KEYS, "[[run]]"))
            raise UsageError(f"plan {path}: unknown key {key!r}.{nearest(key, DATA_KEYS)} Known keys: {known}.")
        if key in DATA_KEYS and not isinstance(values[key], str):
            raise UsageError(f"plan {path}: {key} is {values[key]!r}; wanted the path of a folder.")
    tables = values.get("run")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"plan {path} has no [[run]] table; wanted at least one, with a model.")
    given = {"calib": calib, "val": val, "weights": None if weights is None else str(weights)}
    data = {key: given[key] or _beside(path, values.get(key)) for key in DATA_KEYS}
    for key in ("calib", "val"):
        if data[key] is None:
            raise UsageError(f'plan {path} names no {key} images. Give --{key} DIR, or {key} = "DIR" in the plan.')
    return Plan(
        calib=str(data["calib"]),
        val=str(data["val"]),
        weights=Path(data["weights"]) if data["weights"] else None,
        configurations=_configurations(path, tables),
    )


def identity(configuration: Configuration, facts: Mapping[str, Any]) -> str:
    """A hash of everything that decides a run: its recipe as resolved, and ``facts`` about its data and weights."""
    recipe = None if configuration.recipe is None else configuration.recipe.to_dict()
    decides = {"tool_version": version("fimaq-tool"), "model": configuration.model, "recipe": recipe, **facts}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def run_name(configuration: Configuration, identity: str) -> str:
    """What a run's files are called: its values as a person tells them apart, and the start of its identity."""
    words = (re.sub(r"[^\w.=+-]+", "_", str(value)).strip("._") for value in configuration.table.values())
    return f"{'-'.join(words)[:160]}-{identity[:8]}"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"plan {path} cannot be read ({error}). Give the path of a TOML file.") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"plan {path} is not TOML: {error}. `fimaq-tool sweep --help` shows one.") from error


def _beside(plan: Path, value: str | None) -> str | None:
    """A path of the plan, relative to it; a source like ``hfds/...`` that is no folder there stays as it is."""
    if value is None:
        return None
    path = plan.parent / value
    return str(path) if path.exists() else value


def _configurations(path: Path, tables: list[dict[str, Any]]) -> tuple[Configuration, ...]:
    found: list[Configuration] = []
    for number, table in enumerate(tables, 1):
        where = f"plan {path}, [[run]] table {number}"
        for key in table:
            if key not in RUN_KEYS:
                raise UsageError(
                    f"{where}: unknown key {key!r}.{nearest(key, RUN_KEYS)} Known keys: {', '.join(RUN_KEYS)}."
                )
        if empty := [key for key, value in table.items() if value == []]:
            raise UsageError(f"{where}: {', '.join(empty)} is an empty list, which makes no run. Give it a value.")
        lists = [value if isinstance(value, list) else [value] for value in table.values()]
        for values in itertools.product(*lists):
            one = Configuration(dict(zip(table, values, strict=True)), None)
            if one.table.get("model") in (None, "") or not isinstance(one.table["model"], str):
                raise UsageError(f"{where}: model is {one.table.get('model')!r}; wanted the name of a timm model.")
            one = replace(one, recipe=_recipe(one, path, where))
            if one not in found:
                found.append(one)
    return tuple(found)


def _recipe(configuration: Configuration, plan: Path, where: str) -> Recipe | None:
    overrides = {key: value for key, value in configuration.options.items() if key != "recipe"}
    name = configuration.table.get("recipe", DEFAULT_RECIPE)
    if name == FLOAT:
        if overrides:
            raise UsageError(f"{where}: {', '.join(overrides)} cannot be meant for the float model. Leave it out.")
        return None
    if not isinstance(name, str):
        raise UsageError(f"{where}: recipe is {name!r}; wanted the name of a preset, a path, or {FLOAT!r}.")
    file = plan.parent / name
    try:
        recipe = load_recipe(file if file.suffix == ".toml" else name)
        return recipe.with_overrides(**{key.replace("-", "_"): value for key, value in overrides.items()})
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
