"""Figures of guided clips against cases with a known answer: the rendered clip itself, a clip of another scene, a clip of nothing."""

import numpy as np
import pytest
import torch
from conftest import FakeModel

from videolcm import evaluate_guided
from videolcm.data import disparity
from videolcm.evaluate_guided import FIGURES, guided_table, hole_of, mean_of
from videolcm.judge import Judge
from videolcm.masks import composite
from videolcm.world import plot, sample


@pytest.fixture(scope="module")
def truth():
    return sample(3).render()


@pytest.fixture
def exact(monkeypatch):
    """Extractors that are never wrong, for clips that say their own depth by their red."""
    monkeypatch.setattr(evaluate_guided, "extract", lambda name, frames: frames[..., 0] / np.float32(255))


def painted(values):
    return np.repeat((values * 255).round().astype(np.uint8)[..., None], 3, -1)


def test_a_clip_of_the_right_depth_has_no_error_and_the_opposite_correlates_negatively(exact, truth):
    right = painted(disparity(truth.depth))
    found = FIGURES["depth"](right, truth, ())
    assert found["depth error"] < 0.01 and found["depth correlation"] > 0.999
    assert FIGURES["depth"](255 - right, truth, ())["depth correlation"] < -0.999


def test_the_same_lines_score_one_and_none_score_zero(exact, truth):
    assert FIGURES["sketch"](truth.frames, truth, ())["edge F1"] == 1
    assert FIGURES["sketch"](np.zeros_like(truth.frames), truth, ())["edge F1"] == 0


def test_inpainting_keeps_what_is_outside_the_hole(monkeypatch, truth):
    torch.manual_seed(0)
    monkeypatch.setattr(evaluate_guided, "judge", Judge().eval)
    made = composite(truth.frames, np.zeros_like(truth.frames), hole_of(truth))
    found = FIGURES["inpaint"](made, truth, plot(3).said)
    assert found["PSNR outside"] == 100 and 0 <= found["text match"] <= 1
    assert (made != truth.frames).any()


def test_every_row_is_made_of_the_rendered_clips(exact, monkeypatch):
    asked = []

    def fake_generate(model, request):
        asked.append((model.info.role, request.sampler, request.steps, request.task, request.video.shape))
        yield type("Result", (), {"frames": request.video})

    monkeypatch.setattr(evaluate_guided, "generate", fake_generate)
    rows = [{"prompt": plot(seed).caption, "seed": seed, "said": plot(seed).said} for seed in (3, 4)]
    events = list(evaluate_guided.evaluate_guided({"student": FakeModel()}, FakeModel("teacher"), rows, "sketch", (1, 2), (50,)))
    found = {name: figures for name, figures in events if figures}
    assert found == dict.fromkeys(("rendered clips", "teacher, DDIM 50", "student, LCM 1", "student, LCM 2"), {"edge F1": 1.0})
    clip = (16, 256, 256, 3)
    plan = (("teacher", "ddim", 50), ("student", "lcm", 1), ("student", "lcm", 2))
    assert asked == [(*one, "sketch", clip) for one in plan for _ in rows]
    assert [name for name, figures in events if figures is None][:2] == ["rendered clips: 1/2", "rendered clips: 2/2"]


def test_missing_figures_are_left_out_of_a_mean_and_of_the_table():
    assert mean_of([0.5, None, 1.0]) == 0.75 and mean_of([None]) is None
    assert guided_table({"a": {"x": 0.5, "y": None}}).splitlines() == ["| clips | x | y |", "|---|---|---|", "| a | 0.500 |  |"]
