"""`nearcast spec`: print an example spec, or the JSON schema for editors."""

from __future__ import annotations

import click

from nearcast.cli.common import print_json
from nearcast.spec import example, json_schema

__all__ = ["spec"]


@click.command()
@click.option("--schema", is_flag=True, help="Print the JSON schema instead.")
@click.option("--json", "as_json_", is_flag=True, help="The same as --schema.")
def spec(schema: bool, as_json_: bool) -> None:
    """Print a commented generator.toml with every setting and its default."""
    if schema or as_json_:
        print_json(json_schema())
    else:
        click.echo(example(), nl=False)
