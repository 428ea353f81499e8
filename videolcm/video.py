"""Frames -> mp4 with its settings inside, and the settings back out of mp4, GIF and PNG.

In: uint8 (F, H, W, 3) RGB frames, frames per second and a JSON-able dict. Out: an H.264 mp4 that every browser plays, whose comment
tag (the standard place, which survives a remux) holds the dict. The file appears under its name when it is complete, or not at all.
It knows nothing about models, requests or pages.
"""

import contextlib
import hashlib
import json
import os
from fractions import Fraction
from pathlib import Path
from uuid import uuid4

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from PIL import Image

from .errors import AppError

ENCODER = {  # a clip is short: quality over size, and half the time of veryfast, which at this crf is 0.4 dB worse and a third smaller
    "preset": "ultrafast",
    "crf": "17",
    "x264-params": "cabac=1:deblock=0,0",  # which ultrafast leaves out: a third of the bytes, and edges of blocks
    "bf": "0",  # no B frames, so that time starts at 0
}
TAG = "videolcm"  # the comment is {TAG: settings}
PICTURES = {b"GIF8": ("GIF", "comment"), b"\x89PNG": ("PNG", "Comment")}  # first bytes: (Pillow's name, where its comment is)


def write_mp4(path, frames, fps, settings):
    """Write frames, uint8 (F, H, W, 3) with even H and W, as an H.264 mp4 at `fps` with the dict `settings` inside; returns the Path.

    An existing file is replaced in one go. AppError E_OUTPUT if the folder cannot be written to.
    """
    with in_one_go(path) as part, av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata["comment"] = comment(settings)
        encode(container, frames, fps)
    return Path(path)


@contextlib.contextmanager
def in_one_go(path):
    """The name to write a file under that becomes `path` when the block ends well, and nothing otherwise. AppError E_OUTPUT."""
    path = Path(path)
    part = path.with_name(f".{uuid4().hex}.part")
    try:
        yield part
        os.replace(part, path)
    except (OSError, av.error.FFmpegError) as error:
        raise AppError("E_OUTPUT", given=path) from error
    finally:
        part.unlink(missing_ok=True)


def comment(settings):
    """What the comment of a file says: the dict `settings` as JSON under this project's name."""
    return json.dumps({TAG: settings})


def encode(container, frames, fps):
    """Frames (F, H, W, 3) into an open container, as yuv420p in BT.709 limited range and tagged so: colours then agree everywhere."""
    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options=ENCODER)
    stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
    context = stream.codec_context
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    reformatter = VideoReformatter()  # one for all frames: making it costs more than using it
    for picture in frames:
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        yuv = reformatter.reformat(rgb, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        container.mux(stream.encode(yuv))
    container.mux(stream.encode())


def read_settings(path):
    """The dict that was written into the mp4, GIF or PNG at `path`. AppError E_INPUT if it cannot be opened, E_NO_SETTINGS if there is none."""
    try:
        with open(path, "rb") as file:
            picture = PICTURES.get(file.read(4))
    except OSError as error:
        raise AppError("E_INPUT", given=path) from error
    try:
        settings = json.loads(picture_comment(path, *picture) if picture else clip_comment(path))[TAG]
    except (OSError, EOFError, av.error.FFmpegError, Image.DecompressionBombError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise AppError("E_NO_SETTINGS", given=path) from error
    if not isinstance(settings, dict):
        raise AppError("E_NO_SETTINGS", given=path)
    return settings


def clip_comment(path):
    """The comment of an mp4, of which no picture is decoded: a codec that nobody has is all that may be used."""
    with av.open(str(path), format="mp4", metadata_errors="replace", options={"codec_whitelist": "none"}) as container:
        return container.metadata["comment"]


def picture_comment(path, kind, key):
    """The comment of a GIF or PNG; nothing is decoded."""
    with Image.open(path, formats=[kind]) as picture:
        return picture.info[key]


def sha256_of(frames):
    """SHA-256 of the frames' bytes (F, H, W, 3) as 64 hex digits: the same as of `numpy.load(...).tobytes()` of an --npy file."""
    return hashlib.sha256(np.ascontiguousarray(frames)).hexdigest()


def require_files(options):
    """`require_writable` for every path that there is of {option: path or None}. AppError E_ARGUMENTS where two of them are one file."""
    paths = [*filter(None, options.values())]
    if len({path.absolute() for path in paths}) < len(paths):
        *some, last = options
        raise AppError("E_ARGUMENTS", detail=f"{', '.join(some)} and {last} want files of their own")
    for path in paths:
        require_writable(path)


def make_folder(path):
    """The folder `path`, made if it is not there. AppError E_OUTPUT if it cannot be made or written to."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise AppError("E_OUTPUT", given=path) from error
    require_writable(Path(path) / "clip.mp4")


def require_writable(path):
    """AppError E_OUTPUT unless a file can be made at `path`: asked before the work, not after it. Leaves nothing behind."""
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(path)
        str(path).encode()
        with contextlib.suppress(FileNotFoundError):
            path.lstat()
        probe = path.with_name(f".{uuid4().hex}.part")
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        raise AppError("E_OUTPUT", given=path) from error
