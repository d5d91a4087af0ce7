"""`nearcast info`: print version, machine, kernels and engines."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict

import click
from rich.table import Table

from nearcast import machine
from nearcast.cli.common import console, format_bytes, json_option, print_json
from nearcast.engines import choose_engine
from nearcast.kernels import IsaInfo, isa_info
from nearcast.version import __version__

__all__ = ["info"]

WITHOUT_KERNELS = (
    "joins run exactly in NumPy, at least ten times slower; install with a C++17 compiler to build the kernels"
)


@click.command()
@json_option
def info(as_json_: bool) -> None:
    """Show version, machine, engines, and the instruction set of the native kernels with the reason for it."""
    isa, about = isa_info(), machine.describe()
    engines = {"auto": choose_engine("auto").name, "faiss": importlib.util.find_spec("faiss") is not None}
    if as_json_:
        print_json({"nearcast": __version__, "machine": about, "kernels": asdict(isa), "engines": engines})
        return
    memory = format_bytes(about["memory_bytes"])
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    rows: dict[str, str] = {
        "nearcast": __version__,
        "machine": f"{about['processor']}, {about['cores']} cores, {memory}, {about['system']}",
        "kernels": f"{isa.taken}: {isa.because}",
        **_build_kernel_rows(isa),
        "engine auto": str(engines["auto"]),
        "faiss engines": "installed" if engines["faiss"] else "not installed: pip install 'nearcast[faiss]'",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    console().print(table)


def _build_kernel_rows(isa: IsaInfo) -> dict[str, str]:
    rows = {"also available": ", ".join(name for name in isa.available if name != isa.taken)}
    rows |= {f"not {name}": reason for name, reason in isa.unavailable.items()}
    return rows | ({"consequence": WITHOUT_KERNELS} if isa.taken == "numpy" else {"override with": "NEARCAST_ISA"})
