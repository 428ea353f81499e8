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

from videolcm.compare import Cell, CellDone, CellProgress, CellStopped
from videolcm.errors import AppError
from videolcm.models.base import TASKS
from videolcm.pipeline import Progress, Request
from videolcm.ui import Engine
from videolcm.ui.distil_handlers import guard_of
from videolcm.ui.engine import Clip, Comparison
from videolcm.ui.handlers import refused
from videolcm.ui.space import heeding, on_zero_gpu, raised, seconds_for

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
    folders = {"ZEROGPU_OFFLOAD_DIR": tmp_path / "tensors", "VIDEOLCM_JOBS": tmp_path / "jobs", "HOME": tmp_path}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environ = os.environ | switches | {name: str(path) for name, path in folders.items()} | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "tests" / "space_script.py"), str(port), str(tiny.teacher_folder(tmp_path / "tiny"))]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["devices"] == [["cuda", "cuda:0"]] * 2 and seen["decorated"] == 2  # a function and its wrapper: one
    assert seen["ready"] == 200 and seen["settings"]["steps"] == 2
    assert seen["nonfinite"].startswith("[E_NONFINITE]") and "No GPU was available" in seen["full"]
    assert seen["cells"] == [
        ["1 step, lcm, 1 evaluation", True],
        ["2 steps, lcm, 2 evaluations", True],
        ["teacher, 3 steps, ddim, 6 evaluations", True],
    ]
    assert seen["after"] == 1 and seen["elsewhere"]
    assert all(asked and 15 < seconds < 60 for seconds, asked in seen["asked"])


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


def test_no_student_is_distilled_on_a_shared_gpu():
    assert guard_of({"SPACES_ZERO_GPU": "true", "SPACE_ID": "x", "VIDEOLCM_DISTIL": "1"}, True).off


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
