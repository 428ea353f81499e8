"""The tabs that follow a video, without a browser: handlers as functions, the first frame and the mask's preview, and the API."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from conftest import FakeModel
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError as ClientError
from media import make
from test_uploads import depth_video, textured

from videolcm import conditions, gallery, uploads
from videolcm.footage import read_video
from videolcm.pipeline import generate
from videolcm.ui import Engine, build_ui, launch, tabs
from videolcm.ui.handlers import extractor_choices, extractor_menu, make_first_frame, make_handler, make_mask_preview
from videolcm.ui.hole import painted
from videolcm.uploads import Material, request_with
from videolcm.video import read_settings, sha256_of

PROMPT = "a red ball rolls to the left over snow"
SMALL = {"size": "160x128", "frames": 8}
ASKED = {"prompt": PROMPT, "frames": 8, "height": 128, "width": 160}


@pytest.fixture
def files(tmp_path):
    """Where clips pass through, and beside it a depth map, grain that moves, and a mask: paths by name."""
    folder = tmp_path / "passing"
    folder.mkdir()
    mask = np.zeros((1, 128, 160, 3), np.uint8)
    mask[:, 40:80, 30:70] = 255
    layer = np.dstack([mask[0], mask[0, ..., :1]])[None]
    clips = {"depth.mp4": depth_video(), "grain.mp4": textured(), "mask.png": mask, "layer.png": layer, "blank.png": 0 * layer}
    return {"folder": folder} | {name: str(make(tmp_path / name, clip)) for name, clip in clips.items()}


def engine_of(**options):
    return Engine(load=lambda ref, role: FakeModel(role, **options))


def last(updates):
    *_, update = updates
    return update


def frames_of(path):
    return read_video(path, frames=8, size=(128, 160)).frames


# ---- handlers as functions


def test_depth_follows_the_map_and_shows_it(files):
    updates = list(make_handler("depth", engine_of(), files["folder"])(PROMPT, files["depth.mp4"], steps=2, seed=5, start=0.25, **SMALL))
    clip, settings, status, preview, followed = updates[-1]
    assert (settings["task"], settings["steps"], settings["seed"], preview) == ("depth", 2, 5, "")
    assert Path(clip).parent == Path(followed).parent == files["folder"] and not list(files["folder"].iterdir())
    assert "Done in" in status and "seed 5" in status and "last frame is repeated" in status
    assert all(any(said in update[2] for update in updates) for said in ("Reading the video", "Looking at the video", "Step 2 of 2"))
    request, _ = request_with(Material(files["depth.mp4"], start=0.25), task="depth", steps=2, seed=5, **ASKED)
    *_, result = generate(FakeModel(), request)
    assert settings["video"] == sha256_of(request.video) and settings == result.settings


def test_the_clips_are_written_while_gradio_copies_them(files):
    for update in make_handler("depth", engine_of(), files["folder"])(PROMPT, files["depth.mp4"], **SMALL):
        if isinstance(update[0], str):
            assert read_settings(update[0]) == update[1] and read_settings(update[4]) == {"maps": ["depth"]}
            assert np.abs(frames_of(update[4]).astype(int) - frames_of(files["depth.mp4"])).mean() < 3


def test_sketch_and_depth_side_by_side(files, light):
    sizes = []
    handler = make_handler("depth", engine_of(), files["folder"])
    for also in (False, True):
        for update in handler(PROMPT, files["depth.mp4"], also=also, **SMALL):
            if isinstance(update[0], str):
                sizes.append((update[1]["also"], read_settings(update[4])["maps"]))
    assert sizes == [([], ["depth"]), (["sketch"], ["depth", "sketch"])]


def painting(files, name="layer.png"):
    return [Path(files[name]).read_bytes()]


@pytest.mark.parametrize("how", ["mask", "painting", "box"])
def test_inpaint_by_mask_brush_and_box(files, how):
    given = {"mask": files["mask.png"], "painting": painting(files), "box": "0.1875,0.3125,0.4375,0.625"}[how]
    clip = last(make_handler("inpaint", engine_of(), files["folder"])(PROMPT, files["grain.mp4"], moving=False, feather=0, **{how: given}, **SMALL))
    request, _ = request_with(Material(files["grain.mp4"], (files["mask.png"],), moving=False), task="inpaint", **ASKED)
    assert clip[1]["hole"] == sha256_of(request.hole) and not list(files["folder"].iterdir())


def test_a_page_where_nothing_was_painted_takes_the_mask_alone(files):
    values = {"mask": files["mask.png"], "painting": painting(files, "blank.png"), **SMALL}
    assert last(make_handler("inpaint", engine_of(), files["folder"])(PROMPT, files["grain.mp4"], **values))[1]["task"] == "inpaint"


@pytest.mark.parametrize(
    ("code", "task", "values"),
    [
        ("E_TASK_INPUT", "depth", {"video": None}),
        ("E_INPUT", "sketch", {"video": "nothing.mp4"}),
        ("E_EXTRACTOR", "sketch", {"extractor": "magic"}),
        ("E_STRENGTH", "depth", {"strength": 3}),
        ("E_NUMBER", "depth", {"start": "soon"}),
        ("E_FIT", "depth", {"fit": ["crop"]}),
        ("E_STEPS", "inpaint", {"steps": 0}),
        ("E_TASK_INPUT", "inpaint", {}),
        ("E_BOX", "inpaint", {"box": "everything"}),
        ("E_VIDEO_FORMAT", "inpaint", {"painting": [b"no picture"]}),
        ("E_NUMBER", "inpaint", {"box": "0,0,1,0.5", "grow": 1e9}),
    ],
)
def test_errors_are_one_line_and_leave_nothing(files, code, task, values):
    updates = make_handler(task, engine_of(), files["folder"])(**{"prompt": PROMPT, "video": files["grain.mp4"], **SMALL, **values})
    seen = []
    with pytest.raises(gr.Error) as error:
        seen.extend(iter(lambda: next(updates), None))
    assert error.value.message.startswith(f"[{code}] ") and "\n" not in error.value.message and str(files["folder"]) not in error.value.message
    assert not list(files["folder"].iterdir())


def test_another_number_of_steps_does_not_decode_again(files, monkeypatch):
    seen = []
    monkeypatch.setattr(uploads, "read_video", lambda *args, **options: seen.append(args) or read_video(*args, **options))
    uploads.kept.cache_clear()
    handler = make_handler("depth", engine_of(), files["folder"])
    for steps in (1, 2, 4):
        last(handler(PROMPT, files["depth.mp4"], steps=steps, **SMALL))
    assert len(seen) == 1


def test_stopping_frees_the_device(files):
    engine = engine_of()
    updates = make_handler("depth", engine, files["folder"])(PROMPT, files["depth.mp4"], steps=8, **SMALL)
    while "Step 2 of 8" not in next(updates)[2]:
        pass
    updates.close()
    assert not engine.device.locked() and len(engine.models["toybox", "student"].calls) == 2 and not list(files["folder"].iterdir())


# ---- the first frame, the mask, the extractors


def test_the_first_frame_is_as_the_clip_will_have_it(files):
    show = make_first_frame()
    assert (show(files["grain.mp4"], 8, "160x128", 0, "crop") == frames_of(files["grain.mp4"])[0]).all()
    assert show(None, 8, "160x128", 0, "crop") is None
    with pytest.raises(gr.Error, match="E_SIZE"):
        show(files["grain.mp4"], 8, "1x1", 0, "crop")


def test_the_mask_is_shown_over_every_frame(files):
    values = dict.fromkeys(tabs.TABS["inpaint"].parameters)
    values |= {name: default for name, (default, _) in tabs.PARAMETERS.items() if name in values and default is not tabs.REQUIRED}
    values |= {"prompt": "", "video": files["grain.mp4"], "mask": files["mask.png"], "moving": False, "steps": 4, **SMALL}
    for clip, status in make_mask_preview(files["folder"])(*values.values()):
        red = frames_of(clip)[:, 60, 50]
        assert "will be replaced" in status and (red[:, 0] > red[:, 1].astype(int) + 40).all()
    assert not list(files["folder"].iterdir())
    with pytest.raises(gr.Error, match="E_TASK_INPUT"):
        list(make_mask_preview(files["folder"])(*{**values, "mask": None}.values()))


def test_extractors_that_are_ready_are_offered_by_what_they_are():
    offered = extractor_choices("sketch")
    assert offered[0] == ("the best for this video", "") and ("Canny: every sharp edge, one pixel wide", "canny") in offered
    assert "pidinet" not in [name for _, name in offered]


@pytest.mark.parametrize("ready", [False, True])
def test_the_menu_says_what_other_extractors_lack(monkeypatch, ready):
    left = {name: row._replace(ready=lambda: ready) if name == "pidinet" else row for name, row in conditions.EXTRACTORS.items()}
    monkeypatch.setattr(conditions, "EXTRACTORS", left)
    menu = extractor_menu("sketch")
    assert menu["info"] == ("" if ready else "Not here: PiDiNet needs table5_pidinet.pth of lllyasviel/Annotators in assets/pidinet")
    assert menu["choices"] == extractor_choices("sketch") and ("pidinet" in dict(map(reversed, menu["choices"]))) == ready


def test_what_was_painted_goes_on_unopened(files):
    editor = SimpleNamespace(blob_storage={"a": SimpleNamespace(layers=[b"x", None])})
    assert painted(editor, SimpleNamespace(id="a")) == [b"x"] and not editor.blob_storage
    assert painted(editor, None) is None and painted(editor, SimpleNamespace(id="gone")) == []
    layer = SimpleNamespace(path=files["layer.png"])
    assert painted(editor, SimpleNamespace(id=None, layers=[layer])) == painting(files)


# ---- examples


def test_examples_are_small_and_made_by_the_gallery(tmp_path):
    here = sorted(path.name for path in tabs.EXAMPLES.iterdir())
    assert here == sorted([*(f"{name}.mp4" for name in gallery.CLIPS), f"{gallery.MASKED}-mask.png"])
    assert all(path.stat().st_size < 150_000 for path in tabs.EXAMPLES.iterdir())


@pytest.mark.parametrize("task", ["depth", "sketch", "inpaint"])
def test_every_example_makes_a_request(task):
    rows = tabs.example_rows(tabs.TABS[task])
    assert len(rows) == 3
    for row in rows:
        values = dict(zip(tabs.TABS[task].fills, row, strict=True))
        material = Material(values["video"], tuple(filter(None, [values.get("mask")])), uploads.box_of(values.get("box")))
        request, _ = request_with(material, task=task, prompt=values["prompt"], frames=8, height=128, width=128)
        assert request.hole is None or 0.02 < request.hole.mean() < 0.95


def test_an_example_whose_file_is_missing_is_left_out():
    row = tabs.TABS["depth"]
    assert tabs.example_rows(replace(row, examples=(*row.examples, (Path("nothing.mp4"), "a red ball")))) == tabs.example_rows(row)


# ---- the API behind the page


@pytest.fixture(scope="module")
def client():
    engine = engine_of()
    blocks = build_ui(engine)
    _, url, _ = launch(blocks, engine, server_name="127.0.0.1", quiet=True)
    yield Client(url, verbose=False)
    blocks.close()


def test_api_depth(client, files):
    clip, settings, status, preview, followed = client.predict(PROMPT, handle_file(files["depth.mp4"]), steps=2, **SMALL, api_name="/depth")
    request, _ = request_with(Material(files["depth.mp4"]), task="depth", steps=2, **ASKED)
    assert read_settings(clip) == settings and settings["video"] == sha256_of(request.video) and preview == ""
    assert frames_of(followed).shape == (8, 128, 160, 3) and "Done in" in status


def test_api_sketch(client, files):
    _, settings, *_ = client.predict(PROMPT, handle_file(files["grain.mp4"]), extractor="canny", strength=0.5, **SMALL, api_name="/sketch")
    assert (settings["task"], settings["extractor"], settings["strength"]) == ("sketch", "canny", 0.5)


def test_api_inpaint(client, files):
    video, mask = handle_file(files["grain.mp4"]), handle_file(files["mask.png"])
    by_mask = client.predict(PROMPT, video, mask, steps=1, feather=0, **SMALL, api_name="/inpaint")
    by_box = client.predict(PROMPT, video, steps=1, feather=0, box="0.1875,0.3125,0.4375,0.625", **SMALL, api_name="/inpaint")
    layer = {"background": None, "layers": [handle_file(files["layer.png"])], "composite": None}
    by_brush = client.predict(PROMPT, video, steps=1, feather=0, painting=layer, **SMALL, api_name="/inpaint")
    assert by_mask[1] == by_brush[1] and by_box[1] == {**by_mask[1], "material": by_box[1]["material"]}
    assert by_box[1]["material"]["box"] == [0.1875, 0.3125, 0.4375, 0.625] and by_mask[1]["material"]["box"] is None


@pytest.mark.parametrize(("code", "values"), [("E_NUMBER", {"start": "x"}), ("E_STRENGTH", {"strength": 99}), ("E_EXTRACTOR", {"extractor": "x"})])
def test_api_refuses_what_is_out_of_range(client, files, code, values):
    with pytest.raises(ClientError, match=rf"\[{code}\]"):
        client.predict(PROMPT, handle_file(files["grain.mp4"]), **values, **SMALL, api_name="/depth")
