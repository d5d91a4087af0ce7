"""Base class of all spec tables, the types of their values, and the earlier names of renamed keys.

Knows nothing of single tables.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

__all__ = ["SMALLEST_BUDGET", "ByteCount", "Name", "Rate", "Share", "SpecTable", "Version", "Whole", "parse_bytes"]

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
SMALLEST_BUDGET = 16 << 20


def parse_version(value: object) -> int | str:
    """Parse the version of a table: a number, the name of a version, or a time. Raises ValueError."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bool) or not isinstance(value, int | str) or (isinstance(value, str) and not value.strip()):
        raise ValueError(f'it is a version or a time, got {value!r}; write it like 12 or "2026-11-28T06:00:00Z"')
    return value


def parse_bytes(value: object) -> int:
    """Parse an amount of memory: a number of bytes, or text like "4GB" or "512 MiB". Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", value) if isinstance(value, str) else None
    if match is None or match[2].upper() not in UNITS:
        raise ValueError('it is not an amount of memory; write it like "4GB" or "512MB"')
    return int(float(match[1]) * UNITS[match[2].upper()])


# strict: neither true nor "50" is a number
Whole = Annotated[int, Field(strict=True)]
Share = Annotated[float, Field(strict=True)]
ByteCount = Annotated[int, BeforeValidator(parse_bytes), Field(ge=SMALLEST_BUDGET)]
Version = Annotated[int | str, BeforeValidator(parse_version)]  # of a table, or a time in ISO 8601
Rate = Annotated[int, BeforeValidator(parse_bytes), Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,99}$")]


class SpecTable(BaseModel):
    """Table of a spec: frozen, refuses unknown keys, accepts the earlier name of a renamed key with a FutureWarning.

    The `serialization_alias` of a renamed field is its earlier name. Manifests and fingerprints are written with it
    (`model_dump(by_alias=True)`), so that their bytes do not change.

    Validation context: `where` names the file in warnings; `recorded` reads a manifest, without warnings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _accept_earlier_names(cls, data: Any, info: ValidationInfo) -> Any:
        if not isinstance(data, Mapping):
            return data
        used = {old: new for old, new in earlier_names(cls).items() if old in data}
        context = info.context or {}
        for old, new in used.items():
            if new in data:
                raise ValueError(f"{old!r} is the earlier name of {new!r}; write {new!r} only")
            if not context.get("recorded"):
                where = context.get("where", "spec")
                warnings.warn(f"{where}: key {old!r} is now {new!r}; write {new!r}", FutureWarning, stacklevel=2)
        return {used.get(key, key): value for key, value in data.items()} if used else data

    if not TYPE_CHECKING:  # a type checker would accept every name

        def __getattr__(self, name: str) -> Any:
            new = earlier_names(type(self)).get(name)
            if new is None:
                return super().__getattr__(name)
            warnings.warn(f"{type(self).__name__}.{name} is now {new}", DeprecationWarning, stacklevel=2)
            return getattr(self, new)


def earlier_names(model: type[BaseModel]) -> dict[str, str]:
    """Return the earlier name of each renamed field, mapped to its name now."""
    fields = model.model_fields.items()
    return {field.serialization_alias: name for name, field in fields if field.serialization_alias}
