"""Fine-tunes as real child processes on tiny networks: the journal, pause, resume, cancel, delete, deaths, and the device between two of them."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny
from conftest import FakeModel, wait_for
from media import corners, make

from videolcm import models
from videolcm.checkpoint import load_checkpoint
from videolcm.errors import AppError
from videolcm.jobs import GRACE_SECONDS, Jobs, Worker, note, work
from videolcm.knobs import Knobs
from videolcm.lease import Lease
from videolcm.lines import read_lines
from videolcm.pipeline import Request, Result
from videolcm.students import job_folders, students
from videolcm.ui import Engine
from videolcm.ui.engine import Waiting

ROOT = Path(__file__).resolve().parents[1]
SHORT = {"iterations": 12, "batch": 2, "clips": 1, "preview_every": None}
LONG = {**SHORT, "iterations": 100_000}  # to be stopped


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(jobs folder, tiny teacher, cached clips), and the environment of a page that has them."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDEOLCM_JOBS", str(folder / "jobs"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder / "jobs", str(tiny.teacher_folder(folder / "tiny")), str(tiny.data_folder(folder / "data"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The bytes of a small clip."""
    return make(tmp_path_factory.mktemp("clip") / "clip.mp4", corners(16)).read_bytes()


@pytest.fixture
def jobs(place):
    made = Jobs(data=place[2])
    yield made
    for child in made.children.values():
        child.stdin.close()
        child.wait(60)


def ended(jobs, id):
    """The job, once its process is gone."""
    jobs.children[id].wait(300)
    job = jobs.get(id)
    assert job.state not in ("QUEUED", "RUNNING")
    return job


def losses(job):
    return [(step["iteration"], step["loss"]) for step in job.steps()]


def refused(code, function, *arguments):
    with pytest.raises(AppError) as error:
        function(*arguments)
    assert error.value.code == code


def test_a_job_from_start_to_student_and_one_in_line(jobs, place):
    first = jobs.start(Knobs(**{**SHORT, "preview_every": 1e6, "iterations": 3}), place[1])
    second = jobs.start(Knobs(**{**SHORT, "iterations": 2, "conditions": "text,depth"}), place[1])
    assert {job.id for job in jobs.list()} >= {first, second} and jobs.list()[0].id == second
    refused("E_JOB_STATE", jobs.delete, second)
    job, other = ended(jobs, first), ended(jobs, second)
    assert job.state == other.state == "DONE", (job.folder / "output.txt").read_text() + (other.folder / "output.txt").read_text()
    assert json.loads((job.folder / "output.txt").read_text().splitlines()[-1])["iterations"] == 3
    times = [[json.loads(line)["time"] for line in (one.folder / "journal.jsonl").open()] for one in (job, other)]
    assert times[0][1] > times[1][2] or times[1][1] > times[0][2]  # running, done
    previews = job.steps()[-1]["figures"]["previews"]
    assert list(previews) == ["1", "2", "4"]
    assert all((job.folder / name).stat().st_size for name in [*previews.values(), "preview-teacher.mp4"])
    name = f"student-{first[:8]}"
    assert students()[name] == job.folder and name in models.list_models()
    assert models.load(name, device="cpu").info.name == name
    assert json.loads((other.folder / "manifest.json").read_text())["distilled"]["conditions"] == ["text", "depth"]
    assert [found.state for found in Jobs().list() if found.id in (first, second)] == ["DONE", "DONE"]
    refused("E_JOB_STATE", jobs.resume, first)
    jobs.delete(first)
    refused("E_JOB", jobs.get, first)
    assert name not in models.list_models() and not job.folder.exists()


def test_pause_death_of_the_page_resume_and_cancel_keep_every_loss(jobs, place):
    """A page in another process starts a job and is killed; this one finds it, resumes, pauses, resumes, kills it, cancels it."""
    code = (
        "import sys, time; from videolcm.jobs import Jobs; from videolcm.knobs import Knobs; jobs = Jobs(data=sys.argv[2]);"
        f"print(jobs.start(Knobs(**{LONG}), sys.argv[1]), flush=True); time.sleep(600)"
    )
    page = subprocess.Popen([sys.executable, "-c", code, *place[1:]], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    id = page.stdout.readline().strip()
    job = jobs.get(id)
    wait_for(lambda: len(jobs.get(id).steps()) > 2, 300)
    assert jobs.get(id).state == "RUNNING" and jobs.get(id).seconds < 60
    page.kill()
    page.wait()
    wait_for(lambda: jobs.get(id).state == "PAUSED", 30)  # seconds for a busy machine; the child gives itself GRACE_SECONDS
    assert GRACE_SECONDS < 5
    refused("E_JOB_STATE", jobs.pause, id)

    def run_on():
        before = len(jobs.get(id).steps())
        jobs.resume(id)
        wait_for(lambda: jobs.get(id).state == "RUNNING" and len(jobs.get(id).steps()) > before + 2, 300)

    run_on()
    jobs.pause(id)
    assert ended(jobs, id).state == "PAUSED" and not (job.folder / "manifest.json").exists()
    run_on()
    os.kill(jobs.children[id].pid, signal.SIGKILL)
    assert ended(jobs, id).state == "FAILED" and "E_JOB_LOST" in jobs.get(id).message
    jobs.cancel(id)  # a process that only makes the student of the last checkpoint
    assert ended(jobs, id).state == "CANCELLED"
    step, *_ = load_checkpoint(job.folder)
    assert models.load(f"student-{id[:8]}", device="cpu").info.role == "student"

    undisturbed = jobs.start(Knobs(**{**LONG, "minutes": None}), place[1])
    wait_for(lambda: len(jobs.get(undisturbed).steps()) > step + 1, 300)
    jobs.cancel(undisturbed)
    assert ended(jobs, undisturbed).state == "CANCELLED" and (jobs.get(undisturbed).folder / "manifest.json").exists()
    assert losses(jobs.get(undisturbed))[:step] == losses(job)[:step]


def test_a_page_that_ends_leaves_a_fine_tune_that_can_go_on(jobs, place):
    id = jobs.start(Knobs(**LONG), place[1])
    wait_for(lambda: len(jobs.get(id).steps()) > 2, 300)
    jobs.close(60)
    assert jobs.children[id].returncode is not None and jobs.get(id).state == "PAUSED" and load_checkpoint(jobs.get(id).folder)[0] > 2


def test_a_child_that_fails_says_why(jobs, place, tmp_path):
    jobs.data = str(tmp_path)
    job = ended(jobs, jobs.start(Knobs(**SHORT), place[1]))
    assert job.state == "FAILED" and job.message.startswith("[E_DATA]") and "Traceback" not in job.message
    jobs.cancel(job.id)
    assert jobs.get(job.id).state == "CANCELLED"


@pytest.mark.parametrize("id", [None, 3, "", "..", "a" * 32, "../" + "a" * 32, ["a"]])
def test_what_is_no_job(jobs, id):
    for act in (jobs.get, jobs.pause, jobs.resume, jobs.cancel, jobs.delete):
        refused("E_JOB", act, id)


def test_a_job_that_is_being_deleted_hides_no_other(tmp_path, monkeypatch):
    for name in "01":
        (tmp_path / (name * 32)).mkdir()
        (tmp_path / (name * 32) / "job.json").write_text('{"created": 1, "arguments": []}')
        note(tmp_path / (name * 32), "DONE")
    listed = job_folders(tmp_path)
    (tmp_path / ("0" * 32) / "job.json").unlink()  # after it was listed
    monkeypatch.setattr("videolcm.jobs.job_folders", lambda folder: listed)
    assert [job.id for job in Jobs(tmp_path).list()] == ["1" * 32]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"created": null, "arguments": 3}'])
def test_a_job_that_was_damaged_hides_no_other(tmp_path, text):
    jobs = Jobs(tmp_path)
    for id in ("a" * 32, "b" * 32):
        (tmp_path / id).mkdir()
        (tmp_path / id / "job.json").write_text('{"created": 1, "arguments": []}')
        note(tmp_path / id, "DONE")
    (tmp_path / ("a" * 32) / "job.json").write_text(text)
    assert [job.id for job in jobs.list()] == ["b" * 32]
    refused("E_JOB", jobs.get, "a" * 32)


def test_a_job_that_cannot_be_written_down_leaves_nothing(tmp_path, made, monkeypatch):
    def full(path, value):
        raise AppError("E_DISK", given=path.name)

    (tmp_path / "clip.mp4").write_bytes(made)
    monkeypatch.setattr("videolcm.checkpoint.write_json", full)
    refused("E_DISK", Jobs(tmp_path / "jobs").start, Knobs(), "toybox", [(tmp_path / "clip.mp4", "a ball")])
    assert not list((tmp_path / "jobs").iterdir())


def test_room_is_kept_for_the_last_words(tmp_path):
    def run(worker):
        assert (worker.folder / "reserve").stat().st_size >= 4096
        raise AppError("E_DISK", given="x")

    folder = tmp_path / ("c" * 32)
    folder.mkdir()
    refused("E_DISK", work, folder, run, False)
    last = read_lines(folder / "journal.jsonl")[-1]
    assert not (folder / "reserve").exists() and last["state"] == "PAUSED"
    assert re.fullmatch(r"\[E_DISK\] The disk is full .* resume: the checkpoint before is kept. [\d,]+ MB are free.", last["message"])


def test_a_journal_with_half_a_line(tmp_path):
    folder = tmp_path / ("0" * 32)
    folder.mkdir()
    (folder / "job.json").write_text('{"created": 1, "arguments": []}')
    note(folder, "RUNNING")
    note(folder, "PAUSED")
    with open(folder / "journal.jsonl", "a") as file:
        file.write('{"time": 3, "sta')
    assert Jobs(tmp_path).list()[0].state == "PAUSED"
    note(folder, "DONE")  # is not lost in it
    assert Jobs(tmp_path).list()[0].state == "DONE"


def test_a_clock_that_was_put_back_keeps_no_dead_job_alive(tmp_path):
    folder = tmp_path / ("0" * 32)
    folder.mkdir()
    (folder / "job.json").write_text('{"created": 1, "arguments": []}')
    for ahead, state in ((3600, "FAILED"), (0, "QUEUED")):
        (folder / "journal.jsonl").write_text(json.dumps({"time": time.time() + ahead, "state": "QUEUED", "message": ""}) + "\n")
        assert Jobs(tmp_path).list()[0].state == state


@pytest.mark.parametrize("wish", ["cancel", "pause"])
def test_a_wish_before_there_is_anything_ends_it_as_was_wished(place, tmp_path, wish):
    from videolcm.train_verbs import distil, distill_namespace

    out = tmp_path / "run"
    out.mkdir()
    (out / "wish").write_text(wish)
    args = distill_namespace(["--teacher", place[1], "--data", place[2], "--job", "--out", str(out)])
    assert work(out, lambda worker: distil(args, worker), child=False) == {}
    assert read_lines(out / "journal.jsonl")[-1]["state"] == {"cancel": "CANCELLED", "pause": "PAUSED"}[wish]


def test_a_job_paused_at_its_end_still_makes_its_student(place, tmp_path):
    """Whose last preview has left a student that says as many iterations, in the type that computes."""
    from videolcm.train_verbs import distil, distill_namespace

    words = ["--teacher", place[1], "--data", place[2], "--iterations", "2", "--batch", "2", "--dtype", "bfloat16", "--out", str(tmp_path / "run")]
    distil(distill_namespace(words), Worker(tmp_path / "run"))
    weights = tmp_path / "run" / "student.safetensors"
    finished, args = weights.read_bytes(), distill_namespace([*words, "--job", "--resume"])
    weights.write_bytes(b"a preview")
    assert distil(args, Worker(tmp_path / "run")) == {"folder": str(tmp_path / "run")}
    assert weights.read_bytes() == finished
    refused("E_DONE", distil, distill_namespace([*words, "--resume"]), Worker(tmp_path / "run"))


def test_clips_can_be_prepared_beforehand(place, tmp_path, made, capsys, monkeypatch):
    from videolcm.__main__ import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a red ball.mp4").write_bytes(made)
    (tmp_path / "mine" / "bad.mp4").write_bytes(b"none")
    own = ["distill", "--teacher", place[1], "--data", "mine", "--conditions", "text", "--device", "cpu", "--out", "out"]
    assert main([*own, "--prepare"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out.splitlines()[-1]) == {"clips": 1} and "skipped bad.mp4" in out.err
    assert list((tmp_path / "runs/data/own").glob("*.safetensors")) and not list((tmp_path / "out").glob("step-*"))


def test_a_damaged_checkpoint_is_told_where_the_job_is_shown(place, tmp_path):
    from videolcm.__main__ import main

    run = ["distill", "--teacher", place[1], "--data", place[2], "--batch", "2", "--device", "cpu", "--out", str(tmp_path), "--save-every", "0"]
    assert main([*run, "--iterations", "3"]) == 0
    newest = tmp_path / "step-00000003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    (tmp_path / "job.json").write_text("{}")
    assert main([*run, "--iterations", "4", "--resume"]) == 0
    assert [line["iteration"] for line in read_lines(tmp_path / "log.jsonl")] == [1, 2, 3, 4]
    (told,) = read_lines(tmp_path / "journal.jsonl")
    assert told["message"] == "The checkpoint step-00000003 is damaged; the one before is used."


def test_a_worker_tells_people_only_in_a_jobs_folder(tmp_path):
    Worker(tmp_path).say("Skipped 1 of 2 files.")
    assert not list(tmp_path.iterdir())
    (tmp_path / "job.json").write_text("{}")
    Worker(tmp_path).say("Skipped 1 of 2 files.")
    assert json.loads((tmp_path / "journal.jsonl").read_text())["message"] == "Skipped 1 of 2 files."


# ---- one device


def test_a_clip_goes_before_the_next_iteration(tmp_path):
    trainer, clip, order = Lease(tmp_path), Lease(tmp_path), []
    stop = threading.Event()

    def train():
        while not stop.is_set():
            with trainer.turn():
                order.append("iteration")
                time.sleep(0.01)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for _ in range(3):
            wait_for(lambda: order and order[-1] == "iteration", 300)
            asked = len(order)
            while not clip.try_take():
                time.sleep(0.005)
            begun = len(order)
            assert begun - asked <= 20
            order.append("clip")
            time.sleep(0.1)
            assert len(order) == begun + 1  # nobody works beside it
            clip.give_back()
    finally:
        stop.set()
        thread.join()


def test_who_asks_no_more_blocks_nobody(tmp_path):
    holder, clip = Lease(tmp_path), Lease(tmp_path)
    assert holder.try_take() and not clip.try_take()
    clip.give_back()
    holder.give_back()
    with Lease(tmp_path).turn():
        pass


def test_a_dead_process_leaves_nothing_taken(tmp_path):
    code = "import sys, time; from videolcm.lease import Lease; lease = Lease(sys.argv[1]); print(lease.try_take(), flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n" and not Lease(tmp_path).try_take()
    process.kill()
    process.wait()
    wait_for(Lease(tmp_path).try_take, 300)


def test_the_engine_waits_for_another_process_and_frees_the_device(tmp_path):
    other, engine = Lease(tmp_path), Engine(load=lambda ref, role: FakeModel(role), lease=Lease(tmp_path))
    engine.model("student")
    assert other.try_take()
    events = engine.run(Request("a red ball", steps=1), "student")
    assert isinstance(next(events), Waiting)
    other.give_back()
    assert isinstance(list(events)[-1], Result) and not engine.device.locked() and other.try_take()
    waiting = engine.run(Request("a red ball", steps=1), "student")
    assert isinstance(next(waiting), Waiting)
    waiting.close()
    assert not engine.device.locked()
    other.give_back()
    with other.turn():
        pass


def test_clips_while_it_trains_change_neither(jobs, place):
    alone = Engine(place[1], load=lambda ref, role: models.load(ref, role, "cpu", "float32"))
    request = Request("a red ball rolls", steps=4, frames=8, height=128, width=128)
    *_, expected = alone.run(request, "student")
    quiet = jobs.start(Knobs(**SHORT), place[1])
    assert ended(jobs, quiet).state == "DONE"
    shared = Engine(place[1], load=alone.load, lease=Lease(jobs.folder))
    busy = jobs.start(Knobs(**SHORT), place[1])
    made, beside = set(), 0
    while jobs.children[busy].poll() is None:
        *_, result = shared.run(request, "student")
        made.add(result.sha256)
        beside += 0 < len(jobs.get(busy).steps()) < SHORT["iterations"]
    assert made == {expected.sha256} and beside >= 5
    assert jobs.get(busy).state == "DONE" and losses(jobs.get(busy)) == losses(jobs.get(quiet))
    assert all((jobs.get(id).folder / "student.safetensors").exists() for id in (quiet, busy))
    a, b = ((jobs.get(id).folder / "student.safetensors").read_bytes() for id in (quiet, busy))
    assert a == b
