"""Data sets that timm's factory names: ``hfds/NAME``, ``hfids/NAME``, ``wds/FOLDER``, ``tfds/NAME``, with ``:SPLIT``.

timm (and with it torch) is imported only when such a name is given; the rest of this package runs without.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from numbers import Integral
from typing import Any, final

from PIL import Image

from ..errors import EnvironmentProblem, InputError
from .image_set import ImageSet

PACKAGES = {"hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow-datasets tensorflow", "wds": "webdataset"}
"""Prefixes timm knows, and what each needs installed."""

DEFAULT_SPLIT = "validation"


def is_factory_name(source: str) -> bool:
    """Whether ``source`` is PREFIX/NAME with a prefix timm knows."""
    prefix, slash, rest = source.partition("/")
    return bool(slash and rest) and prefix.lower() in PACKAGES


def open_factory(source: str, limit: int | None, require_labels: bool) -> ImageSet:
    """Open ``PREFIX/NAME[:SPLIT]`` through timm; labels are taken as the data set gives them.

    A streamed set (all but hfds) is run through once here, to number its samples, and again to load them;
    ``limit`` stops both early, so that it gives the first samples.

    Raises EnvironmentProblem when timm or a package it needs is missing, InputError when the set cannot be opened or
    has no single number as label.
    """
    prefix, _, rest = source.partition("/")
    name, colon, split = rest.rpartition(":")
    if not colon or "/" in split:
        name, split = rest, DEFAULT_SPLIT
    dataset = _create(prefix.lower(), name, split, source)
    read: Callable[[int], bytes | Image.Image]
    if prefix.lower() == "hfds":
        targets, read = _random_access(dataset.reader)
    else:
        stream = Stream(lambda: iter(dataset))
        targets, read = stream.targets(limit), stream.read
    labels = _labels(source, targets) if require_labels or all(map(_is_label, targets)) else None
    return ImageSet(
        source=source,
        sample_ids=tuple(f"{split}/{index:08d}" for index in range(len(targets))),
        labels=labels,
        label_source=f"the labels of {source} as they are" if labels is not None else "none: it calibrates only",
        read=read,
    )


def _create(prefix: str, name: str, split: str, source: str) -> Any:
    root = {"root": name} if prefix == "wds" else {}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # timm prints what to install; the error below says it
            # By name, as the package must be importable (and is checked to be) without timm.
            timm_data = importlib.import_module("timm.data")
            return timm_data.create_dataset(f"{prefix}/{name}", split=split, is_training=False, **root)
    except ImportError as error:
        raise _missing(source, prefix, error) from error
    except RuntimeError as error:
        if "Please install" in str(error):
            raise _missing(source, prefix, error) from error
        raise _unusable(source, error) from error
    except (OSError, ValueError, LookupError, AssertionError, TypeError, AttributeError) as error:
        raise _unusable(source, error) from error


def _missing(source: str, prefix: str, error: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{source} needs timm and {PACKAGES[prefix]} ({error}). pip install timm {PACKAGES[prefix]}, or give a folder."
    )


def _unusable(source: str, error: Exception) -> InputError:
    return InputError(
        f"{source} cannot be opened ({type(error).__name__}: {error}); wanted PREFIX/NAME[:SPLIT], the split "
        f"{DEFAULT_SPLIT} unless given. Correct the name or the split."
    )


def _labels(source: str, targets: list[Any]) -> tuple[int, ...]:
    for index, target in enumerate(targets):
        if not _is_label(target):
            raise InputError(
                f"{source}: sample {index} has label {target!r}; wanted one number from 0. Choose a split with labels."
            )
    return tuple(map(int, targets))


def _is_label(target: object) -> bool:
    return isinstance(target, Integral) and int(target) >= 0


def _random_access(reader: Any) -> tuple[list[Any], Callable[[int], bytes]]:
    """Targets, and how to read one sample's bytes, of timm's reader of Hugging Face data sets."""
    lock = threading.Lock()

    def read(index: int) -> bytes:
        with lock, reader[index][0] as file:
            data: bytes = file.read()
        return data

    return list(reader.iter_targets()), read


@final
class Stream:
    """Random access to something that can only be run through, for readers that move forward together.

    The last ``WINDOW`` images run past are kept until they are asked for, so threads that read within that window of
    each other cost one pass; going back further costs a new one.
    """

    WINDOW = 512

    def __init__(self, restart: Callable[[], Iterator[tuple[Image.Image, Any]]]) -> None:
        self._restart = restart
        self._lock = threading.Lock()
        self._samples = restart()
        self._next = 0
        self._kept: dict[int, Image.Image] = {}

    def targets(self, limit: int | None) -> list[Any]:
        """The label of each sample, in order, at most ``limit``."""
        return [target for _, target in islice(self._restart(), limit)]

    def read(self, index: int) -> Image.Image:
        """Sample ``index``. Raises OSError when the stream ends before it."""
        with self._lock:
            if index < self._next and index not in self._kept:
                self._samples, self._next, self._kept = self._restart(), 0, {}
            while index >= self._next:
                image, _ = next(self._samples, (None, None))
                if image is None:
                    raise OSError(f"the stream ended before sample {index}")
                self._kept[self._next] = image
                self._kept.pop(self._next - self.WINDOW, None)
                self._next += 1
            return self._kept.pop(index)
