"""The processes that share a piece of work, as torchrun starts them: which one this is, and what they tell one another.

In: the environment that torchrun sets, tensors and yes or no. Out: the same on every process. One process alone is the ordinary case, in which every
function here does nothing. It knows nothing about networks' names, data or files.
"""

import gc
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from .errors import AppError

LONGEST = timedelta(days=30)  # a process may wait for the others as long as they work


@dataclass(frozen=True)
class Share:
    """Which of `world` processes this is, 0 first."""

    rank: int = 0
    world: int = 1

    def of(self, lines):
        """This process's part: every world-th of `lines`."""
        return lines[self.rank :: self.world]


def share_of(environ):
    """The Share that RANK and WORLD_SIZE say; all of it without them. AppError E_NUMBER."""
    world = counted(environ, "WORLD_SIZE", 1, 1, 1_000_000)
    return Share(counted(environ, "RANK", 0, 0, world - 1), world)


def counted(environ, name, default, low, high):
    """A whole number of the environment. AppError E_NUMBER."""
    text = environ.get(name, str(default))
    if not text.isdecimal() or len(text) > 9 or not low <= int(text) <= high:
        raise AppError("E_NUMBER", name=f"The environment's {name}", range=f"a whole number from {low} to {high}", given=text)
    return int(text)


def device_of(given, environ):
    """The device that was asked for; left out, each process of a machine (LOCAL_RANK) has a GPU of its own as long as there are enough."""
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{int(environ['LOCAL_RANK']) % count}" if given is None and count > 1 and environ.get("LOCAL_RANK", "").isdecimal() else given


# ---- work that they do together


@contextmanager
def together():
    """The processes' group for as long as the block: gloo between processors, NCCL between GPUs; what is there already stays. AppError E_PROCESSES
    without torchrun."""
    if share_of(os.environ).world == 1 or joined():
        yield
        return
    if "MASTER_ADDR" not in os.environ:
        raise AppError("E_PROCESSES")
    from torch import distributed
    from torch.distributed.nn import functional  # noqa: F401  it keeps for good the group that is there when it is imported

    distributed.init_process_group(timeout=LONGEST)
    try:
        yield
    finally:
        distributed.destroy_process_group()
        # gloo's threads need Python to let go of a last tensor, and abort the process if it has ended by then: they end here with the group, or,
        # where torch's caches of a network in shares keep it, have time for that
        gc.collect()
        time.sleep(0.2)


def joined():
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def rank():
    """The number of this process in its group; the first one, 0, alone writes and speaks."""
    from torch import distributed

    return distributed.get_rank() if joined() else 0


def world():
    """How many processes work together."""
    from torch import distributed

    return distributed.get_world_size() if joined() else 1


def agreed(*flags):
    """What the first process says to each question: clocks and wishes differ, and all must do the same."""
    if not joined():
        return flags
    import torch

    said = torch.tensor([bool(flag) for flag in flags], dtype=torch.int32)
    torch.distributed.broadcast(said, 0)
    return tuple(said.bool().tolist())


def average(tensors):
    """Puts into each of `tensors` its mean over the processes: the same bits on every one of them."""
    if not joined():
        return
    from torch import distributed

    for tensor in tensors:
        total = tensor.contiguous()
        distributed.all_reduce(total)
        tensor.copy_(total / world())


def after_the_first(run):
    """`run()`, on each machine by its first process before the others, which find what that one left on disk."""
    if not joined():
        return run()
    from torch import distributed

    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not first:
        distributed.barrier()
    result = run()
    if first:
        distributed.barrier()
    return result


# ---- networks that no process holds whole (FSDP)


def sharded(net, dtype):
    """`net` in float32, changed in place: each process keeps its share of every parameter and fetches the rest while a block computes in `dtype`."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    device = next(net.parameters()).device.type
    options = {
        "mesh": init_device_mesh(device, (world(),)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False),
    }
    blocks = [block for blocks in net.modules() if isinstance(blocks, torch.nn.ModuleList) for block in blocks]
    for block in reversed(blocks):  # those inside others first
        fully_shard(block, **options)
    return fully_shard(net, reshard_after_forward=True, **options)  # the target's forward has no backward that would do it


def whole(value):
    """A tensor as it is without processes: gathered from all of them if each has a share."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def laid_out(value, like):
    """`value` as `like` lies: this process's share of it, or all of it."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
