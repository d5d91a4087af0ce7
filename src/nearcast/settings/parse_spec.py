"""Parse TOML and plain data into a model; report every fault in one SpecError, with a suggestion for unknown keys."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from nearcast.errors import SpecError
from nearcast.files import bucket_url, path_fault
from nearcast.settings.base_table import SMALLEST_BUDGET

__all__ = ["parse_model", "read_tables"]

KNOWN_KEYS = "; known keys are "  # in a fault, before the list of keys
Model = TypeVar("Model", bound=BaseModel)


def read_tables(path: Path, hint: str) -> dict[str, Any]:
    """Read the tables of a TOML file. Raises SpecError with `hint` if the file cannot be read or parsed."""
    if url := bucket_url(path):
        raise SpecError(f"{url} is in a bucket, and a spec is a local file: copy it here; paths in it may be URLs")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error  # without the path again
        hint = path_fault(str(path)) or hint
        raise SpecError(f"{path} cannot be read: {reason}; {hint}") from error
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path} is not valid TOML: {error}") from error


def parse_model(model: type[Model], tables: Mapping[str, Any], where: str, *, recorded: bool = False) -> Model:
    """Validate plain data. Raises SpecError that lists every fault; an unknown key gets a suggestion.

    recorded: the data are from a manifest, which has the earlier names of renamed keys; do not warn of them.
    """
    try:
        return model.model_validate(tables, context={"where": where, "recorded": recorded})
    except ValidationError as error:
        faults = _list_known_keys_once([_describe_fault(model, fault) for fault in error.errors()])
        raise SpecError(f"{where}: " + "; ".join(faults)) from None


def _list_known_keys_once(faults: list[str]) -> list[str]:
    """Remove a list of known keys from every fault that repeats it."""
    listed: set[str] = set()
    shorter = []
    for fault in faults:
        text, _, keys = fault.partition(KNOWN_KEYS)
        shorter.append(text if keys and keys in listed else fault)
        listed.add(keys)
    return shorter


def _describe_fault(model: type[BaseModel], fault: Any) -> str:
    """Return one pydantic error as a clause: the key, its value, and the correction."""
    path = [str(part) for part in fault["loc"]]
    key = ".".join(path)
    if fault["type"] == "extra_forbidden":
        return _describe_unknown_key(model, path)
    if fault["type"] == "missing":
        return f"{key!r} is missing"
    message = _explain_common_fault(fault, path)
    if message is None:
        message = str(fault["msg"]).removeprefix("Value error, ")
        message = message[:1].lower() + message[1:] if message.startswith("Input") else message
    value = fault["input"]
    return message if not key or isinstance(value, dict) else f"{key} is {value!r}: {message}"


def _describe_unknown_key(model: type[BaseModel], path: list[str]) -> str:
    key, known = path[-1], _list_known_keys(model, path[:-1])
    text = f"unknown key {'.'.join(path)!r}"
    tables = _find_tables_with(model, key)
    if tables and not difflib.get_close_matches(key, known, n=1, cutoff=0.75):
        return f"{text}; it belongs to {' or '.join(tables)}"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"{text}; did you mean {near[0]!r}?" if near else text + KNOWN_KEYS + ", ".join(known)


def _explain_common_fault(fault: Any, path: list[str]) -> str | None:
    """Return plain words for the most frequent faults, or None."""
    kind, limits = fault["type"], fault.get("ctx", {})
    if path[-1:] == ["name"] and kind == "string_pattern_mismatch":
        return "use lower-case letters, digits and - _ . and start with a letter or digit"
    if path == ["memory"] and kind == "greater_than_equal":
        return f"give at least {SMALLEST_BUDGET >> 20} MiB"
    if path == ["recall"] and kind == "less_than_equal":
        return "recall is a share: write 0.95 for 95%"
    if kind in ("model_type", "dict_type"):
        return f"it is a table: write [{'.'.join(path)}] and its settings below"
    if kind == "tuple_type" and path == ["rules"]:
        return "write each rule as a separate table: [[rules]], with name and keep below"
    if kind == "tuple_type":
        return f"write it as a list: [{fault['input']!r}]".replace("'", '"')
    if kind == "string_type":
        return "write it as a text, in quotes"
    if kind in ("int_type", "int_parsing", "int_from_float"):
        return "write a whole number"
    if kind == "greater_than_equal":
        return f"it is at least {limits['ge']}"
    return f"it is at most {limits['le']}" if kind == "less_than_equal" else None


def _find_tables_with(model: type[BaseModel], key: str) -> list[str]:
    """Return the tables that have this key, as TOML writes them."""
    found = ["the top of the file"] if key in model.model_fields else []
    for name, field in model.model_fields.items():
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        tables = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if any(key in table.model_fields for table in tables):
            several = any(getattr(option, "__origin__", option) is tuple for option in options) or (
                getattr(field.annotation, "__origin__", None) is tuple
            )
            found.append(f"[[{name}]]" if several else f"[{name}]")
    return found


def _list_known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        if part.isdigit():  # an index into a list of tables
            continue
        annotation = model.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(model.model_fields)
