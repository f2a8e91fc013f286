"""Folder names to labels: which index of the model's classes an image of a class folder has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, final

from ..errors import InputError


@final
@dataclass(frozen=True)
class ClassList:
    """The model's classes in label order; ``wnids`` where they are ImageNet's."""

    names: tuple[str, ...]
    wnids: tuple[str, ...] | None

    @classmethod
    def from_json(cls, classes: Mapping[str, Any]) -> Self:
        """Read ``{"wnids": [...] | null, "names": [...]}``. Raises InputError when it is anything else."""
        names, wnids = classes.get("names"), classes.get("wnids")
        if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
            raise InputError(
                f"the model's class names are {type(names).__name__} {str(names)[:60]!r}; wanted a list of strings. "
                "Re-export the model with fimaq-tool."
            )
        if wnids is not None and (not isinstance(wnids, list | tuple) or len(set(wnids)) != len(names)):
            raise InputError(
                f"the model has {len(names)} class names and its wnids are not {len(names)} different strings. "
                "Re-export the model with fimaq-tool."
            )
        return cls(tuple(names), None if wnids is None else tuple(wnids))

    @cached_property
    def by_wnid(self) -> dict[str, int]:
        """Label of each wnid; empty for a model that has none."""
        return {wnid: index for index, wnid in enumerate(self.wnids or ())}

    @cached_property
    def by_name(self) -> dict[str, int]:
        """Label of each class name that only one class has (ImageNet has two called "crane")."""
        count = Counter(self.names)
        return {name: index for index, name in enumerate(self.names) if count[name] == 1}

    def __len__(self) -> int:
        return len(self.names)


def natural_key(text: str) -> tuple[tuple[str | int, ...], str]:
    """Sort key under which ``class10`` follows ``class9``, as in timm."""
    return tuple(int(part) if odd % 2 else part for odd, part in enumerate(re.split(r"(\d+)", text.lower()))), text


def label_folders(
    folders: Sequence[str], all_folders: Sequence[str], classes: ClassList | None, source: str
) -> tuple[dict[str, int], str]:
    """Label of each class folder, and in words which rule gave it.

    ``folders`` hold images; ``all_folders`` are these and empty ones, which count where order gives the label.
    Tried in this order: every folder is a wnid of the model; every folder is one of its class names; there are as
    many folders as classes, and they are in class order. Raises InputError when none holds.
    """
    in_order = {name: index for index, name in enumerate(sorted(all_folders, key=natural_key))}
    if classes is None:
        return in_order, f"the order of the {len(all_folders)} folder names (no class list to compare with)"
    for what, index in (("wnid", classes.by_wnid), ("class name", classes.by_name)):
        known = [name for name in folders if name in index]
        if len(known) == len(folders):
            return {name: index[name] for name in folders}, f"folder names, each a {what} of the model"
        if known:
            odd = sorted(set(folders) - set(known))
            raise InputError(
                f"{source}: {len(known)} of {len(folders)} folders are named by a {what} of the model and "
                f"{len(odd)} are not ({_some(odd)}); wanted all or none. Remove or rename those folders."
            )
    if len(all_folders) == len(classes):
        return in_order, f"the order of the {len(all_folders)} folder names, as many as the model has classes"
    raise InputError(
        f"{source}: cannot tell the label of {len(all_folders)} folders ({_some(all_folders)}); wanted folders named "
        f"by {'wnid or ' if classes.wnids else ''}class name (the model has {_some(classes.wnids or classes.names)}), "
        f"or exactly {len(classes)} folders in class order. Rename the folders, point --data at the folder that holds "
        "the class folders, or give --labels FILE."
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
