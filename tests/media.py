"""Clips of known content in files of every kind, for the tests of what reads them."""

import re
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from videolcm.errors import AppError
from videolcm.footage import read_video

SMALL = dict(frames=8, size=(64, 64))
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def ffmpeg(*arguments, data=b""):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, input=data, check=True, capture_output=True)


def make(path, frames, *options, fps=8):
    """Write uint8 frames (F, H, W, 3 or 4) with the ffmpeg program, any kind of file."""
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    pixels = "rgba" if frames.shape[3] == 4 else "rgb24"
    ffmpeg("-f", "rawvideo", "-pix_fmt", pixels, "-s", size, "-r", fps, "-i", "-", *options, path, data=frames.tobytes())
    return path


def corners(frames=8, height=64, width=64):
    """Grey that brightens with time; red, green and blue in the corners top left, top right and bottom left, white in the last."""
    clip = np.repeat(np.linspace(40, 200, frames).astype(np.uint8), height * width * 3).reshape(frames, height, width, 3)
    h, w = height // 4, width // 4
    clip[:, :h, :w], clip[:, :h, -w:], clip[:, -h:, :w], clip[:, -h:, -w:] = RED, GREEN, BLUE, WHITE
    return clip


def difference(a, b):
    """Mean absolute difference of two uint8 arrays of one shape."""
    assert a.shape == b.shape
    return np.abs(a.astype(int) - b).mean()


def refused(path, code, **options):
    """The AppError with this code, in words fit for everybody."""
    with pytest.raises(AppError) as caught:
        read_video(path, **options)
    text = str(caught.value)
    assert caught.value.code == code, text
    assert len(text) < 200 and not re.search(r"\n|/|\b0x|Traceback|Error", text)
    return text
