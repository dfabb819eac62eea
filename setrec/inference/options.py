"""The options of a recommendation, written once: Python, HTTP and `setrec predict --histories` all use them."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from setrec.errors import ConfigError

Unknown = Literal["skip", "refuse"]
MAX_BOOSTS = 5


@dataclass(frozen=True)
class Boost:
    """What some items get beside their score.

    Args:
        filter: Which items: a filter, see `RecommendOptions`.
        add: How much, in units of the spread: how far the best score lies above the 100th. 1 brings an item from place 100 to
            the top; less than 0 takes away.

    Raises:
        ConfigError: `add` is not a number between -100 and 100.
    """

    filter: str
    add: float

    def __post_init__(self) -> None:
        """Check the number."""
        if not (math.isfinite(self.add) and abs(self.add) <= 100):
            raise ConfigError(f"boosts: add is {self.add}; it must be between -100 and 100.")

    @property
    def part(self) -> str:
        """What the explanation calls it."""
        return f"boost: {self.filter}"


@dataclass(frozen=True)
class RecommendOptions:
    """What can be chosen when items are recommended.

    Args:
        k: Items for each history.
        exclude_seen: Leave out the items of the history itself.
        candidates: Recommend only these item ids (in stock, in a region); None: the whole catalogue.
        explain: Say why each item is recommended: what each part adds to its score, and the items of the history that are most
            similar by text and by CF vectors. Takes about twice as long.
        beta: Weight of the semantic slots, 0 to 1; null: the weight that validation chose.
        unknown: What to do with an item id that is not in the catalogue: skip it and report it, or refuse all.
        filter: Recommend only items with these attributes, such as "category == 'board games' and price < 20 and in_stock"; null:
            all.
        diversity: 0 to 1: how much an item loses for being similar to one above it; 0: nothing, 1: if they are alike, as much as
            lies between the best score and the 100th.
        caps: At most so many items for each value of an attribute, such as {"brand": 2}; null: no caps.
        boosts: What items with some attributes get beside their score, such as [{"filter": "on_sale", "add": 0.2}], at most 5;
            null: nothing.

    Raises:
        ConfigError: a value is out of range.
    """

    k: int = 10
    exclude_seen: bool = True
    candidates: Collection[str] | None = None
    explain: bool = False
    beta: float | None = None
    unknown: Unknown = "skip"
    filter: str | None = None
    diversity: float = 0.0
    caps: dict[str, int] | None = field(default=None, hash=False)
    boosts: list[Boost] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.k < 1:
            raise ConfigError(f"k is {self.k}; it must be 1 or more.")
        if self.beta is not None and not 0 <= self.beta <= 1:
            raise ConfigError(f"beta is {self.beta}; it must be between 0 (collaborative) and 1 (semantic).")
        if not 0 <= self.diversity <= 1:
            raise ConfigError(f"diversity is {self.diversity}; it must be between 0 and 1.")
        for column, most in (self.caps or {}).items():
            if most < 1:
                raise ConfigError(f"caps: {column!r} has {most}; it must be 1 or more.")
        filters = [boost.filter for boost in self.boosts or []]
        if len(filters) > MAX_BOOSTS or len(set(filters)) < len(filters):
            raise ConfigError(f"boosts: give at most {MAX_BOOSTS}, each filter once.")
