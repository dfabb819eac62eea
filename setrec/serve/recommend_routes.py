"""POST /recommend: items for histories that the request holds."""

import time

from fastapi import APIRouter, Response

from setrec.recommend import RankedItem, Why
from setrec.serve import messages
from setrec.serve.errors import ERRORS
from setrec.serve.model_calls import RequestResult, answer_in_pieces, refuse_unknown
from setrec.serve.service import Service
from setrec.serve.shop import MAIN, new_id


def recommend_routes(service: Service) -> APIRouter:
    """Make the route."""
    routes = APIRouter()

    @routes.post("/recommend", responses=ERRORS, response_model=messages.RecommendOut)
    async def recommend(body: messages.RecommendBody) -> Response:
        """Recommend items for histories. The users need not be in the training data."""
        await service.wait_for(body)
        refuse_unknown(service.holder.current.recommender, body)
        start = time.perf_counter()
        if service.shop is None:
            result = await answer_in_pieces(service.batcher, body)
        else:
            result = await service.shop.recommend(body, MAIN, [None] * len(body.histories))
        took = 1000 * (time.perf_counter() - start)
        kept, items = sum(one.kept for one in result.recommendations), sum(map(len, body.histories))
        service.metrics.count_items(kept, items - kept)
        timing = f'model;dur={took:.1f}, prefix_cache;desc="{kept} of {items} items"'
        content = recommend_out(result).model_dump_json()
        return Response(content, media_type="application/json", headers={"server-timing": timing})

    return routes


def recommend_out(result: RequestResult) -> messages.RecommendOut:
    """The body of an answer."""

    def similar(pairs: list[tuple[str, float]]) -> list[messages.SimilarItem]:
        return [messages.SimilarItem(id=own, cosine=cosine) for own, cosine in pairs]

    def why_out(why: Why) -> messages.WhyOut:
        return messages.WhyOut(
            parts=why.parts, nearest_text=similar(why.nearest_text), nearest_cf=similar(why.nearest_cf),
            like=None if why.like is None else similar([why.like])[0],
            left_out=[messages.LeftOut(id=own, column=column) for own, column in why.left_out],
        )  # fmt: skip

    def ranked_out(item: RankedItem) -> messages.RankedOut:
        why = None if item.why is None else why_out(item.why)
        return messages.RankedOut(id=item.id, title=item.title, score=item.score, warm=item.warm, why=why)

    rows = [
        messages.RecommendationOut(id=own, items=[ranked_out(item) for item in one.items], unknown=one.unknown)
        for own, one in zip(
            result.ids or [new_id() for _ in result.recommendations], result.recommendations, strict=True
        )
    ]
    return messages.RecommendOut(recommendations=rows, generation=result.generation)
