"""Draw the demo's output as docs/images/demo.svg, from the snapshot of `make demo`."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

from rich.console import Console
from rich.text import Text

from nearcast.api.retaining import measure_disk
from nearcast.cli.render import build_candidate_list, build_run_summary
from nearcast.table.snapshot import find_snapshot

HERE = Path(__file__).parent
OUT = HERE.parent / "examples" / "similar_products" / "nearcast"
AVOCADO = 1028816


def main() -> None:
    """Record the summary and one list, and save them."""
    os.chdir(OUT.parent)  # so that the path is drawn as the demo shows it
    snapshot = find_snapshot(OUT, "similar-products")
    screen = Console(record=True, file=io.StringIO(), width=104, force_terminal=True, highlight=False)
    screen.print(Text("$ nearcast run generator.toml\n", style="bold green"))
    screen.print(build_run_summary(snapshot, measure_disk(snapshot), str(AVOCADO)))
    screen.print(Text(f"\n$ nearcast lookup similar-products {AVOCADO} -k 6\n", style="bold green"))
    screen.print(build_candidate_list(snapshot.lookup(AVOCADO, ("name",)).first(6), ("name",)))
    (HERE / "images").mkdir(exist_ok=True)
    svg = screen.export_svg(title="nearcast")
    svg = re.sub(r"@font-face {.*?}", "", svg, flags=re.DOTALL)  # no font from a server: the reader's own will do
    (HERE / "images" / "demo.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
