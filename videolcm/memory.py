"""What a device's memory has room for, and what happens where it has not.

In: a device, or an error. Out: free bytes; whether an error says that memory ran out; work in smaller parts. Freeing needs that nobody holds the
error, whose frames hold the tensors: callers raise their AppError after the `except`, not in it. It knows nothing about models or clips.
"""

import gc
import os

import torch

SHORT = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")  # of a processor on two systems, CUDA, cuBLAS and cuDNN


def ran_out(error):
    """Whether this error says that there was not enough memory, on a GPU or a processor."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in SHORT)
    return said or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def free():
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_parts(function, sizes):
    """`function(size)` of the first of `sizes`, large to small, that memory has room for; the last one's error is everybody's."""
    for size in sizes[:-1]:
        try:
            return function(size)
        except Exception as error:
            if not ran_out(error):
                raise
        free()
    return function(sizes[-1])


def available(device):
    """Free bytes of a device, None where that cannot be told."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
