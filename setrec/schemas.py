"""The letters of the shape comments, and the batch that every part of SETRec reads.

Every shape comment in this project uses these letters:

    B  users in a batch                  N  items in the catalogue (ids 0..N-1)
    L  history items (padded)            K  slots per item, K = n_cf + n_sem
    P  prefixes per user                 D  width of the backbone
    M  real (unpadded) prefixes          E  width of a collaborative (CF) vector
    T  sequence length                   F  width of a text vector
    U  distinct items in a batch         H  width of the semantic bottleneck
    G  groups of items: all, warm, cold  V  weightings of the score that are tried
    A  targets of a prefix, at most

Item ids are 0..N-1 everywhere. Padding is -1; only `mask_of` tests for it.
"""

from typing import Literal, NamedTuple

from torch import Tensor

PAD = -1
GROUPS = ("all", "warm", "cold")
EvalSplit = Literal["validation", "test"]  # a split that a model is evaluated on
FitOn = Literal["train", "validation"]  # the split a model is fitted to; validation: after a fit to train


def mask_of(ids: Tensor) -> Tensor:
    """True where `ids` is not padding. ids: any shape, int64; returns the same shape, bool."""
    return ids != PAD


class Batch(NamedTuple):
    """A batch of users' histories, and the prefixes of them that the model predicts from.

    In training every prefix of a history is one example of the paper's batch: the p-th prefix of user b shows the first
    prefix[b, p] items of the history, and its targets are the next A items (paper: A = 1). In evaluation there is one prefix, the
    whole history, and any number of targets.
    """

    user: Tensor  # (B,) int64: row in the table of users
    history: Tensor  # (B, L) int64: item ids, oldest first, padded at the end
    prefix: Tensor  # (B, P) int64: how many history items query set p sees, 0..L; padded at the end
    target: Tensor  # training (B, P, A) int64: the items after each prefix; evaluation (B, any) int64: all; padded
    seen: Tensor  # (B, any) int64: the user's whole uncut history, which ranking may mask; padded; (B, 0) in training
    valid: Tensor  # (M,) int64: places of the real prefixes in the flattened (B * P,)
    unique: Tensor  # (U,) int64: distinct items of `history`, ascending
    position: Tensor  # (B, L) int64: history = unique[position] where real, 0 at padding
    weight: Tensor  # (U,) float32: how often each distinct item occurs in the batch's prefixes
