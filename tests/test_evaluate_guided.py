"""Figures of guided clips against cases with a known answer: the rendered clip itself, a clip of another scene, a clip of nothing; real clips."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import FakeModel

from videolcm import __main__ as command_line
from videolcm import evaluate_guided, models, real_clips
from videolcm.errors import AppError
from videolcm.evaluate_guided import FIGURES, guided_table, mean_of, real_goals, rendered_goals
from videolcm.judge import Judge
from videolcm.masks import composite
from videolcm.metrics import motion, optical_flow
from videolcm.real_clips import REAL_CLIPS, filmed
from videolcm.world import plot, vocabulary


@pytest.fixture(scope="module")
def goal():
    return rendered_goals([{"prompt": plot(3).caption, "seed": 3, "said": plot(3).said, "scene": 3}])[0]


@pytest.fixture
def exact(monkeypatch):
    """Extractors that are never wrong, for clips that say their own depth by their red; a judge that knows nothing."""
    monkeypatch.setattr(evaluate_guided, "extract", lambda name, frames: frames[..., 0] / np.float32(255))
    torch.manual_seed(0)
    monkeypatch.setattr(evaluate_guided, "judge", Judge().eval)


def painted(values):
    return np.repeat((values * 255).round().astype(np.uint8)[..., None], 3, -1)


def test_a_clip_of_the_right_depth_has_no_error_and_the_opposite_correlates_negatively(exact, goal):
    right = painted(goal.depth)
    found = FIGURES["depth"](right, goal)
    assert found["depth error"] < 0.01 and found["depth correlation"] > 0.999
    assert FIGURES["depth"](255 - right, goal)["depth correlation"] < -0.999


def test_without_the_exact_depth_it_is_the_one_that_was_followed(exact, goal):
    real = replace(goal, depth=None)
    assert FIGURES["depth"](goal.frames, real)["depth error"] == 0 != FIGURES["depth"](goal.frames, goal)["depth error"]


def test_the_same_lines_score_one_and_none_score_zero(exact, goal):
    assert FIGURES["sketch"](goal.frames, goal)["edge F1"] == 1
    assert FIGURES["sketch"](np.zeros_like(goal.frames), goal)["edge F1"] == 0


def test_inpainting_keeps_what_is_outside_the_hole(exact, goal):
    made = composite(goal.frames, np.zeros_like(goal.frames), goal.hole)
    found = FIGURES["inpaint"](made, goal)
    assert found["PSNR outside"] == 100 and 0 <= found["text match"] <= 1
    assert (made != goal.frames).any()


def test_colour_and_place_are_the_prompts(monkeypatch, goal):
    monkeypatch.setattr(evaluate_guided, "text_match", lambda net, frames, said: {"shape": 0.0, "colour": 0.5, "floor": 1.0, "sky": 0.0, "mean": 0.4})
    assert evaluate_guided.matched(goal.frames, goal.said) == {"colour": 0.5, "place": 0.5}
    monkeypatch.setattr(evaluate_guided, "text_match", lambda net, frames, said: {"shape": 0.0, "mean": 0.0})
    assert evaluate_guided.matched(goal.frames, goal.said) == {"colour": None, "place": None}


def test_what_stays_of_a_real_clip_is_not_asked_of_the_prompt(monkeypatch, goal):
    asked = []
    monkeypatch.setattr(evaluate_guided, "text_match", lambda net, frames, said: asked.append(said) or {"mean": 1.0})
    FIGURES["inpaint"](goal.frames, goal), FIGURES["inpaint"](goal.frames, replace(goal, depth=None))
    assert asked == [goal.said, (*goal.said[:-1], {})]


@pytest.mark.parametrize("task", ["sketch", "inpaint"])
def test_every_row_is_made_of_the_clips(exact, monkeypatch, goal, task):
    asked = []

    def fake_generate(model, request, known=None):
        asked.append((model.info.role, request.sampler, request.steps, request.task, request.hole is not None))
        yield type("Result", (), {"frames": goal.frames if request.video is None else request.video})

    monkeypatch.setattr(evaluate_guided, "generate", fake_generate)
    goals = [goal, replace(goal, frames=255 - goal.frames)]
    events = list(evaluate_guided.evaluate_guided({"student": FakeModel()}, FakeModel("teacher"), goals, task, (1, 2), (50,)))
    found = {name: figures for name, figures in events if figures}
    plan = [("teacher", "ddim", 50, task), ("student", None, 1, task), ("student", None, 2, task)]  # None: its own
    names = ["the clips themselves", "teacher, DDIM 50", "student, LCM 1", "student, LCM 2"]
    if task == "sketch":
        plan.append(("student", None, 2, "text"))
        names.append("student, LCM 2, prompt alone")
        assert found.pop(names[-1])["edge F1"] < 1 and all(row["edge F1"] == 1 for row in found.values())
    else:
        assert all(row["PSNR outside"] == 100 for row in found.values())
    assert [*found] == names[:4] and asked == [(*one, task == "inpaint") for one in plan for _ in goals]
    assert [name for name, figures in events if figures is None][:2] == ["the clips themselves: 1/2", "the clips themselves: 2/2"]


def test_real_clips_are_here_move_and_ask_for_what_the_world_has():
    goals = real_goals()
    assert len(goals) == len(REAL_CLIPS) >= 7
    words = vocabulary()
    for goal in goals:
        assert goal.frames.shape == (16, 256, 256, 3) and goal.depth is None and goal.frames.std() > 20, goal.prompt
        assert motion(optical_flow(goal.frames)) > 0.1, goal.prompt
        toy, scene = goal.said
        assert {"shape", "colour", "motion"} <= set(toy) and set(scene) == {"floor", "sky"}, goal.prompt
        assert set(goal.prompt.split()) <= set(words), goal.prompt
        assert 0 < goal.hole.mean() < 0.3


def test_a_photograph_is_filmed_as_it_says():
    y, x = np.mgrid[:320, :320]
    photograph = np.stack([x, y, x], -1).clip(0, 255).astype(np.uint8)
    still, right = filmed(photograph, 0, 0, 1.0), filmed(photograph, 1, 0, 1.0)
    assert np.array_equal(still[0], photograph[32:288, 32:288]) and np.array_equal(still[0], still[-1])
    assert np.array_equal(right[0], photograph[32:288, :256]) and np.array_equal(right[-1], photograph[32:288, 64:])
    nearer = filmed(photograph, 0, 0, 2.0)
    assert np.array_equal(nearer[0], still[0]) and np.abs(np.diff(nearer[-1][:, :200, 0].astype(int), axis=1)).mean() == pytest.approx(0.5, abs=0.02)


def test_the_command_line_follows_real_clips(exact, monkeypatch, capsys):
    monkeypatch.setattr(models, "load", lambda ref, role="student": FakeModel(role))
    assert command_line.main(["evaluate", "--task", "sketch", "--real", "--count", "2", "--steps", "1", "--teacher-steps", ""]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out.splitlines()[-1])
    assert (told["task"], told["real"], told["clips"]) == ("sketch", True, 2)
    assert [*told["rows"]] == ["the clips themselves", "student, LCM 1", "student, LCM 1, prompt alone"] and "| edge F1 |" in err
    assert command_line.main(["evaluate", "--real"]) == 2 and "[E_ARGUMENTS]" in capsys.readouterr().err


def test_missing_figures_are_left_out_of_a_mean_and_of_the_table():
    assert mean_of([0.5, None, 1.0]) == 0.75 and mean_of([None]) is None
    assert guided_table({"a": {"x": 0.5, "y": None}}).splitlines() == ["| clips | x | y |", "|---|---|---|", "| a | 0.500 |  |"]


def test_without_real_clips_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(real_clips, "place_of", lambda row: None)
    with pytest.raises(AppError, match="skimage") as error:
        real_clips.real_clips()
    assert error.value.code == "E_PACKAGE"
