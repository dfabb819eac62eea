"""The contract every backbone keeps."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from setrec.errors import ConfigError


class Backbone(nn.Module, ABC):
    """Reads histories of item tokens and answers one set of K vectors for every prefix, in one forward pass.

    The constructor only stores typed settings; `build` makes the layers. The two are apart because the command line
    constructs everything before it knows whether a checkpoint will fill the weights.

    What every backbone guarantees (tests/test_backbones.py), as long as no option asks for another mask:
        - the slots of a history item are a set: permuting them permutes nothing in the answer,
        - a query sees the text, the items before its prefix and itself; never another query, never a later item,
        - padding and the other rows of the batch change nothing,
        - all prefixes of a history answered at once equal one row per prefix.
    """

    width: int  # D, known after `build`
    reads_whole_row = False  # True: a history token sees later items too, so a row may hold one prefix only
    query_std: float  # scale of the backbone's own token embeddings; queries are drawn on that scale

    blueprint: dict[str, Any] | None = None  # set before `build`: sizes to build, in place of what is found or drawn

    @property
    def built(self) -> bool:
        """Whether the layers are there. A model of a changed catalogue takes them over from the one before."""
        return hasattr(self, "width")

    @abstractmethod
    def build(self) -> None:
        """Make the layers: load the pretrained weights, or draw random ones of the named shape.

        Raises:
            ConfigError: the pretrained model can't be found; the sentence names the flag for random weights.
        """

    @abstractmethod
    def forward(self, items: Tensor, real: Tensor, prefix: Tensor, queries: Tensor) -> Tensor:
        """Answer the queries of every prefix.

        Args:
            items: (B, L, K, D) float, the tokens of the history's items, padded at the end.
            real: (B, L) bool, which items are not padding.
            prefix: (B, P) int64, how many items query set p may see; -1 at padding.
            queries: (K, D) float, the learned queries.

        Returns (B, P, K, D) float. At padding the content has no meaning.
        """

    def sizes(self) -> dict[str, Any] | None:
        """A blueprint of this backbone: with it `build` makes the same layers, for a checkpoint to fill, and looks for nothing.

        In plain types. None where `build` needs nothing from elsewhere anyway, or where checkpoints leave weights out.
        """
        return None

    def origin(self) -> dict[str, Any]:
        """Where the weights come from that checkpoints leave out (a frozen base); {} when there are none.

        In plain types: it is stored in the checkpoint and comes back in `check_origin`.
        """
        return {}

    def check_origin(self, origin: dict[str, Any]) -> None:
        """Refuse to load a checkpoint onto other frozen weights than it was trained on.

        Raises:
            ConfigError: the weights found here are not those `origin` tells of.
        """

    def shard(self, mesh: DeviceMesh) -> None:
        """Split the layers' weights over the processes of `mesh` with fully_shard, for models too big for one device.

        Raises:
            ConfigError: this backbone can't be split.
        """
        raise ConfigError(f"{type(self).__name__} can't be sharded: set --trainer.strategy ddp.")
