"""The memory that a budget limits: what only the process can free, without the pages of mapped files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SIZE = 32 << 20
PROGRAM = f"""
import mmap, sys
from nearcast.machine import PeakMemory, resident_memory
before = resident_memory()
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    sum(mapped[at] for at in range(0, {SIZE}, 4096))
    mapped_bytes = resident_memory() - before
with PeakMemory() as peak:
    held = bytearray(b"x") * {SIZE}
    held_bytes = resident_memory() - before
del held
print(mapped_bytes, held_bytes, peak.bytes >= before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count all resident pages")
def test_pages_of_mapped_files_are_not_counted_and_own_pages_are(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * SIZE)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "file")], capture_output=True, check=True)
    mapped, held, measured = done.stdout.split()
    assert int(mapped) < SIZE // 8
    assert SIZE <= int(held) < 2 * SIZE
    assert measured == b"True"
