"""Write the generated pages: command line, spec, measures, Python. `--check` only tells if they are up to date."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import nearcast
from nearcast.cli import cli
from nearcast.measure.measures import MEASURES
from nearcast.spec import example

PROFILE = """The inputs are measured, too. `profile` in the manifest has the number of rows and vectors, the share of
empty values and the distribution of each column, and the share of pairs that each rule keeps. [Snapshot
format](snapshot-format.md) lists its keys, [publishing](publishing.md) the rules that compare it with what is served.
"""
PYTHON = """Every command is a function here, too. A spec may be a path, a mapping or a `GeneratorSpec`; `out` and
`store` are paths or URLs. Functions raise subclasses of `NearcastError`; [errors](#errors) lists them.

The signatures and texts below are on the site (`make docs-site`); `help(nearcast.run)` prints the same.
"""
FUNCTIONS = {
    "Arrays": ["knn_join", "JoinResult", "JoinReport"],
    "Make a snapshot": ["draft_spec", "load_spec", "GeneratorSpec", "check", "run", "refresh", "update"],
    "Read snapshots": ["snapshots", "lookup", "explain", "diff", "export"],
    "Publish": ["publish", "roll_back", "published", "publish_table", "expand"],
    "Canaries": [name for name in nearcast.__all__ if "canary" in name] + ["CanarySource"],
    "Look up": ["open", "open_expansion", "overlay", "serve.lookup.Lookup", "serve.overlay.Overlay"],
    "Watch": ["monitor", "evaluate", *(name for name in nearcast.__all__ if "_alert" in name)],
    "Decide": ["tune", "head", "advise", "replay"],
}
MEMBERS = {  # None: no member
    "GeneratorSpec": None,
    "serve.lookup.Lookup": "get, get_many, merged, items, removed, close",
    "serve.overlay.Overlay": "remove, update, update_many, add, restore, entries",
}
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


def python_page() -> str:
    """Return the page of Python: a directive of mkdocstrings per name, and the errors with their exit codes."""
    listed = {name for names in FUNCTIONS.values() for name in names}
    errors = {n: getattr(nearcast, n) for n in nearcast.__all__ if n.endswith("Error")}
    others = [name for name in nearcast.__all__ if name not in {*listed, *errors, "__version__"}]
    parts = [f"# Python\n\n{NOTE}{PYTHON}"]
    for title, names in (FUNCTIONS | {"More": others}).items():
        if names:
            parts.append(f"\n## {title}\n")
        for name in names:
            parts.append(f"\n::: nearcast.{name}\n")
            if name in MEMBERS:
                shown = MEMBERS[name]
                parts.append(f"    options:\n      members: {'false' if shown is None else f'[{shown}]'}\n")
    parts.append("\n## Errors\n\n| error | exit code | meaning |\n|---|---|---|\n")
    for name, error in sorted(errors.items(), key=lambda item: item[1].exit_code):
        parts.append(f"| `{name}` | {error.exit_code} | {(error.__doc__ or '').splitlines()[0]} |\n")
    return "".join(parts)


PAGES = {"command-line.md": command_line, "spec.md": spec_page, "measures.md": measures_page, "python.md": python_page}


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
