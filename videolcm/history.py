"""The clips that were made last, on disk, each under the browser that asked for it: who closes a tab loses nothing that was finished.

In: somebody's key, and a function that writes an mp4 with its settings inside. Out: the newest clips of that key, until a quota of bytes or
of clips for all is used up, oldest first. Neither key nor name becomes a path unless it looks like one that was made here.
It knows nothing about pages or models.
"""

import os
import re
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from .errors import AppError
from .video import read_settings, require_writable

KEY = re.compile("[0-9a-f]{32}")
NAME = re.compile("[0-9]{20}-[0-9a-f]{8}")  # nanoseconds first: names sort as they were made
MAX_BYTES = 2 * 10**9
MAX_CLIPS = 200
SHOWN = 24  # of one key


@dataclass(frozen=True)
class Kept:
    """A clip that is kept: its name, its file, the time it was made in seconds since 1970, and its settings."""

    name: str
    path: Path
    made: float
    settings: dict


class History:
    """Clips in `folder`: VIDEOLCM_CLIPS of the environment, or runs/clips. Where it cannot be written to they are kept as long as the process."""

    def __init__(self, folder=None, max_bytes=MAX_BYTES, max_clips=MAX_CLIPS):
        self.folder = Path(folder or os.environ.get("VIDEOLCM_CLIPS", "runs/clips")).absolute()
        self.max_bytes, self.max_clips, self.lasting = max_bytes, max_clips, True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            require_writable(self.folder / "clip.mp4")
        except (OSError, AppError):
            self.folder, self.lasting = Path(tempfile.mkdtemp(prefix="videolcm-clips-")), False

    def keep(self, key, write):
        """`write(path)` makes the clip; its name, None for somebody without a key. AppError E_OUTPUT."""
        if not is_key(key):
            return None
        name = f"{time.time_ns():020d}-{uuid4().hex[:8]}"
        path = self.folder / key / f"{name}.mp4"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have removed the whole folder
            write(path)
        except OSError as error:
            with suppress(OSError):
                path.unlink()
            raise AppError("E_OUTPUT", given=path.name) from error
        with suppress(OSError):
            self.trim(path)
        return name

    def trim(self, newest):
        """The oldest go until the quota holds; the newest stays whatever it holds."""
        sizes = {}
        for path in self.folder.glob("*/*.mp4"):
            with suppress(OSError):
                sizes[path] = path.stat().st_size
        count, used = len(sizes), sum(sizes.values())
        for path in sorted(sizes, key=lambda path: path.name):
            if count <= self.max_clips and used <= self.max_bytes:
                break
            if path != newest:  # which is the first where the clock was put back
                path.unlink(missing_ok=True)
                count, used = count - 1, used - sizes[path]

    def list(self, key):
        """The newest clips of `key`, the newest first. Files that are gone or are no clips of ours are left out."""
        found = []
        for path in sorted((self.folder / key).glob("*.mp4"), reverse=True) if is_key(key) else ():
            with suppress(AppError):
                if NAME.fullmatch(path.stem) and len(found) < SHOWN:
                    found.append(Kept(path.stem, path, int(path.stem[:20]) / 1e9, read_settings(path)))
        return found

    def get(self, key, name):
        """The clip of this key and name. AppError E_KEPT."""
        if is_key(key) and isinstance(name, str) and NAME.fullmatch(name):
            path = self.folder / key / f"{name}.mp4"
            with suppress(AppError):
                return Kept(name, path, int(name[:20]) / 1e9, read_settings(path))
        raise AppError("E_KEPT")

    def delete(self, key, name):
        """Remove it. AppError E_KEPT."""
        self.get(key, name).path.unlink(missing_ok=True)

    def used(self):
        """Bytes of all that is kept."""
        return sum(path.stat().st_size for path in self.folder.glob("*/*.mp4") if path.exists())


def is_key(key):
    return isinstance(key, str) and bool(KEY.fullmatch(key))
