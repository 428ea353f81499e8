"""Real clips that installed packages bring along: videos of gradio, and photographs of scikit-image before a camera that moves.

In: nothing. Out: frames uint8 (16, 256, 256, 3) with captions in words of the embedded world: what the clip shall become, in colours and a
place that are not its own. Files are read as uploads are, and the packages are not imported. It knows nothing about models.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from .errors import AppError
from .footage import read_video

FRAMES, SIZE, MARGIN = 16, 256, 32  # pixels on each side of a photograph, for the camera to move in


class RealClip(NamedTuple):
    """A row of REAL_CLIPS. The camera over a photograph goes (x, y) margins to the right and down from one end to the other, and comes `zoom`
    times closer; None for a video."""

    package: str
    file: str
    camera: tuple | None
    caption: str


REAL_CLIPS = (
    RealClip("gradio", "media_assets/videos/b.mp4", None, "a big orange ball spins on the sand at sunset"),  # the earth at night
    RealClip("skimage", "data/no_time_for_that_tiny.gif", None, "a big green cube moves to the left on a wooden floor in a studio"),
    RealClip("skimage", "data/coffee.png", (1, 0, 1.0), "a big blue cylinder moves to the left over the grass by day"),
    RealClip("skimage", "data/chelsea.png", (0, 0, 1.25), "a big purple ball comes closer on a wooden floor at night"),
    RealClip("skimage", "data/rocket.jpg", (0, -1, 1.0), "a big yellow cone comes closer on the sand at sunset"),
    RealClip("skimage", "data/astronaut.png", (-1, 0, 1.0), "a big white cone moves to the right over snow at night"),
    RealClip("skimage", "data/motorcycle_left.png", (-0.5, 0.5, 1.15), "a big pink cube moves to the right on a checkerboard in a studio"),
)


def real_clips():
    """[(frames, caption)] of those rows of REAL_CLIPS whose files are here. AppError E_PACKAGE if none are, and as footage.read_video."""
    found = [(frames_of(row, path), row.caption) for row in REAL_CLIPS if (path := place_of(row)) and path.is_file()]
    if not found:
        raise AppError("E_PACKAGE", given="skimage")
    return found


def place_of(row):
    """Where a row's file should be; None if the package is not here."""
    found = find_spec(row.package)
    return Path(found.origin).parent / row.file if found and found.origin else None


def frames_of(row, path):
    """A row's clip, uint8 (FRAMES, SIZE, SIZE, 3)."""
    if row.camera is None:
        return read_video(path, FRAMES, size=(SIZE, SIZE)).frames
    side = SIZE + 2 * MARGIN
    return filmed(read_video(path, 1, size=(side, side)).frames[0], *row.camera)


def filmed(photograph, x, y, zoom):
    """A photograph (S, S, 3), S = SIZE + 2 MARGIN, as `RealClip` says: uint8 (FRAMES, SIZE, SIZE, 3), at every moment inside of it."""
    clip = []
    for part in np.linspace(0, 1, FRAMES):
        scale = (1 / zoom) ** part  # pixels of the photograph in one of the clip
        corner = [(len(photograph) - 1) / 2 + MARGIN * (2 * part - 1) * way - scale * (SIZE - 1) / 2 for way in (x, y)]
        window = np.array([[scale, 0, corner[0]], [0, scale, corner[1]]])
        clip.append(cv2.warpAffine(photograph, window, (SIZE, SIZE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP))
    return np.stack(clip)
