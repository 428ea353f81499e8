"""Files of JSON lines that grow: a run's log, a job's journal, what was seen of each clip of an evaluation.

In: plain values. Out: the same, but for a line that a full disk or a death cut in two. It knows nothing of what lines say.
"""

import json
import os
from contextlib import suppress

from .errors import AppError


def read_lines(path):
    """The whole lines of the file at `path`, oldest first; [] where there is none."""
    rows = []
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError):
                rows.append(json.loads(line))
    return rows


def add_lines(path, *values):
    """Writes each of `values` as a line at the end of the file, which begins with it where there is none. AppError E_DISK."""
    text = "".join(json.dumps(value) + "\n" for value in values)
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write("\n" + text if is_cut(path) else text)
    except OSError as error:
        raise AppError("E_DISK", given=path.name) from error


def is_cut(path):
    """Whether the last line of a file has no end."""
    with suppress(OSError), open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
    return False
