"""What the parts of the score are multiplied by. Score, grid search, explanation and log all read this table.

The score of an item is a sum of parts, each times a factor that depends on the weights and on whether the item is warm or cold:

    part           what it is                                              factor, warm     factor, cold
    cf             collaborative slots and their memories                  1 - beta         0
    semantic       semantic slots and the memory of text                   beta             beta
    cooccurrence   neighbours of the last items by co-occurrence           (1 - beta) g     (1 - beta) c i
    transitions    what comes next after the last items                    (1 - beta) g t   0
    text           neighbours of the last items by text and char n-grams   beta g           beta c
    recency        how often an item was the newest of a history           r                0
    source:NAME    slots and memory of a source of --data.vectors          s_NAME           s_NAME

g is `neighbours`, t is `transitions`, r is `recency`, c is `cold_text`, i is `inferred`, s_NAME is `sources[NAME]`. A model without
item graphs has the slots only, and the factors of warm items for all. Where there are graphs, a cold item (absent from training) is
scored by its text and its further vectors, and by the co-occurrence that its text lets expect (graphs.py): validation holds no cold
item with co-occurrence or recency of its own, so it can't say what these are worth there. An item without a vector of a source has
a zero vector there.

Not in the paper, which has beta only.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from setrec.layers.tokens import source_part

_SOURCE = source_part("")
_OF_SOURCE = "source_"  # before the name of a source, in what a weight is called


class Weights(NamedTuple):
    """The weights; validation chooses them. A weight is one line here, and one in GRID."""

    beta: float  # of the semantic parts against the collaborative ones, 0 to 1
    neighbours: float = 0.0
    recency: float = 0.0
    cold_text: float = 0.0
    transitions: float = 0.0
    inferred: float = 0.0
    sources: Mapping[str, float] = {}  # of the sources of --data.vectors, by name

    def plain(self) -> dict[str, float]:
        """Every weight by its name; that of a source is called source_NAME."""
        own = {name: getattr(self, name) for name in self._fields if name != "sources"}
        return own | {_OF_SOURCE + name: value for name, value in self.sources.items()}

    @classmethod
    def of(cls, plain: Mapping[str, float]) -> Self:
        """The weights of what `plain` gives; one that is not there is 0."""
        own = {name: plain.get(name, 0.0) for name in cls._fields if name != "sources"}
        more = {name.removeprefix(_OF_SOURCE): v for name, v in plain.items() if name.startswith(_OF_SOURCE)}
        return cls(**own, sources=more)


BETAS = tuple(b / 10 for b in range(11))
GRID = {  # what validation tries beside beta, in units of log odds, like the slots' scores
    "neighbours": (0.0, 4.0, 8.0),
    "recency": (0.0, 0.5, 1.0, 1.5),
    "cold_text": (0.0, 10.0, 20.0),
    "transitions": (0.0, 2.0, 4.0, 8.0, 16.0),  # in units of `neighbours`
    "inferred": (1.5,),  # in units of `cold_text`; models of before have 0
}


SHARES = (1.0, 0.0, 0.5, 2.0)  # of a source, in units of the share that it had in training
FULL_GRID = 2  # sources with weights to choose, up to which every combination is tried; else one after the other varies


class Factors(NamedTuple):
    """What a part is multiplied by."""

    warm: Callable[[Weights], float]
    cold: Callable[[Weights], float]


FACTORS = {
    "cf": Factors(lambda w: 1 - w.beta, lambda w: 0.0),
    "semantic": Factors(lambda w: w.beta, lambda w: w.beta),
    "cooccurrence": Factors(lambda w: (1 - w.beta) * w.neighbours, lambda w: (1 - w.beta) * w.cold_text * w.inferred),
    "transitions": Factors(lambda w: (1 - w.beta) * w.neighbours * w.transitions, lambda w: 0.0),
    "text": Factors(lambda w: w.beta * w.neighbours, lambda w: w.beta * w.cold_text),
    "recency": Factors(lambda w: w.recency, lambda w: 0.0),
}


def factors(part: str) -> Factors:
    """What a part of the score is multiplied by."""
    if not part.startswith(_SOURCE):
        return FACTORS[part]
    name = part.removeprefix(_SOURCE)
    return Factors(lambda w: w.sources[name], lambda w: w.sources[name])


GRAPHS = {"cooccurrence", "transitions", "text"}  # these parts are 0 for most items and never negative


def weightings(
    betas: tuple[float, ...], graphs: bool, text: bool, sources: Sequence[Mapping[str, float]] = ({},)
) -> list[Weights]:
    """Every combination that validation tries; of equals it takes the first.

    Args:
        betas: values of beta.
        graphs: the model has item graphs; otherwise beta is all there is.
        text: the items have text, so that there are text neighbours of cold items to be weighed.
        sources: the weights of the further sources that are tried, see `source_grid`.
    """
    if not graphs:
        return [Weights(beta, sources=of) for of in sources for beta in betas]
    tried = GRID if text else GRID | {"cold_text": (0.0,)}
    every = [
        Weights(beta, **dict(zip(tried, others, strict=True)), sources=of)
        for of in sources
        for *others, beta in itertools.product(*tried.values(), betas)
    ]
    return [w for w in every if w.neighbours or not w.transitions]  # `transitions` is a factor of `neighbours`


def source_grid(fixed: Mapping[str, float | None], share: float) -> list[dict[str, float]]:
    """The weights of further sources that validation tries; the first are those of training.

    Up to `FULL_GRID` sources are tried in every combination, more of them one after the other, so that validation stays cheap.

    Args:
        fixed: the weight of every source; None: to be chosen.
        share: what a source without a fixed weight has before validation chooses: as much as in training.
    """
    start = {name: share if weight is None else rounded(weight) for name, weight in fixed.items()}
    free = [name for name, weight in fixed.items() if weight is None]
    if len(free) <= FULL_GRID:
        choices = itertools.product(*([share * part for part in SHARES] for _ in free))
        return [start | dict(zip(free, one, strict=True)) for one in choices]
    return [start] + [start | {name: share * part} for name in free for part in SHARES[1:]]


def rounded(weight: float) -> float:
    """A weight as a checkpoint holds it."""
    return float(torch.tensor(weight))


# ----------------------------------------------------------------------------------------------- weights in a state_dict
def buffer_name(weight: str) -> str:
    """What a weight is called in a state_dict."""
    return weight if weight == "beta" else f"{weight}_weight"


def weights_of(state: Mapping[str, Tensor], prefix: str = "") -> Weights:
    """The weights in a state_dict, those of an earlier version included; a weight that it doesn't hold is 0."""
    names = [name for name in Weights._fields if name != "sources"]
    found = {name: state.get(prefix + buffer_name(name), torch.tensor(0.0)) for name in names}
    if prefix + "cold_weight" in state:  # version 0.1.0 began with a factor of `neighbours`
        found["cold_text"] = state[prefix + "cold_weight"] * found["neighbours"]
    elif prefix + buffer_name("cold_text") not in state:
        found["cold_text"] = found["neighbours"]
    first, last = prefix + _OF_SOURCE, buffer_name("")
    of_sources = [name for name in state if name.startswith(first) and name.endswith(last)]
    found |= {name.removeprefix(prefix).removesuffix(last): state[name] for name in of_sources}
    return Weights.of({name: float(value) for name, value in found.items()})


def state_of(weights: Weights) -> dict[str, Tensor]:
    """The weights as a state_dict holds them."""
    return {buffer_name(name): torch.tensor(value) for name, value in weights.plain().items()}
