"""A labels file: ``name label`` lines, csv, or the list of the ILSVRC2012 devkit."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn, final

from ..errors import InputError
from .devkit import META, wnids_of_ilsvrc_ids
from .labels import ClassList

_LABEL = re.compile(r"\d+")
_WNID = re.compile(r"n\d{8}")
_DEVKIT_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")


@final
@dataclass(frozen=True)
class _Row:
    line: int
    name: str
    value: str


def labels_from_file(path: Path, sample_ids: Sequence[str], classes: ClassList | None) -> tuple[tuple[int, ...], str]:
    """Label of every sample, and in words where it comes from.

    A line is ``name label`` or ``name wnid``, separated by white space or a comma (what follows in a csv is ignored,
    a first line that is a heading too). ``name`` is the path below the data folder, the file name, or the file name
    without its ending; a label is an index from 0 in the model's class order. A file of numbers alone is the devkit's
    list: see ``_devkit_labels``.

    Raises InputError for a file that cannot be read, a line that cannot be meant, and images without a line.
    """
    lines = _lines(path)
    if all(_LABEL.fullmatch(text) for _, text in lines):
        return _devkit_labels(path, [int(text) for _, text in lines], sample_ids, classes)
    table = _table(path, [_row(path, line, text) for line, text in lines], classes)
    return _match(path, table, sample_ids)


def _lines(path: Path) -> list[tuple[int, str]]:
    """Number and text of the lines that say something."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"labels file {path} cannot be read ({error}); wanted text, one `name label` a line. Give another --labels."
        ) from error
    numbered = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    lines = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    if not lines:
        raise InputError(f"labels file {path} is empty; wanted one `name label` a line. Give another --labels.")
    return lines


def _row(path: Path, line: int, text: str) -> _Row:
    if "," in text:
        fields = [field.strip() for field in next(csv.reader([text], skipinitialspace=True))]
        value = fields[1].split()[0] if len(fields) > 1 and fields[1] else ""
        return _Row(line, fields[0], value) if value else _refuse(path, line, text)
    parts = text.rsplit(None, 1)
    return _Row(line, *parts) if len(parts) == 2 else _refuse(path, line, text)


def _refuse(path: Path, line: int, text: str) -> NoReturn:
    raise InputError(
        f"labels file {path}, line {line}: {text[:80]!r} gives no label; wanted `name label` or `name wnid`, the label "
        "an index from 0 in the model's class order. Correct the line."
    )


def _table(path: Path, rows: list[_Row], classes: ClassList | None) -> dict[str, int]:
    """Label of each name in the file."""
    table: dict[str, int] = {}
    for place, row in enumerate(rows):
        label = _label(path, row, classes)
        if label is None:
            if place == 0:  # a heading
                continue
            _refuse(path, row.line, f"{row.name} {row.value}")
        name = str(PurePosixPath(row.name.replace("\\", "/")))
        if table.setdefault(name, label) != label:
            raise InputError(
                f"labels file {path}, line {row.line}: {name} has label {label} here and {table[name]} above; wanted "
                "one label an image. Remove one of the lines."
            )
    return table


def _label(path: Path, row: _Row, classes: ClassList | None) -> int | None:
    """Label the row gives, or None where its value is neither a number nor a wnid."""
    if _LABEL.fullmatch(row.value):
        label = int(row.value)
        if classes is not None and label >= len(classes):
            raise InputError(
                f"labels file {path}, line {row.line}: label {label} is out of range; wanted 0 to {len(classes) - 1}, "
                "counted from 0 in the model's class order. Correct the labels, or give wnids."
            )
        return label
    if not _WNID.fullmatch(row.value):
        return None
    if classes is None or not classes.wnids:
        raise InputError(
            f"labels file {path}, line {row.line}: {row.value} is a wnid and the model carries no wnids; wanted labels "
            "from 0 in the model's class order. Give numbers."
        )
    if row.value not in classes.by_wnid:
        raise InputError(
            f"labels file {path}, line {row.line}: wnid {row.value} is none of the model's {len(classes)} classes. "
            "Remove the line, or give the model that knows this class."
        )
    return classes.by_wnid[row.value]


def _match(path: Path, table: Mapping[str, int], sample_ids: Sequence[str]) -> tuple[tuple[int, ...], str]:
    """Find each sample by its path, its file name or its stem: whichever names every sample differently."""
    for key in (str, _file_name, _stem):
        keys = [key(sample_id) for sample_id in sample_ids]
        found = sum(name in table for name in keys)
        if found and len(set(keys)) == len(keys):
            break
    else:
        raise InputError(
            f"labels file {path} names none of the {len(sample_ids)} images (it has {next(iter(table))}, the data has "
            f"{sample_ids[0]}); wanted each image's path, file name or name without ending. Give another --labels."
        )
    missing = [sample_id for sample_id, name in zip(sample_ids, keys, strict=True) if name not in table]
    if missing:
        raise InputError(
            f"labels file {path} has no label for {len(missing)} of {len(sample_ids)} images, the first {missing[0]}; "
            "wanted one for each. Add the lines or remove the images."
        )
    return tuple(table[name] for name in keys), f"labels file {path.name}, {found} of its {len(table)} names used"


def _file_name(sample_id: str) -> str:
    return PurePosixPath(sample_id).name


def _stem(sample_id: str) -> str:
    return PurePosixPath(sample_id).stem


def _devkit_labels(
    path: Path, numbers: list[int], sample_ids: Sequence[str], classes: ClassList | None
) -> tuple[tuple[int, ...], str]:
    """Labels from ILSVRC2012_validation_ground_truth.txt: line i is the ILSVRC2012_ID of validation image i.

    These ids (1..1000) are NOT in the models' class order. The devkit's meta.mat, which lies beside the list, says
    which wnid an id is, and the model which label a wnid is; without either the list is refused.
    """
    if classes is None or not classes.wnids:
        raise InputError(
            f"labels file {path} is a list of numbers, as in the ILSVRC2012 devkit, whose ids are not in class order, "
            "and the model carries no wnids to translate them to. Give lines of `name label`."
        )
    wnids = wnids_of_ilsvrc_ids(path.with_name(META))
    unknown = [number for number in numbers if wnids.get(number) not in classes.by_wnid]
    if unknown:
        raise InputError(
            f"labels file {path} holds the id {unknown[0]}, whose wnid is none of the model's classes; wanted ids 1 to "
            "1000 of the ILSVRC2012 devkit. Give lines of `name label`."
        )
    labels = tuple(classes.by_wnid[wnids[numbers[line]]] for line in _devkit_lines(path, len(numbers), sample_ids))
    return labels, f"devkit list {path.name} in file-name order, its ids translated to wnids by {META}"


def _devkit_lines(path: Path, count: int, sample_ids: Sequence[str]) -> list[int]:
    """Which line (from 0) of the devkit's list each sample has."""
    named = [_DEVKIT_NAME.fullmatch(_stem(sample_id)) for sample_id in sample_ids]
    numbers = [int(match[1]) - 1 for match in named if match]
    if len(numbers) == len(sample_ids) and all(0 <= number < count for number in numbers):
        return numbers  # the number in the name is the line, so a part of the images will do
    if count == len(sample_ids):
        order = {name: line for line, name in enumerate(sorted(sample_ids, key=_file_name))}
        return [order[sample_id] for sample_id in sample_ids]
    raise InputError(
        f"labels file {path} is a list of {count} numbers for {len(sample_ids)} images; wanted as many lines as "
        "images, or images called ILSVRC2012_val_00000001 and so on. Give lines of `name label`."
    )
