"""The items with the most similar texts: sharpened cosine of the text vectors + similarity of character n-grams / 2.

Up to EXACT_UP_TO items, every item is compared with every other. Above, time must not grow with N squared, so an item is
compared with the candidates of two searches only:

    vectors  k-means puts the vectors into clusters of about CLUSTER items. The candidates of all items of a cluster are the
             items of the nearest clusters, so one dense product compares them (an inverted file, read cluster by cluster).
    n-grams  a sparse product over the rare n-grams only, of which each row keeps its best FAR (sparse_dot_topn). An n-gram that
             d items share costs d^2 products; the rarest are taken as long as they cost WORK products an item.

docs/scaling.md says how many of the true neighbours that finds. A text that is added or removed changes the lists that it enters
or leaves, and no others (`TextNeighbours.changed`). n-grams count as they did in the texts that the lists were first made from.
"""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from setrec.data.catalogue import Catalogue
from setrec.files.hashes import ids_hash
from setrec.files.whole import whole_file
from setrec.scoring.char_ngrams import SHARE, CharNgrams
from setrec.scoring.neighbours import ROWS, Graph, empty, merged, most_similar, now_at
from setrec.scoring.similarity import BLOCK, POWER

log = logging.getLogger(__name__)

NEIGHBOURS, COLD_NEIGHBOURS = 100, 200  # that an item keeps; docs/ledger.md
EXACT_UP_TO = 32_768  # items
CLUSTER = 512  # items of a cluster, about
CANDIDATES = 4096  # items of the nearest clusters, at least
ROUNDS, SAMPLE = 8, 64  # of k-means, and its items for each cluster
WORK, FAR = 20_000, 100  # see above
KEPT_FROM = 5_000  # items: from this size on the lists are kept with the prepared data
KEPT = "text_graphs.safetensors"


class TextGraphs(NamedTuple):
    """The items with the most similar texts."""

    all: Graph  # neighbours among all items
    cold: Graph  # neighbours among the cold ones


class TextSimilarity:
    """Similarity of the texts of items, the same numbers in whatever blocks it is asked for.

    Sums are in float64 and rounded at the end, so that equal texts are equally similar to the bit.

    Args:
        vectors: (N, F) float text vectors; a row of zeros is similar to nothing.
        ngrams: (N, n-grams) sparse float32, rows of unit length or empty; None: there are no texts.
    """

    def __init__(self, vectors: Tensor, ngrams: sp.csr_matrix | None) -> None:
        self.vectors, self.ngrams = vectors, ngrams
        length = torch.cat([rows.double().norm(dim=1) for rows in vectors.split(ROWS)])  # (N,)
        self._scale = 1 / length.clamp(min=1e-12)  # (N,)
        self._columns: sp.csc_matrix | None = None  # (n-grams, N) float64, made when first needed

    def unit(self, items: Tensor | slice, dtype: torch.dtype = torch.float64) -> Tensor:
        """Text vectors of unit length, (b, F)."""
        return self.vectors[items].to(dtype) * self._scale[items, None].to(dtype)

    def whole(self, items: Tensor) -> Tensor:
        """Similarity of these items (b,) int64 with every item: (b, N) float32, 0 with itself."""
        own = self.unit(items)  # (b, F)
        rows = torch.empty(len(items), len(self.vectors))  # (b, N)
        for start in range(0, rows.shape[1], ROWS):
            part = slice(start, start + ROWS)
            rows[:, part] = _sharpened(own @ self.unit(part).T)  # (b, up to ROWS)
        if self.ngrams is not None:
            if self._columns is None:
                self._columns = self.ngrams.T.astype(np.float64).tocsr()
            shared = self.ngrams[items.numpy()].astype(np.float64) @ self._columns  # (b, N) sparse
            rows = (rows.double() + SHARE * torch.from_numpy(shared.toarray())).float()
        rows[torch.arange(len(items)), items] = 0  # a history's items say something about others
        return rows

    def dense(self, items: Tensor, others: Tensor) -> Tensor:
        """The same for some other items (m,) int64, in float32: (b, m)."""
        with torch.autocast("cpu", enabled=False):
            rows = _sharpened(self.unit(items, torch.float32) @ self.unit(others, torch.float32).T)  # (b, m)
        if self.ngrams is not None:
            shared = self.ngrams[items.numpy()] @ self.ngrams[others.numpy()].T  # (b, m) sparse
            rows.add_(torch.from_numpy(shared.toarray()), alpha=SHARE)
        return rows.masked_fill_(items[:, None] == others, 0)

    def pairs(self, items: Tensor, others: Tensor) -> Tensor:
        """The same for pairs, (p,) int64 each, in float32: (p,)."""
        own, theirs = self.unit(items, torch.float32), self.unit(others, torch.float32)  # (p, F)
        found = _sharpened((own * theirs).sum(dim=1))  # (p,)
        if self.ngrams is not None:
            shared = self.ngrams[items.numpy()].multiply(self.ngrams[others.numpy()])  # (p, n-grams) sparse
            found.add_(torch.from_numpy(np.asarray(shared.sum(axis=1)).ravel()), alpha=SHARE)
        return found.masked_fill_(items == others, 0)


def _sharpened(cosine: Tensor) -> Tensor:
    """max(cosine, 0)^POWER, in place where that is possible."""
    return cosine.clamp_(min=0).pow_(POWER)


class TextNeighbours:
    """The text graphs of a catalogue, and what it takes to change them.

    Args:
        catalogue: the items, with text vectors.
        graphs: their lists; None: make them.
        words: the n-grams of the texts that the lists were first made from, and the vectors of the items here; None: of these.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        graphs: TextGraphs | None = None,
        words: tuple[CharNgrams, sp.csr_matrix] | None = None,
    ) -> None:
        self.catalogue = catalogue
        self._words = words
        self._similarity: TextSimilarity | None = None
        self.graphs = graphs if graphs is not None else self._made()

    @property
    def words(self) -> tuple[CharNgrams, sp.csr_matrix] | None:
        """The n-grams, and the vectors of the items here, (N, n-grams) sparse; None: the texts were not kept."""
        if self._words is None and self.catalogue.texts is not None:
            ngrams = CharNgrams(self.catalogue.texts)
            self._words = ngrams, ngrams.vectors
        return self._words

    @property
    def similarity(self) -> TextSimilarity:
        """The similarity of the texts, made when it is first used."""
        if self._similarity is None:
            assert self.catalogue.text is not None, "a catalogue without text vectors has no text graphs"
            self._similarity = TextSimilarity(self.catalogue.text, self.words[1] if self.words is not None else None)
        return self._similarity

    def _made(self) -> TextGraphs:
        by_rank = rank_of(self.catalogue).argsort()  # (N,): the items in the order that decides ties
        cold = by_rank[~self.catalogue.warm[by_rank]]  # (cold,)
        among = [(by_rank, NEIGHBOURS), (cold, COLD_NEIGHBOURS)]
        if self.catalogue.n_items > EXACT_UP_TO:
            return TextGraphs(*found_in_clusters(self.similarity, among))
        everyone = torch.arange(self.catalogue.n_items)
        return TextGraphs(*exact_lists(self.similarity, everyone, among))

    def changed(self, catalogue: Catalogue) -> "TextNeighbours":
        """The same for a catalogue in which items have come or gone; nothing else is compared again.

        An item is the same if its id, its text, its text vector and whether it is cold are.
        """
        if catalogue is self.catalogue:
            return self
        kept = _kept_rows(self.catalogue, catalogue)  # (N',): its row before, -1 where it is new
        new = (kept < 0).nonzero().squeeze(1)  # (new,)
        words = self.words
        if words is not None and catalogue.texts is not None:
            more = words[0].more([catalogue.texts[i] for i in new.tolist()])  # (new, n-grams)
            row = kept.clone()  # (N',)
            row[new] = words[1].shape[0] + torch.arange(len(new))
            words = words[0], sp.vstack([words[1], more], format="csr")[row.numpy()]  # (N', n-grams)
        gone = self.catalogue.n_items - (len(kept) - len(new))
        if gone > self.catalogue.n_items // 50 and catalogue.n_items <= EXACT_UP_TO:
            return TextNeighbours(catalogue, None, words)  # most lists have lost an item: the same lists, made at once
        result = TextNeighbours(catalogue, self.graphs, words)
        rank, warm = rank_of(catalogue), catalogue.warm  # (N',), (N',)
        moved = now_at(kept, self.catalogue.n_items)  # (N,)
        by_rank = rank.argsort()  # (N',)
        among = [(by_rank, NEIGHBOURS), (by_rank[~warm[by_rank]], COLD_NEIGHBOURS)]
        graphs = [
            _changed(graph, result.similarity, kept, moved, new, one, rank)
            for graph, one in zip(self.graphs, among, strict=True)
        ]
        result.graphs = TextGraphs(*graphs)
        return result


def _changed(
    graph: Graph,
    similarity: TextSimilarity,
    kept: Tensor,
    moved: Tensor,
    new: Tensor,
    among: tuple[Tensor, int],
    rank: Tensor,
) -> Graph:
    """One graph after a change. kept: (N',) int64, rows before; moved: (N,) int32, rows after; new: (new,) int64; -1: none."""
    candidates, most = among
    changed = empty(len(kept), min(most, len(candidates)))  # (N', S)
    entering = new[torch.isin(new, candidates)]  # (entering,)
    similar = torch.cat([similarity.whole(some) for some in entering.split(BLOCK)]) if len(entering) else None
    again = [new]
    for rows in torch.arange(len(kept)).split(ROWS):
        before = kept[rows]  # (n,)
        lists = Graph(graph.item[before.clamp(min=0)], graph.weight[before.clamp(min=0)])  # (n, S)
        item = torch.where(lists.weight > 0, moved[lists.item], 0)  # (n, S)
        lost = (item < 0).any(dim=1) & (lists.weight[:, -1:] > 0).any(dim=1)  # (n,): what comes next is not known
        again.append(rows[lost & (before >= 0)])
        lists = Graph(item.clamp(min=0), lists.weight * (item >= 0))  # (n, S)
        more = empty(len(rows), 0)
        if similar is not None:
            more = Graph(entering.int().expand(len(rows), -1), similar[:, rows].T)  # (n, entering)
        best = merged(lists, more, rank, most)  # (n, up to most)
        width = min(best.item.shape[1], changed.item.shape[1])
        changed.item[rows, :width], changed.weight[rows, :width] = best.item[:, :width], best.weight[:, :width]
    anew = torch.cat(again)  # (anew,)
    best = exact_lists(similarity, anew, [among])[0]  # (anew, S)
    changed.item[anew], changed.weight[anew] = best
    return changed


def _kept_rows(before: Catalogue, after: Catalogue) -> Tensor:
    """The row before of every item after, (N',) int64; -1 for a new or another item."""
    row = {own: i for i, own in enumerate(before.ids)}
    kept = torch.tensor([row.get(own, -1) for own in after.ids], dtype=torch.int64)  # (N',)
    assert before.text is not None
    assert after.text is not None
    for rows in torch.arange(len(kept)).split(ROWS):
        old = kept[rows].clamp(min=0)  # (n,)
        same = (before.text[old] == after.text[rows]).all(dim=1) & (before.warm[old] == after.warm[rows])  # (n,)
        if before.texts is not None and after.texts is not None:
            pairs = zip(old.tolist(), rows.tolist(), strict=True)
            same &= torch.tensor([before.texts[i] == after.texts[j] for i, j in pairs])
        kept[rows] = kept[rows].masked_fill(~same, -1)
    return kept


def rank_of(catalogue: Catalogue) -> Tensor:
    """The place of every item in the order of own ids, (N,) int64. It decides ties: it does not depend on when an item came."""
    order = torch.tensor(sorted(range(catalogue.n_items), key=catalogue.ids.__getitem__), dtype=torch.int64)  # (N,)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return rank


def exact_lists(similarity: TextSimilarity, items: Tensor, among: list[tuple[Tensor, int]]) -> list[Graph]:
    """The lists of some items (n,) int64, compared with everything, in blocks: (n, S) for each of `among`.

    among: candidates, (any,) int64, in the order that decides ties, and how many of them an item keeps, S.
    """
    lists = [empty(len(items), min(most, len(candidates))) for candidates, most in among]
    blocks = torch.arange(len(items)).split(BLOCK) if len(items) else ()
    for at in tqdm(blocks, desc="text graphs", disable=len(items) < 50_000, leave=False):
        rows = similarity.whole(items[at])  # (b, N)
        for (candidates, most), graph in zip(among, lists, strict=True):
            best = most_similar(rows[:, candidates], candidates, most)  # (b, S)
            graph.item[at], graph.weight[at] = best
    return lists


# ------------------------------------------------------------------------------------------------------- large catalogues
def found_in_clusters(similarity: TextSimilarity, among: list[tuple[Tensor, int]]) -> list[Graph]:
    """The lists of all items, each compared with the candidates of the two searches: (N, S) for each of `among`."""
    n_items = len(similarity.vectors)
    centres, cluster = clusters(similarity)  # (C, F), (N,)
    near = (centres @ centres.T).argsort(dim=1, descending=True)  # (C, C), its own first
    members = _by_cluster(torch.arange(n_items), cluster, len(centres))
    lists = [empty(n_items, min(most, len(candidates))) for candidates, most in among]
    of = [_by_cluster(candidates, cluster, len(centres)) for candidates, _ in among]
    for c, own in enumerate(tqdm(members, desc="text graphs", disable=n_items < 50_000, leave=False)):
        for (_, most), graph, by_cluster in zip(among, lists, of, strict=True):
            others = _nearest(near[c], by_cluster)  # (m,)
            for some in own.split(BLOCK):
                best = most_similar(similarity.dense(some, others), others, most)  # (b, up to S)
                graph.item[some, : best.item.shape[1]], graph.weight[some, : best.item.shape[1]] = best
    if similarity.ngrams is not None:
        rare = _rare(similarity.ngrams)  # (N, some n-grams) sparse
        for (candidates, _), graph in zip(among, lists, strict=True):
            rank = torch.full((n_items,), len(candidates))  # (N,)
            rank[candidates] = torch.arange(len(candidates))
            for some, found in _far(rare, candidates):
                theirs = Graph(graph.item[some], graph.weight[some])  # (b, S)
                weight = torch.zeros(found.shape)  # (b, FAR)
                row, column = (found[:, :, None] != theirs.item[:, None, :]).all(dim=2).nonzero(as_tuple=True)
                weight[row, column] = similarity.pairs(some[row], found[row, column])
                graph.item[some], graph.weight[some] = merged(
                    theirs, Graph(found.int(), weight), rank, theirs.item.shape[1]
                )
    return lists


def clusters(similarity: TextSimilarity) -> tuple[Tensor, Tensor]:
    """Spherical k-means of the text vectors: centres of unit length, (C, F) float32, and the cluster of every item, (N,) int64."""
    n_items = len(similarity.vectors)
    count = max(1, n_items // CLUSTER)
    draw = torch.Generator().manual_seed(0)
    sample = torch.randperm(n_items, generator=draw)[: count * SAMPLE].sort().values  # (n,)
    vectors = similarity.unit(sample, torch.float32)  # (n, F)
    centres = vectors[torch.randperm(len(sample), generator=draw)[:count]]  # (C, F)
    for _ in range(ROUNDS):
        where = torch.cat([(part @ centres.T).argmax(dim=1) for part in vectors.split(ROWS // 8)])  # (n,)
        sums = torch.zeros_like(centres).index_add_(0, where, vectors)  # (C, F)
        empty_ones = where.bincount(minlength=count) == 0  # (C,): stay where they are
        centres = torch.where(empty_ones[:, None], centres, torch.nn.functional.normalize(sums, dim=1))
    parts = torch.arange(n_items).split(ROWS // 8)
    return centres, torch.cat([(similarity.unit(p, torch.float32) @ centres.T).argmax(dim=1) for p in parts])


def _by_cluster(items: Tensor, cluster: Tensor, count: int) -> list[Tensor]:
    """Items (n,) int64 by their cluster, those of a cluster in the order given."""
    where = cluster[items]  # (n,)
    return list(items[where.argsort(stable=True)].split(where.bincount(minlength=count).tolist()))


def _nearest(near: Tensor, members: list[Tensor]) -> Tensor:
    """The items of the nearest clusters, at least CANDIDATES of them where there are so many: (m,) int64."""
    found, total = [], 0
    for c in near.tolist():
        found.append(members[c])
        total += len(members[c])
        if total >= CANDIDATES:
            break
    return torch.cat(found)


def _rare(ngrams: sp.csr_matrix) -> sp.csr_matrix:
    """The columns of the rarest n-grams, as many as cost WORK products an item."""
    count = np.bincount(ngrams.indices, minlength=ngrams.shape[1]).astype(np.float64)  # (n-grams,)
    order = np.argsort(count, kind="stable")
    some = np.searchsorted(np.cumsum(count[order] ** 2), WORK * ngrams.shape[0])
    return ngrams[:, np.sort(order[:some])]


def _far(rare: sp.csr_matrix, candidates: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Items and their best FAR candidates by rare n-grams: (b,) int64 and (b, FAR) int64; the item itself where there are fewer."""
    from sparse_dot_topn import sp_matmul_topn  # here: only large catalogues need it

    columns = rare[candidates.numpy()].T.tocsr()  # (n-grams, candidates)
    parts = torch.arange(rare.shape[0]).split(ROWS // 8)
    for some in tqdm(parts, desc="text graphs, n-grams", disable=rare.shape[0] < 50_000, leave=False):
        best = sp_matmul_topn(rare[some.numpy()], columns, top_n=FAR, sort=True)  # (b, candidates) sparse
        length = np.diff(best.indptr)  # (b,)
        found = some[:, None].repeat(1, FAR)  # (b, FAR)
        row = np.repeat(np.arange(len(some)), length)  # (entries,)
        place = np.arange(len(row)) - best.indptr[row]  # (entries,)
        found[torch.from_numpy(row), torch.from_numpy(place)] = candidates[torch.from_numpy(best.indices).long()]
        for at in torch.arange(len(some)).split(512):  # rows of pairs that are held at once
            yield some[at], found[at]


# ------------------------------------------------------------------------------------------------------------ on the disk
def text_neighbours(catalogue: Catalogue, folder: Path | None = None, keep: bool = False) -> TextNeighbours | None:
    """The text graphs of a catalogue; None for one without text vectors.

    Large ones take minutes, so they are kept with the prepared data and memory-mapped from there.

    Args:
        catalogue: the items.
        folder: the prepared data that the catalogue is; None: make the graphs.
        keep: write them there.
    """
    if catalogue.text is None:
        return None
    if folder is None or catalogue.n_items < KEPT_FROM:
        return TextNeighbours(catalogue)
    path, made_for = folder / KEPT, _made_for(catalogue)
    graphs = _read(path, made_for)
    if graphs is not None:
        return TextNeighbours(catalogue, graphs)
    made = TextNeighbours(catalogue)
    if keep:
        try:
            _write(path, made_for, made.graphs)
        except OSError as error:
            log.warning("%s was not kept (%s): the text graphs will be made again.", path, error)
    return made


def _made_for(catalogue: Catalogue) -> str:
    """What the graphs depend on, as one hash."""
    assert catalogue.identity is not None, "prepared data has an identity"
    sizes = f"{NEIGHBOURS} {COLD_NEIGHBOURS} {CLUSTER} {CANDIDATES} {ROUNDS} {SAMPLE} {WORK} {FAR} {POWER} {SHARE}"
    texts = "" if catalogue.texts is None else ids_hash(catalogue.texts)
    return hashlib.sha256("\n".join((catalogue.identity.fingerprint, texts, sizes)).encode()).hexdigest()


def _read(path: Path, made_for: str) -> TextGraphs | None:
    """Graphs of the disk, memory-mapped; None: there are none for this catalogue."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("made_for") != made_for:
                return None
            parts = {
                name: Graph(file.get_tensor(f"{name}_item"), file.get_tensor(f"{name}_weight"))
                for name in ("all", "cold")
            }
    except (OSError, SafetensorError) as error:
        log.warning("%s cannot be read (%s): the text graphs are made again.", path, error)
        return None
    if metadata.get("sha256") != _hash(graphs := TextGraphs(**parts)):
        log.warning("%s is not as it was written: the text graphs are made again.", path)
        return None
    return graphs


def _hash(graphs: TextGraphs) -> str:
    """The hash of what the graphs hold."""
    content = hashlib.sha256()
    for tensor in (tensor for graph in graphs for tensor in graph):
        content.update(tensor.contiguous().numpy().data)
    return content.hexdigest()


def _write(path: Path, made_for: str, graphs: TextGraphs) -> None:
    """Write graphs, whole or not at all."""
    tensors = {}
    for name, graph in graphs._asdict().items():
        tensors[f"{name}_item"], tensors[f"{name}_weight"] = graph.item.int().contiguous(), graph.weight.contiguous()
    content = TextGraphs(*(Graph(tensors[f"{name}_item"], tensors[f"{name}_weight"]) for name in ("all", "cold")))
    with whole_file(path) as hidden:
        save_file(tensors, hidden, {"made_for": made_for, "sha256": _hash(content)})
