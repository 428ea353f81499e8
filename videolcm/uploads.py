"""What somebody gives beside a prompt, files of a video and of a mask -> a Request that follows them.

In: a Material, which names files as they were uploaded, and the Request's other values, unchecked. Out: the Request, and sentences on what was
done to the files. Every file is read by footage.read_video, mask pictures too. The page and the command line share this, so that
the same files and numbers give the same clip. It knows nothing about either.
"""

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Real

import numpy as np

from .errors import AppError
from .footage import FITS, read_video
from .masks import feather, follow, from_box, from_mask, grow
from .models.base import TASKS
from .pipeline import Request, one_of, whole

KEEP = 4  # files whose frames are kept, 25 MB each at most
MAX_OUTLINE = 64  # pixels that a hole may grow or fade by
FPS = 8  # of a video that is followed at its own pace
SPANS = 0.5, 30  # seconds of a video that may become a clip
LIGHT = 127  # what is lighter is marked, as masks.from_mask has it


@dataclass(frozen=True)
class Material:
    """Files and how to use them. The hole is everything that masks and box mark together; a mask is a picture or a video, light = replaced.

    start: the second of the video (and of a mask that is one) that comes first; span: how many seconds become the clip, which is then faster or
    slower than the video, 0 for as many as the clip has; fit: "crop" or "pad". box: four fractions of the picture.
    moving: what is marked in the first frame alone moves with what it covers; else it stays. grow, feather: 0..64 pixels.
    """

    video: str | None = None
    masks: tuple[str, ...] = ()
    box: tuple | None = None
    start: float = 0.0
    span: float = 0.0
    fit: str = "crop"
    moving: bool = True
    grow: int = 0
    feather: int = 0

    def told(self, task):
        """How the files are used, as a dict that JSON can hold: all but the files themselves, and of a hole only where there is one."""
        told = {"start": self.start, "span": self.span, "fit": self.fit}
        if task == "inpaint":
            told |= {"box": self.box and list(self.box), "moving": self.moving, "grow": self.grow, "feather": self.feather}
        return told


def request_with(material, task="text", extractor=None, **values):
    """(Request, notices): `values` are the Request's other fields. Numbers are checked before any file is read.

    AppError E_TASK, E_TASK_INPUT, and as Request, footage.read_video and masks.
    """
    one_of(task, TASKS, "E_TASK")
    draft = Request(**values)
    if task == "text":
        return draft, ()
    video, notices = read_frames(material, task, draft)
    hole = read_hole(material, video) if task == "inpaint" else None
    return replace(draft, task=task, extractor=extractor, video=video, hole=hole, material=material.told(task)), notices


def read_frames(material, task, request):
    """(video, notices): uint8 (F, H, W, 3) of the request's length and size. AppError E_TASK_INPUT, and as read_video."""
    if not material.video:
        raise AppError("E_TASK_INPUT", given=task, needs="a video")
    rate = rate_of(material.span, request.frames)
    footage = read(material.video, request.frames, (request.height, request.width), material.start, material.fit, rate)
    return footage.frames, footage.notices


def read_hole(material, video):
    """The hole float32 (F, H, W) of `video` (F, H, W, 3). AppError E_TASK_INPUT, E_NUMBER, and as read_video and masks."""
    outline = {name: outline_pixels(name, getattr(material, name)) for name in ("grow", "feather")}
    if material.box is None and not material.masks:
        raise AppError("E_TASK_INPUT", given="inpaint", needs="a mask or a box")
    hole = np.maximum.reduce([moved(part, video, material.moving) for part in marked(material, video)])
    if outline["grow"]:
        hole = grow(hole, outline["grow"])
    return feather(hole, outline["feather"]) if outline["feather"] else hole


def marked(material, video):
    """The parts of the hole, each float32 (F, H, W), 0 or 1."""
    frames, height, width = video.shape[:3]
    rate = rate_of(material.span, frames)
    if material.box is not None:
        yield from_box(material.box, (frames, height, width))
    for path in material.masks:
        yield from_mask(read(path, frames, (height, width), material.start, material.fit, rate).frames, (frames, height, width))


def moved(hole, video, moving):
    """A part of the hole as it is; one that never changes is carried along with the picture if it shall be `moving`."""
    return follow(hole[0], video) if moving and (hole == hole[:1]).all() else hole


def rate_of(span, frames):
    """Frames a second at which a video is read so that `frames` of them take `span` seconds, FPS for 0. AppError E_NUMBER."""
    low, high = SPANS
    if isinstance(span, bool) or not isinstance(span, Real) or (span != 0 and not low <= span <= high):
        raise AppError("E_NUMBER", name="The span", range=f"a number of seconds from {low} to {high}, or 0", given=span)
    return frames / float(span) if span else FPS


def outline_pixels(name, value):
    """AppError E_NUMBER unless `value` is a whole number of pixels in 0..64."""
    return whole(value, 0, MAX_OUTLINE, "E_NUMBER", name=name.capitalize(), range=f"a whole number of pixels from 0 to {MAX_OUTLINE}")


def box_of(text):
    """ "0.2,0.2,0.6,0.8" as four floats, None for nothing. AppError E_BOX for what does not look so."""
    if text is None or text == "":
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except (AttributeError, ValueError):
        raise AppError("E_BOX", given=text) from None


def marks_nothing(path, size):
    """Whether a mask picture of `size` (height, width) is dark all over. AppError as read_video."""
    return bool(read(path, 1, size, 0, "crop", FPS).frames.mean(-1).max() <= LIGHT)


def read(path, frames, size, start, fit, rate):
    """`read_video`, whose last answers are kept as long as the file stays what it is. AppError as read_video."""
    one_of(fit, FITS, "E_FIT")
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return read_video(path)  # which says what is wrong
    second = start if isinstance(start, Real) else str(start)
    return kept(path, stat.st_size, stat.st_mtime_ns, frames, size, second, fit, rate)


@lru_cache(maxsize=KEEP, typed=True)
def kept(path, length, changed, frames, size, start, fit, rate):
    return read_video(path, frames=frames, fps=rate, size=size, start=start, fit=fit)
