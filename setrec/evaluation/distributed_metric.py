"""A metric that keeps rows of users; every process adds its rows, and a process may have none."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torchmetrics import Metric


class DistributedMetric(Metric):
    """A torchmetrics metric with list states that are concatenated over processes."""

    full_state_update = False
    is_differentiable = False

    @abstractmethod
    def empty_states(self) -> dict[str, Tensor]:
        """Every state with 0 rows, in the shape and dtype that rows have."""

    def sync(
        self,
        dist_sync_fn: Callable[..., Any] | None = None,
        process_group: Any | None = None,
        should_sync: bool = True,
        distributed_available: Callable[..., Any] | None = None,
    ) -> None:
        """As in torchmetrics, but a process without users takes part, with empty states of the right shape."""
        for name, empty in self.empty_states().items():
            if not getattr(self, name):
                getattr(self, name).append(empty)
        super().sync(dist_sync_fn, process_group, should_sync, distributed_available)
