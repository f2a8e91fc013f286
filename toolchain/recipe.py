"""Every knob of a quantization, as frozen data checked when made; presets and files are TOML. No torch.

What each knob means is in the method notes; the published values are the defaults. A recipe file names only what
it changes; ``base = "fast-w4a4"`` starts from another preset or file instead of from the defaults.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, final

from .errors import InputError, UsageError
from .recipe_fields import (
    Bits,
    Checked,
    Count,
    CountOrZero,
    Positive,
    Range,
    Seed,
    Share,
    Weight,
    nearest,
    refuse,
    refuse_beside,
)

FisherKind = Literal["dplr", "low-rank", "rank-one", "diagonal", "brecq", "mse"]
InputGranularity = Literal["tensor", "token"]
MatmulGranularity = Literal["tensor", "head", "head-token"]

Config = TypeVar("Config", bound=Checked)

DEFAULT_RECIPE = "deploy-w4a4"
"""What `fimaq-tool quantize` starts from when no recipe is named."""

RECIPES = Path(__file__).parent / "recipes"
PRESETS: tuple[str, ...] = tuple(sorted(path.stem for path in RECIPES.glob("*.toml")))
"""Names ``load_recipe`` and ``--recipe`` know."""


@final
@dataclass(frozen=True)
class WeightConfig(Checked):
    """Weights: one grid per output channel; ``symmetric`` fixes the zero point at the middle code."""

    table: ClassVar[str] = "weights"
    bits: Bits
    symmetric: bool = False


@final
@dataclass(frozen=True)
class ActivationConfig(Checked):
    """Activations: bits, and the axes of linear inputs and matmul operands that keep a learned scale of their own.

    ``symmetric`` fixes the zero points at the middle code.
    """

    table: ClassVar[str] = "activations"
    bits: Bits
    granularity: InputGranularity = "tensor"
    matmul_granularity: MatmulGranularity = "tensor"
    symmetric: bool = False


@final
@dataclass(frozen=True)
class CalibrateConfig(Checked):
    """The scale search before reconstruction."""

    table: ClassVar[str] = "calibrate"
    samples: Count = 128
    augment: Literal["train", "eval"] = "train"
    candidates: Count = 128
    rounds: Count = 3
    reparam_layernorm: bool = True


@final
@dataclass(frozen=True)
class FisherConfig(Checked):
    """The Fisher approximation: its kind, its probes (``rank`` of them) and the weights of its two terms."""

    table: ClassVar[str] = "fisher"
    kind: FisherKind = "dplr"
    rank: Count = 5
    samples: Count = 128
    temperature: Positive = 20.0
    schedule: Literal["spread", "first"] = "spread"
    p1: Weight = 1.0
    p2: Weight = 1.0

    def check_together(self) -> None:
        """Refuse a dplr loss that is zero everywhere."""
        if self.kind == "dplr" and self.p1 == self.p2 == 0:
            raise refuse("fisher.p1", 0.0, "p1 or p2 above 0, else the dplr loss is always 0")


@final
@dataclass(frozen=True)
class ReconstructConfig(Checked):
    """Block reconstruction; ``iterations`` = 0 leaves weights rounded to nearest.

    ``quantized_input`` is the share of a step's input taken from the quantized network in front (the rest is float),
    ``drop_inside`` the share of activations inside the block that is left float (QDrop).
    """

    table: ClassVar[str] = "reconstruct"
    samples: Count = 1024
    iterations: CountOrZero = 20000
    batch_size: Count = 32
    alpha_lr: Positive = 1e-3
    scale_lr: Weight = 4e-5
    round_weight: Weight = 0.01
    warmup: Share = 0.2
    beta_start: Positive = 20.0
    beta_end: Positive = 2.0
    quantized_input: Share = 0.5
    drop_inside: Share = 0.5
    matmul_precision: Literal["highest", "medium"] = "highest"

    def check_together(self) -> None:
        """Refuse a batch larger than the sample and a beta that grows."""
        if self.iterations > 0 and self.batch_size > self.samples:
            why = f"the {self.samples} images it draws from"
            raise refuse_beside("reconstruct.batch_size", self.batch_size, self.samples, why, "reconstruct.samples")
        if self.beta_end > self.beta_start:
            raise refuse("reconstruct.beta_end", self.beta_end, f"at most beta_start, {self.beta_start:g}")


@final
@dataclass(frozen=True)
class Recipe(Checked):
    """All of it; ``seed`` decides every random draw."""

    name: str
    weights: WeightConfig
    activations: ActivationConfig
    first_conv_input_bits: Annotated[int, Range(8, 8)] = 8
    calibrate: CalibrateConfig = CalibrateConfig()
    fisher: FisherConfig = FisherConfig()
    reconstruct: ReconstructConfig = ReconstructConfig()
    seed: Seed = 0

    def check_together(self) -> None:
        """Refuse a name that cannot stand in a file or on a line, and Fisher images that are not reconstructed on."""
        if not self.name or not self.name.isprintable():
            raise refuse("name", self.name, "a name of printable characters")
        if self.reconstruct.iterations > 0 and self.fisher.samples > self.reconstruct.samples:
            limit = self.reconstruct.samples
            why = f"the {limit} images of reconstruction, of which they are the first"
            raise refuse_beside("fisher.samples", self.fisher.samples, limit, why, "reconstruct.samples")

    def with_overrides(
        self,
        *,
        wbits: int | None = None,
        abits: int | None = None,
        fisher: str | None = None,
        rank: int | None = None,
        calib_samples: int | None = None,
        fisher_samples: int | None = None,
        recon_samples: int | None = None,
        iters: int | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> Recipe:
        """The recipe with command-line options on top (None leaves a field); its name says what was changed."""
        changes: dict[str, dict[str, Any]] = {
            "weights": {"bits": wbits},
            "activations": {"bits": abits},
            "calibrate": {"samples": calib_samples},
            "fisher": {"kind": fisher, "rank": rank, "samples": fisher_samples},
            "reconstruct": {"samples": recon_samples, "iterations": iters, "batch_size": batch_size},
        }
        tables: dict[str, Any] = {}
        name, *earlier = self.name.split("+")
        notes = dict(note.split("=", 1) for note in earlier if "=" in note)
        for table, values in changes.items():
            old = getattr(self, table)
            new = {key: value for key, value in values.items() if value is not None and value != getattr(old, key)}
            tables[table] = replace(old, **new)
            notes |= {f"{table}.{key}": str(value) for key, value in new.items()}
        if seed is not None and seed != self.seed:
            tables["seed"], notes["seed"] = seed, str(seed)
        name = "+".join([name, *(f"{key}={value}" for key, value in notes.items())])
        return replace(self, name=name, **tables)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, every field named, in order; ``from_dict`` reads it back equal."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A recipe from nested values; fields left out keep their defaults.

        Raises UsageError for an unknown key (with the nearest known one), a missing ``name``, ``weights.bits`` or
        ``activations.bits``, and any value its field refuses.
        """
        values = dict(values)
        for field in fields(cls):
            if field.name in TABLES and isinstance(values.get(field.name, {}), Mapping):
                values[field.name] = _build(TABLES[field.name], values.get(field.name, {}))
        return _build(cls, values)

    def to_toml(self) -> str:
        """TOML text that ``load_recipe`` reads back equal."""
        values = self.to_dict()
        lines = [f"{key} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict)]
        for table, inner in values.items():
            if isinstance(inner, dict):
                lines += ["", f"[{table}]", *(f"{key} = {_toml(value)}" for key, value in inner.items())]
        return "\n".join(lines) + "\n"


TABLES: dict[str, type[Checked]] = {
    config.table: config
    for config in (WeightConfig, ActivationConfig, CalibrateConfig, FisherConfig, ReconstructConfig)
}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A preset by name, or a TOML file by path.

    Raises InputError for a file that is missing or not TOML; UsageError for an unknown preset or a bad field.
    """
    values = _read(name_or_path, came_from=(), folder=Path())
    return Recipe.from_dict(values)


def _build(config: type[Config], values: Mapping[str, Any]) -> Config:
    known = [field.name for field in fields(config)]
    where = f"recipe table [{config.table}]" if config.table else "recipe"
    for key in values:
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}.{nearest(key, known)} Known keys: {', '.join(known)}.")
    for key in ("name", "bits"):
        if key in known and key not in values:
            raise UsageError(
                f'{where}: {key!r} is missing. Set it, or name a preset to start from: base = "deploy-w4a4".'
            )
    return config(**values)


def _read(name_or_path: str | Path, came_from: tuple[Path, ...], folder: Path) -> dict[str, Any]:
    """The merged values of a recipe and its bases; ``base`` paths are relative to the file that names them."""
    path = _find(name_or_path, folder)
    if path in came_from:
        raise UsageError(f"recipe {path}: its base leads back to itself. Remove one `base`.")
    try:
        own = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} cannot be read ({error}). Give the path of a TOML file.") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            f"recipe {path} is not TOML: {error}. `quantize --dry-run` prints one to start from."
        ) from error
    base = own.pop("base", None)
    if base is not None and not isinstance(base, str):
        raise refuse("base", base, "a preset's name or a file's path")
    values = _read(base, (*came_from, path), path.parent) if base else {}
    values["name"] = path.stem
    for key, value in own.items():
        old = values.get(key)
        values[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return values


def _find(name_or_path: str | Path, folder: Path) -> Path:
    """The file of a preset or path. A bare word is a preset; anything with a suffix or a slash is a path."""
    if isinstance(name_or_path, str) and name_or_path in PRESETS:
        return RECIPES / f"{name_or_path}.toml"
    path = folder / name_or_path
    if path.is_file():
        return path.resolve()
    if isinstance(name_or_path, str) and path.suffix != ".toml" and "/" not in name_or_path:
        raise UsageError(
            f"recipe {name_or_path!r} is unknown.{nearest(name_or_path, PRESETS)} "
            f"Wanted a path to a .toml file or one of {', '.join(PRESETS)}."
        )
    raise InputError(f"recipe file {path} does not exist. Wanted a .toml file or one of {', '.join(PRESETS)}.")


def _toml(value: object) -> str:
    """One TOML value; JSON's string escapes are TOML's for printable text, and ``repr`` of a float reads back equal."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)
