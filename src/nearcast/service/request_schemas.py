"""Request models of the HTTP service, as OpenAPI describes them, and the functions that validate requests with them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from nearcast.serve.lookup_data import LookupOptions
from nearcast.serve.merged_lookup import MergeQuery
from nearcast.serve.resolvers import MOST_KEYS, MOST_WEIGHT
from nearcast.service.responses import RefusedError

__all__ = [
    "AdsRequest",
    "LookupParameters",
    "LookupRequest",
    "MergeRequest",
    "SearchRequest",
    "parse_body",
    "parse_parameters",
    "parse_request_values",
    "to_merge_query",
]

MAX_K = 10_000
MAX_FIELDS = 50
MAX_FALLBACK_KEYS = 10
MAX_EXCLUDED = 1000  # also the limit of recent keys and of session events
MAX_ADS_REQUEST_FIELDS = 100
MAX_KEY_LENGTH = 4096  # characters
MAX_PHRASE_LENGTH = 1000  # characters
MAX_REQUEST_LENGTH = 16_384  # characters of the `request` parameter of a URL
MAX_AGE_SECONDS = 1e10
MAX_INT64 = (1 << 63) - 1
SHOWN_ERRORS = 3

Model = TypeVar("Model", bound=BaseModel)
TextKey = Annotated[str, Field(max_length=MAX_KEY_LENGTH)]
NumberKey = Annotated[int, Field(strict=True, ge=-MAX_INT64 - 1, le=MAX_INT64)]
Key = TextKey | NumberKey
Length = Annotated[int, Field(ge=1, le=MAX_K)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Weight = Annotated[float, Field(gt=0, le=MOST_WEIGHT)]
Vector = Annotated[list[Finite], Field(min_length=1, max_length=65_536)]
FieldName = Annotated[str, Field(min_length=1, max_length=200)]
RequestValues = Annotated[dict[FieldName, Any], Field(max_length=MAX_FIELDS)]
REQUEST_VALUES: TypeAdapter[dict[str, Any]] = TypeAdapter(RequestValues)
FallbackKeys = Annotated[list[Key], Field(max_length=MAX_FALLBACK_KEYS)]


class _RequestModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _BodyModel(_RequestModel):
    model_config = ConfigDict(strict=True)  # "5" is not a number in JSON, but it is one in a URL


class LookupParameters(_RequestModel):
    """Query parameters of a look-up of one key."""

    k: Length | None = Field(None, description="Maximum number of candidates. Default: the generator's k.")
    min_score: Finite | None = Field(None, description="Leave out candidates with a lower score.")
    fields: str | None = Field(
        None, max_length=2000, description="Item columns to return, comma-separated: `name,price`."
    )
    request: str | None = Field(
        None,
        max_length=MAX_REQUEST_LENGTH,
        description='Request fields for the rules, a JSON object: `{"country":"NL"}`.',
    )
    fallback_key: Annotated[list[TextKey], Field(max_length=MAX_FALLBACK_KEYS)] = Field(
        [], description="Key to use if the first key has no candidates. May be given several times."
    )

    def options(self) -> LookupOptions:
        """Return the options of the look-up. Raises RefusedError if `request` is not a JSON object."""
        names = tuple(dict.fromkeys(name for name in self.fields.split(",") if name)) if self.fields else ()
        return LookupOptions(self.k, self.min_score, names, parse_request_values(self.request))


class LookupRequest(_BodyModel):
    """A look-up of many keys. A value per key may be null; a list of values per key may be left out."""

    keys: list[Key] = Field(description="Keys in any order. The answers have the same order.")
    k: Length | None = Field(None, description="Maximum number of candidates per key. Default: the generator's k.")
    min_score: Finite | None = Field(None, description="Leave out candidates with a lower score.")
    fields: list[FieldName] = Field([], max_length=MAX_FIELDS, description="Item columns to return.")
    request: RequestValues | None = Field(None, description="Request fields for the rules. They apply to all keys.")
    fallback_keys: list[FallbackKeys | None] | None = Field(
        None, description="A list per key: keys to use, in order, if the key has no candidates."
    )
    vectors: list[Vector | None] | None = Field(
        None, description="A vector per key: searched in the online index, if one is served, when the key is missing."
    )


class SearchRequest(_BodyModel):
    """Vectors to search for in the online index."""

    vectors: list[Vector] = Field(description="Vectors with the dimensions of the index.")
    k: Length | None = Field(None, description="Maximum number of candidates per vector. Default: the generator's k.")
    recall: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Required recall. An error if the index is calibrated for less."
    )
    min_score: Finite | None = Field(None, description="Leave out candidates with a lower score.")
    fields: list[FieldName] = Field([], max_length=MAX_FIELDS, description="Item columns to return.")
    request: RequestValues | None = Field(
        None, description="Request fields for the rules, and columns of the query. They apply to all vectors."
    )


class KeyWeight(_BodyModel):
    """A key with a weight."""

    key: Key
    weight: Weight = 1.0


class SessionEvent(_BodyModel):
    """An engagement with a key in a session."""

    key: Key
    seconds_ago: Annotated[float, Field(ge=0, le=MAX_AGE_SECONDS)]
    weight: Weight = Field(1.0, description="Weight of this kind of event.")


class RequestContext(_BodyModel):
    """Facts of the request. Each one that leads to any key has the same total weight; null means unknown."""

    viewed: Key | None = Field(None, description="The key in view.")
    recent: Annotated[list[Key], Field(max_length=MAX_EXCLUDED)] | None = Field(
        None, description="The most recent keys, newest first. The first ten are used."
    )
    session: Annotated[list[SessionEvent], Field(max_length=MAX_EXCLUDED)] | None = Field(
        None, description="Events with their ages. The weight halves every half hour."
    )
    phrase: Annotated[str, Field(max_length=MAX_PHRASE_LENGTH)] | None = Field(
        None, description="A search phrase. Its most engaged keys come from the generator's table `phrases`."
    )
    person: Key | None = Field(None, description="A person. Their keys come from the generator's table `people`.")


class MergeRequest(_BodyModel):
    """Keys, given directly or derived from a context, whose candidates are merged into one list."""

    keys: list[KeyWeight] = Field([], max_length=MOST_KEYS, description="Keys with their weights.")
    context: RequestContext = Field(RequestContext(), description="Facts of the request from which keys are derived.")
    k: Length | None = Field(None, description="Maximum number of candidates. Default: the generator's k.")
    by: Literal["rank", "score"] = Field("rank", description="Merge the lists by rank or by score.")
    min_score: Finite | None = Field(
        None, description="Leave out candidates with a lower score in the list of their key."
    )
    exclude: list[Key] = Field([], max_length=MAX_EXCLUDED, description="Items to leave out.")
    fields: list[FieldName] = Field([], max_length=MAX_FIELDS, description="Item columns to return.")
    request: RequestValues | None = Field(None, description="Request fields for the rules.")


class AdsRequest(BaseModel):
    """Keys whose candidates are expanded into ads, with the request fields for targeting."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    keys: list[Key] = Field(description="Keys of the generator. Their candidates are expanded into ads.")
    weights: list[Annotated[Finite, Field(ge=0)]] | None = Field(None, description="A weight per key. Default: 1 each.")
    expansion: Annotated[str, Field(max_length=100)] | None = Field(
        None, description="Name of the expansion table. Required if several are served."
    )
    request: Annotated[dict[str, Any], Field(max_length=MAX_ADS_REQUEST_FIELDS)] = Field(
        {}, description="Request fields for the targeting of the table and the rules of the generator."
    )
    k: Length | None = Field(None, description="Maximum number of ads. Default: the table's k.")
    candidates_per_key: Length | None = Field(None, description="Use only the first candidates of each key.")
    fields: list[FieldName] = Field([], max_length=MAX_FIELDS, description="Columns of the ads to return.")
    now: Finite | Annotated[str, Field(max_length=50)] | None = Field(
        None, description="Time for the flights of ads: ISO 8601, or seconds since 1970. Default: the present."
    )


def to_merge_query(body: MergeRequest) -> MergeQuery:
    """Return the request as a query of the look-up library."""
    context: dict[str, Any] = {name: getattr(body.context, name) for name in RequestContext.model_fields}
    if body.context.session is not None:
        context["session"] = [(event.key, event.seconds_ago, event.weight) for event in body.context.session]
    return MergeQuery(
        keys=[(each.key, each.weight) for each in body.keys],
        context={name: value for name, value in context.items() if value is not None},
        k=body.k,
        by=body.by,
        min_score=body.min_score,
        exclude=body.exclude,
        fields=tuple(dict.fromkeys(body.fields)),
        request=body.request,
    )


def parse_parameters(model: type[Model], data: Any) -> Model:
    """Validate query parameters. Raises RefusedError that lists the errors."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise RefusedError(422, "invalid", _describe_errors(error)) from None


def parse_body(model: type[Model], body: bytes) -> Model:
    """Parse and validate a JSON body. Raises RefusedError if it is not JSON or does not match the model."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        text = _describe_errors(error)
        if error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid":
            raise RefusedError(400, "bad_json", "the body is no JSON that can be read: " + text) from None
        raise RefusedError(422, "invalid", text) from None


def parse_request_values(text: str | None) -> dict[str, Any] | None:
    """Parse the request fields of a URL. Raises RefusedError if they are not a JSON object."""
    if text is None:
        return None
    try:
        return REQUEST_VALUES.validate_json(text)
    except ValidationError as error:
        raise RefusedError(422, "invalid", f"request: {_describe_errors(error)}; write a JSON object") from None


def _describe_errors(error: ValidationError) -> str:
    """Return the first errors as one line, without input values: they may be private and of any length."""
    details = error.errors(include_url=False, include_input=False, include_context=False)
    texts_by_path: dict[str, list[str]] = {}
    for detail in details:
        path = ".".join(str(part)[:50] for part in detail["loc"] if not _is_type(part))
        text = "no such setting" if detail["type"] == "extra_forbidden" else str(detail["msg"])[:200]
        texts_by_path.setdefault(path, []).append(text[:1].lower() + text[1:])
    shown = [
        f"{path}: {', or '.join(texts)}" if path else texts[0]
        for path, texts in list(texts_by_path.items())[:SHOWN_ERRORS]
    ]
    more = len(texts_by_path) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _is_type(part: object) -> bool:
    """Return whether a part of an error's path names a type of a union instead of a field of the request."""
    return isinstance(part, str) and (part in ("str", "int", "float", "list") or "constrained" in part or "[" in part)
