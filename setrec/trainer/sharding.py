"""Weights split over processes, for language models that one device can't hold and train (ModelParallelStrategy)."""

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from setrec.errors import ConfigError
from setrec.model import SETRec


def shard(model: SETRec, mesh: DeviceMesh) -> None:
    """Split every weight over the processes, in place: the backbone's layers one by one, the rest as one group.

    Args:
        mesh: Lightning's, with the dimensions data_parallel and tensor_parallel.

    Raises:
        ConfigError: tensor parallelism is asked for, or the backbone can't be split.
    """
    data_parallel, tensor_parallel = mesh["data_parallel"], mesh["tensor_parallel"]
    if tensor_parallel.size() > 1:
        raise ConfigError(
            "Tensor parallelism is not supported: in the arguments of ModelParallelStrategy, set tensor_parallel_size "
            "to 1 and data_parallel_size to the number of processes."
        )
    model.backbone.shard(data_parallel)
    fully_shard(model, mesh=data_parallel, reshard_after_forward=False)  # what is left is small
    # These use weights outside of forward; they gather them as forward would. Inside, they call model.forward itself: a
    # second gathering within the first would end the backward pass of the shared weights too early.
    for method in ("losses", "index", "user_vectors"):
        register_fsdp_forward_method(model, method)
