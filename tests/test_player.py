"""The player's JSON and the plot: strips hold the frames, figures stand where they should, ticks are round."""

import base64
import io
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from conftest import FakeModel
from PIL import Image

from videolcm.compare import Cell, CellDone, CellStopped, compare
from videolcm.errors import AppError
from videolcm.pipeline import Request
from videolcm.plot import scatter, ticks
from videolcm.ui.player import Board, small, stacked

CELLS, SHORT = [Cell("student", "lcm", 1), Cell("student", "lcm", 2)], Cell("teacher", "ddim", 3)
REQUEST = Request("a red ball", frames=8, height=128, width=160)


def pixels_of(strip):
    """What a browser makes of a data URL: uint8 (F h, w, 3)."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(strip.split(",")[1]))))


def played(stop=None):
    """The Board after a comparison, and its values on the way."""
    models = {role: FakeModel(role) for role in ("student", "teacher")}
    board, values, stopped = Board([*CELLS, SHORT], SHORT, 8, 160, 128), [], {stop}
    for event in compare(models, REQUEST, CELLS, SHORT, stopped):
        board.take(event)
        values.append(board.value())
    return board, values


def test_a_strip_holds_every_frame():
    board, values = played()
    assert values[-1]["size"] == [160, 128] and values[-1]["count"] == 8 and values[-1]["fps"] == 8
    for tile, done in zip(values[-1]["cells"], board.done.values(), strict=True):
        seen = pixels_of(tile["strip"]).reshape(8, 128, 160, 3)
        assert np.abs(seen.astype(int) - done.result.frames).mean() < 2


def test_previews_come_while_a_cell_is_made():
    _, values = played()
    making = [value["cells"][1] for value in values if value["cells"][1]["state"] == "making" and value["cells"][1]["strip"]]
    assert making and pixels_of(making[0]["strip"]).shape == (8 * 16, 20, 3)
    assert making[0]["note"] == "Step 1 of 2" and 0 < making[0]["part"] < 1
    states = [[tile["state"] for tile in value["cells"]] for value in values]
    assert ["done", "making", "waiting"] in states and states[-1] == ["done"] * 3


def test_figures_that_need_the_reference_come_with_it_and_not_under_it():
    _, values = played()
    first = next(value for value in values if value["cells"][0]["state"] == "done")
    assert [name for name, _ in first["cells"][0]["figures"]] == ["Motion", "Flicker", "Text match"]
    cell, _, reference = values[-1]["cells"]
    assert dict(cell["figures"])["PSNR"].endswith(" dB") and dict(cell["figures"])["Motion"].endswith(" kept")
    assert "PSNR" not in dict(reference["figures"]) and reference["reference"] and not cell["reference"]
    assert cell["note"].startswith("1 evaluation, ") and reference["note"].startswith("6 evaluations, ")


def test_the_seconds_of_every_stage_are_under_the_name():
    board, _ = played()
    done = board.done[CELLS[0]]
    stages = {"text": 0.01, "conditions": 0.0, "denoise": 0.2, "decode": 0.07, "write": 0.02, "total": 0.3}
    board.take(replace(done, result=replace(done.result, seconds=stages)))
    note = board.value()["cells"][0]["note"].replace("\N{NO-BREAK SPACE}", " ")
    assert note == "1 evaluation, 0.30 s: text 0.01, denoise 0.20, decode 0.07, write 0.02"
    board.take(replace(done, result=replace(done.result, seconds=stages | {"conditions": 0.5})))
    assert "conditions\N{NO-BREAK SPACE}0.50, denoise" in board.value()["cells"][0]["note"]


def test_a_lost_motion_is_said():
    board, _ = played()
    done = board.done[CELLS[0]]
    board.take(CellDone(CELLS[0], done.result, {**done.metrics, "motion_ratio": 0.4, "warning": "It loses motion."}))
    tile = board.value()["cells"][0]
    assert tile["warning"] == "It loses motion." and ["Motion", "40% kept"] in tile["figures"]


def test_stopped_cells():
    board, values = played(stop=CELLS[1])
    assert [tile["state"] for tile in values[-1]["cells"]] == ["done", "stopped", "done"]
    half = Board(CELLS, None, 8, 160, 128)
    half.take(CellStopped(CELLS[0]))
    assert [tile["state"] for tile in half.value()["cells"]] == ["stopped", "waiting"]
    assert [tile["state"] for tile in half.ended()["cells"]] == ["stopped", "stopped"]
    half.take(CellStopped(CELLS[1], AppError("E_NONFINITE", given=1)))
    assert half.ended()["cells"][1]["warning"].startswith("[E_NONFINITE]")


@pytest.mark.parametrize(
    ("size", "expected"), [((256, 256), [256, 256]), ((128, 160), [128, 160]), ((512, 512), [256, 256]), ((384, 256), [256, 176])]
)
def test_frames_in_the_player_are_whole_blocks(size, expected):
    width, height = size
    assert small(width, height) == expected
    assert stacked(np.zeros((3, height, width, 3), np.uint8), expected).shape == (3 * expected[1], expected[0], 3)


@pytest.mark.parametrize(("low", "high"), [(0, 3.3), (15, 39.2), (0, 0.27), (20, 20), (0, 0), (99.9, 100), (-3, 4), (0.011, 0.012)])
def test_ticks_are_few_round_and_enclose(low, high):
    marks = ticks(low, high)
    steps = np.diff(marks)
    assert 2 <= len(marks) <= 7 and marks[0] <= low + 1e-6 and marks[-1] >= high - 1e-6
    assert np.allclose(steps, steps[0]) and float(f"{steps[0]:.0e}") == pytest.approx(steps[0])


def test_the_plot_shows_every_point_inside_it_and_escapes_words():
    drawing = ElementTree.fromstring(scatter({"a <b>": [(0.2, 30, "4"), (0.1, 20, "1")], "c": [(1, 25, "2")]}, "s & s", "dB"))
    groups = [group for group in drawing.findall(".//{*}g") if group.get("class") != "grid"]
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for group in groups for dot in group.findall("{*}circle")[1:]]
    assert len(dots) == 3 and all(40 < x < 560 and 20 < y < 200 for x, y in dots)
    (left, low), (right, high), _ = dots
    assert left < right and low > high  # 1 step: earlier and worse, further down
    assert "a <b>" in [text.text for text in drawing.findall(".//{*}text")]
