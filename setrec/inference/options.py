"""The options of a recommendation, written once: Python, HTTP and `setrec predict --histories` all use them."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from setrec.errors import ConfigError

Unknown = Literal["skip", "refuse"]


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

    Raises:
        ConfigError: k or beta is out of range.
    """

    k: int = 10
    exclude_seen: bool = True
    candidates: Collection[str] | None = None
    explain: bool = False
    beta: float | None = None
    unknown: Unknown = "skip"

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.k < 1:
            raise ConfigError(f"k is {self.k}; it must be 1 or more.")
        if self.beta is not None and not 0 <= self.beta <= 1:
            raise ConfigError(f"beta is {self.beta}; it must be between 0 (collaborative) and 1 (semantic).")
