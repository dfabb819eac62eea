"""The alphabet of shapes and the tuples that travel between the parts of SETRec.

Every shape comment in this project is written in these letters:

    B  users in a batch                  N  items in the catalogue (ids 0..N-1)
    L  history items (padded)            K  slots per item, K = n_cf + n_sem
    P  prefixes per user                 D  width of the backbone
    M  real (unpadded) prefixes          E  width of a collaborative (CF) vector
    T  sequence length                   F  width of a text vector
    U  distinct items in a batch         H  width of the semantic bottleneck
    G  groups of items: all, warm, cold  V  variants scored at once (values of beta)

Item ids are 0..N-1 everywhere. Padding is -1; `mask_of` is the one place that knows it.
"""

from typing import Literal, NamedTuple

from torch import Tensor

PAD = -1
GROUPS = ("all", "warm", "cold")
EvalSplit = Literal["validation", "test"]  # a split that is answered
FitOn = Literal["train", "validation"]  # what a model is fitted to; validation: to train first


def mask_of(ids: Tensor) -> Tensor:
    """True where `ids` holds something real. ids: any shape, int64; returns the same shape, bool."""
    return ids != PAD


class Batch(NamedTuple):
    """A batch of users' histories and the prefixes of them that are queried.

    In training every prefix of a history is a row of the paper's batch: user b's p-th prefix shows the first prefix[b, p]
    items of the history and its target is what came next. In evaluation there is one prefix, the whole history, and any
    number of targets.
    """

    user: Tensor  # (B,) int64: row in the table of users
    history: Tensor  # (B, L) int64: item ids, oldest first, padded at the end
    prefix: Tensor  # (B, P) int64: history items that the query set p sees, 0..L; padded at the end
    target: Tensor  # training (B, P) int64: the item after each prefix; evaluation (B, any) int64: all targets; padded
    seen: Tensor  # (B, any) int64: the user's whole uncut history, to be masked in ranking; padded; (B, 0) in training
    valid: Tensor  # (M,) int64: places of the real prefixes in the flattened (B * P)
    unique: Tensor  # (U,) int64: distinct items of `history`, ascending
    position: Tensor  # (B, L) int64: history = unique[position] where real, 0 at padding
    weight: Tensor  # (U,) float32: in how many of the batch's prefixes each distinct item is visible
