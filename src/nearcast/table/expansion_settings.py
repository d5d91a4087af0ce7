"""Settings of an expansion table: where items and ads come from, who may see an ad, and how the best are chosen.

Read from TOML once. What is needed to answer is kept with the table in the store. Knows nothing of the data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nearcast.errors import SpecError
from nearcast.files import path_fault
from nearcast.spec import parse_model, read_tables

__all__ = [
    "MONEY_ROLES",
    "TIME_ROLES",
    "AdSource",
    "ExpansionSpec",
    "LinkSource",
    "Roles",
    "Serving",
    "Target",
    "load_expansion_spec",
]

MONEY_ROLES, TIME_ROLES = ("bid", "budget", "spent"), ("starts", "ends")  # of `Roles`: numbers, and times

Column = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(strict=True, ge=1, le=10_000)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,99}$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Target(_Table):
    """A condition on a column of an ad and a field of the request. An ad without a value is for everybody."""

    column: Column = Field(description="a column of the ads")
    test: Literal["equals", "in", "has", "overlaps", "at_least", "at_most"] = Field(
        description="the column equals the field, is in its list, has it in its own list, shares a value with its "
        "list, or is at least or at most the field"
    )
    request: Column = Field(description="a field of the request; without it only ads for everybody are left")


class Roles(_Table):
    """Which columns of the ads mean something to every call. A column that the ads do not have is no limit."""

    advertiser: Column = Field("advertiser", description="who pays for the ad; caps may count by it")
    bid: Column = Field("bid", description="what is offered for showing it")
    budget: Column = Field("budget", description="what may be spent; an ad without one may spend anything")
    spent: Column = Field("spent", description="what was spent of it so far")
    starts: Column = Field("starts", description="shown from then on")
    ends: Column = Field("ends", description="shown until then, that moment not included")


class Serving(_Table):
    """How candidates become ads. A call may ask for another k."""

    k: Count = Field(10, description="ads of an answer")
    order: Literal["similarity", "similarity_times_bid"] = Field("similarity", description="what best means")
    keys: Literal["best", "sum"] = Field(
        "best", description="a candidate of several keys has its best score among them, or their sum"
    )
    items: Literal["best", "sum"] = Field(
        "best", description="an ad of several candidates has the best of their scores, or their sum"
    )
    caps: dict[Column, Count] = Field({}, description="at most so many ads of an answer share a value of this column")
    columns: Roles = Field(Roles(), description="columns that mean something")
    targeting: tuple[Target, ...] = Field((), description="conditions, all of which must hold")


class AdSource(_Table):
    """The ads: a Parquet file with a row per ad. Every column may be asked for, overlaid, and used by rules."""

    path: str = Field(description="relative to this file")
    id: Column = Field("ad", description="an ad's own id: whole numbers or text")


class LinkSource(_Table):
    """Which ads an item has: a Parquet file with a row per pair of item and ad."""

    path: str = Field(description="relative to this file")
    item: Column = Field("item", description="an item's id, as the generator has it")
    ad: Column = Field("ad", description="an ad's id")


class ExpansionSpec(_Table):
    """An expansion table: item -> ads, many to many."""

    name: Name
    out: str = Field("nearcast", description="folder of the snapshots whose store it goes to, relative to this file")
    store: str | None = Field(None, description="the store's URL; lmdb:OUT/store")
    keep: Annotated[int, Field(strict=True, ge=2, le=100)] = Field(3, description="versions that the store keeps")
    ads: AdSource
    links: LinkSource
    serve: Serving = Serving()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if fault := path_fault(self.out):
            raise ValueError(f"out: {fault}")
        return self


def load_expansion_spec(path: Path) -> ExpansionSpec:
    """Read the settings from a TOML file. SpecError names the file, the key and what would work."""
    tables = read_tables(path, "docs/expansion.md shows one to start from")
    if "metric" in tables and "ads" not in tables:
        raise SpecError(
            f"{path} is the spec of a generator, which `nearcast run` takes; docs/expansion.md shows one of ads"
        )
    return parse_model(ExpansionSpec, tables, str(path))
