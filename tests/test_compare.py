"""Comparing: cells are the clips that `generate` makes, they come as they are ready, and figures are filled in when the reference is there."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from conftest import FakeModel, moving_square

from videolcm import compare as compare_module
from videolcm.compare import REFERENCE, Cell, CellDone, CellProgress, CellStopped, Prepared, compare, requests_of, row
from videolcm.errors import AppError
from videolcm.judge import Judge
from videolcm.metrics import IDENTICAL
from videolcm.pipeline import Request, generate
from videolcm.stopwatch import STAGES

PROMPT = "a red ball rolls to the left over snow"
REQUEST = Request(PROMPT, seed=5, frames=8, height=128, width=160)
CELLS = [Cell("student", "lcm", 1), Cell("student", "lcm", 4), Cell("student", "tcd", 4)]
SHORT = Cell("teacher", "ddim", 5)
RELATIVE = ("motion_ratio", "warning", "psnr", "feature_distance")


class Noisy(FakeModel):
    """The moving square, the less clean the fewer steps; a clip that depends on seed, sampler and steps."""

    def denoise(self, x_t, t, cond):
        return 0.9 * super().denoise(x_t, t, cond) + 0.1 * x_t.clamp(-1, 1)


@pytest.fixture
def models():
    return {role: Noisy(role) for role in ("student", "teacher")}


def last(events):
    """The last CellDone of every cell."""
    return {event.cell: event for event in events if isinstance(event, CellDone)}


def test_a_cell_is_the_clip_that_generate_makes(models):
    done = last(compare(models, REQUEST, CELLS, SHORT))
    assert list(done) == [*CELLS, SHORT]
    for cell, one in done.items():
        alone = Request(PROMPT, seed=5, frames=8, height=128, width=160, sampler=cell.sampler, steps=cell.steps)
        *_, result = generate(models[cell.role], alone)
        assert (one.result.sha256, one.result.nfe, one.result.settings) == (result.sha256, result.nfe, result.settings)
    assert len({one.result.sha256 for one in done.values()}) == 4


def test_a_cell_of_real_networks_is_the_clip_that_generate_makes():
    models = {role: tiny.toybox(role) for role in ("student", "teacher")}
    done = last(compare(models, REQUEST, CELLS[:2], Cell("teacher", "ddim", 2)))
    for cell, one in done.items():
        *_, result = generate(models[cell.role], Request(**{**REQUEST.settings(), "sampler": cell.sampler, "steps": cell.steps}))
        assert one.result.sha256 == result.sha256 and one.result.settings == result.settings


def test_cells_come_in_their_order_and_again_after_the_reference(models):
    events = list(compare(models, REQUEST, CELLS, SHORT))
    order = [event.cell for event in events if isinstance(event, CellDone)]
    assert order == [*CELLS, SHORT, *CELLS, SHORT]
    assert all(isinstance(event, CellDone) for event in events[-5:])
    steps = [(event.cell.steps, event.progress.i) for event in events if isinstance(event, CellProgress) and event.progress.stage == "denoise"]
    assert steps == [(cell.steps, i + 1) for cell in [*CELLS, SHORT] for i in range(cell.steps)]
    assert events[2].progress.preview.shape == (8, 16, 20, 3)


def test_figures_that_need_the_reference_wait_for_it(models):
    first, then = {}, {}
    for event in compare(models, REQUEST, CELLS, SHORT):
        if isinstance(event, CellDone):
            (then if event.cell in first else first)[event.cell] = event
    for cell in CELLS:
        assert all(first[cell].metrics[name] is None for name in RELATIVE) and first[cell].metrics["motion"] > 0
        assert then[cell].result is first[cell].result and then[cell].metrics["motion"] == first[cell].metrics["motion"]
        assert 10 < then[cell].metrics["psnr"] < IDENTICAL
        ratio = then[cell].metrics["motion"] / then[SHORT].metrics["motion"]
        assert then[cell].metrics["motion_ratio"] == pytest.approx(ratio)
    assert then[SHORT].metrics["psnr"] == IDENTICAL and then[SHORT].metrics["motion_ratio"] == 1
    json.dumps([event.metrics for event in [*first.values(), *then.values()]], allow_nan=False)


def test_without_a_reference_each_cell_comes_once(models):
    events = [event for event in compare(models, REQUEST, CELLS, None) if isinstance(event, CellDone)]
    assert [event.cell for event in events] == CELLS and models["teacher"].calls == []
    assert all(event.metrics[name] is None for event in events for name in RELATIVE)


def test_a_reference_among_the_cells_is_made_once(models):
    done = [event.cell for event in compare(models, REQUEST, [SHORT, CELLS[0]], SHORT) if isinstance(event, CellDone)]
    assert done == [SHORT, CELLS[0]] * 2 and len(models["teacher"].calls) == 5


def test_a_clip_that_stands_still_has_lost_its_motion(models):
    still = moving_square((3, 8, 16, 20))[:, :1].repeat(1, 8, 1, 1)
    models["student"].denoise = lambda x_t, t, cond: still.expand_as(x_t).clone()
    done = last(compare(models, REQUEST, CELLS[:1], SHORT))
    assert done[CELLS[0]].metrics["motion_ratio"] < 0.1 and "loses motion" in done[CELLS[0]].metrics["warning"]
    assert done[SHORT].metrics["warning"] is None


def test_the_text_is_encoded_once_for_models_that_share_an_encoder(models):
    last(compare(models, REQUEST, CELLS, SHORT))
    assert [len(model.prompts) for model in models.values()] == [1, 1]
    assert models["student"].text_encoder is models["student"]
    student = tiny.toybox("student")
    teacher, calls = student.with_denoiser(tiny.denoiser(5)), []
    student.text.register_forward_hook(lambda *arguments: calls.append(1))
    prepare = Prepared()
    (cond, empty), again = prepare(student, REQUEST), prepare(teacher, REQUEST)
    assert calls == [1] and again[0] is cond and again[1] is empty
    assert torch.equal(cond.context, student.encode_text([PROMPT, ""])[:1])


def test_the_seconds_of_a_cell_are_those_of_every_stage_and_writing_leaves_nothing(models, tidy):
    for one in last(compare(models, REQUEST, CELLS, SHORT)).values():
        told = row(one, SHORT)["seconds"]
        assert list(told) == [*STAGES, "total"] and min(told["denoise"], told["decode"], told["write"]) > 0
        assert told["total"] == pytest.approx(sum(told[stage] for stage in STAGES), abs=1e-3)


def test_a_full_disk_costs_the_seconds_of_writing_and_no_clip(models, monkeypatch):
    def full(result, path):
        raise AppError("E_OUTPUT", given="clip.mp4")

    monkeypatch.setattr(compare_module, "save", full)
    done = last(compare(models, REQUEST, CELLS, SHORT))
    assert len(done) == 4 and all(one.result.seconds["write"] == 0 for one in done.values())


def test_all_cells_begin_with_the_same_noise(models):
    seen = []
    for model in models.values():
        model.denoise = lambda x_t, t, cond: seen.append((int(t[0]), x_t[:1].clone())) or 0.5 * x_t
    last(compare(models, REQUEST, CELLS, SHORT))
    firsts = [x_t for t, x_t in seen if t == 999]
    assert len(firsts) == 4 and all(torch.equal(x_t, firsts[0]) for x_t in firsts)


def test_closing_stops_everything(models):
    events = compare(models, REQUEST, CELLS, SHORT)
    for event in events:
        if isinstance(event, CellProgress) and event.cell == CELLS[1] and event.progress.stage == "denoise":
            break
    events.close()
    assert len(models["student"].calls) == 2 and models["teacher"].calls == [] and list(events) == []


def test_one_cell_can_be_stopped_at_its_step(models):
    stopped, events = set(), []
    for event in compare(models, REQUEST, CELLS, SHORT, stopped):
        events.append(event)
        if isinstance(event, CellProgress) and event.cell == CELLS[1] and event.progress.stage == "denoise":
            stopped.add(CELLS[1])
    assert [event.cell for event in events if isinstance(event, CellStopped)] == [CELLS[1]]
    assert len(models["student"].calls) == 1 + 1 + 4
    assert list(last(events)) == [CELLS[0], CELLS[2], SHORT] and last(events)[CELLS[2]].metrics["psnr"]


def test_a_cell_that_fails_leaves_the_others(models):
    broken = {**models, "teacher": FakeModel("teacher")}
    broken["teacher"].denoise = lambda x_t, t, cond: torch.full_like(x_t, torch.nan)
    events = list(compare(broken, REQUEST, [*CELLS[:2], Cell("teacher", "lcm", 1)], SHORT))
    failed = [event for event in events if isinstance(event, CellStopped)]
    assert [(event.cell.role, event.error.code) for event in failed] == [("teacher", "E_NONFINITE")] * 2
    assert list(last(events)) == CELLS[:2] and last(events)[CELLS[1]].metrics["psnr"] is None
    with pytest.raises(AppError, match="E_NONFINITE"):
        list(compare(broken, REQUEST, [Cell("teacher", "lcm", 1)], SHORT))


def test_a_cell_that_cannot_be_measured_leaves_the_others(models, monkeypatch):
    kept, known = [], compare_module.measure

    def measure(model, result):
        kept.append(result)
        if len(kept) == 1:
            raise AppError("E_PACKAGE", given="cv2")
        return known(model, result)

    monkeypatch.setattr(compare_module, "measure", measure)
    events = list(compare(models, REQUEST, CELLS, None))
    failed = [event for event in events if isinstance(event, CellStopped)]
    assert [(event.cell, event.error.code) for event in failed] == [(CELLS[0], "E_PACKAGE")]
    assert [event.cell for event in events if isinstance(event, CellDone)] == CELLS[1:]


def test_a_reference_that_was_stopped_leaves_the_cells_as_they_are(models):
    events = list(compare(models, REQUEST, CELLS[:1], SHORT, {SHORT}))
    assert [type(event) for event in events[-2:]] == [CellDone, CellStopped] and models["teacher"].calls == []
    assert not any(isinstance(event, CellProgress) and event.cell == SHORT for event in events)


@pytest.mark.parametrize(
    ("code", "cells"),
    [
        ("E_CELLS", []),
        ("E_CELLS", [Cell("student", "ddim", n) for n in range(1, 10)]),
        ("E_STEPS", [CELLS[0], Cell("student", "lcm", 9)]),
        ("E_STEPS", [Cell("student", "lcm", 2.5)]),
        ("E_SAMPLER", [Cell("student", "euler", 2)]),
        ("E_CELL_ROLE", [Cell("pupil", "lcm", 2)]),
    ],
)
def test_bad_cells_are_refused_before_anything_is_made(models, code, cells):
    with pytest.raises(AppError, match=code) as error:
        next(compare(models, REQUEST, cells, None))
    assert len(str(error.value)) < 250 and not any(model.calls or model.prompts for model in models.values())


def test_a_task_that_one_model_lacks_is_refused_first(models):
    models["teacher"].info = replace(models["teacher"].info, tasks=("text",))
    request = Request(PROMPT, task="depth", video=np.zeros((16, 256, 256, 3), np.uint8))
    with pytest.raises(AppError, match="E_TASK_MODEL"):
        next(compare(models, request, CELLS, SHORT))
    assert models["student"].prompts == []


def test_eight_cells_and_a_reference_are_allowed_and_double_ones_count_once():
    cells = [Cell("student", "lcm", n) for n in range(1, 9)]
    assert list(requests_of(REQUEST, cells * 2, REFERENCE)) == [*cells, Cell("teacher", "ddim", 50)]


def test_the_knobs_of_the_request_are_those_of_every_cell(models):
    request = Request(**{**REQUEST.settings(), "gamma": 0.5, "guidance": 1.5})
    told = [one.result.settings for one in last(compare(models, request, CELLS, SHORT)).values()]
    assert [one["gamma"] for one in told] == [None, None, 0.5, None] and {one["guidance"] for one in told} == {1.5}


def test_labels(models):
    assert [str(cell) for cell in (*CELLS[:2], SHORT)] == ["1 step, lcm", "4 steps, lcm", "teacher, 5 steps, ddim"]
    one = last(compare(models, REQUEST, CELLS[:1], None))[CELLS[0]]
    assert one.label == "1 step, lcm, 1 evaluation"


# ---- the judge


@pytest.fixture
def random_judge(monkeypatch):
    """A judge with random weights in place of the shipped one."""
    torch.manual_seed(0)
    net = Judge().eval()
    monkeypatch.setattr(compare_module, "has_judge", lambda: True)
    monkeypatch.setattr(compare_module, "judge", lambda: net)
    return net


def test_with_a_judge_text_match_and_feature_distance_are_there(models, random_judge):
    done = last(compare(models, REQUEST, CELLS[:1], SHORT))
    assert 0 <= done[CELLS[0]].metrics["text_match"] <= 1 and 0 < done[CELLS[0]].metrics["feature_distance"] < 4
    assert done[SHORT].metrics["feature_distance"] == 0


def test_without_a_judge_they_are_none(models, monkeypatch):
    monkeypatch.setattr(compare_module, "has_judge", lambda: False)
    done = last(compare(models, REQUEST, CELLS[:1], SHORT))
    assert all(one.metrics["text_match"] is one.metrics["feature_distance"] is None for one in done.values())


@pytest.mark.parametrize("prompt", ["snow", "a red dragon", "a ball, a cube and a cone"])
def test_text_match_is_for_prompts_of_one_toy_or_two(models, random_judge, prompt):
    request = Request(prompt, frames=8, height=128, width=128)
    assert last(compare(models, request, CELLS[:1], None))[CELLS[0]].metrics["text_match"] is None


def test_text_match_is_for_the_world_of_the_judge(random_judge):
    models = {"student": FakeModel(words=None)}
    assert last(compare(models, REQUEST, CELLS[:1], None))[CELLS[0]].metrics["text_match"] is None


def test_frames_are_what_is_measured(models):
    one = last(compare(models, REQUEST, CELLS[:1], None))[CELLS[0]]
    assert one.result.frames.shape == (8, 128, 160, 3) and one.result.frames.dtype == np.uint8
    assert one.metrics["motion"] == pytest.approx(compare_module.measure(models["student"], one.result)["motion"])


# ---- what is followed


def test_what_a_clip_follows_is_measured_on_it(models):
    video = np.zeros((8, 128, 160, 3), np.uint8)
    for i, frame in enumerate(video):
        frame[40:80, 20 + 8 * i : 60 + 8 * i] = 220
    hole = np.zeros(video.shape[:3], np.float32)
    hole[:, 40:80] = 1
    request = Request("a red ball", frames=8, height=128, width=160, task="inpaint", video=video, hole=hole)
    done = last(compare(models, request, CELLS[:1], None))[CELLS[0]]
    assert done.metrics["followed"] == {"PSNR outside": 100.0}
    assert compare_module.followed(request, 255 - video)["PSNR outside"] < 1
    request = Request("a red ball", frames=8, height=128, width=160, task="sketch", video=video)
    assert compare_module.followed(request, video)["edge F1"] == 1.0
    assert compare_module.followed(request, np.zeros_like(video))["edge F1"] < 0.1
    assert compare_module.followed(REQUEST, video) == {} == compare_module.followed(replace(REQUEST, also=("depth",)), video)
