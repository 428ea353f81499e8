"""A Hugging Face Space whose GPU is shared (ZeroGPU): the page has none; for each clip one is lent to a process that is forked for it.

In: an Engine. Out: the same Engine, whose models are "on the GPU" and whose jobs are computed there, by the one function that is decorated with
spaces.GPU. On every other machine nothing of this is called, and `spaces` is not imported.

What spaces 0.51 does, by its code: a decorated generator function is run in a forked process; arguments and what it yields go through queues, so
they must be picklable (a Clip, a Comparison, the pipeline's dataclasses of numpy arrays are); closing it stops the other process after its next
event. What differs from a device of one's own, and what is done about it:
- objects are not shared: the forked process finds the models in `engine.models` as they were when it was forked, so all that can be asked for are
  loaded before the page is up, in the main thread, where `spaces` pretends a GPU; and no students are distilled there (distil_handlers.guard_of);
- an exception arrives as its class's name alone, unless it is a gr.Error: an AppError is sent as an event and raised on this side;
- a comparison does not hear which cells are stopped: they are left out on this side. Stopping everything stops the GPU too; a single cell that is
  stopped is still computed.
The GPU itself has never been tried: tests replace what talks to Hugging Face and to CUDA, and run the rest of the real decorator.
"""

import math
from contextlib import closing

from videolcm.errors import AppError
from videolcm.ui.engine import Clip

START = 15  # seconds to begin with: a process, weights that go to the GPU, a network for maps. Guessed, as the next two: nothing was measured there
STEP = 0.25  # seconds for a step of 16 frames of 256x256, guidance included
EACH = 3  # seconds for decoding a clip, and for measuring it


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
            yield from job.events(engine.models)
        except AppError as error:
            yield error

    engine.compute = lambda job, models: received(lent(job), job)


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
