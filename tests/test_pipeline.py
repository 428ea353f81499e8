"""Requests check themselves; a generation says how far it is, ends with what was asked for, and can be reproduced from its settings."""

import json
import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from conftest import CELL, FakeModel, moving_square

from videolcm import conditions, stopwatch
from videolcm.errors import AppError
from videolcm.pipeline import Progress, Request, Result, generate, save, size_of, to_frames, unknown_words
from videolcm.video import read_settings, sha256_of

PROMPT = "a red ball rolls to the left over snow"
SMALL = {"frames": 8, "height": 128, "width": 160}


def refused(code, **values):
    with pytest.raises(AppError) as error:
        Request(**{"prompt": PROMPT, **values})
    assert error.value.code == code
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 250
    str(error.value).encode()


def result_of(model, **values):
    *_, result = generate(model, Request(**{"prompt": PROMPT, **SMALL, **values}))
    return result


HUGE = [pytest.param(sign * 10**5000, id="huge") for sign in (1, -1)]
NO_WHOLE_NUMBER = [True, False, math.nan, math.inf, -math.inf, 2.5, "4", [4], {}, *HUGE, np.float32("nan"), np.bool_(True), 4j]


@pytest.mark.parametrize("value", [0, 9, -1, *NO_WHOLE_NUMBER])
def test_bad_steps(value):
    refused("E_STEPS", steps=value)


@pytest.mark.parametrize("value", [0, 101, *NO_WHOLE_NUMBER])
def test_bad_ddim_steps(value):
    refused("E_STEPS", steps=value, sampler="ddim")


@pytest.mark.parametrize("value", [-1, 2**31, 1e300, None, *NO_WHOLE_NUMBER])
def test_bad_seed(value):
    refused("E_SEED", seed=value)


@pytest.mark.parametrize("value", [7, 33, None, *NO_WHOLE_NUMBER])
def test_bad_frames(value):
    refused("E_FRAMES", frames=value)


@pytest.mark.parametrize("value", [96, 544, 200, 0, -256, None, *NO_WHOLE_NUMBER])
def test_bad_sides(value):
    refused("E_SIZE", height=value)
    refused("E_SIZE", width=value)


@pytest.mark.parametrize("value", [-0.1, 30.1, math.nan, math.inf, True, "2", [1], *HUGE, 1j])
def test_bad_guidance(value):
    refused("E_GUIDANCE", guidance=value)


@pytest.mark.parametrize("sampler", ["lcm", "tcd"])
@pytest.mark.parametrize("value", [-0.1, 1.01, math.nan, math.inf, True, "0.5", [1], *HUGE, 1j])
def test_bad_gamma(value, sampler):
    refused("E_GAMMA", gamma=value, sampler=sampler)


def test_gamma_is_a_knob_of_tcd_alone(model):
    assert Request(PROMPT, gamma=1).gamma == 1.0 and Request(PROMPT, sampler="tcd").gamma is None
    assert result_of(model, steps=1, sampler="tcd").settings["gamma"] == 0.3
    assert result_of(model, steps=1, gamma=0.5).settings["gamma"] is result_of(model, steps=1, sampler="ddim").settings["gamma"] is None


def test_gamma_changes_the_clip_and_is_in_its_settings(model):
    model.denoise = lambda x_t, t, cond: 0.5 * x_t
    results = [result_of(model, sampler="tcd", steps=3, gamma=gamma) for gamma in (None, 0.3, 0, 1)]
    assert [result.settings["gamma"] for result in results] == [0.3, 0.3, 0, 1]
    assert results[0].sha256 == results[1].sha256 and len({result.sha256 for result in results}) == 3
    assert [result_of(model, sampler=sampler, steps=1).sha256 for sampler in ("lcm", "tcd")] == [result_of(model, steps=1).sha256] * 2


def test_the_sampler_is_the_models_own_unless_one_is_asked_for(model):
    assert Request(PROMPT).sampler is None and Request(PROMPT).steps == 4
    refused("E_STEPS", steps=9)
    plain, lcm = result_of(model, steps=3), result_of(model, steps=3, sampler="lcm")
    assert plain.settings == lcm.settings and (lcm.settings["sampler"], lcm.settings["gamma"]) == ("lcm", None)
    model.info = replace(model.info, two_time=True)
    own = result_of(model, steps=3)
    assert (own.settings["sampler"], own.settings["gamma"]) == ("tcd", 0.0)
    assert own.sha256 == result_of(model, steps=3, sampler="tcd", gamma=0).sha256
    assert result_of(model, steps=3, sampler="lcm").settings == lcm.settings and result_of(model, steps=3, gamma=0.5).settings["gamma"] == 0.5


@pytest.mark.parametrize("value", ["euler", "", 3, ["lcm"], {}, "LCM", "x" * 10_000])
def test_bad_names(value):
    refused("E_SAMPLER", sampler=value)
    refused("E_TASK", task=value)


@pytest.mark.parametrize("value", ["sound", 5, 2**64, {"depth": 1}, True, ["depth", None], [["depth"]]])
def test_bad_names_of_more_maps(value):
    refused("E_ALSO", also=value)


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("", "E_PROMPT_EMPTY"),
        (" \t\n\x00\x1b\u200b\u202e\u200d", "E_PROMPT_EMPTY"),
        ("x" * 513, "E_PROMPT_LONG"),
        ("x" * 10_000_000, "E_PROMPT_LONG"),
        ("a\ud800b", "E_PROMPT_TEXT"),
        (None, "E_PROMPT_TEXT"),
        (7, "E_PROMPT_TEXT"),
        (["a ball"], "E_PROMPT_TEXT"),
        (b"a ball", "E_PROMPT_TEXT"),
    ],
)
def test_bad_prompts(prompt, code):
    refused(code, prompt=prompt)


@pytest.mark.parametrize(
    ("prompt", "clean"),
    [
        ("  a\tred \n ball\x00\x1b ", "a red ball"),
        ("e\u0301te\u0301", "\u00e9t\u00e9"),
        ("x" * 512, "x" * 512),
        ("e\u0301" * 512, "\u00e9" * 512),
        ("\u202ea ball\u2066", "a ball"),
        ("una niña, 日本 🎈", "una niña, 日本 🎈"),
        ("%s {given} <b>", "%s {given} <b>"),
    ],
)
def test_prompts_are_cleaned(prompt, clean):
    assert Request(prompt).prompt == clean


def test_integral_floats_become_ints():
    request = Request(PROMPT, steps=4.0, seed=np.int64(7), frames=np.float32(16), height=256.0, width=128.0, guidance=2)
    assert [type(v) for v in (request.steps, request.seed, request.frames, request.height, request.width)] == [int] * 5
    assert (request.steps, request.seed, request.frames, request.height, request.width, request.guidance) == (4, 7, 16, 256, 128, 2.0)


def test_defaults():
    assert (Request(PROMPT).steps, Request(PROMPT, sampler="ddim").steps) == (4, 50)
    assert Request(PROMPT, sampler="ddim", steps=100).steps == 100


def test_a_request_is_its_settings():
    request = Request(PROMPT, steps=2, seed=9, guidance=1.5)
    assert Request(**json.loads(json.dumps(request.settings()))) == request


def test_size_of():
    assert size_of("448x256") == (448, 256)
    for bad in ("256", "256x", "x", "256x256x3", "-1x3", "99999x3", " 256x256", None, 256):
        with pytest.raises(AppError, match="E_SIZE"):
            size_of(bad)


def test_the_known_answer(model):
    result = result_of(model)
    want = np.full((8, 128, 160), round((1 - 0.8) * 127.5), np.uint8)
    for f in range(8):
        want[f, 4 * CELL : 8 * CELL, f * CELL : (f + 4) * CELL] = round(1.8 * 127.5)
    assert result.frames.dtype == np.uint8
    for channel in range(3):
        assert np.abs(result.frames[..., channel].astype(int) - want).max() <= 1
    assert result.sha256 == sha256_of(result.frames)


def test_what_is_reported(model):
    events = list(generate(model, Request(PROMPT, steps=3, **SMALL)))
    assert [(e.stage, e.i, e.n) for e in events[:-1]] == [
        ("text", 0, 1),
        ("text", 1, 1),
        ("denoise", 1, 3),
        ("denoise", 2, 3),
        ("denoise", 3, 3),
        ("decode", 0, 1),
        ("decode", 1, 1),
    ]
    assert isinstance(events[-1], Result) and all(isinstance(e, Progress) for e in events[:-1])
    previews = [e.preview for e in events[:-1] if e.preview is not None]
    assert [(p.shape, p.dtype) for p in previews] == [((8, 16, 20, 3), np.uint8)] * 3


@pytest.mark.parametrize("steps", range(1, 9))
def test_lcm_takes_as_many_evaluations_as_steps(model, steps):
    assert result_of(model, steps=steps).nfe == steps
    assert len(model.calls) == steps and model.calls[0] == (1, 999)


def test_guidance_costs_twice(model, teacher):
    assert result_of(teacher, sampler="ddim").nfe == 100
    assert result_of(teacher, sampler="ddim", steps=5, guidance=0).nfe == 5
    assert result_of(teacher, steps=2).nfe == 4
    assert result_of(model, sampler="ddim", steps=5).nfe == 5
    assert result_of(model, steps=3, guidance=1.0).nfe == 6


def test_guidance_is_the_models_own_or_the_given(model, teacher):
    assert result_of(teacher, steps=1).settings["guidance"] == 2.5
    assert result_of(model, steps=1).settings["guidance"] == 0
    assert result_of(teacher, steps=1, guidance=4).settings["guidance"] == 4
    assert result_of(teacher, steps=1, guidance=0).settings["guidance"] == 0


def test_settings_reproduce(model):
    model.denoise = lambda x_t, t, cond: 0.5 * x_t + 0.001 * cond.context[:, :, :, None, None]
    first = result_of(model, seed=5, steps=2)
    asked = {name: first.settings[name] for name in Request(PROMPT).settings()}
    *_, second = generate(model, Request(**asked))
    assert second.sha256 == first.sha256 and second.settings == first.settings
    assert result_of(model, seed=6, steps=2).sha256 != first.sha256
    assert result_of(model, seed=5, steps=2, prompt="a cube").sha256 != first.sha256
    assert json.loads(json.dumps(first.settings)) == first.settings
    made_by = {"model": "fake", "role": "student", "model_sha256": "f" * 64, "dtype": "float32", "fps": 8}
    assert first.settings == {**first.settings, **made_by}


def test_seconds(teacher, tmp_path):
    teacher.delay = 0.01
    result = result_of(teacher, steps=3)
    assert set(result.seconds) == {"text", "conditions", "denoise", "decode", "write", "total"}
    assert result.seconds["denoise"] >= 0.03 and result.seconds["write"] == result.seconds["conditions"] == 0
    saved = save(result, tmp_path / "a.mp4")
    assert saved.seconds["write"] > 0
    assert saved.seconds["total"] == pytest.approx(sum(s for stage, s in saved.seconds.items() if stage != "total"))
    assert read_settings(tmp_path / "a.mp4") == result.settings


def test_the_consumers_time_is_not_counted(model, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(clock))
    events = []
    for event in generate(model, Request(PROMPT, steps=2, **SMALL)):
        events.append(event)
        next(clock)
    assert events[-1].seconds == {"text": 1, "conditions": 0, "denoise": 3, "decode": 1, "write": 0, "total": 5}


def test_looking_at_a_video_is_told_and_stopped_on_its_way(model, monkeypatch):
    looked = []

    def slow(frames, device, dtype):
        looked.append(len(frames))
        return conditions.as_is(frames)

    monkeypatch.setattr(conditions, "MAPS", conditions.Maps())
    for name in ("canny", "builtin-depth"):
        monkeypatch.setitem(conditions.EXTRACTORS, name, conditions.EXTRACTORS[name]._replace(function=slow))
    video = np.random.default_rng(0).integers(0, 256, (8, 128, 160, 3), np.uint8)
    request = Request(PROMPT, task="sketch", extractor="canny", video=video, steps=1, **SMALL)
    events = generate(model, request)
    while next(events) != Progress("conditions", 4, 8):
        pass
    events.close()
    assert looked == [4] and not model.calls
    told = [(event.i, event.n) for event in generate(model, request) if isinstance(event, Progress) and event.stage == "conditions"]
    assert told == [(0, 1), (4, 8), (8, 8), (1, 1)]
    both = [event for event in generate(model, replace(request, also=("depth",))) if isinstance(event, Progress) and event.stage == "conditions"]
    assert all(event.n == 16 for event in both[1:-1]) and both[-2].i == 16  # of both maps


def test_closing_stops_within_a_step(model):
    events = generate(model, Request(PROMPT, steps=8, **SMALL))
    for event in events:
        if event.stage == "denoise":
            break
    events.close()
    assert len(model.calls) == 1


def test_gradients_are_as_before_between_steps(model):
    inside = []
    model.denoise = lambda x_t, t, cond: inside.append(torch.is_grad_enabled()) or torch.zeros_like(x_t)
    for _ in generate(model, Request(PROMPT, steps=2, **SMALL)):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert inside == [False, False]


def test_each_step_may_run_in_another_thread(model):
    events, got = generate(model, Request(PROMPT, steps=2, **SMALL)), []
    for _ in range(7):
        thread = threading.Thread(target=lambda: got.append(next(events)))
        thread.start()
        thread.join()
    assert isinstance(got[-1], Result)


@pytest.mark.parametrize("where", ["denoise", "decode"])
def test_nonfinite(model, where):
    def broken(*args):
        return torch.full((1, 3, 8, 128, 160), math.nan)

    setattr(model, where, broken if where == "decode" else lambda x_t, t, cond: x_t * math.inf)
    with pytest.raises(AppError, match="E_NONFINITE"):
        result_of(model)


def test_weights_that_are_no_numbers_make_no_clip():
    model = tiny.toybox("student", torch.float32)
    model.denoiser.leave.bias.data[0] = math.inf
    with pytest.raises(AppError, match="E_NONFINITE"):
        list(generate(model, Request("a red ball", steps=1, frames=8, height=128, width=128)))


def test_to_frames_rounds_and_clamps():
    levels = torch.arange(256.0)
    pixels = (levels / 127.5 - 1).reshape(1, 1, 1, 16, 16).expand(1, 3, 1, 16, 16)
    assert (to_frames(pixels)[0, :, :, 0].ravel() == levels.numpy()).all()
    assert (to_frames(pixels.bfloat16() * 5).max(), to_frames(pixels * 5).min()) == (255, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_frames_has_every_value_in_its_place_and_refuses_one_that_is_none(dtype):
    pixels = torch.randn((1, 3, 5, 8, 6), generator=torch.Generator().manual_seed(0)).to(dtype)
    levels = ((pixels[0].float().clamp(-1, 1) + 1) * 127.5).round()
    assert np.array_equal(to_frames(pixels), levels.permute(1, 2, 3, 0).numpy())
    pixels[0, 2, 4, 7, 5] = torch.nan
    with pytest.raises(AppError, match="E_NONFINITE"):
        to_frames(pixels)


@pytest.mark.parametrize("task", ["depth", "sketch", "inpaint"])
def test_a_task_that_the_model_lacks_and_one_without_a_video(model, task):
    video, hole = np.zeros((8, 128, 160, 3), np.uint8), np.ones((8, 128, 160), np.float32)
    with pytest.raises(AppError, match="E_TASK_MODEL"):
        result_of(FakeModel(tasks=("text",)), task=task, video=video, hole=hole)
    with pytest.raises(AppError, match="E_TASK_INPUT"):
        result_of(model, task=task)


def test_unknown_words(model):
    assert unknown_words(model, "A red DRAGON's castle, the dragon!") == ["dragon", "castle"]
    assert unknown_words(model, PROMPT) == []
    assert unknown_words(FakeModel(words=None), "dragon") == []


def test_notices(model):
    assert result_of(model).notices == ()
    (notice,) = result_of(model, prompt="a red dragon and a castle").notices
    assert "does not know: dragon, and, castle." in notice
    (notice,) = result_of(model, prompt=" ".join(f"word{i}" for i in range(60))).notices
    assert "and 52 more" in notice and len(notice) < 300


def test_moving_square_moves():
    assert not torch.equal(moving_square((3, 8, 16, 20))[:, 0], moving_square((3, 8, 16, 20))[:, 1])
