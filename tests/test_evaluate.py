"""Evaluation: the held-out prompts, clips that equal `generate`'s, and the figures of a row."""

import json
import math

import numpy as np
import pytest
from tiny import toybox

from videolcm import evaluate
from videolcm.data import TRAIN_SEEDS
from videolcm.errors import AppError
from videolcm.evaluate import clips, held_out, matches, read_prompts, summary, table
from videolcm.pipeline import Request, generate
from videolcm.world import plot

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


def test_matches_go_through_all_rows_in_batches(monkeypatch):
    asked = []

    def fake_clips(model, prompts, seeds, steps, sampler, guidance):
        asked.append((len(prompts), steps, sampler, guidance))
        return np.array([len(prompt) for prompt in prompts])

    monkeypatch.setattr(evaluate, "judge", lambda: "judge")
    monkeypatch.setattr(evaluate, "clips", fake_clips)
    monkeypatch.setattr(evaluate, "text_match", lambda net, frames, said: {"mean": float(frames)})
    rows = [{"prompt": "a" * i, "seed": i, "said": ()} for i in range(1, 12)]
    reports = [(done, len(found)) for done, found in matches(None, rows, 4, "lcm")]
    assert reports == [(8, 8), (11, 11)] and asked == [(8, 4, "lcm", 0.0), (3, 4, "lcm", 0.0)]
    assert [row["mean"] for row in found_of(rows)] == list(range(1, 12))


def found_of(rows):
    *_, (_, found) = matches(None, rows, 4, "lcm")
    return found


def test_the_error_is_that_of_a_mean():
    means = np.random.default_rng(5).beta(8, 2, 150)
    figures = summary([{"shape": 1.0, "mean": float(mean)} for mean in means])
    assert figures["mean"] == pytest.approx(means.mean())
    assert figures["error"] == pytest.approx(means.std() / math.sqrt(150), rel=0.08)
    assert summary([{"mean": 0.5}] * 20) == {"mean": 0.5, "error": 0}


def test_an_attribute_is_averaged_over_the_clips_that_name_it():
    figures = summary([{"shape": 1.0, "sky": 0.0, "mean": 0.5}, {"shape": 0.0, "mean": 0.0}, {"shape": 0.5, "sky": 0.5, "mean": 0.5}])
    assert figures["shape"] == 0.5 and figures["sky"] == 0.25 and "floor" not in figures


def test_a_table_has_a_line_for_each_row_and_a_column_for_each_attribute():
    rows = {"rendered": {"shape": 1.0, "sky": 0.987, "mean": 0.99, "error": 0.004}, "student": {"shape": 0.5, "mean": 0.5, "error": 0.0321}}
    assert table(rows).splitlines() == [
        "| clips | shape | sky | mean |",
        "|---|---|---|---|",
        "| rendered | 1.00 | 0.99 | 0.990 ± 0.004 |",
        "| student | 0.50 |  | 0.500 ± 0.032 |",
    ]
