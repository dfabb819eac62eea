"""What every backbone does and guarantees."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from setrec.backbones.past import Past
from setrec.errors import ConfigError


class Backbone(nn.Module, ABC):
    """Reads histories of item tokens and computes K query outputs for every prefix, in one forward pass.

    The constructor only stores options; `build` makes the layers. They are separate because the command line constructs
    every object before it knows whether a checkpoint will fill the weights.

    What every backbone guarantees (tests/test_backbones.py), as long as no option selects another mask:
        - the slots of a history item are a set: permuting them does not change the query outputs,
        - a query sees the text, the items of its prefix and itself; it sees no other query and no later item,
        - padding and the other rows of the batch change nothing,
        - all prefixes of a history in one row give the same query outputs as one row per prefix.
    """

    width: int  # D, known after `build`
    reads_whole_row = False  # True: a history token sees later items too, so a row must hold one prefix only
    query_std: float  # standard deviation of the backbone's token embeddings; the learned queries start with it

    saved_sizes: dict[str, Any] | None = None  # from `sizes`, set before `build`: build these layers, load no weights

    @property
    def built(self) -> bool:
        """Whether the layers are built. A model of a changed catalogue reuses the layers of the model before."""
        return hasattr(self, "width")

    @abstractmethod
    def build(self) -> None:
        """Make the layers: load the pretrained weights, or draw random ones of the named shape.

        Raises:
            ConfigError: the pretrained model can't be found; the message names the flag for random weights.
        """

    @abstractmethod
    def forward(self, items: Tensor, real: Tensor, prefix: Tensor, queries: Tensor) -> Tensor:
        """Compute the query outputs of every prefix.

        Args:
            items: (B, L, K, D) float, the tokens of the history's items, padded at the end.
            real: (B, L) bool, which items are not padding.
            prefix: (B, P) int64, how many items query set p sees; -1 at padding.
            queries: (K, D) float, the learned queries.

        Returns:
            (B, P, K, D) float; without meaning at padding.
        """

    @property
    def reads_on(self) -> bool:
        """Whether `read` works with these options: a history token must see nothing after it."""
        return False

    def read_text(self) -> Tensor:
        """Keys and values of the text before the history, (C, 2, heads, n_text, d); see `Past`."""
        raise NotImplementedError

    def read(self, items: Tensor, new: Tensor, queries: Tensor, past: Past) -> tuple[Tensor, Tensor]:
        """Read on where `past` ends: the query outputs of the whole history, in evaluation mode.

        Args:
            items: (B, n, K, D) float, the tokens of the new items, padded at the end.
            new: (B,) int64, how many they are.
            queries: (K, D) float, the learned queries.
            past: What was read before.

        Returns:
            The query outputs, (B, K, D) float; and keys and values of the new items, (B, C, 2, heads, n * K, d) float, without
            meaning at padding.
        """
        raise NotImplementedError

    def sizes(self) -> dict[str, Any] | None:
        """The sizes of a pretrained backbone, in plain types; with them as `saved_sizes`, `build` loads no pretrained model.

        None where `build` loads nothing anyway, or where checkpoints leave weights out, so that it must.
        """
        return None

    def origin(self) -> dict[str, Any]:
        """Where the frozen weights come from that checkpoints leave out; {} when there are none.

        In plain types: the checkpoint holds it, and `check_origin` reads it.
        """
        return {}

    def check_origin(self, origin: dict[str, Any]) -> None:
        """Check that the frozen weights are those that a checkpoint was trained on.

        Raises:
            ConfigError: the frozen weights are not those that `origin` names.
        """

    def shard(self, mesh: DeviceMesh) -> None:
        """Split the layers' weights over the processes of `mesh` with fully_shard, for models too large for one device.

        Raises:
            ConfigError: this backbone can't be split.
        """
        raise ConfigError(f"{type(self).__name__} can't be split over processes: set --trainer.strategy ddp.")
