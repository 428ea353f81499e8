"""A file that somebody uploaded -> frames of exactly the size, rate and number that were asked for, and sentences on what was done.

In: the path of a video, GIF or picture that nobody vouches for. Out: a Footage. No decoder of this process touches the bytes: the ffmpeg
program does, as a child with a list of what it may open and decode, with limits of time, memory, pixels and bytes, alone in a folder of
its own under a name of ours. What it says goes to the log; people read sentences of errors.CATALOGUE.
It knows nothing about models, requests or pages.
"""

import contextlib
import logging
import os
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory

import imageio_ffmpeg
import numpy as np

from .errors import AppError
from .video import sha256_of

try:
    import resource
except ImportError:  # Windows: the limits of ffmpeg's own options and of time remain
    resource = None

FITS = ("crop", "pad")
BEGINNINGS = {  # demuxer: how its files begin
    "mov": rb".{4}(ftyp|moov|mdat|wide|free|skip)",
    "matroska": rb"\x1a\x45\xdf\xa3",
    "avi": rb"RIFF.{4}AVI ",
    "gif": rb"GIF8[79]a",
    "png_pipe": rb"\x89PNG\r\n\x1a\n",
    "jpeg_pipe": rb"\xff\xd8\xff",
    "webp_pipe": rb"RIFF.{4}WEBP",
}
CODECS = {"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "prores", "mjpeg", "png", "gif", "webp"}
DECODERS = CODECS - {"av1"} | {"libvpx", "libvpx-vp9", "libdav1d"}  # the built-in av1 needs a GPU
SEES_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # the built-in ones drop it
UPLOAD = "upload"  # the file's name in its folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one file may cost. Where the system has no such limits (Windows, macOS) memory, cpu and the log's size are not limited."""

    upload: int = 64 << 20  # bytes
    pixels: int = 7680 * 4320  # of one frame, as it is coded
    memory: int = 2 << 30  # bytes of the child's address space; an ordinary 8K video takes a fifth of them
    cpu: int = 20  # seconds
    wall: float = 20.0  # seconds
    log: int = 1 << 20  # bytes


LIMITS = Limits()


@dataclass(frozen=True)
class Wanted:
    """What the frames shall be: their number, rate, size in pixels, the second of the file that comes first, and how its shape is met."""

    frames: int
    fps: Fraction
    height: int
    width: int
    start: float
    fit: str

    @property
    def seconds(self):
        return float(self.frames / self.fps)


@dataclass(frozen=True)
class Source:
    """What ffmpeg's banner says of a file's first picture track. Sizes are of the upright picture; fps is None where there is none."""

    codec: str
    width: int
    height: int
    shape: float  # width / height as it is shown
    fps: float | None
    turned: bool
    alpha: bool
    deep: bool  # more than 8 bits a channel
    hdr: bool


@dataclass(frozen=True, eq=False)
class Footage:
    """Frames that are safe to use: uint8 (F, H, W, 3), RGB; `notices` tell people what was done to their file to get them."""

    frames: np.ndarray
    fps: float
    notices: tuple[str, ...] = ()

    @cached_property
    def sha256(self):
        """Of the frames' bytes, 64 hex digits, as `video.sha256_of`."""
        return sha256_of(self.frames)


def read_video(path, frames=16, fps=8, size=(256, 256), start=0.0, fit="crop"):
    """The file at `path` as a Footage of `frames` frames at `fps` and size (height, width), from second `start` on.

    Frame i is what a player shows at start + i / fps; after the end the last frame stays, and so does a picture. The middle of another
    shape is cut out (fit "crop") or put between black bars ("pad"). Rotation is applied and alpha laid over black.
    AppError E_INPUT, E_NUMBER (start), E_FIT, E_FFMPEG, E_TEMPORARY and E_VIDEO_EMPTY, _LARGE, _FORMAT, _CODEC, _SIZE, _AUDIO, _BROKEN,
    _SLOW, _START.
    """
    if fit not in FITS:
        raise AppError("E_FIT", given=fit, known=", ".join(FITS))
    if isinstance(start, bool) or not isinstance(start, Real) or not 0 <= start < 1e6:
        raise AppError("E_NUMBER", name="The start", range="a number of seconds from 0 on", given=start)
    data = upload_bytes(path)
    demuxer = demuxer_of(data)
    still = demuxer.endswith("_pipe")
    wanted = Wanted(frames, Fraction(fps).limit_denominator(1000), *size, 0.0 if still else float(start), fit)
    try:
        with TemporaryDirectory(prefix="videolcm-") as folder:
            Path(folder, UPLOAD).write_bytes(data)
            source = inspect(folder, demuxer)
            rgba = decode(folder, demuxer, source, wanted)
    except OSError as error:
        raise AppError("E_TEMPORARY") from error
    rest = np.minimum(np.arange(frames), len(rgba) - 1)
    notices = [*notices_on_time(source, wanted, len(rgba), still), *notices_on_looks(source, wanted, rgba)]
    return Footage(np.ascontiguousarray(rgba[rest, :, :, :3]), float(wanted.fps), tuple(notices))


def upload_bytes(path):
    """All bytes of the regular file at `path`. AppError E_INPUT, E_VIDEO_EMPTY, E_VIDEO_LARGE."""
    try:
        if not os.path.isfile(path):
            raise FileNotFoundError
        with open(path, "rb") as file:
            data = file.read(LIMITS.upload + 1)
    except (OSError, ValueError) as error:
        raise AppError("E_INPUT", given=Path(path).name) from error
    if not data:
        raise AppError("E_VIDEO_EMPTY")
    if len(data) > LIMITS.upload:
        raise AppError("E_VIDEO_LARGE", limit=LIMITS.upload >> 20)
    return data


def demuxer_of(data):
    """The key of BEGINNINGS that the first bytes fit, so that ffmpeg need not guess. AppError E_VIDEO_FORMAT."""
    for demuxer, beginning in BEGINNINGS.items():
        if re.match(beginning, data, re.DOTALL):
            return demuxer
    raise AppError("E_VIDEO_FORMAT")


def inspect(folder, demuxer):
    """Read the header of the upload in `folder`: the Source. AppError E_VIDEO_CODEC, _SIZE, _AUDIO, _BROKEN, _SLOW."""
    _, said = run_ffmpeg(folder, [*reading(demuxer), "-i", UPLOAD], 0)
    tracks = re.findall(r"^  Stream #0:\d+.*?: (Video|Audio): (\w+)(.*)((?:\n    .*)*)", said, re.MULTILINE)
    pictures = [track for kind, *track in tracks if kind == "Video" and "(attached pic)" not in track[1]]
    if not pictures:
        raise AppError("E_VIDEO_AUDIO") if tracks else refusal(said)
    codec, looks, tags = pictures[0]
    if codec not in CODECS:
        raise AppError("E_VIDEO_CODEC", given=codec)
    size = re.search(r", (\d+)x(\d+)", looks)
    if size is None:
        raise refusal(said)
    return source_of(codec, looks, tags, int(size[1]), int(size[2]))


def source_of(codec, looks, tags, width, height):
    """The Source of a track of this size; `looks` is what follows the codec on its line of the banner, `tags` are the lines below."""
    pixel_format = (re.search(r", ([a-z]\w+)[(,]", looks) or ["", ""])[1]
    aspect = re.search(r"SAR (\d+):(\d+)", looks)  # of one pixel
    fps = re.search(r", ([\d.]+) fps", looks)
    angle = re.search(r"^ +display ?matrix: rotation of (-?\d+)", tags, re.IGNORECASE | re.MULTILINE)
    angle = int(angle[1]) % 360 if angle else 0
    shape = width / height * (int(aspect[1]) / int(aspect[2]) if aspect else 1)
    if angle in (90, 270):
        width, height, shape = height, width, 1 / shape
    return Source(
        codec=codec,
        width=width,
        height=height,
        shape=shape,
        fps=float(fps[1]) if fps else None,
        turned=angle != 0,
        alpha=bool(re.search(r"rgba|bgra|argb|abgr|yuva|gbrap|^ya|pal8", pixel_format) or re.search(r"^ +alpha_mode +: 1", tags, re.MULTILINE)),
        deep=bool(re.search(r"(9|10|12|14|16|48|64)(le|be)$", pixel_format)),
        hdr=bool(re.search(r"smpte2084|arib-std-b67", looks)),
    )


def decode(folder, demuxer, source, wanted):
    """The upload's frames from wanted.start on, uint8 (n, H, W, 4): RGB laid over black, and alpha; n is 1 .. wanted.frames + 1.

    The one frame too many tells whether the file goes on. AppError E_VIDEO_START, _SIZE, _BROKEN, _SLOW.
    """
    decoder = ["-c:v", SEES_ALPHA[source.codec]] if source.alpha and source.codec in SEES_ALPHA else []
    seek = ["-noaccurate_seek", "-ss", f"{wanted.start:.6f}"] if wanted.start else []  # from the key frame before; the filter drops the rest
    count = wanted.frames + 1
    output = ["-map", "0:V:0", "-vf", filters(source, wanted), "-fps_mode", "passthrough", "-frames:v", str(count), "-f", "rawvideo", "pipe:1"]
    frame_bytes = wanted.height * wanted.width * 4
    command = [*reading(demuxer), "-v", "error", *decoder, *seek, "-i", UPLOAD, *output]
    data, said = run_ffmpeg(folder, command, count * frame_bytes)
    n = len(data) // frame_bytes
    if n == 0 and wanted.start:
        decode(folder, demuxer, source, replace(wanted, start=0.0, frames=1))  # which says what is wrong with the file, if anything is
        raise AppError("E_VIDEO_START", given=f"{wanted.start:g}")
    if n == 0:
        raise refusal(said)
    return np.frombuffer(data, np.uint8, n * frame_bytes).reshape(n, wanted.height, wanted.width, 4)


def filters(source, wanted):
    """ffmpeg's filter chain. Time first, so that only frames that are used are scaled; alpha before scaling, so that edges stay clean.

    ffmpeg builds the chain anew where the size of a file's frames changes midway; up to one frame of the output is lost there.
    """
    height, width, shape = wanted.height, wanted.width, wanted.width / wanted.height
    chain = [f"fps={wanted.fps}:round=up", "trim=start=0"]  # the frame at i / fps is the last one that began by then
    if wanted.fit == "crop":
        chain.append(f"crop=w='max(1,min(iw,ih*{shape}/sar))':h='max(1,min(ih,iw*sar/{shape}))':exact=1")
    if source.alpha:
        chain += ["format=gbrap", "premultiply=inplace=1"]
    if wanted.fit == "crop":
        return ",".join([*chain, f"scale={width}:{height}", "format=rgba"])
    scale = f"scale=w='max(1,min({width},round({height}*dar)))':h='max(1,min({height},round({width}/dar)))'"
    return ",".join([*chain, scale, "format=rgba", f"pad={width}:{height}:-1:-1:black"])


def notices_on_time(source, wanted, found, still):
    """Sentences on which moments the frames show; `found` frames came out of ffmpeg."""
    if still:
        yield f"The picture became a still video of {wanted.seconds:.1f} seconds."
        return
    if source.fps is None:
        yield f"Resampled to {float(wanted.fps):g} frames per second."
    elif abs(source.fps - wanted.fps) > 0.01:
        yield f"Resampled from {source.fps:g} to {float(wanted.fps):g} frames per second."
    if wanted.start:
        yield f"Used seconds {wanted.start:.1f} to {wanted.start + min(found, wanted.frames) / float(wanted.fps):.1f} of the video."
    elif found > wanted.frames:
        yield f"Used the first {wanted.seconds:.1f} seconds of the video."
    if found < wanted.frames:
        yield f"The video ends before {wanted.seconds:.1f} seconds are full, so its last frame is repeated."


def notices_on_looks(source, wanted, rgba):
    """Sentences on what was done to the pictures; rgba (n, H, W, 4) are the frames that came out of ffmpeg."""
    if source.turned:
        yield "Turned upright, as the file asks for."
    if abs(source.shape * wanted.height / wanted.width - 1) > 0.01:
        done = "Cut out the middle" if wanted.fit == "crop" else "Added black bars"
        yield f"{done}: {source.width}x{source.height} has another shape than {wanted.width}x{wanted.height}."
    if rgba[..., 3].min() < 255:
        yield "What is transparent was laid over black."
    if source.hdr:
        yield "HDR colours were reduced to 8 bits as they are, so they may look pale."
    elif source.deep:
        yield "Colours were reduced to 8 bits a channel."


def reading(demuxer):
    """Options of an input that may be anything: nothing but this file is opened, nothing is guessed, nothing huge is allocated."""
    names = {"-protocol_whitelist": "file", "-format_whitelist": ",".join(BEGINNINGS), "-codec_whitelist": ",".join(sorted(DECODERS))}
    numbers = {"-max_pixels": LIMITS.pixels, "-threads": 1}  # more threads hold more frames
    return [*(str(word) for pair in {**names, **numbers}.items() for word in pair), "-f", demuxer]


def run_ffmpeg(folder, options, cap):
    """Run ffmpeg with `options` in `folder`: (the first `cap` bytes of its output, what it said). AppError E_FFMPEG, E_VIDEO_SLOW."""
    deadline = time.monotonic() + LIMITS.wall
    with open(Path(folder, "log"), "w+b") as spoken, start_ffmpeg(folder, options, spoken) as child:
        alarm = threading.Timer(LIMITS.wall, kill, [child])
        try:
            alarm.start()
            restrain(child)
            data = child.stdout.read(cap + 1)  # until the child closes its end, as a rule
            child.stdout.close()
            child.wait()
        finally:
            alarm.cancel()
            kill(child)
        spoken.seek(0)
        said = spoken.read(LIMITS.log).decode("utf-8", "replace")
    if child.returncode == -9 or time.monotonic() > deadline:
        raise refusal(said, "E_VIDEO_SLOW")
    return data[:cap], said


def start_ffmpeg(folder, options, spoken):
    """The child: no shell, no input, no environment, a process group of its own; it speaks into the file `spoken`."""
    try:
        program = os.path.abspath(imageio_ffmpeg.get_ffmpeg_exe())
        return subprocess.Popen(
            [program, "-hide_banner", "-nostdin", "-nostats", "-filter_threads", "1", *options],
            cwd=folder,
            env={key: os.environ[key] for key in ("SYSTEMROOT",) if key in os.environ},  # Windows cannot do without
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=spoken,
            start_new_session=True,
            restore_signals=False,  # a log that is full is then cut, not fatal
        )
    except (OSError, RuntimeError) as error:
        raise AppError("E_FFMPEG") from error


def restrain(child):
    """Set the limits of a child that has just been started, from outside: nothing of ours runs between fork and exec."""
    if hasattr(resource, "prlimit"):
        limits = {"RLIMIT_AS": LIMITS.memory, "RLIMIT_CPU": LIMITS.cpu, "RLIMIT_FSIZE": LIMITS.log, "RLIMIT_CORE": 0}
        for name, value in limits.items():
            resource.prlimit(child.pid, getattr(resource, name), (value, value))


def kill(child):
    """End the child and all that it may have started; nothing if it has ended."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL) if hasattr(os, "killpg") else child.kill()


def refusal(said, code="E_VIDEO_BROKEN"):
    """The AppError for what ffmpeg said, which the log keeps and no page shows: of size or memory if it speaks of them, else `code`."""
    log.info("ffmpeg gave up (%s): %r", code, said[-2000:])
    size = re.search(r"Picture size (\d+)x(\d+) (?:exceeds|is invalid)", said)
    if size and int(size[1]) * int(size[2]) > LIMITS.pixels:
        return AppError("E_VIDEO_SIZE", given=f"{size[1]}x{size[2]}", limit=LIMITS.pixels)
    return AppError("E_VIDEO_SLOW" if re.search(r"Cannot allocate memory|get_buffer\(\) failed", said) else code)
