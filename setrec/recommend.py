"""The public API of a trained model: histories in, items out, in the users' own ids.

    from setrec import Recommender
    r = Recommender.load("lightning_logs/version_0/checkpoints/epoch-03.ckpt")
    r.recommend([["B0002F7KUG", "B003EIK136"]], k=5)

Any number of threads may ask at once. What they ask is an immutable state; a change of the catalogue makes another one and
puts it in its place.
"""

import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from setrec.data.batches import EvalRows
from setrec.data.catalogue import Catalogue, Ragged
from setrec.errors import ConfigError, DataError
from setrec.explain import Why, explain, nearest_by_cf, nearest_by_text
from setrec.metrics import mask_seen, top_items
from setrec.module import SETRecModule
from setrec.restore import Trained, build, read_trained
from setrec.schemas import PAD, Batch

BLOCK = 256  # histories scored together, as in `test`
SCORES = 1 << 26  # most scores held at once: fewer histories a block where the catalogue is large


class RankedItem(NamedTuple):
    """One recommended item."""

    id: str
    title: str
    score: float
    warm: bool  # seen in training
    why: Why | None  # only where asked for


class Recommendation(NamedTuple):
    """What one history gets."""

    items: list[RankedItem]  # best first; fewer than k where fewer can be recommended
    unknown: list[str]  # ids of the history that the catalogue doesn't have, each once


class Item(NamedTuple):
    """An item of the catalogue."""

    id: str
    title: str
    warm: bool


class State(NamedTuple):
    """Everything an answer depends on; never changed once it is made."""

    module: SETRecModule
    catalogue: Catalogue
    row: dict[str, int]  # own id -> item id
    folded: list[str]  # N titles without case, for the search
    by_fame: np.ndarray  # (N,) int64 item ids, the most bought in training first


def make_state(module: SETRecModule, catalogue: Catalogue) -> State:
    """The state of a model over a catalogue."""
    row = {own: i for i, own in enumerate(catalogue.ids)}
    by_fame = np.argsort(-catalogue.count.numpy(), kind="stable")  # (N,)
    return State(module, catalogue, row, [title.casefold() for title in catalogue.titles], by_fame)


class Recommender:
    """A trained SETRec with its catalogue. Make one with `load`."""

    def __init__(self, trained: Trained, state: State) -> None:
        self._trained = trained
        self._state = state
        self._changing = threading.Lock()  # one change of the catalogue at a time

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", data: str | Path | None = None) -> "Recommender":
        """A model from the disk.

        Args:
            path: a checkpoint of fit.
            device: where it computes: cpu, cuda, cuda:1.
            data: the folder of prepared data, where it is not where the checkpoint says.

        Raises:
            ConfigError: no such file, no SETRec checkpoint, or one of other data.
            DataError: its prepared data is not there.
        """
        path = Path(path)
        if not path.exists():
            raise ConfigError(f"{path}: no such file; give the path that fit printed at its end.")
        trained = read_trained(path, Path(data) if data is not None else None)
        module = build(trained, trained.catalogue, torch.device(device))
        return cls(trained, make_state(module, trained.catalogue))

    # ---------------------------------------------------------------------------------------------------- recommending
    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        exclude_seen: bool = True,
        candidates: Collection[str] | None = None,
        explain: bool = False,
        beta: float | None = None,
        unknown: Literal["skip", "refuse"] = "skip",
    ) -> list[Recommendation]:
        """The best items for each history.

        Args:
            histories: each user's items, oldest first, in own ids; an empty one gets what the model recommends anybody.
                Only the last max_history items are read, but all of them count as seen.
            k: items for each history.
            exclude_seen: leave the history's own items out.
            candidates: only these items, in own ids (in stock, in a region); None: the whole catalogue.
            explain: say why; costs about as much again.
            beta: weight of the semantic slots, 0 to 1; None: as chosen on validation.
            unknown: an id that the catalogue doesn't have is skipped, and reported in the answer; or refused.

        Returns:
            One Recommendation for each history, in their order.

        Raises:
            ConfigError: k or beta out of range.
            DataError: unknown ids under `refuse`; a history that is no list of texts.
        """
        state = self._state  # the same one to the end, whatever else happens
        if k < 1:
            raise ConfigError(f"k is {k}; it must be 1 or more.")
        rows, strange = read_histories(histories, state.row, unknown)
        allowed = self._allowed(state, candidates, unknown)
        found: list[Recommendation | None] = [None] * len(rows)
        for places, batch in self._batches(rows, state):
            lists = self._rank(state, batch, k, exclude_seen, allowed, explain, self._beta(state, beta))
            for place, items in zip(places.tolist(), lists, strict=True):
                found[place] = Recommendation(items, strange[place])
        return [answer for answer in found if answer is not None]

    def _beta(self, state: State, beta: float | None) -> float:
        variants = state.module.variants
        if beta is not None and not 0 <= beta <= 1:
            raise ConfigError(f"beta is {beta}; it must be between 0 (collaborative) and 1 (semantic).")
        if beta is None or len(variants) == 1:  # with one kind of slot there is nothing to weigh
            return float(state.module.beta) if len(variants) > 1 else variants[0]
        return float(beta)

    def _allowed(self, state: State, candidates: Collection[str] | None, unknown: str) -> Tensor | None:
        """(N,) bool, None for all."""
        if candidates is None:
            return None
        if isinstance(candidates, str):
            raise DataError("candidates is one text; give a list of item ids.")
        rows = [state.row.get(own, PAD) for own in candidates]
        if unknown == "refuse" and PAD in rows:
            own = next(own for own in candidates if own not in state.row)
            raise DataError(f"candidates: item {own!r} is not in the catalogue.")
        allowed = torch.zeros(state.catalogue.n_items, dtype=torch.bool)  # (N,)
        allowed[[row for row in rows if row != PAD]] = True
        return allowed.to(state.module.device)

    def _batches(self, rows: list[list[int]], state: State) -> Iterator[tuple[np.ndarray, Batch]]:
        """Blocks of histories of like length: their places (b,) and the batch. The blocks of `test`, for its users."""
        eval_rows = EvalRows(Ragged.from_rows(rows), Ragged.from_rows([[]] * len(rows)), self._trained.max_history)
        order = np.argsort(eval_rows.shown, kind="stable")
        size = max(1, min(BLOCK, SCORES // max(state.catalogue.n_items, 1)))
        for start in range(0, len(order), size):
            places = order[start : start + size]
            yield places, Batch(*(tensor.to(state.module.device) for tensor in eval_rows[places]))

    @torch.inference_mode()
    def _rank(
        self,
        state: State,
        batch: Batch,
        k: int,
        exclude_seen: bool,
        allowed: Tensor | None,
        with_why: bool,
        beta: float,
    ) -> list[list[RankedItem]]:
        """The lists of a block of histories."""
        module, catalogue = state.module, state.catalogue
        (scores,) = module.score_variants(batch, (beta,))  # (B, N)
        if exclude_seen:
            scores = mask_seen(scores, batch.seen)  # (B, N)
        items = top_items(scores, min(k, catalogue.n_items), allowed)  # (B, k)
        values = scores.gather(1, items.clamp(min=0)).float().tolist()  # B lists of k
        ids = items.tolist()
        whys: list[list[Why]] | None = None
        if with_why:
            assert module.model is not None
            real = items.clamp(min=0)  # (B, k)
            parts = {name: part.cpu() for name, part in module.parts(batch, beta, real).items()}
            text, cf = nearest_by_text(module.model, batch, real), nearest_by_cf(module.model, batch, real)
            text, cf = type(text)(*(t.cpu() for t in text)), type(cf)(*(t.cpu() for t in cf))
            places = [[j for j, item in enumerate(row) if item != PAD] for row in ids]
            whys = [explain(parts, text, cf, b, here, catalogue.ids) for b, here in enumerate(places)]
        warm = (catalogue.count[items.clamp(min=0).cpu()] > 0).tolist()  # B lists of k
        return [
            [
                RankedItem(
                    catalogue.ids[item],
                    catalogue.titles[item],
                    values[b][j],
                    warm[b][j],
                    whys[b][j] if whys is not None else None,
                )
                for j, item in enumerate(row)
                if item != PAD  # missing places are at the end
            ]
            for b, row in enumerate(ids)
        ]

    # ------------------------------------------------------------------------------------------------------- the model
    def search(self, text: str, limit: int = 20) -> list[Item]:
        """Items whose title holds `text`, or whose id it is; the most bought first."""
        state, wanted = self._state, text.casefold().strip()
        catalogue, folded = state.catalogue, state.folded
        places = [i for i in state.by_fame.tolist() if wanted in folded[i]]
        own = state.row.get(text.strip())
        if own is not None:
            places = [own, *(i for i in places if i != own)]
        return [
            Item(catalogue.ids[i], catalogue.titles[i], bool(catalogue.count[i] > 0)) for i in places[: max(limit, 0)]
        ]

    @property
    def betas(self) -> tuple[float, ...]:
        """The grid that validation chose from; one value where there is nothing to weigh."""
        return self._state.module.variants

    @property
    def beta(self) -> float:
        """What it chose."""
        return self._beta(self._state, None)

    def info(self) -> dict[str, Any]:
        """What is being served, in plain types."""
        state, trained = self._state, self._trained
        module, catalogue = state.module, state.catalogue
        n_warm = int(catalogue.warm.sum())
        backbone = trained.arguments["backbone"]
        size = backbone.get("init_args", {})
        return {
            "name": catalogue.name,
            "n_items": catalogue.n_items,
            "warm": n_warm,
            "cold": catalogue.n_items - n_warm,
            "slots": {"cf": module.n_cf, "sem": module.n_sem},
            "beta": self._beta(state, None),
            "max_history": trained.max_history,
            "fingerprint": catalogue.fingerprint,
            "model": {
                "label": module.label,
                "backbone": backbone["class_path"].rpartition(".")[2],
                "size": size.get("pretrained") or size.get("shape"),
                "weights": sum(p.numel() for p in module.parameters()),
            },
            "path": str(trained.path),
            "results": summary(trained.results),
        }


def summary(results: dict[str, Any] | None) -> dict[str, Any] | None:
    """The few figures of results.json that a page shows: recall@10 and ndcg@10 of every group."""
    if results is None:
        return None
    figures = {
        group: {name: row[name] for name in ("recall@10", "ndcg@10")} for group, row in results["metrics"].items()
    }
    protocol = results["protocol"]
    return {"filter_seen": protocol["filter_seen"], "date": protocol["date"], "metrics": figures}


def read_histories(
    histories: Sequence[Sequence[str]], row: dict[str, int], unknown: Literal["skip", "refuse"]
) -> tuple[list[list[int]], list[list[str]]]:
    """Own ids -> item ids, and the ids of each history that are unknown, each once.

    Raises:
        DataError: one is unknown under `refuse`; a history is no list.
    """
    if isinstance(histories, str):
        raise DataError("histories is one text; give a list of histories, each a list of item ids.")
    known, strange = [], []
    for number, history in enumerate(histories):
        if isinstance(history, str):
            raise DataError(f"history {number} is the text {history!r}; give a list of item ids for each user.")
        rows = [row.get(own, PAD) for own in history]
        odd = list(dict.fromkeys(str(own) for own, at in zip(history, rows, strict=True) if at == PAD))
        if odd and unknown == "refuse":
            raise DataError(f"history {number}: item {odd[0]!r} is not in the catalogue; leave it out or add it.")
        known.append([at for at in rows if at != PAD])
        strange.append(odd)
    return known, strange
