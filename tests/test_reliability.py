"""The scorecard itself: its lines exist, it counts as it says, it sees what is wrong, and the README says what the report does."""

import importlib
import json
import random

import pytest
from reliability import requests, security, startup, training, uploads
from reliability.__main__ import README, REPORT, TABLE, main, measured, table
from reliability.lines import LINES, Line


def test_the_lines_are_eighteen_and_each_can_be_run():
    assert list(LINES) == [f"R{i}" for i in range(1, 19)]
    for line in LINES.values():
        assert callable(getattr(importlib.import_module(f"reliability.{line.module}"), line.id.lower())) and 0 < line.quick <= line.full


def test_the_readme_says_what_the_report_does():
    assert table(json.loads(REPORT.read_text())) in TABLE.search(README.read_text(encoding="utf-8"))[0]


@pytest.fixture
def line(monkeypatch):
    """Puts a function in the place of R17's."""

    def put(run, only=""):
        monkeypatch.setattr(security, "r17", run)
        monkeypatch.setitem(LINES, "R17", Line("R17", "a test", "security", 3, 5, only))
        return LINES["R17"]

    return put


def test_a_line_is_green_only_if_every_case_is_right(line):
    assert measured(line(lambda n, random, figures: [""] * n), 3, 0)["green"]
    row = measured(line(lambda n, random, figures: ["", "bad", ""]), 3, 0)
    assert (row["done"], row["asked"], row["green"], row["problems"]) == (2, 3, False, ["bad"])
    assert not measured(line(lambda n, random, figures: []), 3, 0)["green"]
    assert not measured(line(lambda n, random, figures: [""], "no GPU here"), 3, 0)["green"]


def test_a_line_that_stops_is_red(line, capsys):
    def stops(n, random, figures):
        yield ""
        raise OSError("gone")

    row = measured(line(stops), 3, 0)
    assert (row["done"], row["asked"], row["green"]) == (1, 2, False) and "OSError" in row["problems"][0]


def test_the_report_keeps_other_lines_and_the_exit_code_tells(line, tmp_path, capsys):
    out = tmp_path / "report.json"
    line(lambda n, random, figures: [""] * n)
    assert main(["--only", "R17", "--out", str(out)]) == 0
    line(lambda n, random, figures: ["bad"])
    assert main(["--full", "--only", "r17", "--out", str(out), "--seed", "3"]) == 1
    report = json.loads(out.read_text())
    assert report["green"] == 0 and report["lines"]["R17"]["seed"] == 3 and report["lines"]["R1"]["only"] == "not measured"
    assert "R = 0/18" in capsys.readouterr().out and "| R1 |" in table(report) and "not measured" in table(report)


@pytest.mark.parametrize(
    "text", ["no code", "[E_X] lower case", "[E_X] A path is /tmp/a/b. Do this.", "[E_X] At 0x7f00deadbeef. Do this.", "[E_X] A. " + "B" * 200]
)
def test_words_that_are_wrong(text):
    assert requests.wrong_words(text)


def test_words_that_are_right():
    assert not requests.wrong_words("[E_STEPS] The number of steps must be a whole number from 1 to 8, not 9. Choose a whole number in that range.")


def test_damage_is_damage():
    source = random.Random(1)
    assert all(training.damaged(b"abcdefgh" * 9, source)[1] != b"abcdefgh" * 9 for _ in range(300))
    assert all(len(uploads.mutated(bytes(range(256)), source)) for _ in range(50))


def test_values_are_of_every_kind():
    source = random.Random(1)
    assert {type(requests.value(source)) for _ in range(2000)} >= {str, int, float, list, dict, bool, type(None)}
    assert requests.dumped({"a": [10**5000, float("nan"), "\ud800"]})


def test_what_the_code_may_not_do_is_found(tmp_path):
    bad = tmp_path / "a.py"
    for text in ("np.load(x, allow_pickle=True)", "gr.load('x')", "gr.FileExplorer()", "raise gr.Error('secret')"):
        bad.write_text(text)
        assert security.forbidden(bad), text
    bad.write_text("raise gr.Error(str(error))")
    assert not security.forbidden(bad)


def test_a_page_that_prints_more_than_a_line_is_seen():
    assert "exit 0" in startup.refuses("E_PORT", program=("-c", "print('up')"))
