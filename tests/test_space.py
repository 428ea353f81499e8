"""The Space: the README's front matter, app.py as a Space with a shared GPU starts it, and what differs there from other machines."""

import ast
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import gradio as gr
import pytest
import tiny
from conftest import wait_for
from media import corners, make

from videolcm.compare import Cell, CellDone, CellProgress, CellStopped
from videolcm.errors import AppError
from videolcm.jobs import GOING, Jobs, Worker
from videolcm.knobs import Knobs
from videolcm.models.base import TASKS
from videolcm.pipeline import Progress, Request
from videolcm.train_verbs import distill_namespace
from videolcm.ui import Engine
from videolcm.ui.distil_handlers import guard_of
from videolcm.ui.engine import Clip, Comparison
from videolcm.ui.handlers import refused
from videolcm.ui.space import PART, LentJobs, heeding, on_the_processor, on_zero_gpu, raised, seconds_for

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a red ball rolls to the left over snow"

LAST_LABEL = "teacher, 3 steps, ddim, 6 evaluations"


def front_matter():
    """{name: value} of the README's first block, as text."""
    block = re.match("---\n(.*?)\n---\n", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    return dict(line.split(": ", 1) for line in block.splitlines())


def test_the_readme_tells_a_space_what_it_needs():
    told = front_matter()
    names = {"title", "sdk", "sdk_version", "python_version", "app_file", "license", "models", "tags", "short_description"}
    assert names <= told.keys() and (told["sdk"], told["app_file"]) == ("gradio", "app.py") and len(told["short_description"]) <= 60
    assert f"gradio=={told['sdk_version']}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert told["python_version"] == '"3.12"' and all(told[name].startswith("[") for name in ("models", "tags"))


def test_app_py_imports_spaces_before_all_that_is_not_pythons_own():
    tree = ast.parse((ROOT / "app.py").read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [getattr(node, "module", None) or node.names[0].name for node in sorted(found, key=lambda node: node.lineno)]
    assert next(name for name in names if name not in sys.stdlib_module_names) == "spaces"


def test_app_py_as_a_space_with_a_shared_gpu_starts_it(tmp_path):
    switches = {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": "http://127.0.0.1:9", "SPACE_ID": "me/it"}
    switches |= {"VIDEOLCM_DISTIL": "1", "VIDEOLCM_DISTIL_PASSWORD": "open"}
    folders = {"ZEROGPU_OFFLOAD_DIR": tmp_path / "tensors", "VIDEOLCM_JOBS": tmp_path / "jobs", "HOME": tmp_path}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environ = os.environ | switches | {name: str(path) for name, path in folders.items()} | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "tests" / "space_script.py"), str(port), str(tiny.teacher_folder(tmp_path / "tiny"))]
    command.append(str(make(tmp_path / "clip.mp4", corners(16))))
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["devices"] == [["cuda", "cuda:0"]] * 2 and seen["decorated"] == 4  # two functions and their wrappers
    assert seen["ready"] == 200 and seen["settings"]["steps"] == 2
    assert seen["nonfinite"].startswith("[E_NONFINITE]") and "No GPU was available" in seen["full"]
    assert seen["cells"] == [
        ["1 step, lcm, 1 evaluation", True],
        ["2 steps, lcm, 2 evaluations", True],
        ["teacher, 3 steps, ddim, 6 evaluations", True],
    ]
    assert seen["after"] == 1 and seen["elsewhere"]
    assert all(asked and 15 < seconds < 100 for seconds, asked in seen["asked"])
    assert seen["distilled"] == ["DONE", [1, 2, 3], 3], seen["said"]  # three parts of one iteration, for each a GPU
    assert seen["checkpoint"] == 3 and "read 0001: a red ball" in seen["said"]
    assert seen["student"] == 1 and not any(name.startswith("student-") for name in seen["loaded here"])


def test_elsewhere_nothing_is_lent():
    assert not on_zero_gpu({}) and not on_zero_gpu({"SPACES_ZERO_GPU": "0"}) and on_zero_gpu({"SPACES_ZERO_GPU": "True"})
    assert Engine().compute.__name__ == "here"
    code = "import sys, videolcm.ui; assert 'spaces' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=300)


def test_more_work_asks_for_more_seconds():
    clips = [Request(PROMPT, steps=1), Request(PROMPT, steps=8), Request(PROMPT, steps=8, frames=32), Request(PROMPT, steps=50, sampler="ddim")]
    clips.append(Request(PROMPT, steps=8, frames=32, width=512, height=512))
    seconds = [seconds_for(Clip(("toybox", "student"), clip)) for clip in clips]
    assert seconds == sorted(set(seconds)) and seconds[0] < 20
    comparison = Comparison("toybox", clips[0], [Cell("student", "lcm", 1), Cell("student", "lcm", 8)], Cell("teacher", "ddim", 50))
    assert comparison.keys == (("toybox", "student"), ("toybox", "teacher")) and seconds[3] < seconds_for(comparison) < 60


def test_an_error_of_the_other_process_is_raised_here():
    error = AppError("E_TASK_MODEL", model="x", given="depth", known=", ".join(TASKS))
    remade, values = error.__reduce__()
    assert str(remade(*values)) == str(error)
    with pytest.raises(AppError, match="E_TASK_MODEL"):
        list(raised(one for one in (Progress("text", 0, 1), error)))


def test_what_a_shared_gpu_says_is_shown():
    with pytest.raises(gr.Error, match="No GPU"), refused():
        raise gr.Error("No GPU was available")


def test_on_a_shared_gpu_students_are_distilled_by_the_switch_and_a_password():
    lent = {"SPACES_ZERO_GPU": "true", "SPACE_ID": "x", "VIDEOLCM_DISTIL_PASSWORD": "open"}
    assert "seconds at a time" in guard_of(lent, True).off
    assert guard_of(lent | {"VIDEOLCM_DISTIL": "1"}, True).password == "open"
    assert "PASSWORD" in guard_of({**lent, "VIDEOLCM_DISTIL": "1", "VIDEOLCM_DISTIL_PASSWORD": ""}, True).off


class Noted(LentJobs):
    """LentJobs whose parts are answers that are known: each is an iteration number, an error, or a wish that somebody has meanwhile."""

    def __init__(self, folder, *answers):
        Jobs.__init__(self, folder, "data")
        self.asked, self.answers = [], list(answers)

    def part(self, command):
        self.asked.append(command)
        answer, folder = self.answers.pop(0), Path(command[command.index("--out") + 1])
        if isinstance(answer, Exception):
            if isinstance(answer, gr.Error):
                raise answer
            return answer
        if isinstance(answer, str):
            (folder / "wish").write_text(answer)
            return {}
        (folder / f"step-{answer:08d}.json").touch()
        return {"iterations": answer}


@pytest.fixture
def processor(monkeypatch):
    """What was asked of child processes on the processor."""
    asked = []
    monkeypatch.setattr("videolcm.ui.space.on_the_processor", lambda worker, command: asked.append(command[-1]) or {})
    return asked


def ended(jobs, id):
    wait_for(lambda: jobs.get(id).state not in GOING)
    return jobs.get(id)


def test_a_fine_tune_in_parts_ends_with_its_iterations(tmp_path, processor):
    jobs = Noted(tmp_path, 40, 80, 90)
    assert ended(jobs, jobs.start(Knobs(iterations=90, preview_every=60))).state == "DONE" and processor == ["--prepare"]
    assert [command[-4:] for command in jobs.asked] == [
        ["--minutes", str(PART / 60), "--preview-every", str(PART / 2)],
        *[[str(PART / 60), "--preview-every", str(PART / 2), "--resume"]] * 2,
    ]


def test_or_with_its_minutes(tmp_path, processor):
    jobs = Noted(tmp_path, 1, 2, 3)
    assert ended(jobs, jobs.start(Knobs(iterations=90, minutes=2.5 * PART / 60, preview_every=None))).state == "DONE"
    assert [distill_namespace(command).minutes * 60 for command in jobs.asked] == pytest.approx([PART, PART, PART / 2])


def test_or_with_a_wish_or_an_error_and_can_be_resumed(tmp_path, processor):
    jobs = Noted(tmp_path, 1, "pause", AppError("E_NAN", given=3), gr.Error("GPU task aborted", print_exception=False), "cancel")
    id = jobs.start(Knobs(iterations=90))
    assert ended(jobs, id).state == "PAUSED" and len(jobs.asked) == 2
    for state, told in (("FAILED", "[E_NAN]"), ("FAILED", "[E_JOB_PART] A part of the fine-tune failed: GPU task aborted."), ("CANCELLED", "")):
        jobs.resume(id)
        assert ended(jobs, id).state == state and jobs.get(id).message.startswith(told)


def test_cancelling_a_fine_tune_that_stands_needs_no_gpu(tmp_path, processor):
    jobs = Noted(tmp_path, 1, "pause")
    id = jobs.start(Knobs(iterations=90))
    ended(jobs, id)
    jobs.cancel(id)
    assert ended(jobs, id).state == "CANCELLED" and processor == ["--prepare", "--resume"] and len(jobs.asked) == 2
    jobs.delete(id)


def test_what_fails_on_the_processor_is_told(tmp_path, monkeypatch):
    with pytest.raises(AppError, match=r"^\[E_NUMBER\] iterations must be a whole number from 1, not 0. Choose a value in that range.$") as error:
        on_the_processor(Worker(tmp_path), ["--iterations", "0", "--prepare"])
    assert (tmp_path / "output.txt").read_text() == f"{error.value}\n"
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(AppError, match="E_JOB_PART"):
        on_the_processor(Worker(tmp_path), [])
    (tmp_path / "wish").write_text("cancel")
    assert on_the_processor(Worker(tmp_path), []) == {}


ONE, TWO, LAST = Cell("student", "lcm", 1), Cell("student", "lcm", 2), Cell("teacher", "ddim", 9)


def played(stop, reference=LAST):
    """What comes of a comparison in another process when `stop` {event number: cells} is stopped meanwhile, in short; and whether it was closed."""
    stopped, ended = set(), []
    cells = (ONE, TWO, *([reference] if reference else []))

    def events():
        try:
            for cell in cells:
                yield CellProgress(cell, Progress("denoise", 1, 1))
                yield CellDone(cell, None, {})
            yield from (CellDone(cell, None, {}) for cell in cells if reference)
        except GeneratorExit:
            ended.append("early")
            raise

    job, source = Comparison("toybox", Request(PROMPT), [ONE, TWO], reference, stopped), events()
    shown = []
    for event in heeding(source, job):
        shown.append(({CellProgress: "p", CellDone: "d", CellStopped: "s"}[type(event)], cells.index(event.cell)))
        stopped |= set(stop.get(len(shown), ()))
    source.close()
    return shown, bool(ended)


def test_a_stopped_cell_is_left_out_on_this_side():
    whole = [("p", 0), ("d", 0), ("p", 1), ("d", 1), ("p", 2), ("d", 2), ("d", 0), ("d", 1), ("d", 2)]
    assert played({}) == (whole, False)
    assert played({3: [TWO]}) == ([*whole[:3], ("s", 1), ("p", 2), ("d", 2), ("d", 0), ("d", 2)], False)
    assert played({1: [TWO]}) == ([*whole[:2], ("s", 1), ("p", 2), ("d", 2), ("d", 0), ("d", 2)], False)
    assert played({6: [ONE]}) == (whole, False)  # too late
    assert played({1: [ONE, TWO, LAST]}) == ([("p", 0), ("s", 0), ("s", 1), ("s", 2)], True)
    assert played({3: [TWO]}, reference=None) == ([*whole[:3], ("s", 1)], True)
