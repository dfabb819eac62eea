"""From requests to calls of the model: a large request is cut into pieces, and small ones share a call."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import NamedTuple

from setrec.errors import DataError
from setrec.inference.options import Boost, RecommendOptions
from setrec.recommend import Recommendation, Recommender
from setrec.serve.batching import Batcher
from setrec.serve.messages import RecommendBody
from setrec.serve.model_holder import ServedModel


class RequestResult(NamedTuple):
    """The answer to one request, and the model that gave it."""

    recommendations: list[Recommendation]  # one for each history
    generation: int  # of the model
    model: str = ""  # its file and what it holds
    ids: list[str] | None = None  # of the answers


async def answer_in_pieces(batcher: Batcher[RecommendBody, RequestResult], body: RecommendBody) -> RequestResult:
    """Answer a request in pieces of at most one batch, so that other requests are answered in between.

    One model gives the whole answer: after a takeover between two pieces, all pieces are answered again.

    Raises:
        BusyError: see `Batcher.submit`.
        SETRecError: see `Recommender.recommend`.
    """
    size = batcher.max_batch
    while True:
        pieces: list[RequestResult] = []
        for start in range(0, len(body.histories), size):
            some = slice(start, start + size)
            kinds = None if body.kinds is None else body.kinds[some]
            piece = body.model_copy(update={"histories": body.histories[some], "kinds": kinds})
            pieces.append(await batcher.submit(piece, len(piece.histories)))
            if pieces[-1].generation != pieces[0].generation:
                break
        else:
            return RequestResult([one for piece in pieces for one in piece.recommendations], *pieces[0][1:])


def refuse_unknown(recommender: Recommender, body: RecommendBody) -> None:
    """Refuse a request with an unknown id, if it asks for that.

    Raises:
        DataError: an id is not in the catalogue; the message gives its place in the body.
    """
    if body.unknown == "refuse":
        lists = [(f"histories[{row}]", ids) for row, ids in enumerate(body.histories)]
        for name, ids in [*lists, ("candidates", body.candidates or [])]:
            for place, own in enumerate(ids):
                if own not in recommender:
                    raise DataError(
                        f"{name}[{place}]: {own!a} is not in the catalogue; leave it out, or set unknown to skip."
                    )


def answer_batch(served: ServedModel, requests: Sequence[RecommendBody]) -> list[RequestResult | Exception]:
    """Answer a batch: one answer or one error for each request, in order. Requests with equal options share a call.

    A request at fault does not harm the others: if a call fails, each of its requests gets a call of its own.
    """
    groups: dict[RecommendOptions, list[int]] = {}
    for i, body in enumerate(requests):
        groups.setdefault(replace(options_of(body), k=1), []).append(i)  # requests may differ in k
    answers: list[RequestResult | Exception] = [RuntimeError("no answer")] * len(requests)
    for options, members in groups.items():
        found = _answer_group(served.recommender, options, [requests[i] for i in members])
        for i, answer in zip(members, found, strict=True):
            answers[i] = (
                answer if isinstance(answer, Exception) else RequestResult(answer, served.generation, served.name)
            )
    return answers


def options_of(body: RecommendBody) -> RecommendOptions:
    """The options in a request."""
    given = {field.name: getattr(body, field.name) for field in fields(RecommendOptions)}
    if body.candidates is not None:
        given["candidates"] = frozenset(body.candidates)
    if body.boosts is not None:
        given["boosts"] = [Boost(boost.filter, boost.add) for boost in body.boosts]
    return RecommendOptions(**given)


def _answer_group(
    recommender: Recommender, options: RecommendOptions, requests: list[RecommendBody]
) -> list[list[Recommendation] | Exception]:
    """Answer requests that agree in everything but k by one call."""
    histories = [history for body in requests for history in body.histories]
    kinds: list[list[str] | None] = []
    for body in requests:
        kinds += body.kinds if body.kinds is not None else [None] * len(body.histories)
    try:
        asked = vars(replace(options, k=max(body.k for body in requests)))
        found = recommender.recommend(histories, kinds=kinds, **asked)
    except Exception as error:
        if len(requests) == 1:
            return [error]
        return [answer for body in requests for answer in _answer_group(recommender, options, [body])]
    answers: list[list[Recommendation] | Exception] = []
    start = 0
    for body in requests:
        of_request = found[start : start + len(body.histories)]
        start += len(body.histories)
        answers.append([one._replace(items=one.items[: body.k]) for one in of_request])
    return answers
