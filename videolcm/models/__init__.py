"""The door: a name or a folder in, a VideoModel out. SOURCES lists what has a name.

In: a ref. Out: `load(ref, role)` and `list_models()`. What is behind a ref (prediction type, files, text encoder) stays behind it. It knows
nothing about sampling, pages or training.
"""

import json
from functools import lru_cache
from pathlib import Path

import torch

from ..checkpoint import read_weights, sha256_of
from ..errors import AppError
from ..students import students
from .base import ModelInfo, VideoModel

ASSETS = Path(__file__).resolve().parents[2] / "assets"
SOURCES = {  # name: (kind, folder, what it is)
    "toybox": ("toybox", ASSETS / "toybox", "the embedded model: toys that move over a floor, offline, Apache-2.0"),
}
ROLES = ("student", "teacher")
OFFICIAL = (".pth", ".pt", ".ckpt", ".bin")  # files that `convert` may read and the door does not
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def list_models():
    """{name: what it is} of every model that is here: those of SOURCES, and the students that fine-tunes of the page left."""
    shipped = {name: text for name, (_, folder, text) in SOURCES.items() if (folder / "manifest.json").exists()}
    return shipped | dict.fromkeys(students(), "a student that was distilled here")


def folder_of(ref):
    """The folder that a name of `list_models` stands for, or `ref` itself as one."""
    return SOURCES[ref][1] if ref in SOURCES else students().get(ref) or Path(str(ref))


def load(ref="toybox", role="student", device=None, dtype=None) -> VideoModel:
    """The model that `ref` names: a name of `list_models` or a folder with a manifest.json, as `role` student or teacher.

    device and dtype are torch's or their names; left out, CUDA where there is one, and the fastest type the device computes in. Raises
    AppError E_MODEL, E_CONVERT (a checkpoint file instead of a folder), E_ROLE, E_DEVICE, E_DTYPE, E_MODEL_FILE (a file is missing),
    E_CHECKPOINT (a file was changed); for converted folders also E_ROLE_MODEL and E_MODEL_PARTS.
    """
    if role not in ROLES:
        raise AppError("E_ROLE", given=role)
    device = pick_device(device)
    dtype = pick_dtype(dtype, device)
    folder = folder_of(ref)
    if folder.suffix.lower() in OFFICIAL:
        raise AppError("E_CONVERT", given=folder.name)
    if not (folder / "manifest.json").is_file():
        raise AppError("E_MODEL", given=ref, known=", ".join(list_models()))
    manifest, places = read_manifest(folder)
    if manifest.get("kind") == "vgen":
        from .folder import load_distilled, load_folder

        if "base" in manifest:
            return load_distilled(str(ref), folder, manifest, places, role, device, dtype)
        return load_folder(str(ref), folder, role, device, dtype)
    return load_toybox(str(ref), folder, role, device, dtype)


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


def load_toybox(name, folder, role, device, dtype):
    """A folder as `pretrain.ship` writes it: manifest.json with configs and sha256, one safetensors file a network."""
    from .toybox import Toybox

    manifest, places = read_manifest(folder)
    if role not in places:
        raise AppError("E_MODEL_FILE", folder=folder.name, given=role)
    parts = {part: network(places[part], json.dumps(manifest["files"][part]), device, dtype) for part in ("codec", "text", role)}
    info = ModelInfo(
        name=name,
        role=role,
        tasks=tuple(manifest["tasks"]),
        guidance=manifest["guidance"],
        fps=manifest["fps"],
        sha256=sha256_of(folder / "manifest.json"),
        words=frozenset(manifest["files"]["text"]["config"]["words"]),
    ).taking(manifest["files"][role].get("w_range"))
    return Toybox(info, parts["codec"], parts["text"], parts[role], device, dtype)


def read_manifest(folder):
    """(manifest, {part: folder of its file}). What a student folder lacks it has from the base that it names."""
    if not (folder / "manifest.json").is_file():  # of a base that is gone
        raise AppError("E_MODEL_FILE", folder=folder.name, given="manifest.json")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    places = dict.fromkeys(manifest["files"], folder)
    if "base" not in manifest:
        return manifest, places
    base = manifest["base"]
    known, behind = read_manifest(SOURCES[base][1] if base in SOURCES else Path(base))
    return known | manifest | {"files": known["files"] | manifest["files"]}, behind | places


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
    mine = net.state_dict()
    wrong = [key for key in mine.keys() | weights.keys() if key not in mine or key not in weights or mine[key].shape != weights[key].shape]
    if wrong:
        raise AppError("E_CHECKPOINT_KEYS", given=name, detail=", ".join(sorted(wrong)[:5]))
    net.load_state_dict(weights, assign=True)
