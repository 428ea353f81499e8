"""The player of a comparison: what stands in each of its cells, and the component that plays all of them in step.

In: the events of `compare.compare`. Out: a Board's JSON for the component, whose page, style and script are files in assets/. A clip travels as
one image, its frames one below the other, so that no cell can fall behind another. It knows nothing about requests, engines or files.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image

from videolcm.stopwatch import STAGES
from videolcm.ui import messages

ASSETS = Path(__file__).parent / "assets"
LONGEST = 256  # pixels: a clip's longer side in the player; the files keep every pixel
BLOCK = 16  # pixels of a JPEG's block: frames that are multiples of it do not bleed into each other


def build_player():
    """The component. Its value is a Board's `value()` or None; its event `stop_cell` names a cell's index."""
    parts = {name: (ASSETS / f"player.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    return gr.HTML(
        None,
        html_template=one_line_of(parts["html"]),
        css_template=parts["css"],
        js_on_load=parts["js"],
        apply_default_css=False,
        elem_id="player",
    )


def one_line_of(text):
    """HTML without the white space between its tags."""
    return re.sub(r">\s+<", "><", text.strip())


@dataclass
class Tile:
    """One cell as the player shows it."""

    name: str
    reference: bool
    state: str = "waiting"  # waiting, making, done, stopped
    note: str = "waiting"
    part: float = 0.0  # done, in 0..1
    strip: str | None = None  # the frames as a data URL
    figures: list = field(default_factory=list)  # [[name, value]]
    warning: str = ""


class Board:
    """All cells of one comparison; `take` an event, then `value()` is what the player shows."""

    def __init__(self, cells, reference, frames, width, height):
        self.frames, self.size, self.fps = frames, small(width, height), 8
        self.tiles = {cell: Tile(str(cell), cell == reference) for cell in cells}
        self.done = {}  # {cell: CellDone}, the latest of each

    def take(self, event):
        """Note a CellProgress, CellDone or CellStopped."""
        tile = self.tiles[event.cell]
        if hasattr(event, "progress"):
            self.make(tile, event.progress)
        elif hasattr(event, "result"):
            self.finish(tile, event)
        else:
            tile.state, tile.note, tile.warning = "stopped", "stopped", str(event.error or "")

    def make(self, tile, progress):
        tile.state, tile.note, tile.part = "making", messages.stage(progress), messages.part_done(progress)
        if progress.preview is not None:
            tile.strip = messages.data_url(stacked(progress.preview))

    def finish(self, tile, event):
        if tile.state != "done":
            tile.strip = messages.data_url(stacked(event.result.frames, self.size))
        tile.state, tile.part, tile.name, self.fps = "done", 1.0, str(event.made), event.result.settings["fps"]
        tile.note, tile.figures, tile.warning = note(event), figures(event, tile.reference), event.metrics["warning"] or ""
        self.done[event.cell] = event

    def value(self):
        """JSON for the player, which the component's `value` is."""
        return {"fps": self.fps, "count": self.frames, "size": self.size, "cells": [dict(vars(tile)) for tile in self.tiles.values()]}

    def ended(self):
        """The same when nothing more will come: what is not done was stopped."""
        for tile in self.tiles.values():
            if tile.state != "done":
                tile.state, tile.note = "stopped", "stopped"
        return self.value()

    def status(self):
        """The status line while cells are made: which one, and how much of all steps is done."""
        names = [tile.name for tile in self.tiles.values() if tile.state == "making"]
        part = sum(cell.steps * tile.part for cell, tile in self.tiles.items()) / sum(cell.steps for cell in self.tiles)
        text = f"Making {names[0]}, {len(self.done) + 1} of {len(self.tiles)}" if names else "Measuring"
        return messages.plain(text, part)


# ---- pictures


def small(width, height):
    """[width, height] of a frame in the player: at most LONGEST, in whole blocks."""
    scale = min(1, LONGEST / max(width, height))
    return [max(BLOCK, round(side * scale / BLOCK) * BLOCK) for side in (width, height)]


def stacked(frames, size=None):
    """Frames (F, H, W, 3) one below the other, uint8 (F h, w, 3); each resized to `size` [w, h] if given."""
    if size and size != [frames.shape[2], frames.shape[1]]:
        frames = np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames])
    return np.ascontiguousarray(frames).reshape(-1, *frames.shape[2:])


# ---- figures


def note(done):
    """The line under a finished cell's name: evaluations, and the seconds of each stage, whose sum stands first."""
    result, seconds = done.result, done.result.seconds
    stages = ", ".join(f"{stage}\N{NO-BREAK SPACE}{seconds[stage]:.2f}" for stage in STAGES if stage != "conditions" or seconds[stage])
    return f"{result.nfe} evaluation{'s' * (result.nfe != 1)}, {seconds['total']:.2f} s: {stages}"


def made_in(result):
    """Seconds from noise to frames; the prompt is read once for all cells."""
    return result.seconds["denoise"] + result.seconds["decode"]


def figures(done, reference):
    """[[name, value]] under a finished cell; what needs the reference comes with it, and is left out under the reference itself."""
    metrics = done.metrics
    beside = reference or metrics["psnr"] is None
    kept, match = None if beside else metrics["motion_ratio"], metrics["text_match"]
    rows = [
        ["Distance", None if beside else shown(metrics["feature_distance"], "{:.3f}")],
        ["PSNR", None if beside else shown(metrics["psnr"], "{:.1f} dB")],
        ["Motion", f"{metrics['motion']:.2f} px" if kept is None else f"{kept:.0%} kept"],
        ["Flicker", shown(metrics["flicker"], "{:.2f}")],
        *([name[:1].upper() + name[1:], shown(value, "{:.1f} dB" if "PSNR" in name else "{:.2f}")] for name, value in metrics["followed"].items()),
        ["Text match", "not available" if match is None else f"{match:.0%}"],
    ]
    return [row for row in rows if row[1] is not None]


def shown(value, pattern):
    """A figure as people read it, None where there is none."""
    return None if value is None else pattern.format(value)
