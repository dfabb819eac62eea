"""Exploration: in a share of the answers, one place of the list is left to chance, and the log says how likely each item was.

In such an answer a place is drawn, each equally likely, and its item is drawn from the item that stands there and the m items that
follow the list, all equally likely. Over all answers, an item of the best k is then in the list with probability
1 - share * m / (k * (m + 1)), and one of the m items that follow with share / (m + 1).
"""

import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def explore(
    ranked: Sequence[Item], k: int, share: float, chance: random.Random | random.SystemRandom
) -> tuple[list[Item], list[float]]:
    """Draw the list that is shown.

    Args:
        ranked: the best items, up to 2 k: the list, and those that may take a place in it.
        k: length of the list.
        share: of the answers that are explored.
        chance: draws.

    Returns:
        The list, and the probability with which each of its items got into it.
    """
    shown, others = list(ranked[:k]), ranked[k:]
    m = len(others)
    if not shown or not m:
        return shown, [1.0] * len(shown)
    propensities = [1 - share * m / (len(shown) * (m + 1))] * len(shown)
    if chance.random() < share:
        place, drawn = chance.randrange(len(shown)), chance.randrange(m + 1)
        if drawn < m:
            shown[place], propensities[place] = others[drawn], share / (m + 1)
    return shown, propensities
