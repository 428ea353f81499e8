"""A Hugging Face Space whose GPU is shared (ZeroGPU): the page has none; for each clip one is lent to a process that is forked for it.

In: an Engine. Out: the same Engine, whose models are "on the GPU" and whose jobs are computed there, by a function that is decorated with
spaces.GPU; and LentJobs, whose fine-tunes are done in parts by another one. On every other machine nothing of this is called, and `spaces` is
not imported.

What spaces 0.51 does, by its code: a decorated generator function is run in a forked process; arguments and what it yields go through queues, so
they must be picklable (a Clip, a Comparison, the pipeline's dataclasses of numpy arrays are); closing it stops the other process after its next
event. What differs from a device of one's own, and what is done about it:
- objects are not shared: the forked process finds the models in `engine.models` as they were when it was forked, so the engine's own are loaded
  before the page is up, in the main thread, where `spaces` pretends a GPU; students that were distilled since then it loads itself;
- a GPU is taken back after the seconds that were asked for, so a fine-tune is done in parts, each of which ends in a checkpoint;
- an exception arrives as its class's name alone, unless it is a gr.Error: an AppError is sent as an event and raised on this side;
- a comparison does not hear which cells are stopped: they are left out on this side. Stopping everything stops the GPU too; a single cell that is
  stopped is still computed.
The GPU itself has never been tried: tests replace what talks to Hugging Face and to CUDA, and run the rest of the real decorator.
"""

import math
import os
import subprocess
import sys
import threading
from contextlib import closing, suppress
from contextvars import copy_context
from pathlib import Path

import gradio as gr

from videolcm.errors import AppError
from videolcm.jobs import Jobs, has_checkpoint, note, work
from videolcm.ui.engine import Clip, stamp

START = 15  # seconds to begin with: a process, weights that go to the GPU, a network for maps. Guessed, as the next two: nothing was measured there
STEP = 0.25  # seconds for a step of 16 frames of 256x256, guidance included
EACH = 3  # seconds for decoding a clip, and for measuring it
PART, AROUND = 50, 40  # seconds that a part of a fine-tune trains, and for what is around it: a process, weights, clips of before, a checkpoint


def on_zero_gpu(environ):
    """Whether these environment variables are those of such a Space, as `spaces` reads them."""
    return environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def lend_gpu(engine):
    """Load the engine's models, and have its jobs computed on a GPU that is lent. To be called in the main thread before the page is launched."""
    import spaces
    import torch

    for role in ("student", "teacher"):
        engine.model(role)

    @spaces.GPU(duration=seconds_for)
    def lent(job):
        torch.set_num_threads(1)  # as in a DataLoader's workers: threads of the processor's products do not survive a fork
        try:
            yield from job.events(models_there(engine, job))
        except AppError as error:
            yield error

    engine.compute = lambda job, model: received(lent(job), job)


def models_there(engine, job):
    """{key: VideoModel} for a job in a process that was forked earlier: what was distilled since then is read there."""
    for key in job.keys:
        if key not in engine.models or engine.stamps[key] != stamp(key[0]):
            written = stamp(key[0])
            engine.models[key], engine.stamps[key] = engine.load(*key), written
    return engine.models


def seconds_for(job):
    """For how long a Clip or a Comparison wants the GPU, in whole seconds: by steps, frames and size. Less of it waits less."""
    sizes = [(one.steps, one.frames / 16 * one.width / 256 * one.height / 256) for one in job.requests()]
    return math.ceil(START + sum(STEP * steps * size + EACH * max(1.0, size) for steps, size in sizes))


def received(events, job):
    """The events of a job as they come from the other process. AppError as `job.events`."""
    with closing(raised(events)) as told:
        yield from told if isinstance(job, Clip) else heeding(told, job)


def raised(events):
    """`events`, but an AppError among them is raised."""
    with closing(events):
        for event in events:
            if isinstance(event, AppError):
                raise event
            yield event


def heeding(events, job):
    """What compare yields, but for the cells that come into `job.stopped`: a CellStopped instead. Ends early when no other cell is left."""
    from videolcm.compare import CellDone, CellStopped

    left, done = list(job.asked()), set()
    for event in events:
        if isinstance(event, CellDone) and event.cell in left and event.cell not in job.stopped:
            left.remove(event.cell)
            done.add(event.cell)
        if event.cell in done or (event.cell in left and event.cell not in job.stopped):
            yield event
        over = all(cell in job.stopped for cell in left)
        for cell in [cell for cell in left if cell in job.stopped and (over or cell == event.cell)]:
            left.remove(cell)
            yield CellStopped(cell)
        if not left and job.reference not in done:  # else the others' figures beside it are still to come
            return


# ---- distilling


class LentJobs(Jobs):
    """Fine-tunes in parts, each on a GPU that is lent for it and with a checkpoint at its end. To be made before the page is launched.

    Threads of this process wait for the GPUs: it is to this one that they are lent, and on account of the visitor who pressed Start. What needs
    none is done in child processes on the processor.
    """

    def __init__(self, folder=None, data="toybox"):
        import spaces
        import torch

        super().__init__(folder, data)

        @spaces.GPU(duration=PART + AROUND)
        def part(arguments):
            """A part of `distill` on the command line: what it tells, or its AppError."""
            from videolcm.train_verbs import distill_namespace, run_distill

            torch.set_num_threads(1)  # as in lend_gpu
            try:
                return run_distill(distill_namespace(arguments))
            except AppError as error:
                return error

        self.part = part

    def spawn(self, folder, arguments):
        """Starts the thread that does the job; pausing and cancelling reach its parts by the folder, as elsewhere."""
        note(folder, "QUEUED")
        command = [*arguments, "--out", str(folder), "--dtype", "bfloat16", "--save-every", str(PART / 2)]  # should a GPU be taken back early

        def run():
            with suppress(AppError):  # the journal says it
                work(folder, lambda worker: self.in_parts(worker, command), child=False)

        threading.Thread(target=copy_context().run, args=(run,), daemon=True).start()

    def in_parts(self, worker, command):
        """The whole job, as far as its minutes go and nobody wishes otherwise; what the last part told. AppError E_JOB_PART, and as `distill`."""
        from videolcm.train_verbs import distill_namespace

        asked, told = distill_namespace(command), {}
        if worker.wish == "cancel":
            return on_the_processor(worker, [*command, "--resume"])  # only the student is still to be made
        on_the_processor(worker, [*command, "--prepare"])
        left = math.inf if asked.minutes is None else asked.minutes * 60
        while not worker.wish and left > 0 and told.get("iterations", 0) < asked.iterations:
            more = ["--minutes", str(min(PART, left) / 60)]
            more += [] if asked.preview_every is None else ["--preview-every", str(min(PART / 2, asked.preview_every))]  # else none would come
            told = self.lent([*command, *more, *(["--resume"] if has_checkpoint(worker.folder) else [])])
            told.setdefault("iterations", asked.iterations)  # nothing but the student was missing
            left -= PART
        return told

    def lent(self, command):
        """A part of the job. AppError."""
        try:
            told = self.part(command)
        except gr.Error as error:  # there is no GPU, or it was taken back
            raise AppError("E_JOB_PART", detail=str(error.message).strip(". ")) from error
        if isinstance(told, AppError):
            raise told
        return told


def on_the_processor(worker, command):
    """`distill` in a process of its own, which knows no GPU and no page; what it says goes where a job's output goes. AppError E_JOB_PART, Told."""
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
    whole = [sys.executable, "-m", "videolcm", "distill", *command, "--device", "cpu"]
    done = subprocess.run(whole, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    with suppress(OSError), open(worker.folder / "output.txt", "a", encoding="utf-8") as output:
        output.write(done.stderr)
    if done.returncode and not worker.wish:
        last = (done.stderr.splitlines() or ["it ended without a word"])[-1]
        raise Told(last) if last.startswith("[E_") else AppError("E_JOB_PART", detail=last)
    return {}


class Told(AppError):
    """An AppError of another process, in its own words."""

    def __init__(self, line):
        ValueError.__init__(self, line)
