"""The JSON bodies of requests and answers, with their limits, and the sentences for invalid ones."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from setrec.inference.filters import MAX_LENGTH
from setrec.inference.options import MAX_BOOSTS

MAX_HISTORIES = 512  # in a request
MAX_HISTORY = 2_000  # items of a history; the model reads the last max_history only, exclude_seen leaves out all
MAX_K = 500
MAX_ANSWERS = 20_000  # histories x k of a request
MAX_EXPLAINED = 2_000  # the same with explain, which makes answers larger, or diversity, which takes time
MAX_CANDIDATES = 100_000
MAX_NEW_ITEMS = 1_000  # in a request
MAX_EVENTS = 5_000  # in a request
MAX_FOUND = 100  # items of a search
MAX_BODY = 8 << 20  # bytes
MAX_BODIES = 16 * MAX_BODY  # of all requests in progress

MAX_CAPS = 5
MAX_PATCHES = 10_000  # items in a request
MAX_CHANGES = 200
SHOWN_OF_A_CHANGE = 20  # items of a change that are listed

ItemId = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Kind = Annotated[str, StringConstraints(max_length=100, pattern=r"^[^\x00]*$")]  # of an event: view, cart, buy


class Body(BaseModel):
    """A body with strict types: "10" is not a number, and an unknown field is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Filter = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_LENGTH),
    Field(description="A condition on attributes, such as category == 'board games' and price < 20 and in_stock."),
]


class BoostBody(Body):
    """What some items get beside their score."""

    filter: Filter
    add: Annotated[
        float, Field(ge=-100, le=100, description="In units of how far the best score lies above the 100th.")
    ]


class AnswerOptions(Body):
    """What can be chosen for a recommendation, whoever it is for; see `RecommendOptions`."""

    k: Annotated[int, Field(ge=1, le=MAX_K, description="Items to recommend for each history.")] = 10
    exclude_seen: Annotated[bool, Field(description="Leave out the items of the history itself.")] = True
    candidates: Annotated[
        list[ItemId] | None,
        Field(
            min_length=1,
            max_length=MAX_CANDIDATES,
            description="Recommend only these items; null: the whole catalogue.",
        ),
    ] = None
    explain: Annotated[bool, Field(description="Say why each item is recommended.")] = False
    beta: Annotated[
        float | None,
        Field(ge=0, le=1, description="Weight of the semantic slots; null: the weight that validation chose."),
    ] = None
    unknown: Annotated[
        Literal["skip", "refuse"], Field(description="What to do with ids that are not in the catalogue.")
    ] = "skip"
    filter: Annotated[Filter | None, Field(description="Recommend only items with these attributes; null: all.")] = None
    diversity: Annotated[
        float, Field(ge=0, le=1, description="What an item loses for being similar to one above it; 0: nothing.")
    ] = 0.0
    caps: Annotated[
        dict[ColumnName, Annotated[int, Field(ge=1, le=MAX_K)]] | None,
        Field(max_length=MAX_CAPS, description='At most so many items for each value of a column: {"brand": 2}.'),
    ] = None
    boosts: Annotated[
        list[BoostBody] | None,
        Field(max_length=MAX_BOOSTS, description="What items with some attributes get beside their score."),
    ] = None


class RecommendBody(AnswerOptions):
    """Histories to recommend items for."""

    histories: Annotated[
        list[Annotated[list[ItemId], Field(max_length=MAX_HISTORY)]],
        Field(
            min_length=1, max_length=MAX_HISTORIES, description="Item ids of each user, oldest first; [] is allowed."
        ),
    ]
    kinds: Annotated[
        list[Annotated[list[Kind], Field(max_length=MAX_HISTORY)]] | None,
        Field(
            max_length=MAX_HISTORIES,
            description="The kind of every event of the histories, such as view or buy; events of kinds that the model does not "
            "read are left out, and exclude_seen leaves out items by its target kinds only. null: every event is read.",
        ),
    ] = None

    @model_validator(mode="after")
    def bounded(self) -> Self:
        """Refuse a request whose answer would be too large, or whose kinds do not fit."""
        if self.kinds is not None and [len(row) for row in self.kinds] != [len(row) for row in self.histories]:
            raise ValueError("kinds must hold a list for each history, with a kind for each of its items")
        dear = self.explain or self.diversity > 0
        answers, most = len(self.histories) * self.k, MAX_EXPLAINED if dear else MAX_ANSWERS
        if answers > most:
            raise ValueError(
                f"{len(self.histories)} histories x k {self.k} are {answers} answers; "
                f"at most {most}{' with explain or diversity' if dear else ''} in a request"
            )
        return self


Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
FieldValue = Annotated[str, StringConstraints(max_length=20_000)] | bool | Whole | float | None


class NewItem(Body):
    """An item to add."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=500, strip_whitespace=True)]
    title: Annotated[str, StringConstraints(min_length=1, max_length=2_000)]
    text: Annotated[str | None, Field(max_length=20_000, description="What the encoder reads; null: the title.")] = None
    fields: Annotated[
        dict[str, FieldValue] | None,
        Field(max_length=50, description="Attributes, and further columns that the encoder's template names."),
    ] = None
    vector: Annotated[
        list[float] | None, Field(max_length=16_384, description="The text vector itself; then no encoder is needed.")
    ] = None
    vectors: Annotated[
        dict[str, Annotated[list[float], Field(max_length=16_384)]] | None,
        Field(max_length=20, description="Vectors of further sources of the model, by name, such as image."),
    ] = None


class ItemsBody(Body):
    """Items to add. If one is refused, none is added."""

    items: Annotated[list[NewItem], Field(min_length=1, max_length=MAX_NEW_ITEMS)]


class ItemPatch(Body):
    """What changes about an item."""

    id: ItemId
    fields: Annotated[
        dict[ColumnName, FieldValue],
        Field(min_length=1, max_length=50, description="New values of attributes, or of the title; null: missing."),
    ]


class PatchBody(Body):
    """Items whose attributes change. If one is refused, none is changed."""

    items: Annotated[list[ItemPatch], Field(min_length=1, max_length=MAX_PATCHES)]


class ReloadBody(Body):
    """A checkpoint to take over."""

    path: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=4_000,
            description="A checkpoint or a published folder; null: the one being served.",
        ),
    ] = None


class SimilarItem(BaseModel):
    """An item of the history that is similar to the recommended one."""

    id: str
    cosine: float


class LeftOut(BaseModel):
    """An item that a cap left out, and the column of the cap."""

    id: str
    column: str


class WhyOut(BaseModel):
    """Why an item is recommended: the parts of its score, and the most similar items of the history."""

    parts: dict[str, float]
    nearest_text: list[SimilarItem]
    nearest_cf: list[SimilarItem]
    like: Annotated[
        SimilarItem | None, Field(description="With diversity: the most similar item above it in the list.")
    ] = None
    left_out: Annotated[list[LeftOut], Field(description="Better items that a cap left out here, at most 5.")] = []


class RankedOut(BaseModel):
    """A recommended item."""

    id: str
    title: str
    score: float
    warm: Annotated[bool, Field(description="Seen in training; false: a cold item.")]
    why: WhyOut | None = None


class RecommendationOut(BaseModel):
    """The answer to one history, best first."""

    id: Annotated[str, Field(description="Of this answer; events and feedback may name it.")]
    items: list[RankedOut]
    unknown: Annotated[
        list[str], Field(description="Ids of the history that are not in the catalogue; they were skipped.")
    ]


class RecommendOut(BaseModel):
    """One answer for each history, in order."""

    recommendations: list[RecommendationOut]
    generation: Annotated[int, Field(description="Number of checkpoints taken over since the start.")]


class ItemOut(BaseModel):
    """An item of the catalogue."""

    id: str
    title: str
    warm: bool


class ItemDetailsOut(ItemOut):
    """All that is known of an item."""

    events: Annotated[int, Field(description="Occurrences in training.")]
    attributes: dict[str, str | bool | int | float | None]


class SimilarItemOut(ItemOut):
    """An item that is similar to another one."""

    similarity: float


class SimilarOut(BaseModel):
    """Similar items, most similar first."""

    items: list[SimilarItemOut]
    by: str


class ChangedItem(BaseModel):
    """An item that was changed."""

    id: str
    title: Annotated[str | None, Field(description="null: it is no longer in the catalogue.")]


class ChangeOut(BaseModel):
    """A change of the catalogue."""

    time: Annotated[str | None, Field(description="ISO 8601; null: earlier versions wrote none.")]
    kind: Literal["added", "removed", "patched"]
    count: Annotated[int, Field(description="The number of items.")]
    items: Annotated[list[ChangedItem], Field(description=f"The first {SHOWN_OF_A_CHANGE} of them.")]
    fields: Annotated[list[str], Field(description="Attributes that were changed.")]


class TakeoverOut(BaseModel):
    """A model that began to serve."""

    checkpoint: str
    generation: int
    since: str


class ChangesOut(BaseModel):
    """What has changed, newest first."""

    changes: list[ChangeOut]
    models: Annotated[
        list[TakeoverOut], Field(description="All that the database has; without one, since this server was started.")
    ]


class ItemsOut(BaseModel):
    """Items of the catalogue."""

    items: list[ItemOut]


class ChangedOut(BaseModel):
    """The ids that were added or removed."""

    ids: list[str]


class ModelOut(BaseModel):
    """The model in service, since when, and the limits of a request."""

    checkpoint: str
    generation: int
    since: Annotated[str, Field(description="When it began to serve, ISO 8601.")]
    limits: dict[str, int]
    info: dict[str, Any]


class LiveOut(BaseModel):
    """The answer of GET /health/live and /health/ready."""

    status: Literal["ok"]


class HealthOut(BaseModel):
    """The server answers."""

    status: Literal["ok"]
    checkpoint: str
    generation: int


class ErrorOut(BaseModel):
    """An error: one sentence that says what is wrong, and where."""

    error: str


Text = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]


class EventIn(Body):
    """Something that a user did with an item."""

    user: Text
    item: Text
    time: Annotated[
        str | int | float | None,
        Field(
            description="ISO 8601, without a zone in UTC; or seconds, milliseconds or microseconds since 1970; null: now."
        ),
    ] = None
    kind: Kind = ""
    id: Annotated[Text | None, Field(description="Your id of the event: the same id again changes nothing.")] = None
    answer: Annotated[Text | None, Field(description="The id of the recommendation that it follows.")] = None


def _events_schema(schema: dict[str, Any]) -> None:
    """The three forms of a body with events, for /openapi.json."""
    events = schema["properties"]["events"]
    whole = {name: schema.pop(name) for name in ("type", "properties", "required", "additionalProperties")}
    schema["anyOf"] = [whole, {**events, "title": "A list of events"}, events["items"]]


class EventsBody(Body):
    """Events to store: {"events": [...]}, the list alone, or one event alone."""

    model_config = ConfigDict(json_schema_extra=_events_schema)

    @model_validator(mode="before")
    @classmethod
    def wrapped(cls, given: Any) -> Any:
        """Bring the list alone, and one event alone, into the form of all."""
        if isinstance(given, dict) and "events" not in given and {"user", "item"} & given.keys():
            given = [given]
        return {"events": given} if isinstance(given, list) else given

    events: Annotated[list[EventIn], Field(min_length=1, max_length=MAX_EVENTS)]


class EventsOut(BaseModel):
    """What became of the events. They are on the disk."""

    stored: int
    duplicates: Annotated[int, Field(description="Were there already.")]
    unknown_items: Annotated[int, Field(description="Events of items that are not in the catalogue; they are kept.")]


class UsersBody(AnswerOptions):
    """Users to recommend items for."""

    users: Annotated[list[Text], Field(min_length=1, max_length=MAX_HISTORIES)]


class UserAnswersOut(BaseModel):
    """One answer for each user, in order."""

    recommendations: list[RecommendationOut]
    variants: Annotated[list[str], Field(description="Which model answered each: main or challenger.")]


class EventOut(BaseModel):
    """An event as it is kept."""

    item: str
    time: Annotated[int, Field(description="Microseconds since 1970.")]
    kind: str
    id: str | None
    answer: str | None


class UserOut(BaseModel):
    """All that is kept of a user."""

    id: str
    events: Annotated[list[EventOut], Field(description="Oldest first.")]
    answers: list[dict[str, Any]]
    feedback: list[dict[str, Any]]


class ErasedOut(BaseModel):
    """What was erased."""

    deleted: Annotated[
        int, Field(description="Rows of the database: the user, events, answers, feedback; 0: none were there.")
    ]


class FeedbackBody(Body):
    """An item of an answer was taken."""

    answer: Text
    item: Text
    kind: Kind = "click"


class FeedbackOut(BaseModel):
    """Whether it is new."""

    stored: Annotated[bool, Field(description="false: it was known already.")]


LIMITS = {
    "histories": MAX_HISTORIES,
    "history": MAX_HISTORY,
    "k": MAX_K,
    "answers": MAX_ANSWERS,
    "explained_answers": MAX_EXPLAINED,
    "candidates": MAX_CANDIDATES,
    "new_items": MAX_NEW_ITEMS,
    "patches": MAX_PATCHES,
    "filter": MAX_LENGTH,
    "boosts": MAX_BOOSTS,
    "caps": MAX_CAPS,
    "events": MAX_EVENTS,
    "body_bytes": MAX_BODY,
}


def validation_sentence(errors: Sequence[Mapping[str, Any]]) -> str:
    """Turn pydantic's errors into one sentence: where, what, and how many more errors there are."""
    first = errors[0]
    source, *path = first["loc"] or ("body",)
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".") or str(source)
    if first["type"] == "json_invalid":
        return f"The body is not JSON: {first['ctx']['error']}, at character {path[0] if path else 0}."
    if first["type"] == "missing" and not path:
        return "The body is missing: send JSON with content-type application/json."
    what = str(first["msg"]).removeprefix("Value error, ")
    given = first.get("input")
    shown = f" (given: {ascii(given)[:60]})" if isinstance(given, str | int | float | bool) else ""
    more = f" There are {len(errors) - 1} more errors." if len(errors) > 1 else ""
    return f"{where}: {what}{shown}.{more}"
