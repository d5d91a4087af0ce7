"""Write the generated pages: command line, spec, measures. `--check` only reports whether they are up to date."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from nearcast.cli import cli
from nearcast.measure.measures import MEASURES
from nearcast.spec import example

PROFILE = """The inputs are measured, too. `profile` in the manifest has the number of rows and vectors, the share of
empty values and the distribution of each column, and the share of pairs that each rule keeps. [Snapshot
format](snapshot-format.md) lists its keys, [publishing](publishing.md) the rules that compare it with what is served.
"""
HERE = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py; change the code, then run `make docs`. -->\n\n"


def command_line() -> str:
    """Return the page of the command line: every command with its help text."""
    context = click.Context(cli, info_name="nearcast")
    pages = ["# The command line\n\n", NOTE]
    pages.append(f"```\n{cli.get_help(context)}\n```\n")
    for name in sorted(cli.list_commands(context)):
        command = cli.get_command(context, name)
        inner = click.Context(command, parent=context, info_name=name)
        pages.append(f"\n## nearcast {name}\n\n```\n{command.get_help(inner)}\n```\n")
        for part, below in sorted(getattr(command, "commands", {}).items()):
            text = below.get_help(click.Context(below, parent=inner, info_name=part))
            pages.append(f"\n### nearcast {name} {part}\n\n```\n{text}\n```\n")
    return "".join(pages)


def spec_page() -> str:
    """Return the page of the spec: the commented example."""
    intro = "`nearcast spec` prints this; `nearcast spec --schema` prints the JSON schema for editors.\n\n"
    return f"# The spec of a generator\n\n{NOTE}{intro}```toml\n{example()}```\n"


def measures_page() -> str:
    """Return the page of measures."""
    rows = "".join(f"| `{m.name}` | {m.unit} | {m.better} | {m.meaning} |\n" for m in MEASURES.values())
    return f"# Measures\n\n{NOTE}| measure | unit | better | meaning |\n|---|---|---|---|\n{rows}\n{PROFILE}"


PAGES = {"command-line.md": command_line, "spec.md": spec_page, "measures.md": measures_page}


def main() -> None:
    """Write the pages, or compare them."""
    stale = [name for name, make in PAGES.items() if not _same(HERE / name, make())]
    if "--check" in sys.argv:
        sys.exit(f"stale pages: {', '.join(stale)}; run `make docs`" if stale else 0)
    for name in stale:
        (HERE / name).write_text(PAGES[name](), encoding="utf-8")


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    main()
