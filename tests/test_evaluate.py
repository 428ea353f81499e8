"""Evaluation: clips that equal `generate`'s, and the figures of a row."""

import json
import math
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import data_folder, teacher_folder, toybox

from videolcm import __main__ as command_line
from videolcm import evaluate
from videolcm.errors import AppError
from videolcm.evaluate import (
    clips,
    gain,
    gains_table,
    made_clips,
    nearness,
    over_teacher_table,
    plot_of,
    seen,
    summary,
    table,
    toys_tables,
    worst,
)
from videolcm.judge import Judge
from videolcm.metrics import IDENTICAL
from videolcm.pipeline import Request, generate
from videolcm.video import read_settings
from videolcm.world import plot, sample

PROMPTS = ["a red ball rolls on snow", "a blue cube", "grass"]


@pytest.mark.parametrize("sampler, guidance, between", [("lcm", 0.0, (0, 1000)), ("ddim", 2.0, (0, 1000)), ("ddim", 2.0, (600, 1000))])
def test_clips_are_those_that_generate_makes(sampler, guidance, between):
    model = toybox()
    everywhere = clips(model, PROMPTS, (3, 4, 5), 2, sampler, guidance, frames=9, size=(128, 160))
    model.info = replace(model.info, guided=between)
    made = clips(model, PROMPTS, (3, 4, 5), 2, sampler, guidance, frames=9, size=(128, 160))
    assert made.shape == (3, 9, 128, 160, 3) and made.dtype == np.uint8
    for i, prompt in enumerate(PROMPTS):
        request = Request(prompt, steps=2, seed=3 + i, frames=9, height=128, width=160, sampler=sampler, guidance=guidance)
        *_, result = generate(model, request)
        apart = [np.abs(frames.astype(int) - result.frames).max() for frames in made]
        assert apart[i] <= 1 and all(value > 3 for j, value in enumerate(apart) if j != i)
    assert np.array_equal(made, everywhere) == (between == (0, 1000))


def test_rows_are_made_in_batches(monkeypatch):
    asked = []

    def fake_clips(model, prompts, seeds, steps, sampler, guidance):
        asked.append((len(prompts), steps, sampler, guidance))
        return np.array([len(prompt) for prompt in prompts])

    monkeypatch.setattr(evaluate, "clips", fake_clips)
    rows = [{"prompt": "a" * i, "seed": i, "said": ()} for i in range(1, 12)]
    assert list(made_clips(None, rows, 4, "lcm")) == list(range(1, 12))
    assert asked == [(8, 4, "lcm", 0.0), (3, 4, "lcm", 0.0)]


NUMBERS = iter(range(10**6))


def kept(mean, motion=1.0, features=(0.0, 0.0), toys=1, **shares):
    """What is known of a clip; the prompts of any two are different ones unless somebody says otherwise."""
    found = {"toys": toys, "motion": motion, "flicker": 1.5, "features": np.array(features), "number": next(NUMBERS)}
    return {"match": {**shares, "mean": float(mean)}, **found}


def figures_of(found, reference=None):
    return summary(found, found, reference or found)


def test_what_is_kept_of_a_clip_needs_the_judge(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(evaluate, "judge", Judge().eval)
    told = plot(3)
    row = seen(sample(3).render().frames, told.said)
    assert set(row["match"]) >= {"shape", "mean"} and row["toys"] == len(told.toys)
    assert row["motion"] > 0 and row["flicker"] > 0 and row["features"].shape == (128,)


def test_nearness_is_that_of_equal_clips_and_less_of_others(monkeypatch):
    torch.manual_seed(0)
    net = Judge().eval()
    monkeypatch.setattr(evaluate, "judge", lambda: net)
    frames, other = (sample(seed).render().frames for seed in (3, 4))
    assert nearness(frames, frames) == {"distance": 0.0, "psnr": IDENTICAL}
    apart = nearness(frames, other)
    assert 0 < apart["distance"] < 4 and apart["psnr"] < 40


def test_the_error_is_that_of_a_mean():
    means = np.random.default_rng(5).beta(8, 2, 150)
    figures = figures_of([kept(mean) for mean in means])
    assert figures["mean"] == pytest.approx(means.mean())
    assert figures["error"] == pytest.approx(means.std() / math.sqrt(150), rel=0.08)
    assert figures_of([kept(0.5) for _ in range(20)])["error"] == 0


def test_the_error_counts_prompts_and_not_their_clips():
    """Four clips of each prompt that are all alike tell no more than one of each."""
    once = [kept(mean) for mean in np.random.default_rng(5).beta(8, 2, 150)]
    assert figures_of(once * 4)["error"] == figures_of(once)["error"] > 0
    assert gain(once * 4, [kept(0.5) for _ in once] * 4)["gain_error"] == figures_of(once)["error"]


def test_an_attribute_is_averaged_over_the_clips_that_name_it():
    figures = figures_of([kept(0.5, shape=1.0, sky=0.0), kept(0.0, shape=0.0), kept(0.5, shape=0.5, sky=0.5)])
    assert figures["shape"] == 0.5 and figures["sky"] == 0.25 and "floor" not in figures


def test_one_toy_and_two_are_counted_apart():
    figures = figures_of([kept(1.0, shape=1.0), kept(0.5, toys=2, shape=0.5, sky=0.5), kept(0.5, shape=0.0)])
    assert figures["mean"] == pytest.approx(2 / 3) and figures["each"] == [1.0, 0.5, 0.5]
    assert figures["toys"]["one toy"] == {"shape": 0.5, "mean": 0.75, "error": pytest.approx(0.177, abs=0.01), "count": 2}
    assert figures["toys"]["two toys"] == {"shape": 0.5, "sky": 0.5, "mean": 0.5, "error": 0, "count": 1}
    assert [*figures_of([kept(1.0)])["toys"]] == ["one toy"]
    one, two = toys_tables({"one": figures, "two": figures})
    assert one.splitlines()[:3] == [
        "| 2 clips with one toy | shape | mean |",
        "|---|---|---|",
        f"| one | 0.50 | 0.750 ± {figures['toys']['one toy']['error']:.3f} |",
    ]
    assert two.splitlines()[:3] == [
        "| 1 clips with two toys | shape | sky | mean |",
        "|---|---|---|---|",
        "| one | 0.50 | 0.50 | 0.500 ± 0.000 |",
    ]


def test_the_worst_clips_are_made_again_as_they_were(monkeypatch):
    asked = []

    def fake_clips(model, prompts, seeds, steps, sampler, guidance, **knobs):
        asked.append((list(seeds), steps, sampler))
        return list(seeds)

    monkeypatch.setattr(evaluate, "clips", fake_clips)
    rows = [{"prompt": str(i), "seed": i} for i in range(5)]
    each = [1.0, 0.5, 0.9, 0.1, 0.5]
    assert worst(toybox(), rows, each, 4) == [(rows[3], 3), (rows[1], 1), (rows[4], 4)] and asked == [([3, 1, 4], 4, "lcm")]
    assert worst(toybox(), rows, each, 2, "tcd", gamma=0.5, count=1) == [(rows[3], 3)] and asked[1:] == [([3], 2, "tcd")]


def test_motion_is_counted_beside_the_reference():
    figures = figures_of([kept(1, 0.5), kept(1, 2.0), kept(1, 0.1)], [kept(1, 1.0), kept(1, 1.0), kept(1, 0.0)])
    assert figures["lost"] == 1 and figures["motion_ratio"] == pytest.approx(2.6 / 2)


def test_equal_features_have_no_distance_and_a_shift_has_its_square():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 2))
    one, other = ([kept(1, features=row) for row in rows] for rows in (features, features + (3, 4)))
    assert summary(one, one, one)["frechet"] == pytest.approx(0, abs=1e-6)
    assert summary(other, one, one)["frechet"] == pytest.approx(25)


@pytest.fixture
def invented(monkeypatch):
    """Clips that are numbers: a fifth of the number of steps for the teacher, all of it for students; each says what it is and moves so much."""

    def invented_clips(model, prompts, seeds, steps, sampler, guidance=0.0, gamma=None):
        asked.append((model.info.role, steps, sampler, gamma))
        return [steps / (5 if model.info.role == "teacher" else 1)] * len(prompts)

    asked = []
    monkeypatch.setattr(evaluate, "rendered_clips", lambda rows: iter([2] * len(rows)))
    monkeypatch.setattr(evaluate, "clips", invented_clips)
    monkeypatch.setattr(evaluate, "seen", lambda frames, said: kept(frames / 100, float(frames)))
    monkeypatch.setattr(evaluate, "nearness", lambda frames, goal: {"distance": abs(frames - goal), "psnr": 30.0})
    return asked


ROWS = [{"prompt": text, "seed": i, "number": i, "said": plot(i).said} for i, text in enumerate(PROMPTS)]


def test_all_rows_are_made_and_share_the_teachers_motion(invented):
    events = evaluate.evaluate({"student": toybox()}, toybox("teacher"), ROWS, (1, 4), (50, 8))
    found = {name: figures for name, figures in events if figures}
    assert [*found] == [
        "rendered clips",
        "teacher, DDIM 50",
        "teacher, DDIM 8",
        "teacher undistilled, LCM 1",
        "teacher undistilled, LCM 4",
        "student, LCM 1",
        "student, LCM 4",
    ]
    assert found["student, LCM 4"]["mean"] == pytest.approx(0.04) and found["student, LCM 4"]["motion_ratio"] == pytest.approx(4 / 10)
    assert found["teacher, DDIM 50"]["motion_ratio"] == 1 and found["teacher, DDIM 8"]["lost"] == 3
    assert [row["distance"] for row in found.values()] == pytest.approx([None, None, 8.4, 9.8, 9.2, 9, 6], nan_ok=True)
    assert {row["flicker"] for row in found.values()} == {1.5} and {row["count"] for row in found.values()} == {len(ROWS)}
    assert [name for name, row in found.items() if "gain" in row] == ["student, LCM 1", "student, LCM 4"]
    assert over_teacher_table(found).splitlines()[:1] + over_teacher_table(found).splitlines()[-1:] == [
        "| over teacher, DDIM 50 | text match | motion | lost | Frechet |",
        "| student, LCM 4 | 0.400 | 0.40 | 3 of 3 |  |",
    ]
    assert found["student, LCM 4"]["gain"] == pytest.approx(0.04 - 0.008) and found["student, LCM 1"]["gain"] == pytest.approx(0.008)


def test_several_students_each_by_its_own_sampler_or_all_by_one(invented):
    students = {"runs/plain": toybox(), "runs/two": toybox()}
    students["runs/two"].info = replace(students["runs/two"].info, two_time=True)
    found = {name: figures for name, figures in evaluate.evaluate(students, toybox("teacher"), ROWS, (1, 2), ()) if figures}
    assert {row["psnr"] for row in found.values()} == {None} and over_teacher_table(found) == ""
    assert [*found][3:] == ["runs/plain, LCM 1", "runs/plain, LCM 2", "runs/two, TCD 1", "runs/two, TCD 2"]
    assert {row[2:] for row in invented if row[0] == "student"} == {("lcm", None), ("tcd", 0.0)}
    lines = gains_table(found).splitlines()
    assert lines[0] == "| text match (gain) | 1 step | 2 steps |" and lines[2] == "| teacher undistilled, LCM | 0.002 | 0.004 |"
    assert lines[3] == "| runs/plain, LCM | 0.010 (+0.008 ± 0.000) | 0.020 (+0.016 ± 0.000) |" and lines[4].startswith("| runs/two, TCD | 0.010 (")
    invented.clear()
    list(evaluate.evaluate(students, toybox("teacher"), ROWS, (1,), (), "tcd", gamma=0.5))
    assert {row[2:] for row in invented if row[0] == "student"} == {("tcd", 0.5)}


def test_the_teacher_with_fresh_noise_is_a_row_beside_the_reference(invented):
    events = evaluate.evaluate({"student": toybox()}, toybox("teacher"), ROWS, (), (50, 8), ddpm_steps=(20,))
    found = {name: figures for name, figures in events if figures}
    assert [*found] == ["rendered clips", "teacher, DDIM 50", "teacher, DDIM 8", "teacher, DDPM 20"]
    assert [row[:3] for row in invented] == [("teacher", 50, "ddim"), ("teacher", 8, "ddim"), ("teacher", 20, "ddpm")]
    assert found["teacher, DDPM 20"]["motion_ratio"] == pytest.approx(4 / 10)


def measured(keep, rows=ROWS, students=("student",), steps=(1, 4)):
    """{name: figures} as they are kept in a file, and how many lines of progress there were."""
    events = [*evaluate.evaluate({name: toybox() for name in students}, toybox("teacher"), rows, steps, (50,), keep=keep)]
    return {name: figures for name, figures in events if figures}, sum(figures is None for _, figures in events)


def test_what_is_kept_of_an_evaluation_goes_on_with_more_clips(invented, tmp_path):
    keep = tmp_path / "kept.jsonl"
    whole, clips_made = measured(tmp_path / "whole.jsonl")
    assert clips_made == 6 * len(ROWS) and measured(None) == (whole, clips_made)
    _, few = measured(keep, ROWS[:1])
    found, more = measured(keep)
    assert (found, few, more) == (whole, 6, 6 * (len(ROWS) - 1))
    invented.clear()
    assert measured(keep) == (whole, 0) and not invented
    other = [{**ROWS[0], "said": ({}, {})}, {**ROWS[1], "seed": 77}, {**ROWS[2], "number": 8}]
    assert measured(keep, other)[1] == 6 * 2  # the number of a prompt in its file says nothing of the clip


def test_half_a_line_is_made_again_and_an_evaluation_of_other_rows_is_refused(invented, tmp_path, monkeypatch):
    keep = tmp_path / "kept.jsonl"
    monkeypatch.setattr(evaluate, "BATCH", 1)
    whole, _ = measured(keep)
    for left, made in ((40, 6), (2, 6), (1, 0)):  # of the last one only the end of the line is missing
        keep.write_text(keep.read_text()[:-left])
        assert measured(keep) == (whole, made) and measured(keep) == (whole, 0)
    for more in ({"steps": (1,)}, {"students": ("other",)}):
        with pytest.raises(AppError) as error:
            measured(keep, **more)
        assert error.value.code == "E_MEASURED"
    retrained = toybox()
    retrained.info = replace(retrained.info, sha256="1" * 64)
    with pytest.raises(AppError, match="E_MEASURED|other networks"):
        list(evaluate.evaluate({"student": retrained}, toybox("teacher"), ROWS, (1, 4), (50,), keep=keep))


def test_what_was_gained_is_a_difference_clip_by_clip():
    """What prompts differ in is common to before and after: it is no part of the gain's error."""
    rng = np.random.default_rng(1)
    before, more = rng.beta(2, 2, 150), rng.normal(0.1, 0.01, 150)
    found = gain([kept(a + b) for a, b in zip(before, more, strict=True)], [kept(mean) for mean in before])
    assert found["gain"] == pytest.approx(more.mean())
    assert found["gain_error"] == pytest.approx(more.std() / math.sqrt(150), rel=0.1) and found["gain_error"] < before.std() / math.sqrt(150) / 5


def test_the_command_tells_students_of_run_folders_in_one_table(invented, tmp_path, monkeypatch, capsys):
    """From two runs on disk to the table: a plain student and one that is told w and where to go."""
    base, data = str(teacher_folder(tmp_path / "base")), str(data_folder(tmp_path / "data"))
    plain, told = (str(tmp_path / name) for name in ("plain", "told"))
    few = ["distill", "--teacher", base, "--data", data, "--iterations", "1", "--batch", "2", "--device", "cpu"]
    assert command_line.main([*few, "--out", plain]) == 0
    assert command_line.main([*few, "--out", told, "--two-time", "--guidance-range", "0,3"]) == 0
    capsys.readouterr()
    asked = ["evaluate", "--model", base, "--student", f"{plain},{told}", "--count", "3", "--steps", "1,2", "--teacher-steps", ""]
    assert command_line.main(asked) == 0
    out = capsys.readouterr()
    rows = json.loads(out.out.splitlines()[-1])["rows"]
    assert [*rows][-4:] == [f"{plain}, LCM 1", f"{plain}, LCM 2", f"{told}, TCD 1", f"{told}, TCD 2"]
    assert "| text match (gain) | 1 step | 2 steps |" in out.err and "clips with one toy" in out.err
    assert rows[f"{told}, TCD 2"]["gain"] == pytest.approx(0.016)
    asked_of = []

    def fake_worst(model, goals, each, steps):
        asked_of.append((model.info.two_time, each, steps))
        return [(goals[1], np.zeros((16, 64, 64, 3), np.uint8))]

    monkeypatch.setattr(evaluate, "worst", fake_worst)
    assert command_line.main([*asked, "--worst", str(tmp_path / "worst.png")]) == 0
    assert asked_of == [(True, [0.02] * 3, 2)] and read_settings(tmp_path / "worst.png") == {"student": told, "steps": 2}
    capsys.readouterr()
    assert command_line.main(["evaluate", "--model", base, "--student", f"{plain},{tmp_path / 'none'}"]) == 2
    assert capsys.readouterr().err.startswith("[E_MODEL]")


def test_a_table_has_a_line_for_each_row_and_a_column_for_each_attribute():
    more = {"motion_ratio": 1.0, "lost": 0, "frechet": 0.5, "flicker": 1.234, "distance": None, "psnr": None, "count": 7}
    rows = {"rendered": {"shape": 1.0, "sky": 0.987, "mean": 0.99, "error": 0.004, **more}}
    rows["student"] = {"shape": 0.5, "mean": 0.5, "error": 0.0321, "motion_ratio": 0.93, "lost": 2, "frechet": None}
    rows["student"] |= {"flicker": 2.0, "distance": 0.1236, "psnr": 21.37, "count": 7}
    assert table(rows).splitlines() == [
        "| 7 clips each | shape | sky | mean | motion kept | lost | Frechet | flicker | distance | PSNR |",
        "|---|---|---|---|---|---|---|---|---|---|",
        "| rendered | 1.00 | 0.99 | 0.990 ± 0.004 | 1.00 | 0 | 0.50 | 1.23 |  |  |",
        "| student | 0.50 |  | 0.500 ± 0.032 | 0.93 | 2 |  | 2.00 | 0.124 | 21.4 |",
    ]


def test_the_plot_has_a_series_for_each_sampler_and_flat_lines_for_what_takes_long():
    names = ["rendered clips", "teacher, DDIM 50", "teacher, DDIM 8", "student, LCM 1", "student, LCM 4"]
    svg = plot_of({name: {"mean": 0.5 + 0.1 * i} for i, name in enumerate(names)})
    assert svg.startswith("<svg xmlns=") and svg.count("<polyline") == 4 and all(name in svg for name in names[:2])
    assert svg.count("<circle") == 4 + 2 + 2 + 1 + 2  # a head for each series and a dot for each point


def test_what_nobody_asked_for_is_the_models_own():
    two_time, plain = replace(toybox("student").info, two_time=True), toybox("student").info
    ways = [("tcd", {"gamma": 0.0}), ("tcd", {"gamma": 0.0}), ("tcd", {"gamma": 0.5}), ("lcm", {})]
    asked = [(None, {}), ("tcd", {}), ("tcd", {"gamma": 0.5}), ("lcm", {})]
    assert [evaluate.way_of(Namespace(info=two_time), *one) for one in asked] == ways
    assert [evaluate.way_of(Namespace(info=plain), *one) for one in asked] == [("lcm", {}), ("tcd", {}), ("tcd", {"gamma": 0.5}), ("lcm", {})]
