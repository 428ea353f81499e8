"""Evaluation: the held-out prompts, clips that equal `generate`'s, and the figures of a row."""

import json
import math

import numpy as np
import pytest
import torch
from tiny import toybox

from videolcm import evaluate
from videolcm.data import TRAIN_SEEDS
from videolcm.errors import AppError
from videolcm.evaluate import clips, held_out, made_clips, plot_of, read_prompts, seen, summary, table
from videolcm.judge import Judge
from videolcm.pipeline import Request, generate
from videolcm.world import plot, sample

PROMPTS = ["a red ball rolls on snow", "a blue cube", "grass"]


def test_the_shipped_prompts_are_the_held_out_ones():
    rows = read_prompts()
    assert len(rows) == 200 and rows == [{**row, "said": list(row["said"])} for row in held_out(200)]
    assert max(row["seed"] for row in rows) < min(TRAIN_SEEDS.values())
    assert rows[7]["prompt"] == plot(7).caption and len({row["prompt"] for row in rows}) > 195
    assert read_prompts(count=3) == rows[:3]


def test_a_file_of_ones_own_is_read(tmp_path):
    path = tmp_path / "mine.jsonl"
    row = {"prompt": "a red ball", "seed": 4, "said": [{"shape": "sphere"}, {}]}
    path.write_text(json.dumps(row) + "\n\n" + json.dumps({**row, "seed": "5", "more": 1}) + "\n")
    assert read_prompts(path) == [row, {**row, "seed": 5}]


@pytest.mark.parametrize("content", [b"not json", b'{"prompt": "a"}', b"[1, 2]", b"\xff\xfe", b'{"prompt": "a", "seed": "x", "said": []}', None])
def test_a_bad_file_is_refused(tmp_path, content):
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AppError) as error:
        read_prompts(path)
    assert error.value.code == "E_INPUT"


@pytest.mark.parametrize("sampler, guidance", [("lcm", 0.0), ("ddim", 2.0)])
def test_clips_are_those_that_generate_makes(sampler, guidance):
    model = toybox()
    made = clips(model, PROMPTS, (3, 4, 5), 2, sampler, guidance, frames=9, size=(128, 160))
    assert made.shape == (3, 9, 128, 160, 3) and made.dtype == np.uint8
    for i, prompt in enumerate(PROMPTS):
        request = Request(prompt, steps=2, seed=3 + i, frames=9, height=128, width=160, sampler=sampler, guidance=guidance)
        *_, result = generate(model, request)
        apart = [np.abs(frames.astype(int) - result.frames).max() for frames in made]
        assert apart[i] <= 1 and all(value > 3 for j, value in enumerate(apart) if j != i)


def test_rows_are_made_in_batches(monkeypatch):
    asked = []

    def fake_clips(model, prompts, seeds, steps, sampler, guidance):
        asked.append((len(prompts), steps, sampler, guidance))
        return np.array([len(prompt) for prompt in prompts])

    monkeypatch.setattr(evaluate, "clips", fake_clips)
    rows = [{"prompt": "a" * i, "seed": i, "said": ()} for i in range(1, 12)]
    assert list(made_clips(None, rows, 4, "lcm")) == list(range(1, 12))
    assert asked == [(8, 4, "lcm", 0.0), (3, 4, "lcm", 0.0)]


def kept(mean, motion=1.0, features=(0.0, 0.0), **shares):
    return {"match": {**shares, "mean": float(mean)}, "motion": motion, "features": np.array(features)}


def figures_of(found, reference=None):
    return summary(found, found, reference or found)


def test_what_is_kept_of_a_clip_needs_the_judge(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(evaluate, "judge", Judge().eval)
    told = plot(3)
    row = seen(sample(3).render().frames, told.said)
    assert set(row["match"]) >= {"shape", "mean"} and row["motion"] > 0 and row["features"].shape == (128,)


def test_the_error_is_that_of_a_mean():
    means = np.random.default_rng(5).beta(8, 2, 150)
    figures = figures_of([kept(mean) for mean in means])
    assert figures["mean"] == pytest.approx(means.mean())
    assert figures["error"] == pytest.approx(means.std() / math.sqrt(150), rel=0.08)
    assert figures_of([kept(0.5)] * 20)["error"] == 0


def test_an_attribute_is_averaged_over_the_clips_that_name_it():
    figures = figures_of([kept(0.5, shape=1.0, sky=0.0), kept(0.0, shape=0.0), kept(0.5, shape=0.5, sky=0.5)])
    assert figures["shape"] == 0.5 and figures["sky"] == 0.25 and "floor" not in figures


def test_motion_is_counted_beside_the_reference():
    figures = figures_of([kept(1, 0.5), kept(1, 2.0), kept(1, 0.1)], [kept(1, 1.0), kept(1, 1.0), kept(1, 0.0)])
    assert figures["lost"] == 1 and figures["motion_ratio"] == pytest.approx(2.6 / 2)


def test_equal_features_have_no_distance_and_a_shift_has_its_square():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 2))
    one, other = ([kept(1, features=row) for row in rows] for rows in (features, features + (3, 4)))
    assert summary(one, one, one)["frechet"] == pytest.approx(0, abs=1e-6)
    assert summary(other, one, one)["frechet"] == pytest.approx(25)


def test_all_rows_are_made_and_share_the_teachers_motion(monkeypatch):
    rows = [{"prompt": text, "seed": i, "said": plot(i).said} for i, text in enumerate(PROMPTS)]
    monkeypatch.setattr(evaluate, "rendered_clips", lambda rows: iter([2] * len(rows)))
    monkeypatch.setattr(evaluate, "clips", lambda model, prompts, seeds, steps, sampler, guidance=0.0: [steps] * len(prompts))
    monkeypatch.setattr(evaluate, "seen", lambda frames, said: kept(frames / 100, float(frames)))
    found = {name: figures for name, figures in evaluate.evaluate(toybox(), toybox("teacher"), rows, (1, 4), (50, 8)) if figures}
    assert [*found] == [
        "rendered clips",
        "teacher, DDIM 50",
        "teacher, DDIM 8",
        "teacher undistilled, LCM 1",
        "teacher undistilled, LCM 4",
        "student, LCM 1",
        "student, LCM 4",
    ]
    assert found["student, LCM 4"]["mean"] == pytest.approx(0.04) and found["student, LCM 4"]["motion_ratio"] == pytest.approx(4 / 50)
    assert found["teacher, DDIM 50"]["motion_ratio"] == 1 and found["teacher, DDIM 8"]["lost"] == 3


def test_a_table_has_a_line_for_each_row_and_a_column_for_each_attribute():
    more = {"motion_ratio": 1.0, "lost": 0, "frechet": 0.5}
    rows = {"rendered": {"shape": 1.0, "sky": 0.987, "mean": 0.99, "error": 0.004, **more}}
    rows["student"] = {"shape": 0.5, "mean": 0.5, "error": 0.0321, "motion_ratio": 0.93, "lost": 2, "frechet": None}
    assert table(rows).splitlines() == [
        "| clips | shape | sky | mean | motion kept | lost | Frechet |",
        "|---|---|---|---|---|---|---|",
        "| rendered | 1.00 | 0.99 | 0.990 ± 0.004 | 1.00 | 0 | 0.50 |",
        "| student | 0.50 |  | 0.500 ± 0.032 | 0.93 | 2 |  |",
    ]


def test_the_plot_has_a_series_for_each_sampler_and_flat_lines_for_what_takes_long():
    names = ["rendered clips", "teacher, DDIM 50", "teacher, DDIM 8", "student, LCM 1", "student, LCM 4"]
    svg = plot_of({name: {"mean": 0.5 + 0.1 * i} for i, name in enumerate(names)})
    assert svg.startswith("<svg xmlns=") and svg.count("<polyline") == 4 and all(name in svg for name in names[:2])
    assert svg.count("<circle") == 4 + 2 + 2 + 1 + 2  # a head for each series and a dot for each point
