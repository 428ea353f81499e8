"""The scorecard itself: its lines exist, it counts as it says, it sees what is wrong, and the README says what the report does."""

import importlib
import json
import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reliability import requests, security, shared, startup, training, uploads, values
from reliability.__main__ import README, REPORT, TABLE, main, measured, table
from reliability.lines import LINES, Line


def test_the_lines_are_eighteen_and_each_can_be_run():
    assert list(LINES) == [f"R{i}" for i in range(1, 19)]
    for line in LINES.values():
        assert (
            callable(getattr(importlib.import_module(f"reliability.{line.module}"), line.id.lower())) and 0 <= line.quick <= line.full and line.full
        )


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


def test_a_line_is_green_only_if_all_was_asked_and_every_case_is_right(line):
    assert measured(line(lambda n, random, figures: [""] * n), 3, 0)["green"]
    row = measured(line(lambda n, random, figures: ["", "bad", ""]), 3, 0)
    assert (row["done"], row["asked"], row["green"], row["problems"]) == (2, 3, False, ["bad"])
    for few in (0, 2):
        row = measured(line(lambda n, random, figures, few=few: [""] * few), 3, 0)
        assert not row["green"] and row["problems"] == [f"{few} cases of 3"]
    assert not measured(line(lambda n, random, figures: [""] * n, "no GPU here"), 3, 0)["green"]


def test_seconds_are_judged_or_the_line_is_not_green(line, monkeypatch):
    judging = line(lambda n, random, figures: [shared.late(2, 1, "it came"), *[""] * n])
    assert measured(judging, 3, 0)["problems"] == ["it came after 2.00 s"]
    monkeypatch.setitem(shared.clock, "on", False)
    row = measured(judging, 3, 0)
    assert (row["problems"], row["green"], row["only"]) == ([], False, "seconds were not judged")
    assert measured(line(lambda n, random, figures: [""] * n), 3, 0)["green"]


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
    line(lambda n, random, figures: ["bad"], "no GPU here")
    assert main(["--full", "--only", "r17", "--out", str(out), "--seed", "3"]) == 1 and "**red**: bad" in table(json.loads(out.read_text()))
    report = json.loads(out.read_text())
    assert report["green"] == 0 and report["lines"]["R17"]["seed"] == 3 and report["lines"]["R1"]["only"] == "not measured"
    assert "R = 0/18" in capsys.readouterr().out and "| R1 |" in table(report) and "not measured" in table(report)


def test_a_quick_run_leaves_the_report_alone(line, tmp_path, monkeypatch):
    monkeypatch.setattr("reliability.__main__.REPORT", tmp_path / "report.json")
    line(lambda n, random, figures: [""] * n)
    for id in LINES.keys() - {"R17"}:
        monkeypatch.delitem(LINES, id)
    for args, name in ([], "quick.json"), (["--full"], "report.json"), (["--only", "R17"], "report.json"):
        assert main(args) == 0 and [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


def test_a_line_that_is_left_to_the_full_run(line, tmp_path, monkeypatch, capsys):
    line(lambda n, random, figures: [""] * n)
    monkeypatch.setitem(LINES, "R17", replace(LINES["R17"], quick=0))
    for id in LINES.keys() - {"R17"}:
        monkeypatch.delitem(LINES, id)
    assert main(["--quick", "--out", str(tmp_path / "a.json")]) == 0 and "R17" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--only", "R17", "--out", str(tmp_path / "a.json")])
    assert main(["--full", "--out", str(tmp_path / "a.json")]) == 0 and "R = 1/1" in capsys.readouterr().out


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


@settings(max_examples=200, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.deferred(values.calls))
def test_every_door_answers_or_says_a_sentence(call):
    door, given = call
    assert not requests.outcome(values.doors()[door][0], given)[1]


def test_values_are_of_every_kind_and_the_same_each_time():
    drawn = [list(values.drawn(values.values, 1500, random.Random(1))) for _ in range(2)]
    assert len(drawn[0]) == 1500 and [values.dumped(one) for one in drawn[0]] == [values.dumped(one) for one in drawn[1]]
    assert {type(value) for value in drawn[0]} >= {str, int, float, list, dict, bool, type(None)}
    assert values.dumped({"a": [10**5000, float("nan"), "\ud800"]})


def test_what_every_field_may_be_is_asked():
    from videolcm.pipeline import Request

    (function, good, names), *_ = values.doors()
    given = [given for door, given in values.drawn(values.calls(), 3000, random.Random(1)) if door == 0]
    assert function is Request and {name for one in given for name in one} == set(names) and good in given


def test_what_the_code_may_not_do_is_found(tmp_path):
    bad = tmp_path / "a.py"
    for text in (
        "launch(enable_mcp=True)",
        "raise OSError('secret')",
        "raise ValueError",
        "gr.load('x')",
        "gr.FileExplorer()",
        "raise gr.Error('secret')",
    ):
        bad.write_text(text)
        assert security.forbidden(bad), text
    bad.write_text("raise gr.Error(str(error))")
    assert not security.forbidden(bad)


def test_a_page_that_prints_more_than_a_line_is_seen():
    assert "exit 0" in startup.refuses("E_PORT", program=("-c", "print('up')"))
