"""Splits weights over processes, for language models too large for one device (ModelParallelStrategy)."""

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from setrec.errors import ConfigError
from setrec.model import SETRec


def shard(model: SETRec, mesh: DeviceMesh) -> None:
    """Split every weight over the processes, in place: the backbone's layers one by one, the rest as one group.

    Args:
        model: The built model.
        mesh: Lightning's device mesh, with the dimensions data_parallel and tensor_parallel.

    Raises:
        ConfigError: tensor parallelism is set, or the backbone can't be split.
    """
    data_parallel, tensor_parallel = mesh["data_parallel"], mesh["tensor_parallel"]
    if tensor_parallel.size() > 1:
        raise ConfigError(
            "Tensor parallelism is not supported: in the arguments of ModelParallelStrategy, set tensor_parallel_size "
            "to 1 and data_parallel_size to the number of processes."
        )
    model.backbone.shard(data_parallel)
    fully_shard(model, mesh=data_parallel, reshard_after_forward=False)  # the other weights are small
    # These methods use weights outside of forward, so they must gather them too. They call model.forward and not model(...): a
    # second gathering inside the first one would free the weights too early for the backward pass.
    for method in ("losses", "index", "user_vectors"):
        register_fsdp_forward_method(model, method)
