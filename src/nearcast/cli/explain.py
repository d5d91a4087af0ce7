"""`nearcast explain`: explain why an item is or is not in a list."""

from __future__ import annotations

import click

from nearcast.api.comparing import explain as explain_pair
from nearcast.cli.common import NegativeIds, console, json_option, out_option, print_json
from nearcast.cli.complete_names import GeneratorName
from nearcast.storage.locations import Location

__all__ = ["explain"]


@click.command(cls=NegativeIds)
@click.argument("generator", type=GeneratorName())
@click.argument("query")
@click.argument("item")
@out_option
@json_option
def explain(generator: str, query: str, item: str, out: Location, as_json_: bool) -> None:
    """Explain why ITEM is or is not in the list of QUERY, in the newest snapshot.

    Prints one cause: the rule that filters it, the cap that dropped it, the minimum score, the cell that was not
    probed, or k items with better scores; with its exact score and rank. Needs the inputs of the run.
    """
    found = explain_pair(generator, query, item, out=out)
    if as_json_:
        print_json(found.as_dict())
        return
    show = console()
    show.print(f"{found.snapshot}: item {found.item!r} for query {found.query!r}")
    show.print(f"  {found.cause}: {found.words}")
    figures = [f"score {found.score:.6g}" if found.score is not None else "no score"]
    figures += [f"rank {found.rank:,} among eligible items"] if found.rank is not None else []
    figures += [f"the list ends at {found.last_score:.6g}"] if found.last_score is not None else []
    figures += [f"model score {found.model_score:.6g}"] if found.model_score is not None else []
    figures += (
        [f"the list ends at model score {found.last_model_score:.6g}"] if found.last_model_score is not None else []
    )
    show.print(f"  {', '.join(figures)}")
