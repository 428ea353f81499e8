"""Weights and the state of a run on disk: safetensors and a JSON manifest with sha256, written whole or not at all. No pickle.

In: named tensors and plain values. Out: the same, after a check of every byte. A file is written to a temporary name, synced and renamed;
the manifest comes last, so a checkpoint without one does not exist. It knows nothing about what the tensors are for.
"""

import hashlib
import json
import logging
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .errors import AppError

KEEP = 2  # checkpoints of a run: the newest, and one to fall back on

log = logging.getLogger(__name__)


def write_atomic(path, write):
    """`write(temporary)` makes the file; it appears at `path` complete and synced, or not at all. AppError E_DISK where it cannot be written."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise AppError("E_DISK", given=path.name) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, value):
    write_atomic(path, lambda temporary: temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8"))


def write_weights(path, tensors):
    """Named tensors -> one safetensors file; returns its sha256."""
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_atomic(path, lambda temporary: save_file(whole, temporary))
    return sha256_of(path)


def require_finite(name, weights):
    """AppError E_NOT_FINITE if not every value of {name: tensor} is a number: no such model is handed to anybody."""
    if not all(value.isfinite().all() for value in weights.values()):
        raise AppError("E_NOT_FINITE", given=name)


def misfits(mine, weights):
    """What differs between two {name: tensor}, sorted: names that the second lacks or has besides, or in another shape, which are both said."""
    shapes = {name: [tuple(of[name].shape) if name in of else None for of in (weights, mine)] for name in mine.keys() | weights.keys()}
    return sorted(f"{name} {said(*pair)}" for name, pair in shapes.items() if pair[0] != pair[1])


def said(theirs, wanted):
    if None in (theirs, wanted):
        return "is missing" if theirs is None else "is unknown"
    return f"is {'x'.join(map(str, theirs))} instead of {'x'.join(map(str, wanted))}"


def read_weights(path, sha256):
    """The tensors of a file whose bytes have that sha256; AppError E_MODEL_FILE where it is missing, E_CHECKPOINT where it differs."""
    path = Path(path)
    if not path.is_file():
        raise AppError("E_MODEL_FILE", folder=path.parent.name, given=path.name)
    if sha256_of(path) != sha256:
        raise AppError("E_CHECKPOINT", given=path.name)
    return load_file(path)


def sha256_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read()).hexdigest()


def save_checkpoint(folder, step, tensors, state):
    """Step number `step` of a run: tensors and JSON-able `state`. The newest KEEP up to this step stay; later ones are another run's.

    AppError E_DISK where it cannot be written; then those before are all there still.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights, manifest = folder / f"step-{step:08d}.safetensors", folder / f"step-{step:08d}.json"
    sha256 = write_weights(weights, tensors)
    write_json(manifest, {"step": step, "sha256": sha256, "state": state, "check": check_of(step, state)})
    mine = [path for path in sorted(folder.glob("step-*.json")) if path.stem <= manifest.stem]
    remove_checkpoints(folder, mine[-KEEP:])


def remove_checkpoints(folder, but=()):
    """Removes the checkpoints in `folder` whose manifests are not in `but`: those of another run, which nobody shall go on with, and old ones."""
    for old in set(folder.glob("step-*.json")).difference(but):
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def load_checkpoint(folder):
    """(step, tensors, state) of the newest checkpoint in `folder` that is whole; each damaged one that is passed over is logged.

    Raises AppError E_NO_CHECKPOINT where there is none, E_CHECKPOINT where there are some and each is damaged.
    """
    folder = Path(folder)
    manifests = sorted(folder.glob("step-*.json"), reverse=True)
    for manifest in manifests:
        found, weights = read_manifest(manifest), manifest.with_suffix(".safetensors")
        if found and weights.exists() and sha256_of(weights) == found["sha256"]:
            return found["step"], load_file(weights), found["state"]
        log.warning("The checkpoint %s is damaged; the one before is used.", manifest.stem)
    raise AppError("E_CHECKPOINT" if manifests else "E_NO_CHECKPOINT", given=folder.name)


def read_manifest(path):
    """What a checkpoint's manifest says, None where it is not whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and found.keys() - {"check"} == {"step", "sha256", "state"} and isinstance(found["state"], dict)
    if not whole or not isinstance(found["step"], int) or path.stem != f"step-{found['step']:08d}":
        return None
    return found if "check" not in found or found["check"] == check_of(found["step"], found["state"]) else None


def check_of(step, state):
    """What tells that neither was changed: the weights have a sha256 of their own. Older manifests have none."""
    return hashlib.sha256(json.dumps([step, state], sort_keys=True).encode()).hexdigest()


def remove_leftovers(folder):
    """Removes what a killed process left of a save in `folder`: temporary files, safetensors' own too, and weights without a manifest.

    Only for the process whose run it is: another's unfinished save looks the same.
    """
    folder = Path(folder)
    temporary = [*folder.glob(".*.tmp"), *folder.glob(".tmp*")]
    alone = [path for path in folder.glob("step-*.safetensors") if not path.with_suffix(".json").exists()]
    for leftover in temporary + alone:
        leftover.unlink()
