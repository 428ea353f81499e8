"""Clips side by side: a labelled mp4 or GIF in which all play in step, and a contact sheet that can be read without playing.

In: tiles, each a label and frames uint8 (F, H, W, 3) of one size and length, and a JSON-able dict of settings. Out: files that hold the
settings in their comments, where `video.read_settings` finds them. It knows nothing about models, cells or figures.
"""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from .video import comment, in_one_go, write_mp4

GROUND, INK = (24, 24, 27), (244, 244, 245)
STRIP, GAP = 28, 4  # pixels: the label over a clip, and what is between clips; even, for H.264
ACROSS, THUMB, SIDE = 8, 112, 232  # the sheet: frames of a clip, the longer side of each, the width of its label


def write_grid(path, tiles, fps, settings):
    """The mp4 of all tiles [(label, frames)] at `path`; returns the Path. AppError E_OUTPUT."""
    return write_mp4(path, grid(tiles), fps, settings)


def write_gif(path, tiles, fps, settings):
    """The same as a GIF that plays for ever, in 256 colours chosen for the whole clip; returns the Path. AppError E_OUTPUT."""
    pictures = [Image.fromarray(picture) for picture in grid(tiles)]
    palette = Image.fromarray(np.concatenate([np.asarray(picture)[::2, ::2] for picture in pictures])).quantize(256)
    first, *rest = (picture.quantize(palette=palette) for picture in pictures)
    with in_one_go(path) as part:
        first.save(part, "GIF", save_all=True, append_images=rest, loop=0, duration=durations(len(pictures), fps), comment=comment(settings).encode())
    return Path(path)


def write_sheet(path, tiles, settings):
    """The contact sheet as a PNG at `path`; returns the Path. AppError E_OUTPUT."""
    text = PngInfo()
    text.add_text("Comment", comment(settings))
    with in_one_go(path) as part:
        Image.fromarray(sheet(tiles)).save(part, "PNG", pnginfo=text)
    return Path(path)


def grid(tiles):
    """All tiles [(label, frames)] as one clip, uint8 (F, H', W', 3): rows from the left, as near to a square as they go."""
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    count, height, width, _ = tiles[0][1].shape
    size = rows * (STRIP + height) + (rows - 1) * GAP, columns * width + (columns - 1) * GAP
    canvas = np.full((count, *size, 3), GROUND, np.uint8)
    for i, (label, frames) in enumerate(tiles):
        y, x = i // columns * (STRIP + height + GAP), i % columns * (width + GAP)
        canvas[:, y : y + STRIP, x : x + width] = written(label, STRIP, width)
        canvas[:, y + STRIP : y + STRIP + height, x : x + width] = frames
    return canvas


def sheet(tiles):
    """The contact sheet of tiles [(label, frames)], uint8 (H', W', 3): a clip a row under the one before, its label at the left, time across."""
    return np.concatenate([strip(label, frames) for label, frames in tiles])


def strip(label, frames):
    """One row of the sheet: a label and up to ACROSS frames, the first and the last among them."""
    chosen = np.linspace(0, len(frames) - 1, min(ACROSS, len(frames))).round().astype(int)
    scale = THUMB / max(frames.shape[1:3])
    height, width = (round(side * scale) for side in frames.shape[1:3])
    small = [np.asarray(Image.fromarray(frames[i]).resize((width, height), Image.Resampling.BOX)) for i in chosen]
    row = np.concatenate([written(label, height, SIDE), *small], 1)
    return np.pad(row, ((0, GAP), (0, 0), (0, 0)))


def written(text, height, width):
    """`text`, a line or several, on a dark ground, uint8 (height, width, 3), as large as it fits, 16 pixels at most."""
    picture = Image.new("RGB", (width, height), GROUND)
    draw = ImageDraw.Draw(picture)
    fonts = (ImageFont.load_default(size) for size in range(16, 5, -1))
    lines = text.split("\n")
    fits = (
        font for font in fonts if all(draw.textlength(line, font) <= width - 2 * GAP for line in lines) and len(lines) * (font.size + GAP) <= height
    )
    font = next(fits, ImageFont.load_default(5))
    draw.text((GAP, height / 2), text, INK, font, anchor="lm")
    return np.asarray(picture)


def durations(count, fps):
    """Milliseconds of each of `count` frames. A GIF counts in hundredths of a second: rounded so that the end of each is right."""
    ends = [round(100 * i / fps) for i in range(count + 1)]
    return [10 * (after - before) for before, after in zip(ends, ends[1:], strict=False)]
