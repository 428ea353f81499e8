"""A clip for every line of a file, for as many processes as share it: what is there already is kept, what cannot be made is told.

In: a VideoModel, the Lines of a file, a function that makes a Request of one, and a folder. Out: a generator of LineProgress, and of one LineDone
or LineFailed a line; clips named by the line's number, each with its settings inside. It knows nothing about arguments or pages.

Lines need nothing of one another, so processes share them out by RANK and WORLD_SIZE alone, which torchrun sets and anybody else can. What
accelerate adds to that is a process group for the whole run, which a machine that goes away would break; it is not used here.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from .errors import AppError
from .pipeline import Progress, Result, generate, save, settings_of, settle
from .processes import LONGEST
from .video import read_settings


@dataclass(frozen=True)
class Line:
    """What stands in a line of a file of prompts; numbers begin with 1."""

    number: int
    text: str

    @property
    def name(self):
        """The file that its clip becomes: the same whatever the other lines say."""
        return f"{self.number:05d}.mp4"


@dataclass(frozen=True)
class LineProgress:
    """How far a line's clip is."""

    line: Line
    progress: Progress


@dataclass(frozen=True)
class LineDone:
    """A line's clip is at `path`. `result` is None if it was there already, made with the settings that are asked for."""

    line: Line
    path: Path
    result: Result | None
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class LineFailed:
    """A line that no clip can be made of."""

    line: Line
    error: AppError


def read_lines(path):
    """The Lines of a text file that are not blank. What is not UTF-8 is left for the Request to refuse. AppError E_INPUT, E_PROMPTS."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
    except (OSError, ValueError) as error:
        raise AppError("E_INPUT", given=path) from error
    lines = [Line(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise AppError("E_PROMPTS", given=path)
    return lines


def fields_of(line, known):
    """What a line asks for: {"prompt": the line}, or the JSON object that it is, whose names are in `known`. AppError E_LINE."""
    if not line.text.startswith("{"):
        return {"prompt": line.text}
    try:
        asked = json.loads(line.text)
    except (ValueError, RecursionError):
        raise AppError("E_LINE", detail="it is no JSON object") from None
    unknown = [name for name in asked if name not in known]
    if unknown or "prompt" not in asked:
        raise AppError("E_LINE", detail=f"nothing is called {unknown[0]}" if unknown else "it has no prompt")
    return asked


def batch(model, lines, request_of, folder):
    """Yields LineProgress ..., then LineDone or LineFailed, for each of `lines` in turn; closing it stops within one step.

    `request_of(line)` -> (Request, sentences on the files that it follows). A clip of the folder that was made with other settings is replaced.
    """
    for line in lines:
        try:
            yield from one_clip(model, line, request_of, Path(folder) / line.name)
        except AppError as error:
            yield LineFailed(line, error)


def one_clip(model, line, request_of, path):
    """The events of one line. AppError for whatever is wrong with it."""
    request, notices = request_of(line)
    if is_there(path, settings_of(model, settle(model, request))):
        yield LineDone(line, path, None)
        return
    for event in generate(model, request):
        if not isinstance(event, Result):
            yield LineProgress(line, event)
    yield LineDone(line, path, save(event, path), (*notices, *event.notices))


def is_there(path, settings):
    """Whether the clip at `path` was made with exactly these settings; they cannot tell one device from another."""
    try:
        return read_settings(path) == json.loads(json.dumps(settings))
    except AppError:
        return False


def wait_for_the_others():
    """Under torchrun: returns when every process has come here, for torchrun ends all of them as soon as one ends with an error."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    from torch import distributed

    distributed.init_process_group("gloo", timeout=LONGEST)
    distributed.barrier()
    distributed.destroy_process_group()
