"""The command line: files and one JSON object for good input, one line and exit code 2 for bad input."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import FakeModel
from media import corners, make

from videolcm import __main__ as command_line
from videolcm import models
from videolcm.arguments import exit_code, number
from videolcm.video import read_settings, sha256_of

PROMPT = "a red ball rolls to the left over snow"
ONE_LINE = re.compile(r"\[(E_[A-Z_]+)\] [A-Z].*[.:].* [A-Z].*\.\n")
BAD = [
    ("E_ARGUMENTS", []),
    ("E_ARGUMENTS", ["fly"]),
    ("E_ARGUMENTS", ["generate"]),
    ("E_ARGUMENTS", ["generate", PROMPT, "--nonsense"]),
    ("E_ARGUMENTS", ["generate", PROMPT, "--see", "3"]),
    ("E_ARGUMENTS", ["generate", PROMPT, "--steps"]),
    *(("E_ARGUMENTS", ["generate", PROMPT, *more]) for more in (["--video", "x"], ["--mask", "x"], ["--box", "0,0,1,.5"], ["--still", "--follow"])),
    ("E_ARGUMENTS", ["generate", PROMPT, "--task", "depth", "--video", "x", "--mask", "x"]),
    *(("E_TASK_INPUT", ["generate", PROMPT, "--task", task]) for task in ("depth", "sketch", "inpaint")),
    ("E_INPUT", ["generate", PROMPT, "--task", "depth", "--video", "no such file"]),
    ("E_FIT", ["generate", PROMPT, "--task", "depth", "--video", "x", "--fit", "stretch"]),
    ("E_ALSO", ["generate", PROMPT, "--also", "sound"]),
    *(("E_STRENGTH", ["generate", PROMPT, "--strength", s]) for s in ("-1", "2.1", "nan", "x")),
    ("E_BOX", ["generate", PROMPT, "--task", "inpaint", "--box", "a,b,c,d"]),
    ("E_STEPS", ["generate", PROMPT, "--task", "depth", "--video", "no such file", "--steps", "9"]),
    ("E_PROMPT_EMPTY", ["generate", " \n\t"]),
    ("E_PROMPT_EMPTY", ["generate", "\x1b\x07"]),
    ("E_PROMPT_LONG", ["generate", "x" * 513]),
    ("E_PROMPT_TEXT", ["generate", "a\udcffb"]),
    *(("E_STEPS", ["generate", PROMPT, "--steps", n]) for n in ("0", "9", "2.5", "nan", "inf", "-1", "four", "", "9" * 5000)),
    ("E_STEPS", ["generate", PROMPT, "--sampler", "ddim", "--steps", "101"]),
    *(("E_SEED", ["generate", PROMPT, "--seed", n]) for n in ("-1", "2147483648", "1e300", "x")),
    *(("E_FRAMES", ["generate", PROMPT, "--frames", n]) for n in ("7", "33", "12.5")),
    *(("E_SIZE", ["generate", PROMPT, "--size", s]) for s in ("256", "x", "250x256", "64x64", "1024x256", "256x256x3", "axb")),
    ("E_SIZE", ["generate", PROMPT, "--size=-256x256"]),
    ("E_GUIDANCE", ["generate", PROMPT, "--guidance", "nan"]),
    *(("E_GAMMA", ["generate", PROMPT, "--sampler", "tcd", "--gamma", g]) for g in ("-0.1", "2", "nan", "x")),
    ("E_SAMPLER", ["generate", PROMPT, "--sampler", "euler"]),
    ("E_ROLE", ["generate", PROMPT, "--role", "pupil"]),
    ("E_TASK", ["generate", PROMPT, "--task", "music"]),
    ("E_DEVICE", ["generate", PROMPT, "--device", "abacus"]),
    ("E_DEVICE", ["generate", PROMPT, "--device", "cuda:99"]),
    ("E_DTYPE", ["generate", PROMPT, "--dtype", "int3"]),
    ("E_OUTPUT", ["generate", PROMPT, "--out", "no/such/folder/clip.mp4"]),
    ("E_OUTPUT", ["generate", PROMPT, "--npy", "no/such/folder/frames.npy"]),
    ("E_ARGUMENTS", ["generate", PROMPT, "--out", "clip.mp4", "--npy", "clip.mp4"]),
    ("E_ARGUMENTS", ["distill", "--own", "0.5"]),
    ("E_OUTPUT", ["generate", PROMPT, "--out", "."]),
    ("E_CELLS", ["compare", PROMPT, "--steps", ","]),
    ("E_CELLS", ["compare", PROMPT, "--steps", "1,2,3,4,5", "--sampler", "lcm,tcd"]),
    *(("E_STEPS", ["compare", PROMPT, "--steps", steps]) for steps in ("1,9", "1,x", "0", "2.5", "1;2")),
    *(("E_STEPS", ["compare", PROMPT, "--teacher-steps", steps]) for steps in ("101", "-1", "many")),
    ("E_SAMPLER", ["compare", PROMPT, "--sampler", "lcm,euler"]),
    ("E_CELL_ROLE", ["compare", PROMPT, "--role", "pupil"]),
    ("E_PROMPT_EMPTY", ["compare", ""]),
    ("E_ARGUMENTS", ["compare", PROMPT, "--mask", "in.png"]),
    ("E_ARGUMENTS", ["compare", PROMPT, "--out", "a.mp4", "--sheet", "./a.mp4"]),
    *(("E_OUTPUT", ["compare", PROMPT, option, "no/such/folder/file"]) for option in ("--out", "--sheet", "--gif")),
]


@pytest.fixture
def door(monkeypatch, tmp_path):
    """`models.load` gives FakeModels and notes what it was asked for; the current folder is a new one."""
    asked = []

    def load(ref, role="student", device=None, dtype=None):
        asked.append((ref, role, device, dtype))
        return FakeModel(role)

    monkeypatch.setattr(models, "load", load, raising=False)
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.mark.parametrize(("code", "arguments"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_input(door, tmp_path, capsys, code, arguments):
    assert command_line.main(arguments) == 2
    out, err = capsys.readouterr()
    match = ONE_LINE.fullmatch(err)
    assert match and match[1] == code and out == "" and len(err) < 260
    assert door == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("code", "arguments"), [BAD[1], BAD[3], BAD[14], ("E_STEPS", ["generate", PROMPT, "--steps", "nan"])])
def test_bad_input_in_a_process(code, arguments):
    done = subprocess.run([sys.executable, "-m", "videolcm", *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert ONE_LINE.fullmatch(done.stderr)[1] == code


def test_generate(door, tmp_path, capsys):
    assert command_line.main(["generate", PROMPT, "--steps", "2", "--seed", "7", "--size", "160x128", "--out", "a.mp4", "--npy", "a.npy"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out.splitlines()[-1])
    frames = np.load(tmp_path / "a.npy")
    assert (frames.shape, frames.dtype) == ((16, 128, 160, 3), np.uint8)
    assert told["sha256"] == sha256_of(frames)
    assert told["settings"] == read_settings(tmp_path / "a.mp4")
    assert told["settings"] == {**told["settings"], "prompt": PROMPT, "steps": 2, "seed": 7, "width": 160, "height": 128, "model": "fake"}
    assert told["nfe"] == 2 and told["out"] == "a.mp4"
    assert set(told["seconds"]) == {"text", "conditions", "denoise", "decode", "write", "total"} and told["seconds"]["write"] > 0
    assert err.splitlines() == ["text 0/1", "text 1/1", "denoise 1/2", "denoise 2/2", "decode 0/1", "decode 1/1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.npy"]


def test_defaults(door, tmp_path, capsys):
    from videolcm import models

    assert command_line.main(["generate", "a red dragon"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["settings"]["steps"] == 4 and (tmp_path / "clip.mp4").exists()
    best = models.pick_device(None)
    assert "does not know: dragon" in err and door == [("toybox", "student", best, models.pick_dtype(None, best))]


def test_the_teacher_takes_ddim(door, capsys):
    import torch

    arguments = ["--role", "teacher", "--device", "cpu", "--dtype", "bfloat16", "--size", "128x128", "--model", "other"]
    assert command_line.main(["generate", PROMPT, *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["nfe"], told["settings"]["sampler"], told["settings"]["steps"], told["settings"]["guidance"]) == (100, "ddim", 50, 2.5)
    assert door == [("other", "teacher", torch.device("cpu"), torch.bfloat16)]


def test_a_task_that_the_model_lacks(door, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(models, "load", lambda ref, **options: FakeModel(tasks=("text",)))
    make("in.mp4", corners())
    assert command_line.main(["generate", PROMPT, "--task", "depth", "--video", "in.mp4"]) == 2
    assert "[E_TASK_MODEL]" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


SMALL = ["--size", "128x128", "--frames", "8", "--seed", "3"]


def test_compare(door, tmp_path, capsys):
    files = ["--out", "g.mp4", "--sheet", "s.png", "--gif", "g.gif"]
    assert command_line.main(["compare", PROMPT, "--steps", "1,2", "--teacher-steps", "3", *SMALL, *files]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out.splitlines()[-1], parse_constant=pytest.fail)
    assert (told["out"], told["sheet"], told["gif"]) == ("g.mp4", "s.png", "g.gif")
    cells = told["cells"]
    ways = [(cell["settings"]["role"], cell["settings"]["sampler"], cell["settings"]["steps"], cell["nfe"]) for cell in cells]
    assert ways == [("student", "lcm", 1, 1), ("student", "lcm", 2, 2), ("teacher", "ddim", 3, 6)]
    assert [cell["reference"] for cell in cells] == [False, False, True] and [role for _, role, _, _ in door] == ["student", "teacher"]
    assert set(cells[0]["metrics"]) == {
        "motion",
        "flicker",
        "text_match",
        "motion_ratio",
        "warning",
        "psnr",
        "feature_distance",
        "unmatched",
        "followed",
    }
    assert cells[0]["metrics"]["psnr"] == 100 and cells[0]["metrics"]["motion_ratio"] == pytest.approx(1)  # all see the same square
    for name in ("g.mp4", "s.png", "g.gif"):
        assert read_settings(tmp_path / name) == {"cells": [cell["settings"] for cell in cells]}
    assert "1 step: denoise 1/1" in err and "teacher, 3 steps, ddim: denoise 3/3" in err


def test_a_compared_cell_is_the_clip_that_generate_makes(door, capsys):
    command_line.main(["compare", PROMPT, "--steps", "1,3", "--sampler", "lcm,tcd", "--gamma", "0.5", "--teacher-steps", "4", *SMALL])
    cells = json.loads(capsys.readouterr().out.splitlines()[-1])["cells"]
    assert len(cells) == 5
    for cell in cells:
        asked = cell["settings"]
        same = ["--role", asked["role"], "--sampler", asked["sampler"], "--steps", str(asked["steps"]), "--gamma", "0.5"]
        assert command_line.main(["generate", PROMPT, *same, *SMALL]) == 0
        alone = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (alone["sha256"], alone["settings"], alone["nfe"]) == (cell["sha256"], asked, cell["nfe"])


def test_compare_without_a_reference_loads_no_teacher(door, tmp_path, capsys):
    assert command_line.main(["compare", "a red dragon", "--steps", "2", "--teacher-steps", "0", *SMALL]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out.splitlines()[-1])
    assert [role for _, role, _, _ in door] == ["student"] and [cell["reference"] for cell in told["cells"]] == [False]
    assert told["sheet"] is told["gif"] is None and [path.name for path in tmp_path.iterdir()] == ["grid.mp4"]
    assert err.count("does not know: dragon") == 1 and told["cells"][0]["metrics"]["psnr"] is None


def test_compare_has_defaults(door, capsys):
    assert command_line.main(["compare", PROMPT, *SMALL]) == 0
    cells = json.loads(capsys.readouterr().out.splitlines()[-1])["cells"]
    assert [cell["settings"]["steps"] for cell in cells] == [1, 2, 4, 8, 50]


def test_the_same_command_gives_the_same_frames(door, capsys):
    for _ in range(2):
        command_line.main(["generate", PROMPT, "--size", "128x128"])
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["sha256"] == second["sha256"]


def test_ctrl_c(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert exit_code(interrupted) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_help_needs_nothing_heavy():
    code = (
        "import sys; from videolcm.__main__ import parser_of, VERBS; parser_of(VERBS).format_help();"
        "assert not {'torch', 'gradio', 'diffusers', 'av'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_number():
    assert [number(text) for text in ("4", "4.0", "-1", "x", "")] == [4, 4.0, -1, "x", ""]
    assert isinstance(number("4"), int) and number("nan") != number("nan")
