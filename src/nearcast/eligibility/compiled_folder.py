"""A compiled eligibility on disk: a file per array, and a JSON file with the tree. Opening it maps the arrays.

The same eligibility gives the same bytes. Knows nothing of rules.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from nearcast.artifact_files import map_array
from nearcast.errors import DamagedError
from nearcast.knn import eligible
from nearcast.knn.eligible import BitsetOverlap, Eligibility, Interval, Leaf, ListOverlap

__all__ = ["open_eligibility", "save_eligibility"]

NOTE = "eligibility.json"
FORMAT = 1
KINDS: dict[str, type[Leaf]] = {"interval": Interval, "overlap": BitsetOverlap, "shared": ListOverlap}


def save_eligibility(eligibility: Eligibility, folder: Path) -> None:
    """Write an eligibility to a folder, and create the folder. The JSON file is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    notes = [_save_leaf(leaf, number, folder) for number, leaf in enumerate(eligibility.leaves)]
    note = {
        "format": FORMAT,
        "n_queries": eligibility.n_queries,
        "n_items": eligibility.n_items,
        "leaves": notes,
        "tree": _to_plain(eligibility.tree),
    }
    (folder / NOTE).write_text(json.dumps(note, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def open_eligibility(folder: Path) -> Eligibility:
    """Open a saved eligibility. Processes share the mapped arrays. Raises DamagedError if it is incomplete."""
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        if note["format"] != FORMAT:
            raise ValueError(f"its format is {note['format']}, and this version reads {FORMAT}")
        leaves = tuple(_open_leaf(leaf, number, folder) for number, leaf in enumerate(note["leaves"]))
        return Eligibility(int(note["n_queries"]), int(note["n_items"]), leaves, _parse_tree(note["tree"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{folder} holds no whole eligibility ({error}); remove it and run again") from error


def _save_leaf(leaf: Leaf, number: int, folder: Path) -> dict[str, Any]:
    note: dict[str, Any] = {"kind": next(name for name, kind in KINDS.items() if isinstance(leaf, kind))}
    for field in fields(leaf):
        value = getattr(leaf, field.name)
        if isinstance(value, bool):
            note[field.name] = value
        else:
            np.save(_make_path(folder, number, field.name), np.ascontiguousarray(value), allow_pickle=False)
    return note


def _open_leaf(note: dict[str, Any], number: int, folder: Path) -> Leaf:
    kind = KINDS[note["kind"]]
    values: dict[str, Any] = {
        field.name: note[field.name] if field.name in note else map_array(_make_path(folder, number, field.name))
        for field in fields(kind)
    }
    return kind(**values)


def _make_path(folder: Path, number: int, name: str) -> Path:
    return folder / f"{number:03d}-{name}.npy"


def _to_plain(node: eligible.Node) -> Any:
    if isinstance(node, int):
        return node
    return {"all" if isinstance(node, eligible.AllOf) else "any": [_to_plain(part) for part in node.parts]}


def _parse_tree(note: Any) -> eligible.Node:
    if isinstance(note, int):
        return note
    name, parts = next(iter(note.items()))
    inside = tuple(map(_parse_tree, parts))
    if name not in ("all", "any"):
        raise ValueError(f"it joins by {name!r}")
    return eligible.AllOf(inside) if name == "all" else eligible.AnyOf(inside)
