"""Tables in each table format, as their own libraries write them: for the contract of table formats."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from needs import require_module


@dataclass
class DeltaKind:
    """A Delta table in a folder or bucket."""

    root: str

    def __post_init__(self) -> None:
        self.library = require_module("deltalake")

    @property
    def location(self) -> str:
        return f"delta:{self.root}/items"

    def write(self, rows: pa.Table, **options: Any) -> int:
        """Create the table, or append; return the version."""
        more = {"schema_mode": "merge"} | options
        self.library.write_deltalake(f"{self.root}/items", rows, mode="append", **more)
        return self.version

    def delete(self, where: str) -> int:
        self._table.delete(where)
        return self.version

    def forget(self, version: int) -> None:
        """Remove the files that only old versions have."""
        self._table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)

    def create(self, schema: pa.Schema) -> None:
        """Create the table without rows."""
        self.library.DeltaTable.create(f"{self.root}/items", schema)

    def compact(self) -> None:
        """Put the rows of small files together."""
        self._table.optimize.compact()

    def rewrite(self) -> None:
        """Write the same rows into other files."""
        self.library.write_deltalake(f"{self.root}/items", self._table.to_pyarrow_table(), mode="overwrite")

    def drop(self) -> None:
        shutil.rmtree(f"{self.root}/items")

    def ids(self) -> list[int]:
        return self._table.to_pyarrow_table().column("id").to_pylist()

    @property
    def version(self) -> int:
        return self._table.version()

    @property
    def _table(self) -> Any:
        return self.library.DeltaTable(f"{self.root}/items")


@dataclass
class LanceKind:
    """A Lance dataset in a folder or bucket."""

    root: str

    def __post_init__(self) -> None:
        self.library = require_module("lance")

    @property
    def location(self) -> str:
        return f"lance:{self.root}/items.lance"

    def add_column(self, name: str, kind: pa.DataType) -> None:
        self._dataset.add_columns(pa.field(name, kind))

    def rename_column(self, old: str, new: str) -> None:
        self._dataset.alter_columns({"path": old, "name": new})

    def tag(self, name: str, version: int) -> None:
        self._dataset.tags.create(name, version)

    def branch(self, name: str, rows: pa.Table) -> None:
        """Make a branch of the newest version with more rows, and a tag of it."""
        branch = self.library.write_dataset(rows, self._dataset.create_branch(name), mode="append")
        self._dataset.tags.create(f"{name}-tag", (name, branch.version))

    def write(self, rows: pa.Table) -> int:
        found = self.library.write_dataset(rows, f"{self.root}/items.lance", mode="append", max_rows_per_file=100)
        return found.version

    def delete(self, where: str) -> int:
        self._dataset.delete(where)
        return self.version

    def forget(self, version: int) -> None:
        from datetime import timedelta

        self._dataset.cleanup_old_versions(older_than=timedelta(0))

    def create(self, schema: pa.Schema) -> None:
        self.library.write_dataset(schema.empty_table(), f"{self.root}/items.lance")

    def compact(self) -> None:
        self._dataset.optimize.compact_files()

    def rewrite(self) -> None:
        self.library.write_dataset(self._dataset.to_table(), f"{self.root}/items.lance", mode="overwrite")

    def drop(self) -> None:
        shutil.rmtree(f"{self.root}/items.lance")

    def ids(self) -> list[int]:
        return self._dataset.to_table().column("id").to_pylist()

    @property
    def version(self) -> int:
        return self._dataset.version

    @property
    def _dataset(self) -> Any:
        return self.library.dataset(f"{self.root}/items.lance")


@dataclass
class IcebergKind:
    """An Iceberg table of a catalog in SQLite; its files are in a folder or bucket."""

    root: str
    catalog: Any

    @property
    def location(self) -> str:
        return "iceberg:lake.shop.items"

    def write(self, rows: pa.Table) -> int:
        if not self.catalog.table_exists("shop.items"):
            self.catalog.create_table("shop.items", schema=rows.schema)
        self._table.append(rows)
        return self.version

    def add_column(self, name: str, kind: pa.DataType) -> None:
        with self._table.update_schema() as change:
            change.union_by_name(pa.schema([(name, kind)]))

    def rename_column(self, old: str, new: str) -> None:
        with self._table.update_schema() as change:
            change.rename_column(old, new)

    def tag(self, name: str, version: int) -> None:
        self._table.manage_snapshots().create_tag(version, name).commit()

    def delete(self, where: str) -> int:
        self._table.delete(where.replace("=", "=="))
        return self.version

    def forget(self, version: int) -> None:
        self._table.maintenance.expire_snapshots().by_id(version).commit()

    def create(self, schema: pa.Schema) -> None:
        self.catalog.create_table("shop.items", schema=schema)

    def compact(self) -> None:
        self.rewrite()

    def rewrite(self) -> None:
        self._table.overwrite(self._table.scan().to_arrow())

    def drop(self) -> None:
        self.catalog.drop_table("shop.items")

    def ids(self) -> list[int]:
        return self._table.scan().to_arrow().column("id").to_pylist()

    @property
    def version(self) -> int:
        return self._table.current_snapshot().snapshot_id

    @property
    def _table(self) -> Any:
        return self.catalog.load_table("shop.items")


def open_kind(kind: str, root: str, scratch: Path, monkeypatch) -> Any:
    """Return the maker of a table below `root`."""
    if kind == "delta":
        return DeltaKind(root)
    if kind == "lance":
        return LanceKind(root)
    require_module("pyiceberg")
    require_module("sqlalchemy")
    return IcebergKind(root, configure_catalog(root, scratch, monkeypatch))


def configure_catalog(root: str, scratch: Path, monkeypatch) -> Any:
    """Configure the catalog "lake" as a user does, by the environment, and return it with a namespace."""
    import pyiceberg.catalog
    from pyiceberg.utils.config import Config

    settings = {"TYPE": "sql", "URI": f"sqlite:///{scratch}/lake.db", "WAREHOUSE": root}
    if "://" in root:
        settings |= {"S3__ENDPOINT": os.environ["AWS_ENDPOINT_URL"], "S3__REGION": os.environ["AWS_REGION"]}
        settings |= {"S3__ACCESS_KEY_ID": os.environ["AWS_ACCESS_KEY_ID"]}
        settings |= {"S3__SECRET_ACCESS_KEY": os.environ["AWS_SECRET_ACCESS_KEY"]}
    for name, value in settings.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__LAKE__{name}", value)
    monkeypatch.setattr(pyiceberg.catalog, "_ENV_CONFIG", Config())  # which is read when the library is imported
    catalog = pyiceberg.catalog.load_catalog("lake")
    catalog.create_namespace_if_not_exists("shop")
    return catalog
