"""From requests to calls of the model: large requests in pieces, small ones together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from setrec.errors import DataError
from setrec.serve.batching import Batcher
from setrec.serve.messages import RecommendBody

if TYPE_CHECKING:
    from setrec.recommend import Recommendation, Recommender
    from setrec.serve.models import Served


class Answered(NamedTuple):
    """The answer to one request, and the model that gave it."""

    recommendations: "list[Recommendation]"  # one for each history
    generation: int


class Options(NamedTuple):
    """Requests that agree on these are answered by one call; k is theirs to differ in."""

    exclude_seen: bool
    explain: bool
    beta: float | None
    unknown: Literal["skip", "refuse"]
    candidates: frozenset[str] | None


async def answer_in_pieces(batcher: Batcher[RecommendBody, Answered], body: RecommendBody) -> Answered:
    """The answer to a request, asked for in pieces of at most a batch, so that a large one lets others in between.

    All of it comes from one model: where a takeover falls between two pieces, it begins anew.

    Raises:
        BusyError, SETRecError: see `Batcher.submit`, `Recommender.recommend`.
    """
    size = batcher.max_batch
    while True:
        pieces: list[Answered] = []
        for start in range(0, len(body.histories), size):
            piece = body.model_copy(update={"histories": body.histories[start : start + size]})
            pieces.append(await batcher.submit(piece, len(piece.histories)))
            if pieces[-1].generation != pieces[0].generation:
                break
        else:
            return Answered([one for piece in pieces for one in piece.recommendations], pieces[0].generation)


def refuse_unknown(recommender: "Recommender", body: RecommendBody) -> None:
    """For requests that want it so.

    Raises:
        DataError: an id that is not in the catalogue, with its place.
    """
    if body.unknown == "refuse":
        for name, ids in [(f"histories[{row}]", ids) for row, ids in enumerate(body.histories)] + [
            ("candidates", body.candidates or [])
        ]:
            for place, own in enumerate(ids):
                if own not in recommender:
                    raise DataError(
                        f"{name}[{place}]: {own!a} is not in the catalogue; leave it out, or let unknown be skip."
                    )


def answer_batch(served: "Served", requests: Sequence[RecommendBody]) -> list[Answered | Exception]:
    """One answer or one error for each request, in order.

    A request at fault doesn't spoil its neighbours: a call that fails is repeated request by request.
    """
    groups: dict[Options, list[int]] = {}
    for i, body in enumerate(requests):
        candidates = frozenset(body.candidates) if body.candidates is not None else None
        options = Options(body.exclude_seen, body.explain, body.beta, body.unknown, candidates)
        groups.setdefault(options, []).append(i)
    answers: list[Answered | Exception] = [RuntimeError("no answer")] * len(requests)
    for options, members in groups.items():
        for i, answer in zip(
            members, _answer_group(served.recommender, options, [requests[i] for i in members]), strict=True
        ):
            answers[i] = answer if isinstance(answer, Exception) else Answered(answer, served.generation)
    return answers


def _answer_group(
    recommender: "Recommender", options: Options, bodies: list[RecommendBody]
) -> "list[list[Recommendation] | Exception]":
    try:
        every = recommender.recommend(
            [history for body in bodies for history in body.histories],
            k=max(body.k for body in bodies),
            exclude_seen=options.exclude_seen,
            candidates=options.candidates,
            explain=options.explain,
            beta=options.beta,
            unknown=options.unknown,
        )
    except Exception as error:
        if len(bodies) == 1:
            return [error]
        return [answer for body in bodies for answer in _answer_group(recommender, options, [body])]
    answers: list[list[Recommendation] | Exception] = []
    start = 0
    for body in bodies:
        mine = every[start : start + len(body.histories)]
        start += len(body.histories)
        answers.append([one._replace(items=one.items[: body.k]) for one in mine])
    return answers
