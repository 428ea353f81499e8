"""The distilling tab: its handlers as functions, who may use it, what it says, the API behind it, and one fine-tune in a real browser."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
import tiny
from conftest import FakeModel
from gradio_client import Client
from gradio_client.exceptions import AppError as ClientError
from test_browser import PATIENCE, browser  # noqa: F401  the fixture

from videolcm.errors import AppError
from videolcm.jobs import Job, Jobs, note
from videolcm.ui import Engine, build_ui, launch
from videolcm.ui import distil_messages as say
from videolcm.ui.distil_handlers import BUTTONS, PROMPT, Guard, drawn, guard_of, make_action, make_compare_now, make_refresh, make_start

STEP = {"iteration": 1, "iterations": 4, "loss": 0.5, "lr": 1e-5, "samples_per_second": 8.0, "figures": None, "skipped": 0, "seconds": 2.0}


class Listed:
    """Stands for Jobs, and notes what it is told."""

    folder = Path("nowhere")

    def __init__(self):
        self.told = []

    def start(self, knobs, teacher, clips=()):
        self.told.append((knobs, teacher))
        return "0" * 32

    def get(self, id):
        return Job(id, Path("nowhere"), "QUEUED", "", 0.0, ("--teacher", "toybox"))

    def pause(self, id):
        self.told.append(("pause", id))


def refused(code, function, *arguments, **named):
    with pytest.raises(gr.Error) as error:
        function(*arguments, **named)
    assert error.value.message.startswith(f"[{code}] ") and "\n" not in error.value.message


def test_a_start_by_preset_and_by_knobs():
    jobs = Listed()
    start = make_start(jobs, Guard(), {"toybox": "toybox"})
    assert start(preset="paper", iterations=3, seed=7.0, conditions=["text"])["state"] == "QUEUED"
    start(iterations=30.0, lr=0.001)
    start(lora=8.0, guidance_range="0,3", two_time=True, images=0.5)
    start(preset="ten minutes", images=1)
    start(lr="", guidance=" ", huber="", minutes="2", lora="4", images="")  # as the page's boxes have it
    (paper, teacher), (own, _), (more, _), (ten, _), (boxes, _) = jobs.told
    assert (boxes.lr, boxes.guidance, boxes.huber, boxes.minutes, boxes.lora, boxes.images) == (None, None, None, 2, 4, None)
    assert (paper.images, own.images, more.images, ten.images, ten.minutes) == (None, None, 0.5, 1, 10)
    assert (own.lora, own.guidance_range, own.two_time) == (None, None, False) and paper.lora is None
    assert (more.lora, more.guidance_range, more.two_time) == (8, "0,3", True)
    assert (paper.iterations, paper.guidance, paper.seed, paper.conditions, teacher) == (4000, 9.0, 7, "text", "toybox")
    assert (own.iterations, own.lr, own.guidance, own.conditions) == (30, 0.001, None, "text,depth,sketch,masked")


BAD = [
    ("E_MODEL", {"teacher": "../../etc"}),
    ("E_MODEL", {"teacher": ["toybox"]}),
    ("E_PRESET", {"preset": "an hour"}),
    ("E_OPTIMISER", {"optimiser": "sgd"}),
    ("E_PRESET", {"preset": {"a": 1}}),
    ("E_NUMBER", {"iterations": 2.5}),
    ("E_NUMBER", {"batch": None}),
    ("E_NUMBER", {"lr": "x"}),
    ("E_NUMBER", {"seed": -1}),
    ("E_NUMBER", {"skip": "20; rm"}),
    ("E_NUMBER", {"lora": 0}),
    ("E_NUMBER", {"lora": "all"}),
    ("E_NUMBER", {"guidance_range": "3,1"}),
    ("E_NUMBER", {"two_time": "yes"}),
    ("E_NUMBER", {"images": 1.5}),
    ("E_CONDITIONS", {"conditions": []}),
    ("E_CONDITIONS", {"conditions": ["--out"]}),
    ("E_CONDITIONS", {"conditions": [4, None]}),
]


@pytest.mark.parametrize(("code", "values"), BAD)
def test_bad_values_start_nothing(code, values):
    jobs = Listed()
    refused(code, make_start(jobs, Guard(), {"toybox": "toybox"}), **values)
    assert jobs.told == []


@pytest.mark.parametrize(("guard", "code"), [(Guard("why not"), "E_DISTIL_OFF"), (Guard(password="open"), "E_PASSWORD")])
def test_who_is_not_admitted(guard, code):
    jobs = Listed()
    for password in ("", "Open", "öffne", None):
        refused(code, make_start(jobs, guard, {"toybox": "toybox"}), password=password)
        refused(code, make_action(jobs, guard, "pause"), "0" * 32, password)
    assert jobs.told == []


def test_the_password_admits():
    jobs = Listed()
    make_action(jobs, Guard(password="open"), "pause")("1", "open")
    assert jobs.told == [("pause", "1")]


@pytest.mark.parametrize(
    ("environ", "public", "off", "password"),
    [
        ({}, False, False, None),
        ({"VIDEOLCM_DISTIL_PASSWORD": "x"}, False, False, None),
        ({}, True, True, None),
        ({"VIDEOLCM_DISTIL_PASSWORD": "x"}, True, False, "x"),
        ({"SPACE_ID": "a/b"}, True, True, None),
        ({"SPACE_ID": "a/b", "VIDEOLCM_DISTIL_PASSWORD": "x"}, True, True, None),
        ({"SPACE_ID": "a/b", "VIDEOLCM_DISTIL": "1"}, False, True, None),
        ({"SPACE_ID": "a/b", "VIDEOLCM_DISTIL": "1", "VIDEOLCM_DISTIL_PASSWORD": "x"}, True, False, "x"),
    ],
)
def test_where_it_is_on(environ, public, off, password):
    guard = guard_of(environ, public)
    assert (bool(guard.off), guard.password) == (off, password)


def job_folder(folder, state="RUNNING", steps=()):
    """A job on disk that no process works at."""
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"created": 1.0, "arguments": []}))
    (folder / "journal.jsonl").write_text(json.dumps({"time": 1.0, "state": state, "message": ""}) + "\n")
    (folder / "log.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return folder


def test_the_clock_tells_what_changed_and_only_that(tmp_path):
    folder = job_folder(tmp_path / ("a" * 32), "PAUSED", [STEP, {**STEP, "iteration": 2, "figures": {"previews": {"1": "p.mp4", "4": "q.mp4"}}}])
    (folder / "p.mp4").write_bytes(b"clip")
    look = make_refresh(Jobs(tmp_path), Guard())
    listed, status, curve, previews, *_, shown = look(None, {})
    assert listed["value"] == "a" * 32 and "PAUSED" in listed["choices"][0][0]
    assert "iteration 2 of 4" in status and list(curve["value"]["loss"]) == [0.5, 0.5]
    assert "data:video/mp4;base64,Y2xpcA==" in previews and "4 steps: file removed" in previews
    assert all(update == gr.skip() for update in look("a" * 32, json.loads(json.dumps(shown)))[:-1])
    with open(folder / "log.jsonl", "a") as file:
        file.write(json.dumps({**STEP, "iteration": 3, "loss": None, "skipped": 1}) + "\n")
    _, status, curve, *_ = look("a" * 32, shown)
    assert "Skipped 1" in status and len(curve["value"]) == 2


def test_the_time_left_is_iterations_times_their_seconds():
    job = Job("d" * 32, Path("nowhere"), "RUNNING", "", 0.0, ())
    assert "about 60 s left" in say.status(job, [{**STEP, "iteration": 10, "iterations": 40}])
    assert "about 5 min left" in say.status(job, [{**STEP, "iteration": 10, "iterations": 130, "seconds": s} for s in (1.0, 4.0)])


def test_a_process_that_hangs_is_noticed():
    running, silent = (Job("d" * 32, Path("nowhere"), "RUNNING", "", 0.0, (), seconds) for seconds in (2.0, 45.0))
    assert "has not shown itself for 45 s" in say.status(silent, [STEP]) and "shown itself" not in say.status(running, [STEP])
    assert "shown itself" not in say.status(replace(silent, state="DONE"), [STEP])


def test_the_time_left_ends_with_the_minutes():
    steps = [{**STEP, "iteration": 10, "iterations": 1000, "spent": 540.0}]
    assert "about 33 min left" in say.status(Job("d" * 32, Path("nowhere"), "RUNNING", "", 0.0, ()), steps)
    assert "about 60 s left" in say.status(Job("d" * 32, Path("nowhere"), "RUNNING", "", 0.0, ("--minutes", "10", "--clips", "3")), steps)
    assert "about 0 s left" in say.status(Job("d" * 32, Path("nowhere"), "RUNNING", "", 0.0, ("--minutes", "8.5")), steps)


def test_a_job_whose_process_died_without_a_word(tmp_path):
    job_folder(tmp_path / ("b" * 32))
    assert "E_JOB_LOST" in make_refresh(Jobs(tmp_path), Guard())(None, {})[1]


def test_no_jobs_and_no_right(tmp_path):
    assert "No fine-tune chosen" in make_refresh(Jobs(tmp_path), Guard())(None, None)[1]
    assert len(make_refresh(Jobs(tmp_path), Guard("off"))(None, None)) == len(make_refresh(Jobs(tmp_path), Guard())(None, None))


@pytest.mark.parametrize(
    ("state", "left", "can"),
    [
        (None, False, []),
        ("QUEUED", False, ["pause", "cancel"]),
        ("RUNNING", True, ["pause", "cancel", "compare"]),
        ("PAUSED", False, ["resume", "cancel", "delete"]),
        ("FAILED", True, ["resume", "cancel", "delete", "compare"]),
        ("DONE", True, ["delete", "compare"]),
        ("CANCELLED", False, ["delete"]),
    ],
)
def test_buttons_are_on_where_they_can_do_something(tmp_path, monkeypatch, state, left, can):
    monkeypatch.setattr(Jobs, "is_alive", lambda *_: True)
    if state:
        folder = job_folder(tmp_path / ("a" * 32), state)
        _ = left and (folder / "manifest.json").write_text("{}")
    buttons = make_refresh(Jobs(tmp_path), Guard())(None, {})[4:-1]
    assert [name for name, update in zip(BUTTONS, buttons, strict=True) if update["interactive"]] == can


def test_compare_now_needs_a_student(tmp_path, monkeypatch):
    jobs, job = Jobs(tmp_path), "0123456789abcdef" * 2
    refused("E_JOB", make_compare_now(jobs, Guard()), "../x", "")
    (tmp_path / job).mkdir()
    (tmp_path / job / "job.json").write_text(json.dumps({"created": 0, "arguments": []}))
    refused("E_NO_STUDENT", make_compare_now(jobs, Guard()), job, "")
    (tmp_path / job / "manifest.json").write_text("{}")
    tabs, roles, samplers, steps, with_reference, prompt = make_compare_now(jobs, Guard())(job, "a blue cube")
    assert tabs["selected"] == "compare" and roles["value"] == ["student", "student-01234567"] and roles["value"][1] in roles["choices"]
    assert (samplers, steps, with_reference, prompt) == (["own"], [1, 2, 4], True, "a blue cube")
    assert make_compare_now(jobs, Guard())(job, "")[-1] == PROMPT


@pytest.mark.parametrize("count", [2, 9, 10, 15, 16, 300])
def test_the_strip_shows_the_student_from_the_beginning(count, tmp_path):
    job = Job("d" * 32, tmp_path, "RUNNING", "", 0.0, ())
    steps = [{**STEP, "iteration": i, "figures": {"previews": {"1": "a.mp4", "4": "b.mp4"}}} for i in range(1, count + 1)]
    shown = [int(at) for at in re.findall(r">at (\d+)", say.previews(job, steps))]
    assert shown[0] == 1 and shown[-1] == count - 1 and shown == sorted(set(shown)) and len(shown) == min(count - 1, say.HISTORY)
    apart = [b - a for a, b in itertools.pairwise(shown)]
    assert not apart or max(apart) - min(apart) <= 1


def test_the_curve_is_thinned():
    points = say.curve([{**STEP, "iteration": i, "loss": float(i)} for i in range(1, 4001)])
    assert len(points) == say.POINTS and points[0] == (20, 10.5) and points[-1] == (4000, 3990.5)


def test_what_is_written_is_escaped():
    job = Job("c" * 32, Path("nowhere"), "FAILED", "<script>", 0.0, ())
    assert "<script>" not in say.status(job, []) and "&lt;script&gt;" in say.status(job, [])


# ---- the page


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """(url, jobs) of a page that distils tiny networks."""
    folder = tmp_path_factory.mktemp("site")
    teacher, data = str(tiny.teacher_folder(folder / "tiny")), str(tiny.data_folder(folder / "data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDEOLCM_JOBS", str(folder / "jobs"))
        patch.setenv("OMP_NUM_THREADS", "1")
        jobs = Jobs(data=data)
        blocks = build_ui(Engine(load=lambda ref, role: FakeModel(role, name=ref)), distilling=(jobs, Guard(), {"tiny": teacher}))
        _, url, _ = launch(blocks, None, server_name="127.0.0.1", quiet=True)
        yield url, jobs
        blocks.close()
        for child in jobs.children.values():
            child.stdin.close()
            child.wait(60)


def test_the_api_refuses_what_is_out_of_range(site):
    client = Client(site[0], verbose=False)
    described = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(described) >= {"/text", "/distill"} and "Start a distillation" in described["/distill"]["description"]
    with pytest.raises(ClientError, match=r"\[E_NUMBER\] iterations must be"):
        client.predict(teacher="tiny", preset="", iterations=0, api_name="/distill")
    assert site[1].list() == []


def test_a_fine_tune_in_a_browser_survives_a_reload_and_becomes_a_model(browser, site):  # noqa: F811
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    failed = []
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(site[0])
    page.get_by_role("tab", name="Distil").click()
    for name in ("Pause", "Resume", "Cancel", "Delete", "Compare now"):
        assert page.get_by_role("button", name=name, exact=name != "Compare now").filter(visible=True).is_disabled()
    page.get_by_text("Knobs, used without a preset").click()
    page.get_by_label("Preset").click()
    page.get_by_role("option", name="No preset").click()
    page.get_by_label("Learning rate").fill("1e-5")
    page.get_by_role("button", name="Start").click()
    page.get_by_text("RUNNING: iteration").wait_for()
    assert "--lr" in site[1].list()[0].arguments and not {"--lora", "--minutes", "--guidance", "--huber"} & set(site[1].list()[0].arguments)
    page.get_by_role("button", name="Pause").click()
    page.get_by_text("PAUSED: iteration").wait_for()
    page.reload()
    page.get_by_role("tab", name="Distil").click()
    page.get_by_text("PAUSED: iteration").wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("CANCELLED: iteration").wait_for()
    name = f"student-{site[1].list()[0].id[:8]}"
    page.get_by_role("tab", name="Text to video").click()
    page.get_by_text("Advanced").click()
    page.get_by_label("Weights").click()
    page.get_by_role("option", name=name).click()
    page.get_by_label("Prompt").fill("a red ball")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("Done in").wait_for()
    page.get_by_role("tab", name="Distil").click()
    page.get_by_role("button", name="Compare now").click()
    page.locator("#compare").get_by_label(name).wait_for()
    assert page.locator("#compare").get_by_label(name).is_checked() and page.locator("#compare").get_by_label("Prompt").input_value() == PROMPT
    page.get_by_role("tab", name="Distil").click()
    for sure in (False, True):
        page.once("dialog", lambda dialog, sure=sure: dialog.accept() if sure else dialog.dismiss())
        page.get_by_role("button", name="Delete").filter(visible=True).click()
        if not sure:
            page.wait_for_timeout(500)
            assert len(site[1].list()) == 1
    page.get_by_text("No fine-tune chosen.").wait_for()
    assert site[1].list() == [] and not failed
    page.close()


@pytest.mark.parametrize(
    ("state", "arguments", "part"), [("RUNNING", (), "0.250"), ("RUNNING", ("--minutes", "1"), "0.500"), ("DONE", ("--minutes", "1"), "1.000")]
)
def test_the_bar_is_of_what_ends_first(state, arguments, part):
    shown = say.status(Job("d" * 32, Path("nowhere"), state, "", 0.0, arguments), [{**STEP, "spent": 30.0}])
    assert f'value="{part}"' in shown


def test_what_is_between_iterations_counts():
    steps = [{**STEP, "iteration": i, "iterations": 20, "spent": 5.0 * i} for i in range(1, 11)]
    assert "about 50 s left" in say.status(Job("d" * 32, Path("nowhere"), "RUNNING", "", 0.0, ()), steps)


def test_the_curve_is_there_with_its_first_point_and_of_numbers():
    assert drawn([]).get("visible") is not True and len(drawn([])["value"]) == 0
    assert drawn([(1, 0.5)])["visible"] and [str(kind) for kind in drawn([(1, 0.5)])["value"].dtypes] == ["float64", "float64"]


def test_what_a_job_was_told_is_said_until_it_is_done(tmp_path):
    folder = tmp_path / ("e" * 32)
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps({"created": 0.0, "arguments": []}))
    jobs = Jobs(tmp_path)
    for state, told in (("QUEUED", True), ("PAUSED", False)):
        note(folder, state)
        (folder / "wish").write_text("pause")
        assert ("It pauses after what it is at" in say.status(jobs.get(folder.name), [STEP])) == told
        assert ("It pauses after what it is at" in say.status(jobs.get(folder.name), [])) == told


def test_the_tab_that_is_off_says_why():
    blocks = build_ui(Engine(load=lambda ref, role: FakeModel(role)), distilling=(None, Guard("a Space is shared"), {}))
    texts = [component["props"].get("value") for component in blocks.get_config_file()["components"]]
    assert any("Distilling is off here: a Space is shared" in str(text) for text in texts)
    with pytest.raises(AppError):
        Guard("a Space is shared").admit("")
