"""Pictures on disk: figures that are drawn with matplotlib, which is imported here and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nearcast.errors import MissingExtraError, SpecError

__all__ = ["COLOURS", "new_figure", "save"]

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
FORMATS = (".svg", ".png", ".pdf")
DOTS_PER_INCH = 130


def new_figure(width: float, height: float) -> Any:
    """An empty figure of this size in inches. MissingExtraError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "pictures are drawn by matplotlib, which is not installed: pip install 'nearcast[figures]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Write a figure, in the format of the file's name: the same bytes for the same figure. SpecError for another."""
    if path.suffix.lower() not in FORMATS:
        raise SpecError(f"{path} is no name of a picture: write one that ends in {', '.join(FORMATS)}")
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    dated = "Date" if path.suffix.lower() == ".svg" else "CreationDate" if path.suffix.lower() == ".pdf" else None
    with matplotlib.rc_context({"svg.hashsalt": "nearcast"}):
        figure.savefig(path, dpi=DOTS_PER_INCH, metadata={dated: None} if dated else None)
