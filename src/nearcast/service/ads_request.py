"""The service's two-step call: a request as a question, the expansion table that it means, and refusals in its words.

Knows nothing of HTTP but its refusals.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from nearcast.ads.ad_answer import AdAnswer, AdRequest
from nearcast.ads.expansion_table import Expansion
from nearcast.errors import InputError, NotFoundError
from nearcast.serve.view import View
from nearcast.service.ads_schemas import AdsWanted
from nearcast.service.responses import RefusedError

__all__ = ["chosen_expansion", "question"]

AGAIN = ((b"retry-after", b"10"),)


def chosen_expansion(
    expansions: Mapping[str, Expansion], name: str | None, unopened: Collection[str] = ()
) -> Expansion:
    """The table that a request means: the one it names, or the only one; refused where there is none.

    unopened: names of tables that the store has and that could not be opened.
    """
    if name in unopened or (name is None and unopened and not expansions):
        raise RefusedError(503, "not_ready", "no version of this expansion table could be opened", AGAIN)
    if name is None and len(expansions) == 1 and not unopened:
        return next(iter(expansions.values()))
    known = ", ".join([*expansions, *unopened]) or "none"
    if name is None:
        raise RefusedError(422, "which_expansion", f"expansion is to name a table; served are {known}")
    try:
        return expansions[name]
    except KeyError:
        raise RefusedError(404, "unknown_expansion", f"no such expansion table is served; there are {known}") from None


def question(expansion: Expansion, wanted: AdsWanted) -> Callable[[View], AdAnswer]:
    """What is to be asked of a view of the generator."""
    asked = AdRequest(wanted.request, wanted.k, tuple(wanted.fields), wanted.now)

    def ask(view: View) -> AdAnswer:
        try:
            return expansion.ads_of(view, wanted.keys, wanted.weights, wanted.candidates_per_key, asked)
        except (InputError, NotFoundError) as error:
            raise RefusedError(422, "invalid", str(error)) from None

    return ask
