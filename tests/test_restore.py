"""Back from a file: its settings as the controls have them, and one-line refusals of everything else."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import FakeModel

from videolcm.compare import Cell, CellDone, compare
from videolcm.errors import AppError
from videolcm.grid import write_gif, write_grid, write_sheet
from videolcm.pipeline import Request, generate, save
from videolcm.ui.restore import restored
from videolcm.video import write_mp4

REQUEST = Request("a red ball", seed=7, frames=8, height=128, width=160, gamma=0.45)
MODELS = {role: FakeModel(role) for role in ("student", "teacher")}
FRAMES = np.zeros((8, 32, 32, 3), np.uint8)
TEXT = {"task": "text", "extractor": "", "strength": 1.0, "also": False}


def settings_of(cells, reference=None, request=REQUEST):
    """The settings of a comparison's cells, as its files hold them."""
    done = {event.cell: event for event in compare(MODELS, request, cells, reference) if isinstance(event, CellDone)}
    return {"cells": [one.result.settings for one in done.values()]}


def back(tmp_path, settings):
    """What is restored from an mp4 with these settings."""
    return restored(write_mp4(tmp_path / "x.mp4", FRAMES, 8, settings))


@pytest.mark.parametrize("write", [lambda p, t, s: write_grid(p, t, 8, s), lambda p, t, s: write_gif(p, t, 8, s), write_sheet])
def test_a_grid_in_every_format(tmp_path, write):
    cells = [Cell(role, sampler, steps) for role in ("student", "teacher") for sampler in ("lcm", "tcd") for steps in (1, 4)]
    path = write(tmp_path / "file", [("a", FRAMES)], settings_of(cells, Cell("teacher", "ddim", 12)))
    assert restored(path) == {
        "prompt": "a red ball",
        "seed": 7,
        "frames": 8,
        "size": "160x128",
        "with_reference": True,
        "gamma": 0.45,
        "guidance": "",
        "reference_steps": 12,
        "steps": [1, 4],
        "samplers": ["lcm", "tcd"],
        "roles": ["student", "teacher"],
        **TEXT,
    }


def test_one_clip(tmp_path):
    *_, result = generate(MODELS["student"], replace(REQUEST, steps=3))
    save(result, tmp_path / "clip.mp4")
    values = restored(tmp_path / "clip.mp4")
    assert (values["steps"], values["samplers"], values["roles"], values["with_reference"]) == ([3], ["lcm"], ["student"], False)


def test_a_slow_clip_of_the_teacher_is_the_reference(tmp_path):
    *_, result = generate(MODELS["teacher"], Request("a red ball", sampler="ddim", steps=20, frames=8, height=128, width=128))
    values = back(tmp_path, result.settings)
    assert values["with_reference"] and values["reference_steps"] == 20 and "steps" not in values


@pytest.mark.parametrize(
    ("cells", "reference", "guidance", "expected"),
    [
        ([Cell("student", "lcm", 1)], None, None, ""),
        ([Cell("student", "lcm", 1)], Cell("teacher", "ddim", 9), None, ""),
        ([Cell("student", "lcm", 1)], Cell("teacher", "ddim", 9), 1.5, "1.5"),
        ([Cell("student", "lcm", 1)], Cell("teacher", "ddim", 9), 0, "0.0"),
        ([Cell("teacher", "lcm", 1)], None, None, "2.5"),
    ],
)
def test_guidance_that_was_asked_for(tmp_path, cells, reference, guidance, expected):
    assert back(tmp_path, settings_of(cells, reference, replace(REQUEST, guidance=guidance)))["guidance"] == expected


CLIP = {**REQUEST.settings(), "steps": 4, "role": "student"}


@pytest.mark.parametrize(
    ("code", "settings"),
    [
        ("E_NO_SETTINGS", {"cells": []}),
        ("E_NO_SETTINGS", {"cells": 5}),
        ("E_NO_SETTINGS", {"cells": {"a": 1}}),
        ("E_NO_SETTINGS", {"cells": [[1]]}),
        ("E_NO_SETTINGS", {"prompt": "x"}),
        ("E_ROLE", {**CLIP, "role": ["x"]}),
        ("E_STEPS", {**CLIP, "steps": "4"}),
        ("E_PROMPT_LONG", {**CLIP, "prompt": "x" * 1000}),
        ("E_TASK", {**CLIP, "task": "dance"}),
        ("E_EXTRACTOR", {**CLIP, "task": "depth", "extractor": "magic"}),
        ("E_STRENGTH", {**CLIP, "task": "depth", "strength": 3}),
        ("E_SETTINGS", {"cells": [CLIP, {**CLIP, "prompt": "another"}]}),
        ("E_SETTINGS", {**CLIP, "sampler": "ddim", "steps": 20}),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(tmp_path, code, settings):
    with pytest.raises(AppError, match=rf"\[{code}\]") as error:
        back(tmp_path, json.loads(json.dumps(settings)))
    assert str(tmp_path) not in str(error.value) and len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("E_FIT", {"fit": "stretch"}),
        ("E_NUMBER", {"grow": 65}),
        ("E_NO_SETTINGS", {"start": "soon"}),
        ("E_NO_SETTINGS", {"box": ["left"]}),
        ("E_NO_SETTINGS", {"box": 3}),
    ],
)
def test_how_files_were_used_is_checked(tmp_path, code, told):
    settings = settings_of([Cell("student", "lcm", 1)])
    material = {"start": 0.5, "span": 4.0, "fit": "pad", "box": [0, 0.25, 0.5, 1], "moving": False, "grow": 2, "feather": 0}
    settings["cells"][0] |= {"task": "inpaint", "material": material}
    values = back(tmp_path, settings)
    assert {name: values[name] for name in material} == {**material, "box": "0.0,0.25,0.5,1.0"}
    settings["cells"][0]["material"] = material | told
    with pytest.raises(AppError) as error:
        back(tmp_path, settings)
    assert error.value.code == code and len(str(error.value).splitlines()) == 1


def test_a_file_without_settings_is_named_without_its_folder(tmp_path):
    (tmp_path / "notes.png").write_bytes(b"\x89PNG nothing")
    for name, code in (("notes.png", "E_NO_SETTINGS"), ("gone.png", "E_INPUT")):
        with pytest.raises(AppError, match=code) as error:
            restored(tmp_path / name)
        assert name in str(error.value) and str(tmp_path) not in str(error.value)
