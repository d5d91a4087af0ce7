"""Charts in files, drawn with matplotlib. Only this module imports matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from nearcast.errors import MissingExtraError, SpecError

__all__ = ["COLOURS", "new_figure", "save", "style_axes"]

# Okabe and Ito's colours: distinct under every kind of colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
FORMATS = (".svg", ".png", ".pdf")
DOTS_PER_INCH = 130


def new_figure(width: float, height: float, title: str | None = None) -> Any:
    """Create an empty figure; sizes in inches. Raises MissingExtraError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "matplotlib draws pictures and is not installed: pip install 'nearcast[figures]'"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    if title is not None:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def style_axes(
    axes: Any,
    *,
    grid: Literal["x", "both"] | None = None,
    ticks: Literal["major", "both"] = "major",
    label_size: int | None = None,
) -> None:
    """Hide the frame above and to the right, and draw a light grid. ticks: the ticks that have a grid line."""
    axes.spines[["top", "right"]].set_visible(False)
    if grid is not None:
        axes.grid(alpha=0.25, axis=grid, which=ticks)
    if label_size is not None:
        axes.tick_params(labelsize=label_size)


def save(figure: Any, path: Path) -> None:
    """Write a figure in the format that the file name ends in; equal figures give equal bytes. Raises SpecError."""
    if path.suffix.lower() not in FORMATS:
        raise SpecError(f"{path} is not the name of a chart: write one that ends in {', '.join(FORMATS)}")
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    dated = "Date" if path.suffix.lower() == ".svg" else "CreationDate" if path.suffix.lower() == ".pdf" else None
    with matplotlib.rc_context({"svg.hashsalt": "nearcast"}):
        figure.savefig(path, dpi=DOTS_PER_INCH, metadata={dated: None} if dated else None)
