"""Fine-tunes as child processes: `python -m videolcm distill ... --out DIR --job`, with a journal on disk.

In: Knobs. Out: Job, read from the job's folder, so that every process finds all of them again. `Jobs` is the page's
side, `work` the child's: it waits in line for other fine-tunes, heeds wishes (pause, cancel) between iterations, and stops when its
parent is gone, which it sees by its stdin closing. It knows nothing about networks or pages.
"""

import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from .errors import AppError
from .lines import add_lines, read_lines
from .students import JOB_ID, job_folders, jobs_folder

STATES = ("QUEUED", "RUNNING", "PAUSED", "DONE", "FAILED", "CANCELLED")
GOING, STANDING = ("QUEUED", "RUNNING"), ("PAUSED", "FAILED")
ALLOWED = {  # what a job can be told to, in which states
    "pause": GOING,
    "resume": STANDING,
    "cancel": GOING + STANDING,
    "delete": tuple(state for state in STATES if state not in GOING),
}
UNREADABLE = OSError, ValueError, KeyError, TypeError  # a job that is being deleted, or that somebody damaged
START_SECONDS = 60  # until a child that was started must have shown itself
RESERVE = 1 << 14  # bytes on disk for the last words of a job
GRACE_SECONDS = 3.5  # for a checkpoint, once the parent is gone


@dataclass(frozen=True)
class Job:
    """What a job's folder says now. `seconds` is how long ago its process last showed itself, `wish` what it was told and has not done yet."""

    id: str
    folder: Path
    state: str
    message: str
    created: float
    arguments: tuple[str, ...]
    seconds: float = math.inf
    wish: str | None = None

    def steps(self):
        """The lines of log.jsonl as dicts: a training.TrainStep each, whose loss is None where it was not a number."""
        return read_lines(self.folder / "log.jsonl")


class Jobs:
    """Every fine-tune in `folder`. What this object started stops when it goes away, and can be resumed by another."""

    def __init__(self, folder=None, data="toybox"):
        self.folder, self.data = Path(folder or jobs_folder()).absolute(), data
        self.children, self.lock = {}, threading.Lock()

    def list(self):
        """All jobs, the newest first."""
        found = []
        for path in job_folders(self.folder).values():
            with suppress(*UNREADABLE):
                found.append(self.read(path))
        return sorted(found, key=lambda job: -job.created)

    def get(self, id):
        """The job called so. AppError E_JOB."""
        if not isinstance(id, str) or not JOB_ID.fullmatch(id) or id not in job_folders(self.folder):
            raise AppError("E_JOB", given=id)
        try:
            return self.read(self.folder / id)
        except UNREADABLE as error:
            raise AppError("E_JOB", given=id) from error

    def read(self, folder):
        made = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        last = last_note(folder)
        if last["state"] in GOING and not self.is_alive(folder, last):
            last = last_note(folder)  # it may have ended between the two looks
            if last["state"] in GOING:
                last = {"state": "FAILED", "message": str(AppError("E_JOB_LOST"))}
        beat = folder / "heartbeat"
        seconds = time.time() - beat.stat().st_mtime if beat.exists() else math.inf
        wish = wish_in(folder) if last["state"] in GOING else None
        return Job(folder.name, folder, last["state"], last["message"], made["created"], tuple(made["arguments"]), seconds, wish)

    def is_alive(self, folder, last):
        """Whether the job's process is there: this object's child, or whoever holds its lock; or so new that it cannot have taken it yet."""
        child = self.children.get(folder.name)
        if child is not None:
            return child.poll() is None
        if last["state"] == "QUEUED" and abs(time.time() - last["time"]) < START_SECONDS:  # the clock may have been put back
            return True
        with self.lock:  # two looks at once would take each other for the process
            try:
                with FileLock(folder / "alive.lock", timeout=0):
                    return False
            except Timeout:
                return True

    def close(self, seconds=6.0):
        """Every fine-tune of this object saves and stops, and can be resumed; what has not after so many seconds is killed."""
        going = [child for child in self.children.values() if child.poll() is None]
        end = time.monotonic() + seconds
        for child in going:
            child.stdin.close()
        for child in going:
            try:
                child.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def start(self, knobs, teacher="toybox", clips=()):
        """A new job; its id. It waits for those before it. `clips`: pairs (path, caption) to train on, which it keeps copies of.

        AppError E_INPUT, E_DISK where they cannot be copied; then nothing is left of it.
        """
        from .checkpoint import write_json
        from .own_files import lay_out

        folder = self.folder / uuid4().hex
        folder.mkdir(parents=True)
        try:
            if clips:
                lay_out(folder / "clips", clips)
            arguments = ["--teacher", teacher, "--data", str(folder / "clips") if clips else self.data, *knobs.arguments()]
            write_json(folder / "job.json", {"created": time.time(), "arguments": arguments})
            self.spawn(folder, arguments)
        except AppError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder.name

    def pause(self, id):
        """Stop with a checkpoint. AppError E_JOB_STATE unless it is going."""
        self.wish(self.expect(id, "pause"), "pause")

    def resume(self, id):
        """Go on from the newest checkpoint, bit for bit. AppError E_JOB_STATE unless it stands."""
        job = self.expect(id, "resume")
        (job.folder / "wish").unlink(missing_ok=True)
        self.spawn(job.folder, job.arguments)

    def cancel(self, id):
        """Stop for good; the last checkpoint stays and becomes a student. AppError E_JOB_STATE if it has ended."""
        job = self.expect(id, "cancel")
        if job.state not in GOING and not has_checkpoint(job.folder):
            note(job.folder, "CANCELLED")
            return
        self.wish(job, "cancel")
        if job.state not in GOING:
            self.spawn(job.folder, job.arguments)  # it only makes the student

    def delete(self, id):
        """Remove everything of it. AppError E_JOB_STATE while it is going."""
        shutil.rmtree(self.expect(id, "delete").folder)
        self.children.pop(id, None)

    def expect(self, id, verb):
        """The job called so. AppError E_JOB, and E_JOB_STATE unless ALLOWED lets it be told to."""
        job = self.get(id)
        if job.state not in ALLOWED[verb]:
            raise AppError("E_JOB_STATE", state=job.state, given=verb)
        return job

    def wish(self, job, what):
        from .checkpoint import write_atomic

        write_atomic(job.folder / "wish", lambda temporary: temporary.write_text(what, encoding="utf-8"))

    def spawn(self, folder, arguments):
        """Starts the child. Its stdin is a pipe that closes when this process ends, however it ends."""
        note(folder, "QUEUED")
        resume = ["--resume"] if has_checkpoint(folder) else []
        command = [sys.executable, "-m", "videolcm", "distill", *arguments, "--out", str(folder), "--job", *resume]
        paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "VIDEOLCM_JOBS": str(self.folder)}
        with open(folder / "output.txt", "ab") as output:
            self.children[folder.name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=env, start_new_session=True
            )


def has_checkpoint(folder):
    return any(folder.glob("step-*.json"))


def wish_in(folder):
    with suppress(OSError):
        return (folder / "wish").read_text(encoding="utf-8")
    return None


def note(folder, state, message=""):
    """A line in a job's journal. AppError E_DISK."""
    add_lines(folder / "journal.jsonl", {"time": time.time(), "state": state, "message": message})


def last_note(folder):
    """The last line of a job's journal; as if just queued where nothing is written yet."""
    return (read_lines(folder / "journal.jsonl") or [{"state": "QUEUED", "time": (folder / "job.json").stat().st_mtime, "message": ""}])[-1]


# ---- the child's side


class Stopped(Exception):
    """Somebody wished that the work ends before there was anything to keep."""


class Worker:
    """The job in `folder`, for the process that does it."""

    def __init__(self, folder):
        self.folder, self.orphaned, self.ended = Path(folder), False, False

    @property
    def wish(self):
        """ "pause", "cancel", "orphan" (the parent is gone), or None: go on."""
        return "orphan" if self.orphaned else wish_in(self.folder)

    def heed(self):
        """Raises Stopped if there is a wish: for moments with nothing to save."""
        if self.wish:
            raise Stopped

    def say(self, sentence):
        """What people should know of the job, shown with it; nothing where the folder is no job's."""
        if (self.folder / "job.json").exists():
            note(self.folder, "RUNNING", sentence)

    def watch(self, child):
        """Threads: one shows that the work goes on, in a child process one waits for the end of the parent."""
        for task in (self.beat, self.await_parent) if child else (self.beat,):
            threading.Thread(target=task, daemon=True).start()

    def beat(self):
        while not self.ended:
            with suppress(OSError):
                (self.folder / "heartbeat").touch()
            time.sleep(1)

    def await_parent(self):
        while os.read(0, 1024):
            pass
        self.orphaned = True
        time.sleep(GRACE_SECONDS)
        if last_note(self.folder)["state"] in GOING:
            with suppress(AppError):
                note(self.folder, "PAUSED")
        for helper in multiprocessing.active_children():
            helper.kill()
        os._exit(3)  # the newest checkpoint is whole, as after any death

    @contextmanager
    def line(self):
        """Waits until no other fine-tune runs, unless only the student is to be made. Raises Stopped at a wish."""
        lock = FileLock(self.folder.parent / "training.lock")
        while not (self.wish == "cancel" and has_checkpoint(self.folder)):
            with suppress(Timeout):
                lock.acquire(timeout=0.2)
                break
            self.heed()
        try:
            yield
        finally:
            lock.release()


ENDS = {None: "DONE", "pause": "PAUSED", "cancel": "CANCELLED", "orphan": "PAUSED"}


def last_words(error, folder):
    """(state, message) of a job that ended by this error: one for which the disk had no room waits until there is some."""
    if isinstance(error, KeyboardInterrupt):
        return "PAUSED", ""
    if not isinstance(error, AppError):
        return "FAILED", str(AppError("E_INTERNAL"))
    if error.code == "E_DISK":
        return "PAUSED", f"{error} {shutil.disk_usage(folder).free >> 20:,} MB are free."
    return "FAILED", str(error)


def work(folder, run, child=True):
    """`run(worker)` as the job in `folder`, with its states in the journal; returns what it returns, {} if it was stopped before it began.

    `child`: whether this process does nothing else, and ends when its stdin closes. AppError E_JOB_FOLDER if somebody does this job already.
    """
    worker, result = Worker(folder), {}
    try:
        lock = FileLock(worker.folder / "alive.lock", thread_local=False).acquire(timeout=5)
    except Timeout:
        raise AppError("E_JOB_FOLDER", given=worker.folder.name) from None
    reserve = worker.folder / "reserve"  # given up on a full disk, so that there is room to say so
    with lock:
        worker.watch(child)
        with suppress(OSError):
            reserve.write_bytes(bytes(RESERVE))
        try:
            with suppress(Stopped), worker.line():
                note(worker.folder, "RUNNING")
                result = run(worker)
        except BaseException as error:
            reserve.unlink(missing_ok=True)
            note(worker.folder, *last_words(error, worker.folder))
            raise
        finally:
            worker.ended = True
        reserve.unlink(missing_ok=True)
        note(worker.folder, ENDS[worker.wish])
        (worker.folder / "wish").unlink(missing_ok=True)  # it is done
    return result
