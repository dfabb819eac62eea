"""A small synthetic world with patterns that a recommender can learn, made from a seed in a second."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from setrec.data.readers.base import EventLog, Reader

_CATEGORIES = {
    "astronomy": ["telescope", "tripod", "eyepiece set", "star chart", "red lamp"],
    "kitchen": ["espresso machine", "coffee grinder", "milk frother", "descaler", "travel mug"],
    "cycling": ["road bike", "bike helmet", "bike pump", "chain oil", "saddle bag"],
    "music": ["acoustic guitar", "guitar strings", "guitar capo", "tuner", "music stand"],
    "drawing": ["sketch book", "pencil set", "soft eraser", "fixative spray", "portfolio case"],
    "gardening": ["raised bed", "potting soil", "seed tray", "watering can", "pruning shears"],
    "camping": ["dome tent", "sleeping bag", "camp stove", "gas cartridge", "head torch"],
    "puzzles": ["jigsaw puzzle", "puzzle mat", "puzzle glue", "picture frame", "sorting trays"],
}
_BRANDS = "Alpenglow Birkholm Corvina Dunmore Estrela Fjordline Galvani Hoshino Iverna Juniper"
_ADJECTIVES = "compact classic deluxe foldable light professional starter sturdy vintage wide"
_BRAND_LIST, _ADJECTIVE_LIST = _BRANDS.split(), _ADJECTIVES.split()
_PER_CATEGORY = 5
_SECONDS, _START = 86_400 * 365, 1_600_000_000  # the world lasts a year
_HALF_HOUR = 1_800 / _SECONDS


class _Items(NamedTuple):
    kind: np.ndarray  # (N,) int: product type, 5 to a category, each followed by the next of its category
    brand: np.ndarray  # (N,) int
    adjective: np.ndarray  # (N,) int
    fame: np.ndarray  # (N,) float: popularity, skewed
    release: np.ndarray  # (N,) float in [0, 1): when it can first be bought; 0: from the start


class SyntheticWorld(Reader):
    """Makes events of synthetic users who buy synthetic items.

    The patterns: a purchase is often followed by the accessory that belongs to it, mostly of the same brand (a coffee grinder
    after an espresso machine). Users have favourite brands, and favourite categories that change over time. Few items are
    famous. A title names brand, quality and product, so the text of an item that is released after training (cold under a
    global time split) tells what it is.

    Args:
        users: how many users there are before cleaning.
        items: how many items there are before cleaning.
        events: events per user on average.
        new_share: share of the items that are released during the year; the last of them are the cold items.
        follow: probability that a purchase follows from the one before it.
        seed: of the whole world.
        views: items that a user looks at in the half hour before a purchase, on average; half of them are products of the same
            kind, the others are famous ones. Events then have a kind, view or buy, and purchases are the same as without views.
        brand_in_text: the title and the text name the brand; false: only the column `brand` does, so that another source of item
            vectors can tell what the text does not.
    """

    needs_raw = False

    def __init__(
        self,
        users: int = 2000,
        items: int = 800,
        events: int = 11,
        new_share: float = 0.45,
        follow: float = 0.5,
        seed: int = 2023,
        views: float = 0.0,
        brand_in_text: bool = True,
    ) -> None:
        self.brand_in_text = brand_in_text
        self.users, self.items, self.events = users, items, events
        self.new_share, self.follow, self.seed, self.views = new_share, follow, seed, views

    def read(self, raw: Path | None) -> EventLog:
        """See `Reader.read`. There are no ratings. Times are in seconds."""
        rng = np.random.default_rng(self.seed)
        world = self._make_items(rng)
        user, item, when = self._make_events(rng, world)
        user_ids, item_ids = np.array([f"user{u:05d}" for u in range(self.users)]), self._item_ids(rng)
        kind = np.full(len(user), "buy")
        if self.views:
            shown = self._make_views(world, user, item, when)
            user, item, when = (
                np.concatenate(pair) for pair in zip(shown, (user, item, when), strict=True)
            )  # (events,) each
            kind = np.concatenate([np.full(len(shown[0]), "view"), kind])  # (events,)
        events = pl.DataFrame(
            {"user": user_ids[user], "item": item_ids[item], "time": (_START + when * _SECONDS).astype(np.int64)}
        )
        if self.views:
            events = events.with_columns(kind=pl.Series(kind))
        return EventLog(events, self._describe(world, item_ids))

    def _item_ids(self, rng: np.random.Generator) -> np.ndarray:
        """Own ids that tell nothing about the item."""
        return np.array([f"B{number:06X}" for number in rng.choice(16**6, self.items, replace=False)])

    def _make_items(self, rng: np.random.Generator) -> _Items:
        n_kinds = sum(map(len, _CATEGORIES.values()))
        release = np.where(rng.random(self.items) < self.new_share, rng.random(self.items), 0.0)
        return _Items(
            kind=rng.permutation(np.arange(self.items) % n_kinds),
            brand=rng.integers(len(_BRAND_LIST), size=self.items),
            adjective=rng.integers(len(_ADJECTIVE_LIST), size=self.items),
            fame=rng.permutation(1.0 / (np.arange(self.items) + 10) ** 0.6),
            release=release,
        )

    def _make_events(self, rng: np.random.Generator, world: _Items) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        category = world.kind // _PER_CATEGORY  # (N,)
        follower = category * _PER_CATEGORY + (world.kind + 1) % _PER_CATEGORY  # (N,) the kind that is bought next
        fame = world.fame / world.fame.mean()
        favourites = rng.gamma(0.15, size=(2, self.users, len(_CATEGORIES))) + 0.01  # at the start and at the end
        brands = rng.gamma(0.2, size=(self.users, len(_BRAND_LIST))) + 0.02
        all_user, all_item, all_time = [], [], []
        for user in range(self.users):
            n = max(3, rng.poisson(self.events))
            times = np.sort(rng.uniform(rng.uniform(0, 0.5), 1, n))
            liked_brand = brands[user, world.brand]  # (N,)
            wanted = np.ones(self.items)  # (N,) 0 where the user has the item already
            last = -1
            for when, chance, place in zip(times, rng.random(n), rng.random(n), strict=True):
                available = (world.release <= when) * wanted  # (N,)
                if last >= 0 and chance < self.follow:
                    weight = (world.kind == follower[last]) * np.where(world.brand == world.brand[last], 12.0, 0.5)
                elif chance < self.follow + 0.4:
                    taste = (1 - when) * favourites[0, user] + when * favourites[1, user]  # (categories,)
                    weight = taste[category] * liked_brand
                else:
                    weight = fame
                fresh = 1 + 3 * (when - world.release < 0.15) * (world.release > 0)  # (N,) new items are bought more
                total = np.cumsum(weight * available * np.sqrt(fame) * fresh)
                if total[-1] <= 0:  # no such item is left for this user
                    total = np.cumsum(available * fame)
                last = int(np.searchsorted(total, place * total[-1], side="right"))
                wanted[last] = 0
                all_user.append(user)
                all_item.append(last)
                all_time.append(when)
        return np.array(all_user), np.array(all_item), np.array(all_time)

    def _make_views(
        self, world: _Items, user: np.ndarray, item: np.ndarray, when: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What users look at before each purchase, from a random stream of its own: user, item, when, (views,) each."""
        rng = np.random.default_rng((self.seed, 1))
        n = rng.poisson(self.views, len(user))  # (purchases,)
        user, bought, when = np.repeat(user, n), np.repeat(item, n), np.repeat(when, n)  # (views,) each
        when = np.maximum(when - rng.uniform(0, _HALF_HOUR, len(when)), 0)
        fame = np.cumsum(world.fame)
        famous = np.searchsorted(fame, rng.random(len(user)) * fame[-1], side="right")  # (views,)
        by_kind = np.argsort(world.kind, kind="stable")  # (N,)
        of_kind = np.bincount(world.kind)  # (kinds,)
        place = (np.cumsum(of_kind) - of_kind)[world.kind[bought]] + (
            rng.random(len(user)) * of_kind[world.kind[bought]]
        ).astype(int)
        seen = np.where(rng.random(len(user)) < 0.5, by_kind[place], famous)  # (views,)
        return user, np.where(world.release[seen] <= when, seen, bought), when

    def _describe(self, world: _Items, item_ids: np.ndarray) -> pl.DataFrame:
        kinds = [(category, kind) for category, group in _CATEGORIES.items() for kind in group]
        rows = []
        for own, kind, brand, adjective in zip(
            item_ids.tolist(), world.kind, world.brand, world.adjective, strict=True
        ):
            category, product = kinds[kind]
            before = kinds[kind - 1 if kind % _PER_CATEGORY else kind + _PER_CATEGORY - 1][1]  # what it follows
            title = f"{_ADJECTIVE_LIST[adjective]} {product}"
            if self.brand_in_text:
                title = f"{_BRAND_LIST[brand]} {title}"
            rows.append((own, title, f"{title}. {category}. for your {before}", category, _BRAND_LIST[brand]))
        return pl.DataFrame(
            rows, schema=dict.fromkeys(("id", "title", "text", "category", "brand"), pl.String), orient="row"
        )
