"""Items that are similar to an item, by each of the things that the model knows of items."""

import threading

import torch
from torch import Tensor

from setrec.errors import ConfigError
from setrec.inference.restore import Restored
from setrec.scoring.topk import top_scored

WAYS = ("text", "co_occurrence", "slots", "cf")  # and the sources of --data.vectors, by name
_BLOCK = 1 << 16  # items compared at a time


class SimilarItems:
    """Finds similar items of one version of a catalogue.

        text            cosine of the text vectors
        co_occurrence   cosine of co-occurrence in histories, of a model with item graphs (`neighbours: true`)
        slots           cosine of the item's K tokens side by side, without the constants that all items share
        cf              cosine of the CF vectors
        NAME            cosine of the vectors of this source of --data.vectors

    Args:
        restored: the model with its catalogue.
    """

    def __init__(self, restored: Restored) -> None:
        self._restored = restored
        self._slots: Tensor | None = None  # (N, sum(C)), made when first asked for
        self._lock = threading.Lock()

    @torch.inference_mode()
    def find(self, item: int, by: str, k: int, allowed: Tensor | None = None) -> list[tuple[int, float]]:
        """The k most similar items, (item id, similarity) each, most similar first, of equals the lower id.

        Args:
            item: the item id.
            by: see the class.
            k: the most items.
            allowed: (N,) bool, the items that can be found; None: all.

        Raises:
            ConfigError: the model knows nothing of this kind.
        """
        if by not in self.ways:
            raise ConfigError(f"by is {by!r}; it must be one of {', '.join(self.ways)}.")
        similarity = self._by_graph(item) if by == "co_occurrence" else cosines(self._table(by), item)  # (N,)
        similarity[item] = -torch.inf
        if allowed is not None:
            similarity = similarity.masked_fill(~allowed.to(similarity.device), -torch.inf)  # (N,)
        best, items = top_scored(similarity[None], min(max(k, 0), len(similarity)))  # (1, k)
        pairs = zip(items[0].tolist(), best[0].tolist(), strict=True)
        return [(found, value) for found, value in pairs if value > -torch.inf]

    @property
    def ways(self) -> tuple[str, ...]:
        """What similarity can go by."""
        return (*WAYS, *self._restored.model.chosen_tokens)

    def _table(self, by: str) -> Tensor:
        """The vectors that are compared, (N, any)."""
        model, index = self._restored.model, self._restored.scorer.index
        if by == "slots":
            with self._lock:
                if self._slots is None:
                    self._slots = self._slot_vectors()
                return self._slots
        if by in model.chosen_tokens:
            return model.table(by)
        table = model.text if by == "text" else index.cf  # (N, F), (N, sum(E))
        if not table.shape[1]:
            missing = "semantic" if by == "text" else "collaborative"
            raise ConfigError(f"by {by}: this model has no {missing} slots; choose another of {', '.join(self.ways)}.")
        return table

    def _slot_vectors(self) -> Tensor:
        """Vectors with the inner products of the items' tokens side by side, without the constants: (N, sum(C)).

        <U_1 a, U_1 b> + ... + <U_n a, U_n b> = <M a, M b> with M the root of U_1' U_1 + ... + U_n' U_n, so no item is expanded to K
        tokens of width D.
        """
        tokens, index = self._restored.model.tokens, self._restored.scorer.index
        parts = []
        for tokenizer, codes in zip(tokens.tokenizers, index.codes, strict=True):
            heads = torch.cat([head.get_parameter("weight") for head in tokenizer.heads])  # (n * D, C)
            parts.append(codes.float() @ _root(heads))  # (N, C)
        return torch.cat(parts, dim=1)  # (N, sum(C))

    def _by_graph(self, item: int) -> Tensor:
        """Similarity by co-occurrence, (N,); -inf where two items never occurred together."""
        graphs = self._restored.scorer.graphs
        if graphs is None:
            raise ConfigError(
                "by co_occurrence: this model counts no co-occurrence (trained without neighbours); choose cf, text or slots."
            )
        graph = graphs.cooccurrence
        found = torch.full_like(graphs.recency, -torch.inf)  # (N,)
        there = graph.weight[item] > 0  # (S,)
        found[graph.item[item][there].long()] = graph.weight[item][there]
        return found


def cosines(table: Tensor, item: int) -> Tensor:
    """The cosine of every row of a table, (N, any), with one of them: (N,); -inf where one of the two is a zero row."""
    one = table[item].float()  # (any,)
    parts = []
    for block in table.split(_BLOCK):
        some = block.float()  # (n, any)
        lengths = some.norm(dim=1) * one.norm()  # (n,)
        parts.append(torch.where(lengths > 0, (some @ one) / lengths.clamp(min=1e-12), -torch.inf))
    return torch.cat(parts)  # (N,)


def _root(weight: Tensor) -> Tensor:
    """The symmetric root of W'W, (any, any), for W of (any, any)."""
    square = weight.double().T @ weight.double()
    values, vectors = torch.linalg.eigh(square)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root.float()
