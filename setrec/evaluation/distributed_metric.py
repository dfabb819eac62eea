"""A metric whose states are rows of users, put together from any number of processes, those without a user included."""

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
        """Every state as it is without any row: the shape and dtype that the other processes' rows have."""

    def sync(
        self,
        dist_sync_fn: Callable | None = None,
        process_group: Any | None = None,
        should_sync: bool = True,
        distributed_available: Callable | None = None,
    ) -> None:
        """As torchmetrics', but a process that saw no user still takes part, with empty states of the right shape."""
        for name, empty in self.empty_states().items():
            if not getattr(self, name):
                getattr(self, name).append(empty)
        super().sync(dist_sync_fn, process_group, should_sync, distributed_available)
