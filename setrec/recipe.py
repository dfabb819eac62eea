"""The options of the method: which slots an item has, what the loss is taken of, and what else is a part of the score."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from setrec.data.catalogue import Catalogue
from setrec.errors import ConfigError


@dataclass(frozen=True)
class Tokens:
    """How the vectors of a source of --data.vectors become slots.

    Args:
        slots: Slots of an item.
        tokenizer: linear, a projection of the vector, as of CF vectors; autoencoder, projections of a learned code, as of
            text, with the same `bottleneck` and `trunk`.
        weight: Share of the source in the score, as 1 - beta is of CF and beta of text; null: chosen on validation.
    """

    slots: int = 1
    tokenizer: Literal["linear", "autoencoder"] = "linear"
    weight: float | None = None


@dataclass(frozen=True)
class Recipe:
    """The options of the method. The defaults are the paper's.

    Args:
        n_sem: Semantic slots of an item; 0: collaborative slots only (paper: 4 for T5, 6 for Qwen).
        n_cf: Collaborative slots of an item, one for each CF matrix of the data; 0: semantic slots only (paper: 1).
        tokens: Slots of further sources: name in --data.vectors -> its tokens, see `Tokens`; a source without a name here is not
            read. null: every source of the data, with one linear slot each (the paper has none).
        bottleneck: Width H of the semantic autoencoder's bottleneck (paper: 128).
        trunk: Widths of the layers between the text vector and the bottleneck (paper: 512, 256).
        missing_cf: CF vector of items absent from training: as_is, the vector in the file (paper); zero, a zero vector.
        objective: What the cross-entropy is taken of: slots, each slot alone, then the mean (paper); score, the sum of all
            slots, by which items are ranked.
        ahead: Targets of a prefix in training: 1, the next item (paper); n, the next n items alike, for data that is split by
            time, where everything that a user takes later is asked for.
        negatives: Items in the softmax of the loss: all (paper); warm, only items that can be a target.
        sampled: Items drawn for the softmax of every batch, besides its targets, with the logQ correction; null: the whole
            catalogue (paper). For very large catalogues, see docs/scaling.md.
        sampling: How these items are drawn: uniform; popularity, in proportion to the count in training to the power 0.75.
        cf_dropout: Probability of hiding the CF vectors of a history item in training, so that the model learns to read items
            without a CF vector (paper: 0).
        cf_score_dropout: Probability of scoring a prefix by the semantic slots alone in training, so that they learn to rank
            cold items (paper: 0). Needs objective score; without effect where there are collaborative slots only.
        memory: Add a weighted sum of the history's own CF and text vectors to the query outputs; the weights are learned and
            depend on age (paper: false). Needs objective score.
        neighbours: Add item graphs to the score: neighbours of the last items by co-occurrence and by text, what comes next,
            and how often items occurred lately, with weights chosen on validation; cold items by text (paper: false). See
            setrec/scoring/weights.py.
        pairs: What co-occurrence is in the item graphs: near, two items within 5 steps of a history, and its last 10 items
            count, the newest most; history, two items of one history, and all its items count alike.
    """

    n_sem: int = 4
    n_cf: int = 1
    tokens: dict[str, Tokens] | None = None
    bottleneck: int = 128
    trunk: tuple[int, ...] = (512, 256)
    missing_cf: Literal["as_is", "zero"] = "as_is"
    objective: Literal["slots", "score"] = "slots"
    ahead: int = 1
    negatives: Literal["all", "warm"] = "all"
    sampled: int | None = None
    sampling: Literal["uniform", "popularity"] = "uniform"
    cf_dropout: float = 0.0
    cf_score_dropout: float = 0.0
    memory: bool = False
    neighbours: bool = False
    pairs: Literal["near", "history"] = "near"

    def __post_init__(self) -> None:
        """Make `Tokens` of the plain types that a checkpoint holds."""
        if self.tokens is not None:
            plain = {name: one if isinstance(one, Tokens) else Tokens(**one) for name, one in self.tokens.items()}
            object.__setattr__(self, "tokens", plain)


def tokens_of(recipe: Recipe, catalogue: Catalogue) -> Mapping[str, Tokens]:
    """The further sources that a model reads, in the order of the data: name -> its tokens."""
    if recipe.tokens is None:
        return dict.fromkeys(catalogue.vectors, Tokens())
    return {name: recipe.tokens[name] for name in catalogue.vectors if name in recipe.tokens}


def check_recipe(recipe: Recipe, catalogue: Catalogue) -> None:
    """Check that the options go together, and that the data has vectors for the slots.

    Raises:
        ConfigError: they don't, or it has not.
    """
    n_cf, n_sem = recipe.n_cf, recipe.n_sem
    for name, tokens in (recipe.tokens or {}).items():
        if name not in catalogue.vectors:
            raise ConfigError(
                f"--model.tokens names {name!r}, but the data set {catalogue.name!r} has "
                f"{', '.join(catalogue.vectors) or 'no further vectors'}: add the source to --data.vectors, or leave it out."
            )
        if tokens.slots < 1 or (tokens.weight is not None and not 0 <= tokens.weight < math.inf):
            raise ConfigError(f"--model.tokens: {name} needs 1 slot or more, and a weight of 0 or more or null.")
    if n_cf + n_sem + len(tokens_of(recipe, catalogue)) < 1 or min(n_cf, n_sem) < 0:
        raise ConfigError(f"n_cf is {n_cf} and n_sem is {n_sem}: an item needs at least one slot, and none below 0.")
    if n_cf > len(catalogue.cf):
        raise ConfigError(
            f"n_cf is {n_cf}, but the data set {catalogue.name!r} holds {len(catalogue.cf)} CF matrices: "
            f"set --model.n_cf {len(catalogue.cf)} or name more in --data.cf."
        )
    if n_sem and catalogue.text is None:
        raise ConfigError(
            f"n_sem is {n_sem}, but the data set {catalogue.name!r} has no text vectors: "
            "set --model.n_sem 0 or name their source with --data.text."
        )
    if recipe.memory and recipe.objective == "slots":
        raise ConfigError("--model.memory true has no loss of its own for each slot: add --model.objective score.")
    if recipe.cf_score_dropout and recipe.objective == "slots":
        raise ConfigError("--model.cf_score_dropout works on the sum of the slots: add --model.objective score.")
    if recipe.ahead < 1:
        raise ConfigError(f"ahead is {recipe.ahead}: a prefix needs at least 1 target, the next item.")
    if recipe.sampled is not None and recipe.sampled < 1:
        raise ConfigError(f"sampled is {recipe.sampled}: draw at least 1 item, or null for the whole catalogue.")
