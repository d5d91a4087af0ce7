"""The shapes of requests and answers over HTTP, as OpenAPI describes them.

Requests are checked against them. Answers are made without them, since a check costs more than a look-up: tests see to
it that they agree.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from nearcast.service.responses import RefusedError
from nearcast.stores.value_format import REASONS

__all__ = [
    "Alive",
    "Answered",
    "AnsweredMany",
    "Failed",
    "Generator",
    "Generators",
    "KeyParameters",
    "Keys",
    "Ready",
    "Search",
    "Searched",
    "check",
    "check_json",
    "check_values",
]

MOST_CANDIDATES = 10_000
MOST_FIELDS = 50
MOST_FALLBACK_KEYS = 10
LONGEST_KEY = 4096  # characters
LONGEST_REQUEST = 16_384  # characters of a request in a URL
BIGGEST_ID = (1 << 63) - 1
SHOWN_FAULTS = 3

Model = TypeVar("Model", bound=BaseModel)
TextKey = Annotated[str, Field(max_length=LONGEST_KEY)]
NumberKey = Annotated[int, Field(strict=True, ge=-BIGGEST_ID - 1, le=BIGGEST_ID)]
Key = TextKey | NumberKey
Length = Annotated[int, Field(ge=1, le=MOST_CANDIDATES)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Vector = Annotated[list[Finite], Field(min_length=1, max_length=65_536)]
FieldName = Annotated[str, Field(min_length=1, max_length=200)]
RequestValues = Annotated[dict[FieldName, Any], Field(max_length=MOST_FIELDS)]
VALUES: TypeAdapter[dict[str, Any]] = TypeAdapter(RequestValues)
FallbackKeys = Annotated[list[Key], Field(max_length=MOST_FALLBACK_KEYS)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Told(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Body(_Asked):
    model_config = ConfigDict(strict=True)  # "5" is no number in JSON, though it is one in a URL


class KeyParameters(_Asked):
    """How the candidates of one key are wanted."""

    k: Length | None = Field(None, description="candidates at most; the generator's k")
    min_score: Finite | None = Field(None, description="leave out candidates with a lower score")
    fields: str | None = Field(
        None, max_length=2000, description="item columns to send along, comma-separated: `name,price`"
    )
    request: str | None = Field(
        None, max_length=LONGEST_REQUEST, description='what rules may know, a JSON object: `{"country":"NL"}`'
    )
    fallback_key: Annotated[list[TextKey], Field(max_length=MOST_FALLBACK_KEYS)] = Field(
        [], description="a key to answer with where there is nothing for the first; may be given several times"
    )


class Keys(_Body):
    """Which candidates are wanted for many keys. What is given per key is null or left out where there is none."""

    keys: list[Key] = Field(description="keys, in any order; the answers come in the same order")
    k: Length | None = Field(None, description="candidates per key at most; the generator's k")
    min_score: Finite | None = Field(None, description="leave out candidates with a lower score")
    fields: list[FieldName] = Field([], max_length=MOST_FIELDS, description="item columns to send along")
    request: RequestValues | None = Field(None, description="what rules may know of the request, for all keys")
    fallback_keys: list[FallbackKeys | None] | None = Field(
        None, description="a list per key: keys to answer with, in turn, where there is nothing for the first"
    )
    vectors: list[Vector | None] | None = Field(
        None, description="a vector per key: searched by on a miss, where an online index is served"
    )


class Search(_Body):
    """Vectors to search for in the online index."""

    vectors: list[Vector] = Field(description="vectors of as many numbers as the index has dimensions")
    k: Length | None = Field(None, description="candidates per vector at most; the generator's k")
    recall: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="the recall that is needed: refused where the index is set to less"
    )
    min_score: Finite | None = Field(None, description="leave out candidates with a lower score")
    fields: list[FieldName] = Field([], max_length=MOST_FIELDS, description="item columns to send along")
    request: RequestValues | None = Field(
        None, description="what rules may know, the columns of a query among it, for all vectors"
    )


class Candidate(BaseModel):
    """An item, with the columns that were asked for beside it (null where the item has none)."""

    model_config = ConfigDict(extra="allow")

    id: str | int
    score: float | None = Field(description="larger is better; null for default items, which have none")


Source = Literal["table", "fallback_key", "online", "default_key", "default_items", "none"]
Reason = Literal[REASONS]  # type: ignore[valid-type]


class Answered(_Told):
    """The candidates of a key, and where they come from."""

    key: str | int = Field(description="as it was asked for")
    found: bool = Field(description="whether the table has this key")
    source: Source = Field(description="what the candidates come from; none where there are none")
    source_key: str | int | None = Field(description="the key whose list it is")
    snapshot: str = Field(description="the snapshot that answered")
    age_seconds: float = Field(description="since that snapshot was made")
    reason: Reason = Field(description="why the stored list is short, where it is")
    stored: int = Field(description="candidates that are stored for the key, and for those that stood in")
    removed: int = Field(description="candidates that the overlay took out")
    barred: dict[str, int] = Field(description="candidates that a rule barred, by the first rule that did")
    returned: int = Field(description="candidates of this answer")
    candidates: list[Candidate] = Field(description="best first")


class AnsweredMany(_Told):
    """An answer per key, in the order of the request."""

    answers: list[Answered]


class Found(_Told):
    """What was found near one vector."""

    removed: int = Field(description="candidates that the overlay took out")
    barred: dict[str, int] = Field(description="candidates that a rule barred, by the first rule that did")
    candidates: list[Candidate] = Field(description="best first")


class Searched(_Told):
    """What was found near each vector, in the order of the request."""

    engine: str
    recall: float = Field(description="that the index is set to")
    snapshot: str = Field(description="the snapshot that the fields come from")
    answers: list[Found]


class RefusedVersion(_Told):
    """A newer version that was not taken. The log of the service says more."""

    code: str
    message: str


class Online(_Told):
    """An online index."""

    engine: str
    dim: int
    recall: float = Field(description="that the index is set to")


class Generator(_Told):
    """What is served of one generator."""

    name: str
    snapshot: str
    version: int
    created: str = Field(description="when the snapshot was made, UTC")
    age_seconds: float
    keys: int
    items: int
    k: int
    metric: str
    columns: list[str] = Field(description="what `fields` may name")
    overlay: int = Field(description="facts of the overlay that are in force")
    promise: dict[str, Any]
    measures: dict[str, Any]
    error: RefusedVersion | None = Field(description="why the newest version is not served, where it is not")
    online: Online | None


class Generators(_Told):
    """All that are served."""

    generators: list[Generator]


class Alive(_Told):
    """The process answers."""

    alive: bool


class Ready(_Told):
    """Whether requests may be sent here."""

    ready: bool
    reasons: list[str] = Field(description="why not, and what is not served as it should be")


class _Error(_Told):
    code: str = Field(description="for programs")
    message: str = Field(description="for people")


class Failed(_Told):
    """Why a request was not answered."""

    error: _Error


def check(model: type[Model], data: Any) -> Model:
    """Plain data as a request; refused with every fault named."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise RefusedError(422, "invalid", _faults(error)) from None


def check_json(model: type[Model], body: bytes) -> Model:
    """A body as a request; refused where it is no JSON, or another JSON than wanted."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid":
            raise RefusedError(400, "bad_json", "the body is no JSON that can be read: " + _faults(error)) from None
        raise RefusedError(422, "invalid", _faults(error)) from None


def check_values(text: str | None) -> dict[str, Any] | None:
    """What rules may know, written as JSON in a URL; refused where it is no JSON object."""
    if text is None:
        return None
    try:
        return VALUES.validate_json(text)
    except ValidationError as error:
        raise RefusedError(422, "invalid", f"request: {_faults(error)}; write a JSON object") from None


def _faults(error: ValidationError) -> str:
    """The first faults as one line; never with what was sent, which may be anything and of any length."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    told: dict[str, list[str]] = {}
    for fault in found:
        place = ".".join(str(part)[:50] for part in fault["loc"] if not _is_type(part))
        text = "no such setting" if fault["type"] == "extra_forbidden" else str(fault["msg"])[:200]
        told.setdefault(place, []).append(text[:1].lower() + text[1:])
    shown = [
        f"{place}: {', or '.join(texts)}" if place else texts[0] for place, texts in list(told.items())[:SHOWN_FAULTS]
    ]
    more = len(told) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _is_type(part: object) -> bool:
    """Whether a place in a fault names one of several types of a value, and not a place of the request."""
    return isinstance(part, str) and (part in ("str", "int", "float", "list") or "constrained" in part or "[" in part)
