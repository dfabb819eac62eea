"""A Recommender without a model, for tests of the server around it: its checkpoint is a small JSON file."""

import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import uvicorn
from fastapi import FastAPI

from setrec.errors import ConfigError, DataError, ModelError
from setrec.inference.attributes import Attributes
from setrec.inference.explain import Why
from setrec.inference.journal import Journal
from setrec.inference.similar import WAYS
from setrec.recommend import Item, ItemDetails, RankedItem, Recommendation, SimilarItem
from setrec.serve.model_holder import ModelHolder

TOKEN = "s3cret"
WITH_TOKEN = {"authorization": f"Bearer {TOKEN}"}


def write_checkpoint(path: Path, n_items: int = 20, shift: float = 0.0, delay: float = 0.0, fault: str = "") -> Path:
    """A file that `FakeRecommender.load` takes.

    Args:
        path: the file.
        n_items: items A000, A001, ...; every fourth is cold.
        shift: the first score; it tells one checkpoint from another.
        delay: seconds that a call of recommend takes.
        fault: "recommend": every call fails; "sick": its scores are not finite.
    """
    path.write_text(json.dumps({"n_items": n_items, "shift": shift, "delay": delay, "fault": fault}))
    return path


class FakeRecommender:
    """Ranks items by their place in the catalogue: scores shift, shift - 1, shift - 2 ..."""

    def __init__(self, n_items: int, shift: float, delay: float, fault: str) -> None:
        self.titles = {f"A{i:03d}": f"toy train {i}" for i in range(n_items)}
        self.warm = {own: i % 4 != 3 for i, own in enumerate(self.titles)}
        self.shift, self.delay, self.fault = shift, delay, fault
        self.calls: list[int] = []  # histories of each call
        self.threads: set[int] = set()
        self.betas: list[float | None] = []
        self.rules: list[tuple[Any, ...]] = []  # filter, diversity, caps, boosts of each call
        self.fields: dict[str, dict[str, Any]] = {  # attributes
            own: {"colour": ("red", "blue")[i % 2], "price": i * 2.5, "in_stock": i % 3 > 0}
            for i, own in enumerate(self.titles)
        }
        self.added: list[dict[str, Any]] = []  # as they came

    prefix_cache_bytes = 0
    journal = None
    lines = 0

    @classmethod
    def load(cls, path: Path) -> "FakeRecommender":
        return cls(**json.loads(path.read_text()))

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        exclude_seen: bool = True,
        candidates: Any = None,
        explain: bool = False,
        beta: float | None = None,
        unknown: str = "skip",
        filter: str | None = None,
        diversity: float = 0.0,
        caps: dict[str, int] | None = None,
        boosts: Any = None,
        kinds: Any = None,
    ) -> list[Recommendation]:
        self.calls.append(len(histories))
        self.threads.add(threading.get_ident())
        self.betas.append(beta)
        self.rules.append((filter, diversity, caps, boosts))
        admitted = self._admitted(filter)
        if self.delay:
            time.sleep(self.delay)
        if self.fault == "recommend":
            raise RuntimeError("a fault in the model")
        if self.fault == "sick":
            raise ModelError("the scores are not finite.")
        answers = []
        for row, history in enumerate(histories):
            missing = [own for own in history if own not in self.titles]
            if missing and unknown == "refuse":
                raise DataError(f"history {row}: item {missing[0]!r} is not in the catalogue.")
            places = {own: i for i, own in enumerate(self.titles)}
            kept = [
                own for own in self.titles
                if not (exclude_seen and own in history) and (candidates is None or own in candidates) and admitted[own]
            ]  # fmt: skip
            ranked = []
            for own in kept[:k]:
                score = self.shift - places[own]
                parts = {"cf_0": score - 0.25, "sem_0": 0.5, "sem_1": -0.25}
                similar = [(known, 0.5) for known in history if known in self.titles][:3]
                why = Why(parts, similar, similar) if explain else None
                ranked.append(RankedItem(own, self.titles[own], score, self.warm[own], why))
            answers.append(Recommendation(ranked, missing))
        return answers

    def __len__(self) -> int:
        return len(self.titles)

    def __contains__(self, own: object) -> bool:
        return own in self.titles

    @property
    def attributes(self) -> Attributes:
        rows = [
            {"id": own, "title": title} | dict.fromkeys(("colour", "price", "in_stock")) for own, title in self.titles.items()
        ]  # fmt: skip
        return Attributes(pl.DataFrame(rows, infer_schema_length=None), self.fields)

    def _admitted(self, filter: str | None) -> dict[str, bool]:
        if filter is None:
            return dict.fromkeys(self.titles, True)
        return dict(zip(self.titles, self.attributes.mask(filter).tolist(), strict=True))

    def _items(self, found: Iterable[str], limit: int, filter: str | None) -> list[Item]:
        admitted = self._admitted(filter)
        return [Item(own, self.titles[own], self.warm[own]) for own in found if admitted[own]][:limit]

    def search(self, text: str, limit: int = 20, filter: str | None = None) -> list[Item]:
        found = [own for own, title in self.titles.items() if text.casefold() in title.casefold()]
        return self._items(found, limit, filter)

    def popular(self, limit: int, filter: str | None = None, counts: Any = None) -> list[Item]:
        return self._items(self.titles, limit, filter)

    def latest(self, limit: int, filter: str | None = None) -> list[Item]:
        return self._items(reversed(self.titles), limit, filter)

    def item(self, own: str) -> ItemDetails:
        attributes = self.attributes.of(list(self.titles).index(own))
        return ItemDetails(own, self.titles[own], self.warm[own], 3, attributes)

    def similar(self, own: str, by: str = "text", k: int = 10, filter: str | None = None) -> list[SimilarItem]:
        if by == "co_occurrence":
            raise ConfigError("by co_occurrence: this model counts no co-occurrence.")
        if by not in WAYS:
            raise ConfigError(f"by is {by!r}; it must be one of {', '.join(WAYS)}.")
        others = [one for one in self.titles if one != own]
        found = self._items(others if by == "text" else reversed(others), k, filter)
        return [SimilarItem(*one, 1 / (place + 1)) for place, one in enumerate(found)]

    @contextmanager
    def at_once(self) -> Iterator[None]:
        yield

    def patch_items(self, patches: dict[str, dict[str, Any]], keep: Any = None) -> None:
        attributes = self.attributes
        fitted = {own: attributes.fitting(own, fields) for own, fields in patches.items()}
        if keep is not None:
            keep()
        for own, fields in fitted.items():
            self.titles[own] = fields.get("title", self.titles[own])
            self.fields[own] = self.fields.get(own, {}) | fields

    def add_items(self, items: list[dict[str, Any]], encoder: Any = None, keep: Any = None) -> list[str]:
        ids = [item["id"] for item in items]
        if len({"vector" in item for item in items}) > 1:
            raise DataError("some items have a vector, some have none.")
        for own in ids:
            if own in self.titles or ids.count(own) > 1:
                raise DataError(f"item {own!r} is there already.")
        if keep is not None:
            keep()
        self.added = [*self.added, *items]
        self.titles = self.titles | {item["id"]: item["title"] for item in items}
        self.warm = self.warm | dict.fromkeys(ids, False)
        return ids

    def remove_items(self, ids: Sequence[str], keep: Any = None) -> None:
        if keep is not None:
            keep()
        self.titles = {own: title for own, title in self.titles.items() if own not in ids}

    def info(self) -> dict[str, Any]:
        n_warm = sum(self.warm[own] for own in self.titles)
        return {
            "name": "fake", "n_items": len(self.titles), "warm": n_warm, "cold": len(self.titles) - n_warm,
            "slots": {"cf": 1, "sem": 2}, "beta": 0.5, "attributes": self.attributes.columns,
        }  # fmt: skip


def holder_of(folder: Path) -> ModelHolder:
    """A fake checkpoint in service, and its journal, in a folder; the checkpoint is made unless it is there."""
    path = folder / "model.ckpt"
    if not path.exists():
        write_checkpoint(path)
    return ModelHolder(path, FakeRecommender.load, Journal(folder / "items.jsonl"), folder)  # type: ignore[arg-type]


def ids(answer: Any, row: int = 0) -> list[str]:
    """The recommended ids of one history in an answer of POST /recommend."""
    return [item["id"] for item in answer.json()["recommendations"][row]["items"]]


@contextmanager
def listening(app: FastAPI, **options: Any) -> Iterator[str]:
    """Run an application on a port of this machine, in a thread; gives its address, without a slash at the end.

    options: of uvicorn.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as port:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [port]})
        address = f"http://127.0.0.1:{port.getsockname()[1]}"
        thread.start()
        try:
            yield address
        finally:
            server.should_exit = True
            thread.join()
