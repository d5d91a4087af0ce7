"""Parquet files and folders as Arrow datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

__all__ = ["open_dataset"]


def open_dataset(source: Path | Sequence[str]) -> Dataset:
    """Open a file, a folder or several files as one dataset. Raises pyarrow's errors for files that are not Parquet."""
    from pyarrow import dataset  # imports pandas where there is one, which takes half a second

    return dataset.dataset(source, format="parquet")
