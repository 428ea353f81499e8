"""Clips for a file of prompts: named by line, made once, shared by processes; a bad line costs its own clip and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FakeModel
from media import corners, make

from videolcm import __main__ as command_line
from videolcm import batch, models
from videolcm.batch_verb import device_of
from videolcm.errors import AppError
from videolcm.pipeline import Request
from videolcm.video import read_settings, write_mp4

PROMPT = "a red ball rolls to the left over snow"
BATCH = ["generate", "--prompts", "prompts.txt", "--out-dir", "clips", "--size", "128x128", "--frames", "8", "--steps", "1"]
LINES = [PROMPT, "", json.dumps({"prompt": "the big cube spins", "seed": 5, "steps": 2, "width": 160, "said": []}), "the red ball\r"]


@pytest.fixture
def here(monkeypatch, tmp_path):
    """A new current folder with LINES in prompts.txt; `models.load` gives FakeModels, which the returned list holds."""
    loaded = []

    def load(ref, role="student", device=None, dtype=None):
        loaded.append(FakeModel(role))
        return loaded[-1]

    monkeypatch.setattr(models, "load", load)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    written("\n".join(LINES))
    return loaded


def written(text, name="prompts.txt"):
    Path(name).write_bytes(text.encode("utf-8", "surrogateescape"))


def run(capsys, *more):
    """(exit code, the JSON object, lines of stderr) of BATCH with `more`."""
    code = command_line.main([*BATCH, *more])
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    return code, json.loads(out), err.splitlines()


def clips():
    return {path.name: read_settings(path) for path in sorted(Path("clips").iterdir())}


def test_a_clip_for_every_line(here, capsys):
    code, told, err = run(capsys, "--seed", "3")
    assert code == 0 and told == told | {"out_dir": "clips", "rank": 0, "world": 1, "lines": 3, "made": 3, "kept": 0, "failed": []}
    made = clips()
    assert list(made) == ["00001.mp4", "00003.mp4", "00004.mp4"] and len(here) == 1
    asked = [(one["prompt"], one["seed"], one["steps"], one["width"], one["height"]) for one in made.values()]
    assert asked == [(PROMPT, 3, 1, 128, 128), ("the big cube spins", 5, 2, 160, 128), ("the red ball", 3, 1, 128, 128)]
    assert [line.split(" made")[0] for line in err] == [
        "line 1 (1 of 3): 00001.mp4",
        "line 3 (2 of 3): 00003.mp4",
        "line 4 (3 of 3): 00004.mp4",
    ]


def test_a_line_is_the_clip_that_generate_makes(here, capsys):
    run(capsys)
    assert command_line.main(["generate", PROMPT, *BATCH[5:], "--out", "alone.mp4"]) == 0
    assert Path("alone.mp4").read_bytes() == Path("clips/00001.mp4").read_bytes()


def test_it_goes_on_where_it_stopped(here, capsys):
    run(capsys)
    before = Path("clips/00001.mp4").stat().st_mtime_ns
    Path("clips/00003.mp4").unlink()
    write_mp4("clips/00004.mp4", corners(), 8, {"prompt": "another"})
    code, told, err = run(capsys)
    assert code == 0 and (told["made"], told["kept"]) == (2, 1) and err[0] == "line 1 (1 of 3): 00001.mp4 kept"
    assert Path("clips/00001.mp4").stat().st_mtime_ns == before and clips()["00004.mp4"]["prompt"] == "the red ball"
    assert run(capsys)[1]["kept"] == 3 and not here[-1].calls
    assert run(capsys, "--seed", "4")[1]["made"] == 2  # the other has its own


def test_an_interrupted_clip_leaves_nothing(here):
    lines = batch.read_lines("prompts.txt")
    Path("clips").mkdir()
    events = batch.batch(FakeModel(), lines, lambda line: (Request("a ball", frames=8, height=128, width=128), ()), "clips")
    while getattr(next(events), "progress", None) is None:
        pass
    events.close()
    assert not clips()


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("E_PROMPT_TEXT", "a\udcffb"),
        ("E_PROMPT_LONG", "x" * 513),
        ("E_LINE", '{"prompt": "a", "seed"'),
        ("E_LINE", '{"prompt": ' + "[" * 100_000),
        ("E_LINE", '{"seed": 3}'),
        ("E_LINE", '{"prompt": "a", "colour": "red"}'),
        ("E_LINE", '{"prompt": "a", "hole": null}'),
        ("E_LINE", '{"prompt": "a", "task": "depth", "video": 0}'),
        ("E_LINE", '{"prompt": "a", "also": 3}'),
        ("E_ALSO", '{"prompt": "a", "also": ["sound"]}'),
        ("E_PROMPT_TEXT", '{"prompt": 3}'),
        ("E_SEED", '{"prompt": "a", "seed": 1.5}'),
        ("E_STEPS", '{"prompt": "a", "steps": NaN}'),
        ("E_SIZE", '{"prompt": "a", "height": [128]}'),
        ("E_TASK", '{"prompt": "a", "task": {}}'),
        ("E_TASK_INPUT", '{"prompt": "a", "task": "sketch"}'),
        ("E_SAMPLER", '{"prompt": "a", "sampler": ["lcm"]}'),
        ("E_INPUT", '{"prompt": "a", "task": "depth", "video": "no such file"}'),
    ],
)
def test_a_bad_line_is_told_and_the_rest_goes_on(here, capsys, code, line):
    written("\n".join([PROMPT, line, PROMPT]))
    ended, told, err = run(capsys)
    assert ended == 2 and told["made"] == 2 and list(clips()) == ["00001.mp4", "00003.mp4"]
    (failed,) = told["failed"]
    assert failed["line"] == 2 and failed["error"].startswith(f"[{code}]")
    assert err[1] == f"line 2 (2 of 3): {failed['error']}" and err[-1].startswith("[E_LINES] Of 3 lines, 1 gave no clip.") and len(err) == 4


def test_a_line_follows_a_video(here, capsys, light):
    make("in.mp4", corners())
    follows = {"prompt": PROMPT, "task": "inpaint", "video": "in.mp4", "box": "0.2,0.2,0.8,0.8", "feather": 0, "also": ["sketch"]}
    written(json.dumps(follows))
    assert run(capsys)[1]["made"] == 1 and clips()["00001.mp4"]["task"] == "inpaint" and clips()["00001.mp4"]["hole"]
    assert run(capsys)[1]["kept"] == 1
    written(json.dumps(follows | {"feather": 4}))
    assert run(capsys)[1]["made"] == 1


def test_processes_share_the_lines(here, capsys, monkeypatch):
    written("\n".join(f"the ball {i}" for i in range(5)))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, names in (("1", ["00002.mp4", "00004.mp4"]), ("0", [f"0000{i}.mp4" for i in range(1, 6)])):
        monkeypatch.setenv("RANK", rank)
        assert run(capsys)[1]["rank"] == int(rank) and list(clips()) == names


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [device_of(None, {"LOCAL_RANK": rank}) for rank in ("0", "1", "2")] == ["cuda:0", "cuda:1", "cuda:0"]
    assert device_of("cpu", {"LOCAL_RANK": "1"}) == "cpu" and device_of(None, {}) is None


@pytest.mark.parametrize(
    ("code", "arguments", "environ"),
    [
        ("E_ARGUMENTS", ["generate"], {}),
        ("E_ARGUMENTS", ["generate", "--prompts", "prompts.txt"], {}),
        ("E_ARGUMENTS", ["generate", PROMPT, "--out-dir", "clips"], {}),
        ("E_ARGUMENTS", ["generate", PROMPT, *BATCH[1:]], {}),
        ("E_ARGUMENTS", [*BATCH, "--out", "a.mp4"], {}),
        ("E_ARGUMENTS", [*BATCH, "--npy", "a.npy"], {}),
        ("E_ARGUMENTS", ["compare", "--prompts", "prompts.txt"], {}),
        ("E_INPUT", ["generate", "--prompts", "none.txt", "--out-dir", "clips"], {}),
        ("E_PROMPTS", ["generate", "--prompts", "blank.txt", "--out-dir", "clips"], {}),
        ("E_OUTPUT", ["generate", "--prompts", "prompts.txt", "--out-dir", "prompts.txt"], {}),
        ("E_NUMBER", BATCH, {"WORLD_SIZE": "0"}),
        ("E_NUMBER", BATCH, {"WORLD_SIZE": "2", "RANK": "2"}),
        ("E_NUMBER", BATCH, {"RANK": "x"}),
    ],
)
def test_what_concerns_all_lines_is_one_line(here, capsys, monkeypatch, code, arguments, environ):
    written("\n \n", "blank.txt")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert command_line.main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"[{code}] ") and err.count("\n") == 1 and out == "" and not here and not Path("clips").exists()


def test_the_shipped_prompts_are_understood():
    lines = batch.read_lines(models.ASSETS / "prompts.jsonl")
    assert {"prompt", "seed"} <= batch.fields_of(lines[0], ("prompt", "seed", "said")).keys()
    with pytest.raises(AppError, match="nothing is called said"):
        batch.fields_of(lines[0], ("prompt", "seed"))


SCRIPT = """
import sys, time
from conftest import FakeModel
from videolcm import __main__, models
models.load = lambda *args, **options: FakeModel(delay=0.5 if options["role"] == "student" else 0)
sys.exit(__main__.main(sys.argv[1:]))
"""


def test_torchrun_waits_for_the_process_that_works_longest(here):
    """The first line's process is done, and has failed, long before the other, which torchrun would end if it heard of that."""
    written("\n".join(["", '{"seed": 1}', *[PROMPT] * 5, '{"seed": 1}']))
    written(SCRIPT, "script.py")
    root = Path(batch.__file__).parents[1]
    paths = os.pathsep.join([str(root), str(root / "tests")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "script.py", *BATCH]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300, check=False)
    told = sorted((json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")), key=lambda one: one["rank"])
    assert [(one["made"], len(one["failed"])) for one in told] == [(2, 2), (3, 0)] and done.returncode != 0, done.stderr
    assert list(clips()) == [f"0000{i}.mp4" for i in range(3, 8)]
