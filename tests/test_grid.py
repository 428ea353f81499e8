"""Grids, GIFs and contact sheets: every clip stands where it should, all play in step, labels fit, settings come back."""

import numpy as np
import pytest
from PIL import Image
from test_video import SETTINGS, gradient, read_frames

from videolcm.errors import AppError
from videolcm.grid import ACROSS, GAP, GROUND, SIDE, STRIP, THUMB, durations, grid, sheet, write_gif, write_grid, write_sheet, written
from videolcm.video import read_settings


def tiles(count, frames=8, height=128, width=160):
    """Clips of one grey each that gets brighter by 2 a frame."""
    ramp = 2 * np.arange(frames, dtype=np.uint8)[:, None, None, None]
    return [(f"{i} steps, lcm, 0.30 s", ramp + np.full((frames, height, width, 3), 20 + 20 * i, np.uint8)) for i in range(count)]


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (3, 2, 2), (4, 2, 2), (5, 2, 3), (9, 3, 3)])
def test_every_clip_has_its_place(count, rows, columns):
    made, clips = grid(tiles(count)), tiles(count)
    assert made.shape == (8, rows * (128 + STRIP) + (rows - 1) * GAP, columns * 160 + (columns - 1) * GAP, 3) and made.dtype == np.uint8
    assert made.shape[1] % 2 == made.shape[2] % 2 == 0
    for i, (_, frames) in enumerate(clips):
        y, x = (i // columns) * (128 + STRIP + GAP) + STRIP, (i % columns) * (160 + GAP)
        assert (made[:, y : y + 128, x : x + 160] == frames).all()
        label = made[:, y - STRIP : y, x : x + 160]
        assert label.max() > 200 and (label == label[0]).all()


@pytest.mark.parametrize("width", [128, 256, 512])
def test_labels_fit_and_differ(width):
    text = "teacher, 50 steps, ddim, 12.47 s"
    label = written(text, STRIP, width)
    assert label.shape == (STRIP, width, 3)
    ink = np.nonzero((label != GROUND).any((0, 2)))[0]
    assert ink[0] > 0 and ink[-1] < width - 1 and ink[-1] > width / 3
    assert not np.array_equal(label, written(text.replace("12", "13"), STRIP, width))


def test_the_grid_is_an_mp4_with_its_settings(tmp_path):
    path = write_grid(tmp_path / "grid.mp4", tiles(3), 8, SETTINGS)
    assert read_settings(path) == SETTINGS
    assert np.abs(read_frames(path).astype(int) - grid(tiles(3))).mean() < 2


def test_the_gif_plays_all_frames_in_time_with_its_settings(tmp_path):
    clip = gradient(16)
    path = write_gif(tmp_path / "grid.gif", [("1 step", clip), ("2 steps", clip[:, :, ::-1])], 8, SETTINGS)
    assert read_settings(path) == SETTINGS
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.info["loop"], gif.size) == (16, 0, (2 * 160 + GAP, 128 + STRIP))
        shown, milliseconds = [], 0
        for i in range(gif.n_frames):
            gif.seek(i)
            milliseconds += gif.info["duration"]
            shown.append(cells_of(np.asarray(gif.convert("RGB"))))
    assert milliseconds == 2000
    wanted = [cells_of(picture) for picture in grid([("1 step", clip), ("2 steps", clip[:, :, ::-1])])]
    assert np.abs(np.array(shown) - wanted).mean() < 4


def cells_of(picture):
    """The mean colours of cells of 8 by 8 pixels, which dithering keeps."""
    height, width = (side // 8 * 8 for side in picture.shape[:2])
    return picture[:height, :width].reshape(height // 8, 8, width // 8, 8, 3).mean((1, 3))


@pytest.mark.parametrize("fps", [8, 7.5, 24, 30])
def test_gif_frames_end_within_half_a_hundredth_of_a_second(fps):
    ends = np.cumsum(durations(32, fps))
    assert np.abs(ends - 1000 * np.arange(1, 33) / fps).max() <= 5 + 1e-9 and min(durations(32, fps)) > 0


def test_the_sheet_has_a_row_a_clip_and_time_across(tmp_path):
    path = write_sheet(tmp_path / "sheet.png", tiles(3, frames=16), SETTINGS)
    assert read_settings(path) == SETTINGS
    with Image.open(path) as picture:
        made = np.asarray(picture)
    height = round(128 * THUMB / 160)
    assert made.shape == (3 * (height + GAP), SIDE + ACROSS * THUMB, 3) and np.array_equal(made, sheet(tiles(3, frames=16)))
    middles = made[height // 2 :: height + GAP, SIDE + THUMB // 2 :: THUMB, 0].astype(int)
    frames = np.linspace(0, 15, ACROSS).round()
    assert (middles == [[20 + 20 * i + 2 * frame for frame in frames] for i in range(3)]).all()
    assert made[:height, :SIDE].max() > 200


@pytest.mark.parametrize("write", [write_sheet, lambda path, clips, settings: write_gif(path, clips, 8, settings)])
def test_pictures_appear_whole_or_not_at_all(tmp_path, write):
    with pytest.raises(AppError, match="E_OUTPUT"):
        write(tmp_path / "none" / "a", tiles(1), {})
    with pytest.raises(TypeError):
        write(tmp_path / "a", tiles(1), {"not json": object()})
    write(tmp_path / "b", tiles(1), {})
    assert [path.name for path in tmp_path.iterdir()] == ["b"] and read_settings(tmp_path / "b") == {}


@pytest.mark.parametrize("write", [write_sheet, lambda path, clips, settings: write_gif(path, clips, 8, settings)])
def test_settings_of_many_cells_fit(tmp_path, write):
    many = {"cells": [{**SETTINGS, "prompt": "x" * 512, "i": i} for i in range(9)]}
    write(tmp_path / "a", tiles(1), many)
    assert read_settings(tmp_path / "a") == many


@pytest.mark.parametrize("lines", [1, 3, 6, 9])
def test_a_label_of_several_lines_is_there_whole(lines):
    """Each line leaves ink, and none of it is cut off above or below."""
    ink = (written("\n".join(["a ball on snow"] * lines), 112, 200) != np.array(GROUND)).any((1, 2))
    assert ink.any() and not ink[0] and not ink[-1]
    assert np.count_nonzero(np.diff(ink.astype(int)) == 1) == lines
