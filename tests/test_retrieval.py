"""The index: the same lists as scoring everything, made anew when weights change; faiss behind the same call."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from setrec.backbones import T5Backbone
from setrec.errors import ConfigError
from setrec.module import SETRecModule
from setrec.schemas import Batch
from setrec.scoring.graphs import PAIRS, Graph, Inferred, ItemGraphs, TextGraphs
from setrec.scoring.int8 import Int8Table
from setrec.scoring.retrieval import ExactSearch, FaissSearch, Found, Retriever, Search, overlap
from setrec.scoring.topk import mask_seen, top_items
from setrec.scoring.weights import Weights
from tests.test_model import ROWS, catalogue, evaluation


@pytest.fixture(params=["paper", "memory"])
def module(request: pytest.FixtureRequest) -> SETRecModule:
    torch.manual_seed(1)
    more = {"objective": "score", "memory": True} if request.param == "memory" else {}
    module = SETRecModule(T5Backbone(shape="nano"), n_cf=2, n_sem=2, bottleneck=8, trunk=[12], **more)  # type: ignore[arg-type]
    module.model = module.make_model(catalogue())
    return module.eval()


def all_scores(module: SETRecModule, batch: Batch, beta: float) -> Tensor:
    with torch.no_grad():
        module.scorer.refresh()
        (scores,) = module.scorer.scores(batch, [Weights(beta)])
    return mask_seen(scores, batch.seen)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "search",
    [ExactSearch(items=7, users=2), ExactSearch(), ExactSearch(items=9, int8=True), FaissSearch("Flat"), FaissSearch()],
)
def test_an_exact_search_finds_what_scoring_everything_finds(module: SETRecModule, beta: float, search: Search) -> None:
    batch = evaluation([*ROWS, []])
    found = Retriever(module, search).top(batch, Weights(beta), k=5)
    scores = all_scores(module, batch, beta)
    assert torch.equal(found.item, top_items(scores, 5))
    torch.testing.assert_close(found.score, scores.gather(1, found.item), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("search", [ExactSearch(items=8), FaissSearch("Flat"), FaissSearch()])
def test_lists_longer_than_the_catalogue_end_in_padding(module: SETRecModule, search: Search) -> None:
    batch = evaluation([ROWS[0]])
    found = Retriever(module, search).top(batch, Weights(0.5), k=40)
    unseen = 30 - len(set(ROWS[0]))
    assert (found.item[0] >= 0).sum() == unseen
    assert (found.item[0, unseen:] == -1).all()
    assert len(set(found.item[0, :unseen].tolist()) | set(ROWS[0])) == 30
    shown = Retriever(module, search).top(batch, Weights(0.5), k=40, filter_seen=False)
    assert sorted(shown.item[0, :30].tolist()) == list(range(30))


def test_ties_go_to_the_lower_id_across_blocks() -> None:
    search = ExactSearch(items=4)
    search.build(torch.ones(11, 3))
    found = search.top(torch.ones(2, 3), 6, torch.tensor([[0], [-1]]))
    assert found.item.tolist() == [[1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5]]


def test_the_index_is_kept_until_a_weight_changes(module: SETRecModule) -> None:
    retriever, batch = Retriever(module), evaluation(ROWS)
    assert retriever.refresh()
    assert not retriever.refresh()
    before = retriever.top(batch, Weights(0.5)).score
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    after = retriever.top(batch, Weights(0.5))
    assert not torch.equal(before, after.score)
    assert torch.equal(after.item, top_items(all_scores(module, batch, 0.5), 10))
    module.load_state_dict(module.state_dict())
    assert retriever.refresh()


def test_an_approximate_index_is_scored_exactly_and_its_recall_is_known() -> None:
    torch.manual_seed(0)
    table, rows, nothing = torch.randn(3000, 16), torch.randn(20, 16), torch.empty(20, 0, dtype=torch.int64)
    exact, lists = ExactSearch(), FaissSearch("IVF16,Flat", probes=2)
    exact.build(table)
    lists.build(table)
    true, found = exact.top(rows, 10, nothing), lists.top(rows, 10, nothing)
    torch.testing.assert_close(found.score, torch.einsum("bw,bkw->bk", rows, table[found.item]))
    assert (found.score.diff(dim=1) <= 0).all()
    assert 0.1 < overlap(found, true) < 1.0
    lists.index.nprobe = 16  # every list
    assert overlap(lists.top(rows, 10, nothing), true) == 1.0


def test_quantised_rows_find_candidates_that_are_scored_exactly() -> None:
    """Rows of very different lengths, an odd width, and items that graphs add to; more candidates find more."""
    draw = torch.Generator().manual_seed(0)
    table = torch.randn(20_000, 33, generator=draw) * torch.exp(torch.randn(20_000, 1, generator=draw))
    rows, seen = torch.randn(20, 33, generator=draw), torch.randint(20_000, (20, 5), generator=draw)
    added = Graph(torch.randint(20_000, (20, 50), generator=draw), 30 * torch.rand(20, 50, generator=draw))
    exact = ExactSearch()
    exact.build(table)
    true = exact.top(rows, 10, seen, added)
    recalls = []
    for candidates in (10, 100, 1000):
        quantised = FaissSearch(candidates=candidates)
        quantised.build(table)
        found = quantised.top(rows, 10, seen, added)
        same = found.item == true.item
        torch.testing.assert_close(found.score[same], true.score[same])
        recalls.append(overlap(found, true))
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.9
    assert recalls[-1] > 0.95


def test_too_few_items_for_an_index_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"faiss can't build the index 'PQ' of 9 items"):
        FaissSearch().build(torch.randn(9, 8))


def test_overlap_counts_shared_items() -> None:
    one = Found(torch.tensor([[1, 2, 3], [4, 5, -1]]), torch.zeros(2, 3))
    other = Found(torch.tensor([[3, 9, 1], [7, -1, -1]]), torch.zeros(2, 3))
    assert overlap(other, one) == pytest.approx(2 / 5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 3.0]), st.sampled_from([1, 10, 200]), st.booleans())
def test_bounds_from_integers_hold_and_give_the_exact_lists(seed: int, uneven: float, k: int, graphs: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    scale = torch.exp(uneven * torch.randn(40, generator=draw))  # columns of very different size
    table = torch.randn(700, 40, generator=draw) * scale * torch.exp(uneven * torch.randn(700, 1, generator=draw))
    table[:, 0], table[3] = 1.0, 0.0
    table[600:650] = table[:50]  # ties
    rows = torch.randn(5, 40, generator=draw) / scale
    seen = torch.randint(-1, 700, (5, 9), generator=draw)
    added = Graph(torch.randint(700, (5, 30), generator=draw), torch.rand(5, 30, generator=draw)) if graphs else None
    codes = Int8Table(table)
    middle, apart = codes.bounds(codes.user(rows), 100, 400)
    assert ((middle - rows @ table[100:400].T).abs() <= apart).all()
    fast, plain = ExactSearch(items=256, int8=True), ExactSearch(items=256, int8=False)
    for search in (fast, plain):
        search.build(table)
    one, other = (search.top(rows, k, seen, added) for search in (fast, plain))
    torch.testing.assert_close(one.score, other.score, rtol=1e-4, atol=1e-4)
    wide = (
        other.score - other.score.roll(-1, dims=1) > 1e-3 * other.score.abs()
    )  # no tie with the next, but for rounding
    sure = wide & wide.roll(1, dims=1)
    assert torch.equal(one.item[:, 1:-1][sure[:, 1:-1]], other.item[:, 1:-1][sure[:, 1:-1]])


N = 30


def made_up_graphs(seed: int, text: bool) -> ItemGraphs:
    """Random graphs over 30 items, 5 of them cold."""
    draw = torch.Generator().manual_seed(seed)

    def graph(s: int) -> Graph:
        weight = torch.rand(N, s, generator=draw) * (torch.rand(N, s, generator=draw) < 0.6)
        return Graph(torch.stack([torch.randperm(N, generator=draw)[:s] for _ in range(N)]), weight)

    cold = torch.randperm(N, generator=draw)[:5].sort().values if text else torch.zeros(0, dtype=torch.int64)
    texts = (
        TextGraphs(graph(4), Graph(cold[torch.randint(5, (N, 3), generator=draw)], torch.rand(N, 3))) if text else None
    )
    return ItemGraphs(
        graph(3), graph(2), Inferred(graph(2), graph(2)), PAIRS["near"], texts, torch.rand(N, generator=draw), cold
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 10**6), st.booleans(), st.booleans(), st.sampled_from([3, 10, 40]), st.booleans(),
    st.tuples(*[st.sampled_from([0.0, 0.4, 1.0]), *[st.sampled_from([0.0, 2.0, 8.0])] * 5]),
)  # fmt: skip
def test_with_item_graphs_the_lists_are_those_of_scoring_everything(
    module: SETRecModule, seed: int, text: bool, masked: bool, k: int, few: bool, numbers: tuple[float, ...]
) -> None:
    scorer, weights, batch = module.scorer, Weights(*numbers), evaluation([*ROWS, [], [3]])
    scorer.graphs = made_up_graphs(seed, text)
    allowed = torch.tensor([0, 2, 3, 11, 12, 25, 29]) if few else None
    search = ExactSearch(items=7, users=2, int8=seed % 2 == 0)
    found = Retriever(scorer, search).top(batch, weights, k, masked, allowed)
    with torch.no_grad():
        (scores,) = scorer.scores(batch, [weights])  # (B, N)
    scores = mask_seen(scores, batch.seen) if masked else scores
    kept = torch.ones(N, dtype=torch.bool) if allowed is None else torch.isin(torch.arange(N), allowed)
    expected = top_items(scores, min(k, N), kept)  # (B, k)
    assert torch.equal(found.item[:, : expected.shape[1]], expected)
    real = expected >= 0
    values = scores.gather(1, expected.clamp(min=0))
    torch.testing.assert_close(found.score[:, : expected.shape[1]][real], values[real], rtol=1e-5, atol=1e-5)


def test_a_validation_reads_every_batch_once(module: SETRecModule, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, read = module.scorer, []
    whole = scorer.model.user_vectors
    monkeypatch.setattr(scorer.model, "user_vectors", lambda *args: read.append(1) or whole(*args))
    one, other = evaluation([[1, 2], [3]]), evaluation([[4], [5, 6]])._replace(user=torch.tensor([2, 3]))
    scorer.refresh()
    grid = [Weights(b) for b in (0.0, 0.5, 1.0)]
    for batch in (one, other):
        scorer.hits(batch, torch.tensor([[7], [8]]), batch.seen, grid, 10)
    first = [next(scorer.scores(batch, grid[1:])) for batch in (one, other)]
    assert len(read) == 2
    scorer.refresh()  # a weight may have changed
    again = [next(scorer.scores(batch, grid[1:])) for batch in (one, other)]
    assert len(read) == 4
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
