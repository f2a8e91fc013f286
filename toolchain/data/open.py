"""``open_dataset``: whatever --data names, as an ImageSet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError
from .factory import is_factory_name, open_factory
from .folder import Listing, list_folder
from .image_set import ImageSet
from .labels import ClassList, label_folders
from .labels_file import labels_from_file
from .tar import list_tar

SPLIT_FOLDERS = frozenset({"train", "val", "valid", "validation", "calib", "test"})


def open_dataset(
    source: str | Path,
    *,
    labels_file: Path | str | None = None,
    classes: Mapping[str, Any] | None = None,
    limit: int | None = None,
    require_labels: bool = True,
) -> ImageSet:
    """Open a folder of class folders, a flat folder with ``labels_file``, a .tar, or a name of timm's factory.

    ``classes`` is the model's ``{"wnids": [...] | null, "names": [...]}``: labels are indices into it. Without it
    class folders are numbered in order. ``limit`` takes that many samples spread evenly (of a stream: the first).
    ``require_labels=False`` is for calibration: where labels cannot be told they are None and ``label_source`` says
    why.

    Raises InputError for a source that is missing, unreadable or empty and for labels that cannot be told;
    EnvironmentProblem for a package timm lacks; UsageError for an empty source or a bad limit.
    """
    class_list = None if classes is None else ClassList.from_json(classes)
    if limit is not None and limit < 1:
        raise UsageError(f"--limit is {limit}; wanted 1 or more images.")
    if source == "":
        raise UsageError("--data is empty; wanted a folder of images. Is a shell variable unset?")
    path = Path(source)
    if not path.exists() and is_factory_name(str(source)):
        if labels_file is not None:
            raise UsageError(f"{source} brings its own labels. Leave --labels out.")
        images = open_factory(str(source), limit, require_labels)
        _require_range(images, class_list)
        return images.take(limit)
    listing = list_tar(path) if path.is_file() and path.suffix.lower() == ".tar" else list_folder(path)
    labels, label_source = _labels(listing, labels_file, class_list, require_labels)
    return ImageSet(listing.source, listing.names, labels, label_source, listing.read).take(limit)


def _labels(
    listing: Listing, labels_file: Path | str | None, classes: ClassList | None, required: bool
) -> tuple[tuple[int, ...] | None, str]:
    if labels_file is not None:
        return labels_from_file(Path(labels_file), listing.names, classes)
    try:
        return _folder_labels(listing, classes)
    except InputError as error:
        if required:
            raise
        return None, f"none, it calibrates only ({error})"


def _folder_labels(listing: Listing, classes: ClassList | None) -> tuple[tuple[int, ...], str]:
    folders = [listing.class_folder(name) for name in listing.names]
    loose = folders.count("")
    if loose:
        raise InputError(
            f"{listing.source}: {loose} of {len(folders)} images lie in no class folder; wanted folders named by class "
            "or wnid, or labels. Give --labels FILE with one `name label` a line."
        )
    if SPLIT_FOLDERS & {folder.lower() for folder in folders} and not _are_classes(set(folders), classes):
        raise InputError(
            f"{listing.source} holds the folders {', '.join(sorted(set(folders))[:6])}; wanted class folders. Give one "
            f"of them as --data, such as {listing.source}/{max(set(folders) & SPLIT_FOLDERS, default='val')}."
        )
    by_folder, label_source = label_folders(sorted(set(folders)), listing.class_folders, classes, listing.source)
    return tuple(by_folder[folder] for folder in folders), label_source


def _are_classes(folders: set[str], classes: ClassList | None) -> bool:
    return classes is not None and folders <= set(classes.names)


def _require_range(images: ImageSet, classes: ClassList | None) -> None:
    top = max(images.labels or (0,))
    if classes is not None and top >= len(classes):
        raise InputError(
            f"{images.source} has label {top} and the model {len(classes)} classes; wanted 0 to {len(classes) - 1}. "
            "Give the data the model was trained for."
        )
