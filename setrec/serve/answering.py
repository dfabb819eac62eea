"""One batch of requests, as few calls of the model as their options allow."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from setrec.serve.bodies import RecommendBody

if TYPE_CHECKING:  # loading it takes torch; the tests of batching don't
    from setrec.recommend import Recommendation, Recommender


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


def answer_batch(
    recommender: "Recommender", generation: int, requests: Sequence[RecommendBody]
) -> list[Answered | Exception]:
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
        for i, answer in zip(members, _answer_group(recommender, options, [requests[i] for i in members]), strict=True):
            answers[i] = answer if isinstance(answer, Exception) else Answered(answer, generation)
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
