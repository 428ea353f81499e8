"""An official .pth of VideoLCM or TF-T2V -> a folder in diffusers' layout.

In: a file as VGen's trainer writes it, {"state_dict", "step"} or the bare state dict, read without running code of it. Out: a folder that
stock diffusers and the door load. Which network it is, the tensors tell. It knows nothing about what is placed beside it.
"""

import os
import warnings
import zipfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError

from .checkpoint import sha256_of, write_json
from .errors import AppError
from .models import STOCK
from .models.folder import FPS, GUIDANCE, index_of, scheduler_of, tasks_of, write_parts
from .models.vgen import UNET3D_HEADS, load_state_dict

LICENCE = "research and non-commercial use only: ali-vilab/VGen's disclaimer (trained on WebVid-10M and LAION-400M)"
ENTRIES = ("unet", "conditions", "scheduler", STOCK, "manifest.json")  # what a converted folder may hold, in the order of writing


def convert(path, out, config=None, role=None):
    """Writes the checkpoint at `path` into the folder `out`, whole or not at all; returns the manifest.

    config: VGen's words for what the tensors do not tell (a dict), role: student or teacher where the file's name misleads. AppError
    E_OUT_TAKEN, E_OUTPUT, E_INPUT, E_NOT_CHECKPOINT and those of `load_state_dict`.
    """
    path, out = Path(path), Path(out)
    if any((out / entry).exists() for entry in ENTRIES):
        raise AppError("E_OUT_TAKEN", given=out.name)
    state_dict, step = read_official(path)
    net = load_state_dict(state_dict, config)
    if net.config.num_heads != UNET3D_HEADS:
        raise AppError("E_VGEN_CONFIG", detail=f"num_heads is {net.config.num_heads}, in diffusers always {UNET3D_HEADS}")
    role = role or role_of(path, state_dict)
    source = {"file": path.name, "sha256": sha256_of(path), "step": step}
    try:
        return write_folder(net, role, source, out)
    except (OSError, SafetensorError) as error:
        raise AppError("E_OUTPUT", given=out.name) from error
    except RuntimeError as error:  # two names for one tensor, which safetensors do not hold
        raise AppError("E_NOT_CHECKPOINT", given=path.name) from error
    finally:
        with suppress(OSError):
            out.rmdir()  # where nothing came of it


def read_official(path):
    """(state_dict, step or None) of an official file, memory-mapped where its format allows. AppError E_INPUT, E_NOT_CHECKPOINT."""
    try:
        with warnings.catch_warnings():  # of what is refused
            warnings.simplefilter("ignore")
            found = torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise AppError("E_INPUT", given=path.name) from error
    except Exception as error:  # torch promises no type: what damaged or hostile bytes raise is anything
        raise AppError("E_NOT_CHECKPOINT", given=path.name) from error
    wrapped = isinstance(found, dict) and isinstance(found.get("state_dict"), dict)
    state_dict = found["state_dict"] if wrapped else found
    if not is_state_dict(state_dict):
        raise AppError("E_NOT_CHECKPOINT", given=path.name)
    step = found.get("step") if wrapped else None
    return {name.removeprefix("module."): value for name, value in state_dict.items()}, step if isinstance(step, int) else None


def is_state_dict(found):
    """Whether this is {name: tensor of real numbers}, and not empty."""
    pairs = found.items() if isinstance(found, dict) else ()
    return bool(pairs) and all(isinstance(name, str) and is_whole(value) for name, value in pairs)


def is_whole(value):
    """Whether this is a tensor of real numbers that are all there: not sparse, and not a few that stand for more than the file holds."""
    real = torch.is_tensor(value) and value.is_floating_point() and value.layout == torch.strided and not value.is_meta
    return real and value.nbytes <= value.untyped_storage().nbytes()


def role_of(path, state_dict):
    """What a checkpoint most likely is: the keys are the same, but only teachers have 4 input channels or are called tft2v."""
    few = state_dict["input_blocks.0.0.weight"].shape[1] == state_dict["out.2.weight"].shape[0]
    return "teacher" if few or path.name.lower().startswith("tft2v") else "student"


def write_folder(net, role, source, out):
    """Everything is written to a temporary place inside `out` and then moved, the manifest last. Returns the manifest."""
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".convert-", dir=out) as temporary:
        new = Path(temporary)
        manifest = manifest_of(net, role, source, write_parts(net, scheduler_of(role), new))
        write_json(new / "manifest.json", manifest)
        if not net.config.encoders:  # whose maps no pipeline of diffusers makes
            write_json(new / STOCK, index_of(role))
        for entry in ENTRIES:
            if (new / entry).exists():
                os.replace(new / entry, out / entry)
    return manifest


def manifest_of(net, role, source, files):
    return {
        "kind": "vgen",
        "role": role,
        "tasks": tasks_of(net.config),
        "guidance": GUIDANCE,
        "fps": FPS,
        "source": source,
        "licence": LICENCE,
        "config": asdict(net.config),
        "files": files,
    }
