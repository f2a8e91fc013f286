"""An ordered set of images with their labels, and the hashes that say which set it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, Self, final

from PIL import Image

from ..errors import InputError, UsageError
from .images import decode_rgb


class Read(Protocol):
    """How a source hands out sample ``index``: encoded bytes, or an image where the source itself decodes.

    It is called from several threads at once. Raises OSError or InputError when the sample cannot be read.
    """

    def __call__(self, index: int, /) -> bytes | Image.Image:
        """Read one sample."""


@final
@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in a fixed order.

    ``sample_ids`` are unique, relative posix paths (or running numbers where a source has no names). ``labels`` are
    indices into the model's classes, or None for images that only calibrate; ``label_source`` says in words where
    they come from.
    """

    source: str
    sample_ids: tuple[str, ...]
    labels: tuple[int, ...] | None
    label_source: str
    read: Read
    _digests: dict[str, bytes] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Raise InputError for an empty set, for ids that repeat and for labels that do not match."""
        if not self.sample_ids:
            raise InputError(f"{self.source} holds no images; wanted at least one. Give another --data.")
        if len(set(self.sample_ids)) != len(self.sample_ids):
            raise InputError(f"{self.source} holds two samples of the same name; wanted unique names. Rename one.")
        if self.labels is not None and len(self.labels) != len(self.sample_ids):
            raise InputError(
                f"{self.source} has {len(self.labels)} labels for {len(self.sample_ids)} images; wanted one an image. "
                "Correct the labels."
            )

    def __len__(self) -> int:
        return len(self.sample_ids)

    def load(self, index: int) -> Image.Image:
        """Sample ``index``, decoded and converted to RGB. Raises InputError that names it when it is damaged."""
        name = self.sample_ids[index]
        try:
            sample = self.read(index)
        except OSError as error:
            self._digests[name] = b"unreadable"
            raise InputError(
                f"image {name} in {self.source} cannot be read ({error}). Replace or remove it."
            ) from error
        self._digests[name] = _digest(sample)
        if isinstance(sample, Image.Image):
            return sample.convert("RGB")
        return decode_rgb(sample, f"{name} in {self.source}")

    def subset(self, indices: Iterable[int]) -> Self:
        """The samples at ``indices``, in that order."""
        chosen = tuple(indices)
        return type(self)(
            source=self.source,
            sample_ids=tuple(self.sample_ids[i] for i in chosen),
            labels=None if self.labels is None else tuple(self.labels[i] for i in chosen),
            label_source=self.label_source,
            read=lambda index: self.read(chosen[index]),
            _digests=self._digests,
        )

    def take(self, limit: int | None) -> Self:
        """At most ``limit`` samples, spread evenly over the set (its start would be its first classes only)."""
        if limit is not None and limit < 1:
            raise UsageError(f"--limit is {limit}; wanted 1 or more images.")
        if limit is None or limit >= len(self):
            return self
        return self.subset(i * len(self) // limit for i in range(limit))

    @property
    def sample_ids_sha256(self) -> str:
        """Hash of the sample ids in order, 64 hexadecimal digits."""
        return hashlib.sha256("\n".join(self.sample_ids).encode(errors="surrogateescape")).hexdigest()

    @property
    def id(self) -> str:
        """Hash over every sample's id, label and content, 64 hexadecimal digits.

        Costs one read of every sample that has not been loaded yet. Where the set lies does not enter.
        """
        digest = hashlib.sha256()
        for index, name in enumerate(self.sample_ids):
            label = "" if self.labels is None else self.labels[index]
            digest.update(f"{name}\0{label}\0".encode(errors="surrogateescape") + self._content(index))
        return digest.hexdigest()

    def _content(self, index: int) -> bytes:
        name = self.sample_ids[index]
        if name not in self._digests:
            try:
                self._digests[name] = _digest(self.read(index))
            except OSError:
                self._digests[name] = b"unreadable"  # load() is what reports it
        return self._digests[name]


def _digest(sample: bytes | Image.Image) -> bytes:
    if isinstance(sample, bytes):
        return hashlib.sha256(sample).digest()
    return hashlib.sha256(f"{sample.mode}{sample.size}".encode() + sample.tobytes()).digest()
