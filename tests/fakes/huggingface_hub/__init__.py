"""huggingface_hub as it would answer, for a process that has this folder first on its path: files of the names that the patterns say, of SIZE bytes.

FAKE_HUB of the environment: "fails" for a connection that breaks, "slow" for one that hangs after the first file.
"""

import os
import time
from pathlib import Path
from types import SimpleNamespace

SIZE = 1000
WHOLE = ("unet", "vae", "text_encoder")


def snapshot_download(repo, revision, allow_patterns, local_dir, dry_run=False):
    places = {name: Path(local_dir) / name for pattern in allow_patterns for name in named(pattern)}
    if dry_run:
        return [SimpleNamespace(filename=name, file_size=SIZE, will_download=not path.exists()) for name, path in places.items()]
    if os.environ.get("FAKE_HUB") == "fails":
        raise OSError("connection")
    for path in places.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * SIZE)
        if os.environ.get("FAKE_HUB") == "slow":
            time.sleep(600)
    return str(local_dir)


def named(pattern):
    """The files of a repository that a pattern means: of weights in diffusers' layout there are three formats, elsewhere no weights."""
    folder, _, name = pattern.rpartition("/")
    if "*" not in name:
        return [pattern]
    if name == "*.safetensors":
        return [f"{folder}/model{kind}.safetensors" for kind in (".fp16", ".non_ema", "")] if folder in WHOLE else []
    return [f"{folder}/{name.replace('*', 'model')}"] if folder in WHOLE or not name.endswith(".safetensors") else []
