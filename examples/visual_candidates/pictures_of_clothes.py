"""Read Fashion-MNIST: 70,000 pictures of clothes, 28 by 28 grey values, each of one of ten categories.

Holds the format of the files and their folder on Debian.
"""

from __future__ import annotations

import gzip
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

FOLDER = Path("/usr/share/datasets/fashion-mnist")
SIDE = 28  # pixels
CATEGORIES = (
    *("T-shirt", "trousers", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)

MISSING = """{path} is missing: this example needs Fashion-MNIST.
On Debian and Ubuntu: apt-get install dataset-fashion-mnist
Elsewhere: put its four files (train-images-idx3-ubyte.gz and so on) into a folder, and say --pictures FOLDER"""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Some pictures with their categories."""

    pixels: npt.NDArray[np.uint8]  # (n, 28, 28) 0 is the background
    categories: npt.NDArray[np.uint8]  # (n,) indices in CATEGORIES


def read_pictures(part: str, folder: Path = FOLDER) -> Pictures:
    """Return the pictures of a part: "train" has 60,000, "t10k" has 10,000."""
    pixels = _unpacked(folder / f"{part}-images-idx3-ubyte.gz", 16)
    categories = _unpacked(folder / f"{part}-labels-idx1-ubyte.gz", 8)
    return Pictures(pixels.reshape(-1, SIDE, SIDE), categories)


def _unpacked(path: Path, header_bytes: int) -> npt.NDArray[np.uint8]:
    if not path.exists():
        sys.exit(MISSING.format(path=path))
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header_bytes)
