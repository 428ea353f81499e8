"""The door: a name or a folder in, a VideoModel out. sources.SOURCES lists what has a name.

In: a ref. Out: `load(ref, role)` and `list_models()`. What is behind a ref (prediction type, files, text encoder) stays behind it. It knows
nothing about sampling, pages or training.
"""

import copy
import json
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch

from .. import memory, sources
from ..checkpoint import misfits, read_weights, sha256_of
from ..errors import AppError
from ..schedule import EVERYWHERE
from ..sources import ASSETS, SOURCES  # noqa: F401  where the shipped models lie is known from here too
from ..students import students
from .base import TASKS, ModelInfo, VideoModel

ROLES = ("student", "teacher")
ADAPTER = "motion_adapter"  # the folder that only AnimateLCM's kind has
STOCK = "model_index.json"  # what stock diffusers reads first of a folder in its layout
MODELSCOPE = {"kind": "diffusers", "role": "teacher", "tasks": ["text"], "guidance": 8.0, "fps": 8}  # guidance: diffusers' usual scale of 9
OFFICIAL = (".pth", ".pt", ".ckpt", ".bin")  # files that `convert` may read and the door does not
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def list_models():
    """{name: what it is} of every model that is here: those that have a name, and the students that fine-tunes of the page left."""
    named = {name: source.what for name, source in SOURCES.items() if sources.is_here(name)}
    return named | dict.fromkeys(students(), "a student that was distilled here")


def folder_of(ref):
    """The folder that a name of `list_models` or on the hub stands for, or `ref` itself as one."""
    return sources.place_of(ref) or students().get(ref) or Path(str(ref))


def load(ref="toybox", role="student", device=None, dtype=None, compiled=False) -> VideoModel:
    """The model that `ref` names, as `role` student or teacher: a name of `list_models`, a folder (of ours, in diffusers' layout, or of AnimateLCM's
    parts), OWNER/NAME@REVISION of the hub where it has been fetched, or animatelcm:BASE with a base that is named the same ways.

    device and dtype are torch's or their names; left out, CUDA where there is one, and the fastest type the device computes in. Raises
    AppError E_MODEL, E_CONVERT (a checkpoint file instead of a folder), E_ROLE, E_DEVICE, E_DTYPE, E_MODEL_FILE (a file is missing),
    E_CHECKPOINT (a file was changed or is damaged), E_MODEL_MEMORY; for models from elsewhere also those of `sources.require_here`,
    E_ROLE_MODEL, E_MODEL_PARTS, E_SCHEDULER. Nothing is downloaded.
    compiled: the denoiser by torch.compile, which takes minutes before the first clip and needs a C++ compiler.
    """
    try:
        model = found(ref, role, device, dtype)
        if compiled:
            model = model.with_denoiser(copy.copy(model.denoiser))  # what is kept for others stays as it is
            model.denoiser.compile()
        return model
    except Exception as error:
        if not memory.ran_out(error):
            raise
    network.cache_clear()
    memory.free()
    raise AppError("E_MODEL_MEMORY", given=ref, device=pick_device(device))


def found(ref, role, device, dtype):
    """`load` where memory suffices."""
    if role not in ROLES:
        raise AppError("E_ROLE", given=role)
    device = pick_device(device)
    dtype = pick_dtype(dtype, device)
    sources.require_here(ref)
    which, base = sources.split(ref)
    folder = folder_of(which)
    try:
        in_parts, is_model = (folder / ADAPTER).is_dir(), any((folder / file).is_file() for file in ("manifest.json", STOCK))
    except OSError:  # no file can be called that
        in_parts, is_model, folder = False, False, Path()
    if in_parts:
        return load_parts_of(str(ref), folder, base, role, device, dtype)
    if folder.suffix.lower() in OFFICIAL:
        raise AppError("E_CONVERT", given=folder.name)
    if not is_model:
        raise AppError("E_MODEL", given=ref, known=", ".join(list_models()))
    with manifest_of(folder):
        manifest, places = read_manifest(folder)
        if manifest.get("kind", "toybox") == "toybox":
            return load_toybox(str(ref), folder, manifest, places, role, device, dtype)
        from .folder import load_folder

        base = base_of(manifest)
        if role == "teacher" and base:
            return found(manifest["base"], role, device, dtype)
        return load_folder(str(ref), folder, base or folder, manifest, places, role, device, dtype)


def load_parts_of(name, folder, base, role, device, dtype):
    """AnimateLCM from the parts in `folder`, around the Stable Diffusion 1.5 that `base`, a ref, names, or the one that lies there."""
    from .animatediff import load_animatediff

    places = {path.name: path for path in folder.iterdir() if path.is_dir()}
    if base:
        places["base"] = folder_of(base)
    for part in ("base", "lora"):
        if part not in places or not places[part].is_dir():
            raise AppError("E_MODEL_PARTS", folder=folder.name, given=part)
    known = ("base", ADAPTER, "lora", *(part for part in places if part.startswith("controlnet_")))
    return load_animatediff(name, {part: places[part] for part in known}, role, device, dtype)


def pick_device(device):
    known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if device is None:
        return torch.device("cuda" if len(known) > 1 else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise AppError("E_DEVICE", given=device, known=", ".join(known)) from None
    if found.type not in {name.split(":")[0] for name in known} or (found.index or 0) >= max(1, len(known) - 1):
        raise AppError("E_DEVICE", given=device, known=", ".join(known))
    return found


def pick_dtype(dtype, device):
    if dtype is not None:
        name = str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise AppError("E_DTYPE", given=dtype, known=", ".join(DTYPES))
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # in hardware: others emulate bfloat16, slower than float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else torch.float32


def load_toybox(name, folder, manifest, places, role, device, dtype):
    """A folder as `pretrain.ship` writes it: manifest.json with configs and sha256, one safetensors file a network."""
    from .toybox import Toybox

    if role not in places:
        raise AppError("E_MODEL_FILE", folder=folder.name, given=role)
    parts = {part: network(places[part], json.dumps(manifest["files"][part]), device, dtype) for part in ("codec", "text", role)}
    words, net = frozenset(manifest["files"]["text"]["config"]["words"]), manifest["files"][role]
    told = {"words": words, "two_time": "s" in net["config"].get("inputs", ()), "sha256": sha256_of(folder / "manifest.json")}
    info = ModelInfo(name, role, **facts_of(manifest), **told)
    return Toybox(info.taking(net.get("w_range")), parts["codec"], parts["text"], parts[role], device, dtype)


def manifest_in(folder):
    """What a folder's manifest.json says. AppError E_CHECKPOINT where it is damaged."""
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AppError("E_CHECKPOINT", given="manifest.json") from error
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        raise AppError("E_CHECKPOINT", given="manifest.json")
    return found


@contextmanager
def manifest_of(folder):
    """What a manifest with a wrong name or value makes of those who read it: AppError E_CHECKPOINT."""
    try:
        yield
    except (KeyError, TypeError, RecursionError) as error:  # the last if it is its own base
        raise AppError("E_CHECKPOINT", given="manifest.json") from error


def is_interval(guided):
    """Whether this is (low, high) with 0 <= low < high <= 1000."""
    return len(guided) == 2 and guided[0] in range(1000) and guided[1] in range(guided[0] + 1, 1001)


def facts_of(manifest):
    """tasks, guidance, fps and, where the manifest says it, guided of a ModelInfo. KeyError, TypeError or AppError E_CHECKPOINT for a manifest
    that lacks the others or says what cannot be."""
    tasks, guidance, fps = tuple(manifest["tasks"]), manifest["guidance"], manifest["fps"]
    guided = tuple(manifest.get("guided", EVERYWHERE))
    if not set(tasks) <= set(TASKS) or not 0 <= guidance <= 30 or not 1 <= fps <= 60 or not is_interval(guided):
        raise AppError("E_CHECKPOINT", given="manifest.json")
    return {"tasks": tasks, "guidance": guidance, "fps": fps, "guided": guided}


def read_manifest(folder):
    """(manifest, {part: folder of its file}). What a student folder lacks it has from the base that it names."""
    if not (folder / "manifest.json").is_file():
        if (folder / STOCK).is_file():
            return MODELSCOPE | {"files": {}}, {}
        raise AppError("E_MODEL_FILE", folder=folder.name, given="manifest.json")  # of a base that is gone
    manifest = manifest_in(folder)
    places = dict.fromkeys(manifest["files"], folder)
    if "base" not in manifest:
        return manifest, places
    known, behind = read_manifest(base_of(manifest))
    return known | manifest | {"files": known["files"] | manifest["files"]}, behind | places


def base_of(manifest):
    """The folder of the model that a student's manifest names, None for others."""
    return folder_of(manifest["base"]) if "base" in manifest else None


def write_student(net, base, out):
    """Writes the denoiser of a student of the model `base`, a ref, into the folder `out` in the layout of its kind; returns what the manifest
    says of it. AppError E_DISK."""
    from .denoiser import Denoiser
    from .toybox import write_network

    if isinstance(net, Denoiser):
        return {"files": {"student": write_network(Path(out) / "student.safetensors", net)}}
    from . import folder

    return folder.write_student(net, folder_of(base), out)


@lru_cache(maxsize=8)
def network(folder, entry, device, dtype):
    """One network, ready to compute; loaded once, so that teacher and student share the codec and the text encoder."""
    from .toybox import build

    entry = json.loads(entry)
    net = build(entry["config"])
    fill(net, read_weights(folder / entry["file"], entry["sha256"]), entry["file"])
    return net.to(device, dtype).eval().requires_grad_(False)


def fill(net, weights, name):
    """Loads `weights` into `net` if every name and shape fits, else raises AppError E_CHECKPOINT_KEYS with the first that do not."""
    wrong = misfits(net.state_dict(), weights)
    if wrong:
        raise AppError("E_CHECKPOINT_KEYS", given=name, detail=", ".join(wrong[:3]))
    net.load_state_dict(weights, assign=True)
