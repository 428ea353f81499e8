"""Weights and the state of a run on disk: safetensors and a JSON manifest with sha256, written whole or not at all. No pickle.

In: named tensors and plain values. Out: the same, after a check of every byte. A file is written to a temporary name, synced and renamed;
the manifest comes last, so a checkpoint without one does not exist. It knows nothing about what the tensors are for.
"""

import hashlib
import json
import os
from pathlib import Path

from safetensors.torch import load_file, save_file

from .errors import AppError

KEEP = 2  # checkpoints of a run: the newest, and one to fall back on


def write_atomic(path, write):
    """`write(temporary)` makes the file; it appears at `path` complete and synced, or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, value):
    write_atomic(path, lambda temporary: temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8"))


def write_weights(path, tensors):
    """Named tensors -> one safetensors file; returns its sha256."""
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_atomic(path, lambda temporary: save_file(whole, temporary))
    return sha256_of(path)


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
    """Step number `step` of a run: tensors and JSON-able `state`. Older ones than the newest KEEP are removed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights, manifest = folder / f"step-{step:08d}.safetensors", folder / f"step-{step:08d}.json"
    sha256 = write_weights(weights, tensors)
    write_json(manifest, {"step": step, "sha256": sha256, "state": state})
    for old in sorted(folder.glob("step-*.json"))[:-KEEP]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def load_checkpoint(folder):
    """(step, tensors, state) of the newest checkpoint in `folder` that is whole; leftovers of a broken save are removed.

    Raises AppError E_NO_CHECKPOINT where there is none, E_CHECKPOINT where there are some and each is damaged.
    """
    folder = Path(folder)
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()
    manifests = sorted(folder.glob("step-*.json"), reverse=True)
    for manifest in manifests:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        weights = manifest.with_suffix(".safetensors")
        if weights.exists() and sha256_of(weights) == found["sha256"]:
            return found["step"], load_file(weights), found["state"]
    raise AppError("E_CHECKPOINT" if manifests else "E_NO_CHECKPOINT", given=folder.name)
