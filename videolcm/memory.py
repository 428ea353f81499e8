"""What a device's memory has room for, and what happens where it has not.

In: a device, or an error. Out: free bytes; whether an error says that memory ran out, and for what; work in smaller parts. Freeing needs that
nobody holds the error, whose frames hold the tensors: callers raise their AppError after the `except`, not in it. It knows nothing about models
or clips.
"""

import gc
import os
import re

import torch

try:
    import resource
except ImportError:  # on Windows
    resource = None

# of a processor on two systems, oneDNN (which says no more when it finds no room for a kernel), CUDA, cuBLAS and cuDNN
SHORT = ("can't allocate memory", "not enough memory", "could not create a primitive", "out of memory", "ALLOC_FAILED")
TRIED = re.compile(r"tried to allocate ([0-9.]+) ?(bytes|[KMGT]iB)", re.IGNORECASE)
UNITS = {"bytes": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


def ran_out(error):
    """Whether this error says that there was not enough memory, on a GPU or a processor."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in SHORT)
    return said or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def shortage(error, device):
    """What more was asked for when memory ran out and what is free, as the end of a sentence; "" where the error does not say."""
    found, room = TRIED.search(str(error)), available(device)
    if not found or room is None:
        return ""
    return f": {float(found[1]) * UNITS[found[2].lower()] / 1e9:.2f} GB more were asked for, {room / 1e9:.2f} GB are free"


def free():
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak(of="RUSAGE_SELF"):
    """The most that this process had in memory so far, or with "RUSAGE_CHILDREN" the largest of those that it started: MiB, None where the system
    does not say."""
    return resource and round(resource.getrusage(getattr(resource, of)).ru_maxrss / 1024)


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
