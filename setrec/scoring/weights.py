"""What the parts of the score are multiplied by. Score, grid search, explanation and log all read this table.

The score of an item is a sum of parts, each times a factor that depends on the weights and on whether the item is warm or cold:

    part           what it is                                              factor, warm     factor, cold
    cf             collaborative slots and their memories                  1 - beta         0
    semantic       semantic slots and the memory of text                   beta             beta
    cooccurrence   neighbours of the last items by co-occurrence           (1 - beta) g     0
    transitions    what comes next after the last items                    (1 - beta) g t   0
    text           neighbours of the last items by text and char n-grams   beta g           beta c
    recency        how often an item was the newest of a history           r                0

g is `neighbours`, t is `transitions`, r is `recency`, c is `cold_text`. A model without item graphs has the first two parts only,
and the factors of warm items for all. Where there are graphs, a cold item (absent from training) is scored by its text alone:
validation holds no cold
item with co-occurrence or recency, so it can't say what these are worth there.

Not in the paper, which has beta only.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """The weights; validation chooses them. A weight is one line here, and one in GRID."""

    beta: float  # of the semantic parts against the collaborative ones, 0 to 1
    neighbours: float = 0.0
    recency: float = 0.0
    cold_text: float = 0.0
    transitions: float = 0.0


BETAS = tuple(b / 10 for b in range(11))
GRID = {  # what validation tries beside beta, in units of log odds, like the slots' scores
    "neighbours": (0.0, 4.0, 8.0),
    "recency": (0.0, 0.5, 1.0, 1.5),
    "cold_text": (0.0, 10.0, 20.0),
    "transitions": (0.0, 2.0, 4.0),  # in units of `neighbours`
}


class Factors(NamedTuple):
    """What a part is multiplied by."""

    warm: Callable[[Weights], float]
    cold: Callable[[Weights], float]


FACTORS = {
    "cf": Factors(lambda w: 1 - w.beta, lambda w: 0.0),
    "semantic": Factors(lambda w: w.beta, lambda w: w.beta),
    "cooccurrence": Factors(lambda w: (1 - w.beta) * w.neighbours, lambda w: 0.0),
    "transitions": Factors(lambda w: (1 - w.beta) * w.neighbours * w.transitions, lambda w: 0.0),
    "text": Factors(lambda w: w.beta * w.neighbours, lambda w: w.beta * w.cold_text),
    "recency": Factors(lambda w: w.recency, lambda w: 0.0),
}


GRAPHS = {"cooccurrence", "transitions", "text"}  # these parts are 0 for most items and never negative


def weightings(betas: tuple[float, ...], graphs: bool, text: bool) -> list[Weights]:
    """Every combination that validation tries; of equals it takes the first.

    Args:
        betas: values of beta.
        graphs: the model has item graphs; otherwise beta is all there is.
        text: the items have text, so that there are text neighbours of cold items to be weighed.
    """
    if not graphs:
        return [Weights(beta) for beta in betas]
    tried = GRID if text else GRID | {"cold_text": (0.0,)}
    every = [
        Weights(beta, **dict(zip(tried, others, strict=True)))
        for *others, beta in itertools.product(*tried.values(), betas)
    ]
    return [w for w in every if w.neighbours or not w.transitions]  # `transitions` is a factor of `neighbours`


# ----------------------------------------------------------------------------------------------- weights in a state_dict
def buffer_name(weight: str) -> str:
    """What a weight is called in a state_dict."""
    return weight if weight == "beta" else f"{weight}_weight"


def weights_of(state: Mapping[str, Tensor], prefix: str = "") -> Weights:
    """The weights in a state_dict, those of an earlier version included; a weight that it doesn't hold is 0."""
    found = {name: state.get(prefix + buffer_name(name), torch.tensor(0.0)) for name in Weights._fields}
    if prefix + "cold_weight" in state:  # version 0.1.0 began with a factor of `neighbours`
        found["cold_text"] = state[prefix + "cold_weight"] * found["neighbours"]
    elif prefix + buffer_name("cold_text") not in state:
        found["cold_text"] = found["neighbours"]
    return Weights(**{name: float(value) for name, value in found.items()})


def state_of(weights: Weights) -> dict[str, Tensor]:
    """The weights as a state_dict holds them."""
    return {buffer_name(name): torch.tensor(value) for name, value in weights._asdict().items()}
