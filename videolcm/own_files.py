"""Files that somebody brings to train on -> Samples, bytes with a caption each; and uploads -> a folder of such files.

In: a folder of videos and pictures with NAME.txt beside them, and of shards in WebDataset's layout (KEY.mp4 and KEY.txt in a tar). Out: Samples
in the order of the files' names, whose bytes are read when asked for. Shards are read from front to back by Python's tarfile, and nothing of
them is unpacked to a place that they name; the package webdataset would start shells for some names. What a file shows is for footage.py
to find out. It knows nothing about networks, jobs or pages.
"""

import re
import shutil
import tarfile
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from .errors import AppError, one_line
from .footage import LIMITS, upload_bytes

MAX_CAPTION = 512  # characters, as of a prompt
MEDIA = {"mp4", "mov", "m4v", "webm", "mkv", "avi", "gif", "png", "jpg", "jpeg", "webp"}  # of a shard's members; the rest belongs to other programs


@dataclass(frozen=True)
class Sample:
    """A file to train on. `name` is for people, on one line; `load()` gives its bytes, or raises AppError."""

    name: str
    caption: str
    load: callable


def suggest(name):
    """A caption made of a file's name: "red-ball_rolls (2).mp4" -> "red ball rolls"; "" where the name is a number."""
    words = re.findall(r"[^\W_]+", Path(str(name)).stem)
    while words and words[-1].isdigit():
        words.pop()
    return tidy(" ".join(words))


def tidy(text):
    """A caption on one line, cut to what a prompt may have."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MAX_CAPTION]


def read_caption(data):
    """The bytes of a text file as a caption; what is no UTF-8 becomes question marks."""
    return tidy(data[: 16 * MAX_CAPTION].decode("utf-8-sig", "replace"))


def samples(folder):
    """The Samples of a folder; files in folders below it and hidden ones are passed over. AppError E_DATA if there is no such folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise AppError("E_DATA", given=folder.name)
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        if path.suffix.lower() == ".tar":
            yield from shard(path)
        elif path.suffix.lower() != ".txt":
            yield Sample(one_line(path.name), caption_beside(path), partial(upload_bytes, path))


def caption_beside(path):
    """What NAME.txt beside a file says, or what its own name does."""
    text = path.with_name(f"{path.stem}.txt")
    try:
        return read_caption(text.read_bytes()) or suggest(path.name)
    except OSError:
        return suggest(path.name)


def shard(path):
    """The Samples of a tar. Where it cannot be read any further comes one more, whose bytes are refused with E_SHARD."""
    for key, members in groupby(contents(path), key=lambda member: member[0]):
        files = {kind: data for _, kind, data in members}
        if key is None:
            yield Sample(one_line(path.name), "", partial(refuse, path.name))
        else:
            yield from sample_of(path.name, key, files)


def contents(path):
    """(key, kind, bytes) of the files in a tar that are media or captions: "a/b.mp4" has the key "a/b". Bytes end where a file is too large.

    The key None comes last where the tar cannot be read to its end.
    """
    try:
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                stem, _, kind = name.partition(".")
                if member.isreg() and kind.lower() in MEDIA | {"txt"}:
                    yield folder + slash + stem, kind.lower(), tar.extractfile(member).read(LIMITS.upload + 1)
    except (tarfile.TarError, OSError, EOFError, ValueError):
        yield None, "", b""


def sample_of(shard_name, key, files):
    """The Sample of what lies under one key, {kind: bytes}; nothing where there is a caption alone."""
    caption = read_caption(files.pop("txt", b"")) or suggest(key)
    for kind, data in list(files.items())[:1]:
        yield Sample(one_line(f"{shard_name}/{key}.{kind}"), caption, partial(checked, data))


def checked(data):
    """`data` as upload_bytes would give it. AppError E_VIDEO_EMPTY, E_VIDEO_LARGE."""
    if not data:
        raise AppError("E_VIDEO_EMPTY")
    if len(data) > LIMITS.upload:
        raise AppError("E_VIDEO_LARGE", limit=LIMITS.upload >> 20)
    return data


def refuse(name):
    raise AppError("E_SHARD", given=name)


# ---- uploads


def captioned(paths, text):
    """[(path, caption)] of uploads and a text with a caption a line; an empty line leaves the suggestion. AppError E_CAPTIONS."""
    lines = text.rstrip().splitlines() if isinstance(text, str) else []
    if len(lines) > len(paths):
        raise AppError("E_CAPTIONS", count=len(lines), given=len(paths))
    lines += [""] * (len(paths) - len(lines))
    return [(path, tidy(line) or suggest(path)) for path, line in zip(paths, lines, strict=True)]


def lay_out(folder, clips):
    """Copies `clips` as `captioned` gives them into the new `folder`, named by number: nothing there is called as a person called it.

    AppError E_INPUT for a file that cannot be read, E_DISK where there is no room.
    """
    try:
        folder.mkdir(parents=True)
        for number, (path, caption) in enumerate(clips, 1):
            (folder / f"{number:04d}.txt").write_text(caption, encoding="utf-8")
            with open_upload(path) as source, open(folder / f"{number:04d}", "wb") as target:
                shutil.copyfileobj(source, target)
    except OSError as error:
        raise AppError("E_DISK", given=folder.name) from error


def open_upload(path):
    try:
        return open(path, "rb")
    except (OSError, ValueError) as error:
        raise AppError("E_INPUT", given=Path(path).name) from error
