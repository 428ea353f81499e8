"""Files -> requests that follow them, and the command line on top: what reaches the denoiser, what is kept, what is refused."""

import json
import math

import cv2
import numpy as np
import pytest
import torch
from conftest import CELL, FakeModel
from media import corners, difference, make

from videolcm import __main__ as command_line
from videolcm import models, uploads
from videolcm.errors import AppError
from videolcm.footage import read_video
from videolcm.pipeline import generate
from videolcm.uploads import Material, box_of, marks_nothing, request_with
from videolcm.video import sha256_of

PROMPT = "a red ball rolls to the left over snow"
SMALL = {"frames": 8, "height": 128, "width": 160}
SIZE = ["--size", "160x128", "--frames", "8"]


def depth_video(frames=8, height=128, width=160):
    """Grey and smooth, as a depth map is: a near disc that moves to the right before a slope."""
    y, x = np.mgrid[:height, :width]
    clip = np.stack([np.where((y - 64) ** 2 + (x - 40 - 8 * f) ** 2 < 900, 220, 20 + y / 2) for f in range(frames)])
    return np.repeat(clip[..., None], 3, 3).astype(np.uint8)


def textured(frames=8, height=128, width=160, step=4):
    """Grain that moves to the right by `step` pixels a frame, all of it."""
    grain = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (height, width + frames * step, 3)).astype(np.uint8), (0, 0), 2)
    grain = cv2.normalize(grain, None, 0, 255, cv2.NORM_MINMAX)
    return np.stack([grain[:, (frames - f) * step : (frames - f) * step + width] for f in range(frames)])


@pytest.fixture
def files(tmp_path):
    """Files on disk by name: a depth map, grain that moves, masks as picture and as video."""
    disc = np.zeros((1, 128, 160, 3), np.uint8)
    disc[:, 40:80, 30:70] = 255
    flying = np.concatenate([np.roll(disc, 8 * f, 2) for f in range(8)])
    clips = {"depth.mp4": depth_video(), "grain.mkv": textured(), "mask.png": disc, "mask.mkv": flying, "dark.png": 0 * disc}
    for name, clip in clips.items():
        lossless = ("-c:v", "libx264", "-qp", "0", "-pix_fmt", "yuv444p") if name.endswith("mkv") else ()
        make(tmp_path / name, clip, *lossless)
    return {name: str(tmp_path / name) for name in clips}


def result_of(model, material, task, **values):
    request, notices = request_with(material, task=task, prompt=PROMPT, **SMALL, **values)
    *_, result = generate(model, request)
    return request, result, notices


# ---- what reaches the denoiser


def test_an_uploaded_depth_map_is_used_as_it_is_and_reaches_the_denoiser(files):
    request, result, _ = result_of(FakeModel(), Material(files["depth.mp4"]), "depth")
    grey = request.video.mean(-1)
    assert difference(result.maps["depth"][..., 0], grey.round().astype(np.uint8)) < 1
    cells = grey.reshape(8, 128 // CELL, CELL, 160 // CELL, CELL).mean((2, 4))
    assert np.abs(result.frames[:, ::CELL, ::CELL, 0] - cells).max() < 2
    assert result.settings["video"] == sha256_of(request.video) and result.settings["hole"] is None


def test_strength_and_a_second_map(files, light):
    _, plain, _ = result_of(FakeModel(), Material(files["depth.mp4"]), "depth")
    _, both, _ = result_of(FakeModel(), Material(files["depth.mp4"]), "depth", also=("sketch",))
    _, none, _ = result_of(FakeModel(), Material(files["depth.mp4"]), "depth", strength=0)
    assert list(both.maps) == ["depth", "sketch"] and (both.frames[..., 0] == plain.frames[..., 0]).all()
    assert difference(both.frames[..., 1], plain.frames[..., 1]) > 10 and difference(none.frames, plain.frames) > 10
    assert both.settings["also"] == ["sketch"] and none.settings["strength"] == 0 and none.nfe == plain.nfe


def test_what_is_kept_is_kept_bit_for_bit(files):
    material = Material(files["grain.mkv"], (files["mask.png"],), moving=False, feather=6)
    request, result, _ = result_of(FakeModel(), material, "inpaint")
    kept = request.hole == 0
    assert 0.5 < kept.mean() < 0.95 and (result.frames[kept] == request.video[kept]).all()
    assert difference(result.frames[~kept], request.video[~kept]) > 10
    assert ((request.hole > 0) & (request.hole < 1)).any() and result.settings["hole"] == sha256_of(request.hole)


def test_notices_tell_what_was_done_to_the_files(files):
    _, _, notices = result_of(FakeModel(), Material(files["mask.png"]), "sketch", extractor="canny")
    assert notices == ("The picture became a still video of 1.0 seconds.",)


# ---- the hole


def hole_of(files, name="grain.mkv", **values):
    return request_with(Material(files[name], **values), task="inpaint", prompt=PROMPT, **SMALL)[0].hole


def test_a_span_of_the_video_becomes_the_clip(tmp_path):
    grey = np.arange(0, 192, 4, dtype=np.uint8)[:, None, None, None].repeat(128, 1).repeat(160, 2).repeat(3, 3)  # six seconds
    path = str(make(tmp_path / "slow.mp4", grey))
    for span, step in ((0, 4), (4.0, 16), (0.5, 2)):
        request, notices = request_with(Material(path, start=0.5, span=span), task="depth", prompt=PROMPT, **SMALL)
        levels = request.video.astype(int).mean((1, 2, 3))
        assert abs(levels[0] - 16) < 3 and abs((levels[-1] - levels[0]) / 7 - step) < 1, span
        assert ("Resampled" in str(notices)) == (span != 0) and request.material["span"] == span
    for wrong in (-1, 31, 0.1, math.nan, True, "2"):
        with pytest.raises(AppError, match="E_NUMBER"):
            request_with(Material(path, span=wrong), task="depth", prompt=PROMPT, **SMALL)


def test_a_hole_moves_with_the_picture_or_stays(files):
    still, moving = (hole_of(files, masks=(files["mask.png"],), moving=moving) for moving in (False, True))
    assert (still == still[:1]).all() and (still[0] == moving[0]).all()
    middle = [np.nonzero(picture)[1].mean() for picture in moving]
    assert middle[-1] - middle[0] == pytest.approx(28, abs=2)  # seven frames of four pixels


def test_a_mask_video_moves_by_itself(files):
    hole = hole_of(files, masks=(files["mask.mkv"],))
    assert (hole[3] == np.roll(hole[0], 24, 1)).all()


def test_masks_and_box_add_up_then_grow_then_fade(files):
    box = (0.75, 0.75, 1, 1)
    both = hole_of(files, masks=(files["mask.png"],), box=box, moving=False)
    apart = [hole_of(files, masks=(files["mask.png"],), moving=False), hole_of(files, box=box, moving=False)]
    assert (both == np.maximum(*apart)).all()
    grown, soft = hole_of(files, box=box, moving=False, grow=5), hole_of(files, box=box, moving=False, feather=5)
    assert grown[0, 127, 120 - 5] == 1 and grown[0, 127, 120 - 6] == 0
    assert (soft >= apart[1]).all() and 0 < soft[0, 127, 120 - 3] < 1 and soft[0, 127, 120 - 7] == 0


def test_a_picture_that_marks_nothing(files):
    assert marks_nothing(files["dark.png"], (128, 160)) and not marks_nothing(files["mask.png"], (128, 160))


# ---- refusals


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("E_TASK_INPUT", {}),
        ("E_MASK_EMPTY", {"masks": ("dark.png",)}),
        ("E_MASK_FULL", {"box": (0, 0, 1, 1)}),
        ("E_BOX", {"box": (0, 0, 2, 1)}),
        ("E_BOX", {"box": (0, 0)}),
        ("E_INPUT", {"masks": ("nothing.png",)}),
        *(("E_NUMBER", {"box": (0, 0, 1, 0.5), name: value}) for name in ("grow", "feather") for value in (-1, 65, 1.5, "x", None, True)),
        *(("E_NUMBER", {"box": (0, 0, 1, 0.5), "start": value}) for value in (-1, "x", None, [1], {}, float("nan"))),
        *(("E_FIT", {"box": (0, 0, 1, 0.5), "fit": value}) for value in ("x", None, [1])),
        ("E_VIDEO_START", {"box": (0, 0, 1, 0.5), "start": 60}),
    ],
)
def test_bad_material(files, code, values):
    values = values | {"masks": tuple(files.get(name, name) for name in values.get("masks", ()))}
    with pytest.raises(AppError) as error:
        hole_of(files, **values)
    assert error.value.code == code and len(str(error.value)) < 200


@pytest.mark.parametrize("text", ["1", "a,b,c,d", 7, [0, 0, 1, 1], "0,0,,1"])
def test_bad_boxes(text):
    with pytest.raises(AppError, match="E_BOX"):
        hole = box_of(text)
        uploads.from_box(hole, (8, 128, 128))
    assert box_of("") is box_of(None) is None and box_of("0, .25,1,1") == (0, 0.25, 1, 1)


def test_numbers_are_checked_before_files_are_read():
    for task in ("text", "depth"):
        with pytest.raises(AppError, match="E_STEPS"):
            request_with(Material("nothing.mp4"), task=task, prompt=PROMPT, steps=9)


def test_a_file_is_decoded_once_and_again_when_it_changed(files, monkeypatch):
    seen = []
    monkeypatch.setattr(uploads, "read_video", lambda *args, **options: seen.append(args) or read_video(*args, **options))
    uploads.kept.cache_clear()
    asked = {"frames": 8, "size": (128, 160), "start": 0, "fit": "crop", "rate": 8}
    first, again = (uploads.read(files["depth.mp4"], **asked) for _ in range(2))
    assert first is again and len(seen) == 1
    make(files["depth.mp4"], corners(8, 128, 160))
    assert uploads.read(files["depth.mp4"], **asked) is not first and len(seen) == 2


# ---- the command line


@pytest.fixture
def door(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "load", lambda ref, role="student", **options: FakeModel(role), raising=False)
    monkeypatch.chdir(tmp_path)


def told(capsys, *arguments):
    assert command_line.main([*arguments]) == 0
    out, err = capsys.readouterr()
    return json.loads(out.splitlines()[-1]), err


def test_depth_by_command_line(door, files, light, capsys):
    with_sketch = ["--also", "sketch", "--strength", "1.5", "--start", "0.25", "--fit", "pad"]
    clip, err = told(capsys, "generate", PROMPT, "--task", "depth", "--video", "depth.mp4", *with_sketch, *SIZE, "--npy", "a.npy")
    asked = {"also": ("sketch",), "strength": 1.5}
    request, result, notices = result_of(FakeModel(), Material("depth.mp4", start=0.25, fit="pad"), "depth", **asked)
    assert clip["sha256"] == result.sha256 == sha256_of(np.load("a.npy")) and clip["settings"] == result.settings
    found = [
        "How the depth was found: the video is a map already: use it as it is.",
        "How the sketch was found: Canny: every sharp edge, one pixel wide.",
    ]
    assert clip["notices"] == [*notices, *found] and all(notice in err for notice in clip["notices"]) and "last frame is repeated" in err
    assert "conditions 1/1" in err and clip["seconds"]["conditions"] > 0


def test_sketch_by_command_line(door, files, capsys):
    clip, _ = told(capsys, "generate", PROMPT, "--task", "sketch", "--video", "grain.mkv", "--extractor", "canny", *SIZE)
    assert (clip["settings"]["extractor"], clip["settings"]["task"]) == ("canny", "sketch") and len(clip["settings"]["video"]) == 64


@pytest.mark.parametrize("hole", [["--mask", "mask.png"], ["--mask", "mask.mkv"], ["--box", "0.2,0.2,0.6,0.7", "--still", "--grow", "3"]])
def test_inpaint_by_command_line_leaves_the_rest_alone(door, files, capsys, hole):
    clip, _ = told(capsys, "generate", PROMPT, "--task", "inpaint", "--video", "grain.mkv", *hole, "--feather", "5", *SIZE, "--npy", "a.npy")
    material = command_line.material_of(
        command_line.parser_of(command_line.VERBS).parse_args(
            ["generate", PROMPT, "--task", "inpaint", "--video", "grain.mkv", *hole, "--feather", "5"]
        )
    )
    request, _ = request_with(material, task="inpaint", prompt=PROMPT, **SMALL)
    outside = request.hole == 0
    assert (np.load("a.npy")[outside] == request.video[outside]).all() and outside.mean() > 0.3
    assert (clip["settings"]["video"], clip["settings"]["hole"]) == (sha256_of(request.video), sha256_of(request.hole))


def test_compare_follows_a_video_too(door, files, capsys):
    asked = ["--task", "depth", "--video", "depth.mp4", "--start", "0.25", *SIZE]
    grid, err = told(capsys, "compare", PROMPT, *asked, "--steps", "1,2", "--teacher-steps", "0")
    alone, _ = told(capsys, "generate", PROMPT, *asked, "--steps", "2")
    assert [cell["settings"]["task"] for cell in grid["cells"]] == ["depth", "depth"]
    assert (grid["cells"][1]["sha256"], grid["cells"][1]["settings"]) == (alone["sha256"], alone["settings"])
    assert alone["notices"] and all(err.count(notice) == 1 for notice in alone["notices"])


def test_a_cell_that_fails_is_named_and_the_others_are_written(door, monkeypatch, capsys):
    def load(ref, role="student", **options):
        model = FakeModel(role)
        if role == "teacher":
            model.denoise = lambda x_t, t, cond: torch.full_like(x_t, torch.nan)
        return model

    monkeypatch.setattr(models, "load", load, raising=False)
    grid, err = told(capsys, "compare", PROMPT, "--steps", "1", "--teacher-steps", "2", *SIZE)
    assert len(grid["cells"]) == 1 and list(grid["errors"]) == ["teacher, 2 steps, ddim"]
    assert "E_NONFINITE" in grid["errors"]["teacher, 2 steps, ddim"] and "E_NONFINITE" in err


def test_extractors_are_named_where_one_is_refused(door, files, capsys):
    assert command_line.main(["generate", PROMPT, "--task", "sketch", "--video", "grain.mkv", "--extractor", "magic", *SIZE]) == 2
    err = capsys.readouterr().err
    assert all(name in err for name in ("E_EXTRACTOR", "hed", "canny", "as-is")) and "midas" not in err
    assert command_line.main(["generate", PROMPT, "--task", "depth", "--video", "grain.mkv", "--extractor", "canny", *SIZE]) == 2
    err = capsys.readouterr().err
    assert "E_EXTRACTOR" in err and "builtin-depth" in err and "hed" not in err
