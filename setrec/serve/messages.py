"""What goes in and out over HTTP: typed bodies with limits, and what their errors say."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MAX_HISTORIES = 512  # in a request
MAX_HISTORY = 2_000  # items of a history; the model reads its last max_history, all are left out of the answer
MAX_K = 500
MAX_ANSWERS = 20_000  # histories x k of a request
MAX_EXPLAINED = 2_000  # the same with explain: every answer then carries its parts
MAX_CANDIDATES = 100_000
MAX_NEW_ITEMS = 1_000  # in a request
MAX_FOUND = 100
MAX_BODY = 8 << 20  # bytes

ItemId = Annotated[str, StringConstraints(min_length=1, max_length=500)]


class Body(BaseModel):
    """A body whose types are taken as they are: "10" is no number, an unknown field is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class RecommendBody(Body):
    """Histories in, recommendations out."""

    histories: Annotated[
        list[Annotated[list[ItemId], Field(max_length=MAX_HISTORY)]],
        Field(
            min_length=1, max_length=MAX_HISTORIES, description="Item ids of each user, oldest first; [] is allowed."
        ),
    ]
    k: Annotated[int, Field(ge=1, le=MAX_K, description="Items to recommend for each history.")] = 10
    exclude_seen: Annotated[bool, Field(description="Leave a history's own items out.")] = True
    candidates: Annotated[
        list[ItemId] | None,
        Field(min_length=1, max_length=MAX_CANDIDATES, description="Recommend only these; null: the whole catalogue."),
    ] = None
    explain: Annotated[bool, Field(description="Say what every slot contributed.")] = False
    beta: Annotated[
        float | None,
        Field(
            ge=0, le=1, description="Weight of the semantic slots against the collaborative; null: as validation chose."
        ),
    ] = None
    unknown: Annotated[
        Literal["skip", "refuse"], Field(description="What to do about ids that are not in the catalogue.")
    ] = "skip"

    @model_validator(mode="after")
    def bounded(self) -> Self:
        """Refuse a request whose answer would be too large."""
        answers, most = len(self.histories) * self.k, MAX_EXPLAINED if self.explain else MAX_ANSWERS
        if answers > most:
            raise ValueError(
                f"{len(self.histories)} histories x k {self.k} are {answers} answers; "
                f"at most {most}{' with explain' if self.explain else ''} in a request"
            )
        return self


class NewItem(Body):
    """An item to add."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=500, strip_whitespace=True)]
    title: Annotated[str, StringConstraints(min_length=1, max_length=2_000)]
    text: Annotated[str | None, Field(max_length=20_000, description="What the encoder reads; null: the title.")] = None
    fields: Annotated[
        dict[str, Annotated[str, StringConstraints(max_length=20_000)]] | None,
        Field(max_length=50, description="Other columns of the data that the encoder's template names."),
    ] = None
    vector: Annotated[
        list[float] | None, Field(max_length=16_384, description="The ready text vector; no encoder is needed then.")
    ] = None


class ItemsBody(Body):
    """Items to add: all of them or, where one is refused, none."""

    items: Annotated[list[NewItem], Field(min_length=1, max_length=MAX_NEW_ITEMS)]


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


class Near(BaseModel):
    """An item of the history and how close it lies."""

    id: str
    cosine: float


class WhyOut(BaseModel):
    """What an answer is made of: the parts add up to its score."""

    parts: dict[str, float]
    nearest_text: list[Near]
    nearest_cf: list[Near]


class RankedOut(BaseModel):
    """A recommended item."""

    id: str
    title: str
    score: float
    warm: Annotated[bool, Field(description="Seen in training; false: cold.")]
    why: WhyOut | None = None


class RecommendationOut(BaseModel):
    """The answer to one history, best first."""

    items: list[RankedOut]
    unknown: Annotated[list[str], Field(description="Ids of the history that are not in the catalogue; skipped.")]


class RecommendOut(BaseModel):
    """One answer for each history, in order."""

    recommendations: list[RecommendationOut]
    generation: Annotated[int, Field(description="Checkpoints taken over since the start, the first being 0.")]


class ItemOut(BaseModel):
    """An item of the catalogue."""

    id: str
    title: str
    warm: bool


class ItemsOut(BaseModel):
    """Items found by their title."""

    items: list[ItemOut]


class ChangedOut(BaseModel):
    """The ids that were added or removed."""

    ids: list[str]


class ModelOut(BaseModel):
    """What is being served, since when, and the limits of a request."""

    checkpoint: str
    generation: int
    since: Annotated[str, Field(description="When it was taken over, ISO 8601.")]
    limits: dict[str, int]
    info: dict[str, Any]


class HealthOut(BaseModel):
    """The server answers."""

    status: Literal["ok"]
    checkpoint: str
    generation: int


class ErrorOut(BaseModel):
    """One sentence: what is wrong, and where."""

    error: str


LIMITS = {
    "histories": MAX_HISTORIES,
    "history": MAX_HISTORY,
    "k": MAX_K,
    "answers": MAX_ANSWERS,
    "explained_answers": MAX_EXPLAINED,
    "candidates": MAX_CANDIDATES,
    "new_items": MAX_NEW_ITEMS,
    "body_bytes": MAX_BODY,
}


def complaint(errors: Sequence[Mapping[str, Any]]) -> str:
    """One sentence for what pydantic found: where, what, and how many more such errors there are."""
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
