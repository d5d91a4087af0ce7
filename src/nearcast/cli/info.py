"""`nearcast info`: what this installation can do, and why."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict

import click
from rich.table import Table

from nearcast import machine
from nearcast.cli.common import as_json, console, json_option, size
from nearcast.engines import choose_engine
from nearcast.kernels import IsaInfo, isa_info
from nearcast.version import __version__

__all__ = ["info"]

WITHOUT_KERNELS = (
    "joins are exact and done by NumPy, ten times slower or more; a C++17 compiler at install time mends it"
)


@click.command()
@json_option
def info(as_json_: bool) -> None:
    """Show version, machine, the instruction set of the native kernels and why it was taken, and the engines."""
    isa, about = isa_info(), machine.describe()
    engines = {"auto": choose_engine("auto").name, "faiss": importlib.util.find_spec("faiss") is not None}
    if as_json_:
        as_json({"nearcast": __version__, "machine": about, "kernels": asdict(isa), "engines": engines})
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    rows: dict[str, str] = {
        "nearcast": __version__,
        "machine": f"{about['processor']}, {about['cores']} cores, {size(about['memory_bytes'])}, {about['system']}",
        "kernels": f"{isa.taken}: {isa.because}",
        **_kernel_rows(isa),
        "engine auto": str(engines["auto"]),
        "faiss engines": "installed" if engines["faiss"] else "not installed: pip install 'nearcast[faiss]'",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    console().print(table)


def _kernel_rows(isa: IsaInfo) -> dict[str, str]:
    rows = {"could also take": ", ".join(name for name in isa.available if name != isa.taken)}
    rows |= {f"not {name}": reason for name, reason in isa.unavailable.items()}
    return rows | ({"this costs": WITHOUT_KERNELS} if isa.taken == "numpy" else {"forced by": "NEARCAST_ISA"})
