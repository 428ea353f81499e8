"""Downloading a model: what the hub says that it would be, doing it, and doing it in a process that can be ended.

In: a ref as `sources` has it. Out: Wanted, files in the folder of models, bytes as they come. Only pinned revisions are fetched, and of them only
safetensors, configs and tokenizers. What is here already stays. It knows nothing about networks, and asks nobody.
"""

import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from .errors import AppError
from .sources import HUB, LAYOUT, SOURCES, Part, amount, lacks, missing, offline, place_of, split

UNREACHED = ("DryRunError", "LocalEntryNotFoundError")  # what huggingface_hub says when it gets no answer
NO_ANSWER = "the hub cannot be reached"
PATIENCE = 5.0  # seconds for one answer
PACE = 1.0  # seconds between two looks at a download
FAILED = re.compile(r"\[E_FETCH\] The download of .* failed: (.*?)\. .*")


@dataclass(frozen=True)
class Wanted:
    """What of a Part is to be downloaded."""

    part: Part
    place: Path  # its folder
    files: tuple[str, ...]
    size: int  # bytes that are still to come

    def __str__(self):
        return f"{self.part.repo} at {self.part.revision[:12]}: {amount(self.size)}, licence: {self.part.licence}"


def wanted(ref):
    """The Wanted of a ref: a name in SOURCES, OWNER/NAME@REVISION, or animatelcm:OWNER/NAME@REVISION, whose base comes first.

    The hub is asked. AppError E_OFFLINE, E_BY_HAND, E_REVISION, E_FETCH.
    """
    name, base = split(ref)
    parts = [one for half in (base, name) if half for one in parts_of(half)]
    if parts and offline():
        raise AppError("E_OFFLINE", given=name, folder=f"models/{place_of(name).name}")
    if parts:
        require_hub(parts[0][0].repo)
    return [listed(part, place) for part, place in parts]


def require_hub(repo):
    """AppError E_FETCH where the hub does not answer one question: huggingface_hub asks six times and waits 23 s between."""
    from huggingface_hub import constants

    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=PATIENCE).close()
    except HTTPError:  # an answer
        return
    except (URLError, TimeoutError) as error:
        if isinstance(getattr(error, "reason", error), (socket.gaierror, ConnectionError, TimeoutError)):  # else it may know a way
            raise AppError("E_FETCH", given=repo, detail=NO_ANSWER) from error


def parts_of(ref):
    """[(Part, its folder)] of what is missing. AppError E_BY_HAND, E_REVISION."""
    found = HUB.fullmatch(ref)
    if found:
        whole = Part("", found["repo"], found["revision"], ("model_index.json", *LAYOUT), None, "its own: see its page")
        return [(whole, place_of(ref))] if lacks(whole, place_of(ref)) else []
    if ref not in SOURCES:
        raise AppError("E_REVISION", given=ref)
    if SOURCES[ref].official:
        raise AppError("E_BY_HAND", given=ref, file=SOURCES[ref].official)
    return [(part, place_of(ref) / part.name) for part in missing(ref)]


def listed(part, place):
    """A Part as Wanted, by what the hub lists. AppError E_FETCH."""
    found = {one.filename: one for one in from_hub(part, place, part.files, dry_run=True)}
    files = chosen(found)
    if not any(name.endswith(".safetensors") for name in files):
        raise AppError("E_FETCH", given=part.repo, detail="it has no safetensors")
    return Wanted(part, place, files, sum(found[name].file_size or 0 for name in files if found[name].will_download))


def chosen(names):
    """Of the files of a layout those that are wanted: weights in float16 where every folder of weights has them, else in the usual format."""
    weights = [name for name in names if name.endswith(".safetensors")]
    half = [name for name in weights if ".fp16" in name]
    usual = [name for name in weights if ".fp16" not in name and ".non_ema" not in name]
    whole = {PurePosixPath(name).parent for name in half} == {PurePosixPath(name).parent for name in weights}
    return tuple(name for name in names if name not in weights or name in (half if whole else usual))


def fetch(one):
    """Download a Wanted. AppError E_FETCH."""
    from_hub(one.part, one.place, one.files)


def from_hub(part, place, files, **options):
    """huggingface_hub's answer. AppError E_FETCH."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        place.mkdir(parents=True, exist_ok=True)
        return snapshot_download(part.repo, revision=part.revision, allow_patterns=list(files), local_dir=place, **options)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        kind = type(error).__name__
        raise AppError("E_FETCH", given=part.repo, detail=NO_ANSWER if kind in UNREACHED else kind) from error


def fetching(ref, places, pace=PACE):
    """Download what is missing of a ref in another process: yields the bytes that came into `places` so far; closing it ends that process.

    AppError E_FETCH.
    """
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command, before = [sys.executable, "-m", "videolcm", "fetch", ref, "--yes"], on_disk(places)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=env, text=True, encoding="utf-8", errors="replace", start_new_session=True, **pipes) as child:
        try:
            said = None
            while said is None:
                yield on_disk(places) - before
                said = heard(child, pace)
        finally:
            child.kill()
    if child.returncode:
        told = FAILED.fullmatch(said)
        raise AppError("E_FETCH", given=ref, detail=told[1] if told else said or "it ended without a word")


def heard(child, pace):
    """The last line of what a process said, None if it has not ended after so many seconds."""
    try:
        return ["", *child.communicate(timeout=pace)[1].splitlines()][-1]
    except subprocess.TimeoutExpired:
        return None


def on_disk(places):
    """Bytes of all files in the folders, those that are half there too."""
    total = 0
    for path in (path for place in places for path in place.rglob("*")):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # moved to its own name meanwhile
            continue
    return total
