"""What an evaluation is asked: prompts, files of them, and words of the command; what it refuses before it begins."""

import json
from itertools import islice

import numpy as np
import pytest

from videolcm import __main__ as command_line
from videolcm.data import TRAIN_SEEDS
from videolcm.errors import AppError
from videolcm.evaluate import FURTHER, held_out, read_prompts, rendered_clips
from videolcm.measure_verbs import steps_of
from videolcm.world import plot


def test_the_shipped_prompts_are_the_held_out_ones():
    rows = read_prompts()
    assert len(rows) == 300 and rows == [{**row, "said": list(row["said"]), "number": row["seed"], "scene": row["seed"]} for row in held_out(300)]
    assert max(row["seed"] for row in rows) < min(TRAIN_SEEDS.values())
    assert rows[7]["prompt"] == plot(7).caption and len({row["prompt"] for row in rows}) > 290
    assert read_prompts(count=3) == rows[:3] and read_prompts(count=3, after=100) == rows[100:103] and read_prompts(after=298) == rows[298:]


def test_more_seeds_are_further_clips_of_the_same_prompts():
    rows = read_prompts(count=3, seeds=2)
    assert rows[:3] == read_prompts(count=3) and [{**row, "seed": row["scene"]} for row in rows[3:]] == rows[:3]
    assert [row["seed"] for row in rows] == [0, 1, 2, FURTHER, FURTHER + 1, FURTHER + 2]
    once, again = (list(islice(rendered_clips(some), 1))[0] for some in (rows, rows[3:]))
    assert np.array_equal(once, again)


def test_a_file_of_ones_own_is_read(tmp_path):
    path = tmp_path / "mine.jsonl"
    row = {"prompt": "a red ball", "seed": 4, "said": [{"shape": "sphere"}, {}]}
    path.write_text(json.dumps(row) + "\n\n" + json.dumps({**row, "seed": "5", "more": 1}) + "\n")
    assert read_prompts(path) == [{**row, "number": 0, "scene": 4}, {**row, "seed": 5, "number": 1, "scene": 5}]


@pytest.mark.parametrize(
    "said",
    [[{"shape": "sphere"}], [{}, {}], [{"floor": "snow"}], [{"shape": "pyramid"}, {}], [{}, {"shape": "sphere"}], [{"shape": "sphere"}] * 4, []],
)
def test_what_the_judge_cannot_look_for_is_refused(tmp_path, said):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": "a", "seed": 4, "said": said}))
    with pytest.raises(AppError, match="E_PROMPTS|E_INPUT"):
        read_prompts(path)


@pytest.mark.parametrize(
    "words",
    [
        "--count abc",
        "--count 0",
        "--count 2.5",
        "--after -1",
        "--guidance abc",
        "--guidance 99",
        "--guided 1000",
        "--guided 2.5,3",
        "--guided 5,5",
        "--guided 0,1001",
    ],
)
def test_bad_numbers_are_refused_before_anything_is_loaded(words, capsys):
    assert command_line.main(["evaluate", *words.split()]) == 2
    assert capsys.readouterr().err.startswith(("[E_NUMBER]", "[E_GUIDANCE]"))


@pytest.mark.parametrize(
    "words, code",
    [
        ("--seeds 0", "E_NUMBER"),
        ("--seeds 101", "E_NUMBER"),
        ("--after 300", "E_PROMPTS"),
        ("--after 5 --real --task depth", "E_ARGUMENTS"),
        ("--worst none/worst.png", "E_OUTPUT"),
        ("--plot none/plot.svg", "E_OUTPUT"),
        ("--worst same --plot same", "E_ARGUMENTS"),
        ("--worst worst.png --steps ", "E_ARGUMENTS"),
        ("--worst worst.png --task depth", "E_ARGUMENTS"),
        ("--seeds 2 --task depth", "E_ARGUMENTS"),
        ("--keep none/kept.jsonl", "E_OUTPUT"),
        ("--keep kept.jsonl --task depth", "E_ARGUMENTS"),
    ],
)
def test_what_cannot_be_written_or_done_is_said_before_anything_is_measured(words, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command_line.main(["evaluate", *words.split(" ")]) == 2
    assert capsys.readouterr().err.startswith(f"[{code}]") and not [*tmp_path.iterdir()]


def test_steps_that_are_asked_for_twice_are_measured_once():
    assert steps_of("4,1,4", 8) == (4, 1) and steps_of("", 8) == ()


@pytest.mark.parametrize("content", [b"not json", b'{"prompt": "a"}', b"[1, 2]", b"\xff\xfe", b'{"prompt": "a", "seed": "x", "said": []}', None])
def test_a_bad_file_is_refused(tmp_path, content):
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AppError) as error:
        read_prompts(path)
    assert error.value.code == "E_INPUT"
