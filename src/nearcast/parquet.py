"""Parquet files, and folders of them, as one dataset to be read in parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

__all__ = ["open_dataset"]


def open_dataset(source: Path | Sequence[str]) -> Dataset:
    """A file, a folder, or some files. Raises what pyarrow raises for what is no Parquet."""
    from pyarrow import dataset  # imports pandas where there is one, which takes half a second

    return dataset.dataset(source, format="parquet")
