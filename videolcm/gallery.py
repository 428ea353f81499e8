"""How assets/examples was made: `python -m videolcm.gallery`, a few seconds.

In: nothing. Out: short Toybox clips as mp4, and a mask of what stands in one of them, as PNG. It knows nothing about models or pages.
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .render import FPS, render
from .video import write_mp4
from .world import Toy, stage

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "examples"
CLIPS = {  # file: toys, floor, sky
    "roll": ((Toy("sphere", "red", "matte", "big", "right"),), "checkerboard", "day"),
    "jump": ((Toy("cone", "yellow", "shiny", "big", "jump"),), "wood", "studio"),
    "pair": ((Toy("cube", "green", "matte", "big", "still"), Toy("sphere", "orange", "shiny", "small", "bounce")), "sand", "sunset"),
}
MASKED, MARGIN = "roll", 14  # what moves in this clip is masked, so many pixels wider


def make_examples(folder=FOLDER):
    """Write every clip of CLIPS, and MASKED's mask: light where the toy is in the first frame."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (toys, floor, sky) in CLIPS.items():
        clip = render(stage(toys, floor, sky))
        write_mp4(folder / f"{name}.mp4", clip.frames, FPS, {"made by": "videolcm.gallery"})
        if name == MASKED:
            toy = (clip.ids[0] == 0).astype(np.uint8) * 255
            wide = cv2.dilate(toy, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * MARGIN + 1, 2 * MARGIN + 1)))
            Image.fromarray(wide).save(folder / f"{name}-mask.png", optimize=True)


if __name__ == "__main__":
    make_examples()
