"""What the page's handlers share: the models, each loaded once, and the one device, leased to one job at a time.

In: a Request and the role of the model that is to answer it. Out: a generator of Waiting, Loading, then the pipeline's Progress and Result.
What is to be computed is a Clip or a Comparison, which hold no model, so that they can be sent to where the device is (space.py). The lease is
a plain lock, given back when the work has really stopped: a queue frees a cancelled job's place while its last step still runs.
It knows nothing about gradio; torch is imported with the first model, not before.
"""

import logging
import math
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from videolcm.errors import AppError
from videolcm.students import NAME, students

POLL = 0.1  # seconds between two looks at a busy device
PATIENCE = 600  # seconds until a waiting job gives up
SHORT = ("E_MEMORY", "E_MODEL_MEMORY")
FOREIGN = 3  # other models than the engine's own that stay loaded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Waiting:
    """Another clip is being made; this one has waited so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Loading:
    """The model is being read from disk for the first time."""

    ref: str


@dataclass(frozen=True)
class Clip:
    """One clip to make by the model `key`, (ref, role)."""

    key: tuple
    request: Any

    @property
    def keys(self):
        return (self.key,)

    def requests(self):
        """The pipeline.Requests that the device has to answer."""
        return [self.request]

    def events(self, models):
        """What `generate` yields, by `models`, {key: VideoModel}."""
        from videolcm.pipeline import generate

        return generate(models[self.key], self.request)


@dataclass(frozen=True)
class Comparison:
    """One clip to make in several ways. A copy in another process has nothing in `stopped`: it would not hear of what comes in later."""

    ref: str
    request: Any
    cells: Any
    reference: Any
    stopped: Any = frozenset()

    def __reduce__(self):
        return Comparison, (self.ref, self.request, self.cells, self.reference)

    def asked(self):
        """{cell: Request}. AppError as `compare.requests_of`."""
        from videolcm.compare import requests_of

        return requests_of(self.request, self.cells, self.reference)

    def key_of(self):
        """{the role of a cell: (ref, role) of its model}."""
        from videolcm.compare import model_of

        return {cell.role: model_of(cell.role, self.ref) for cell in self.asked()}

    @property
    def keys(self):
        return tuple(self.key_of().values())

    def requests(self):
        return list(self.asked().values())

    def events(self, models):
        """What `compare.compare` yields."""
        from videolcm.compare import compare

        by_role = {role: models[key] for role, key in self.key_of().items()}
        return compare(by_role, self.request, self.cells, self.reference, self.stopped)


def here(job, model):
    """The events of a Clip or a Comparison, computed in this process; `model(role, ref)` as Engine.model."""
    return job.events({(ref, role): model(role, ref) for ref, role in job.keys})


def stamp(ref):
    """When a student that was distilled here was written last: one in training is written again and again. None for other models."""
    folder = students().get(ref) if ref.startswith(NAME) else None
    try:
        return folder and (folder / "manifest.json").stat().st_mtime_ns
    except OSError:  # deleted meanwhile
        return None


def load_model(ref, role):
    """The door, imported late: it brings torch with it."""
    from videolcm import models

    return models.load(ref, role=role)


class Engine:
    """Models by (ref, role), `ref` unless another is asked for, and the device: leased here by a lock, between processes by `lease`
    (a lease.Lease, or None where nobody else computes). `load(ref, role) -> VideoModel` may be replaced, as tests do, and so may
    `compute(job, model)`, a generator of the job's events by what `self.model` gives, as space.py does."""

    def __init__(self, ref="toybox", load=load_model, patience=PATIENCE, lease=None):
        self.ref, self.load, self.patience, self.lease = ref, load, patience, lease
        self.compute = here
        self.pace = 1.0  # seconds that a job has the device, lately
        self.models, self.stamps, self.loading, self.device = {}, {}, threading.Lock(), threading.Lock()

    def model(self, role, ref=None):
        """The model, loaded if it was not yet; callers that come meanwhile wait and share it. AppError as `models.load`."""
        key = (ref or self.ref, role)
        with self.loading:
            written = stamp(key[0])
            if key not in self.models or self.stamps[key] != written:
                self.models[key] = self.load(*key)
                self.stamps[key] = written  # the one before: who fails to load is asked again, and so is what was written meanwhile
                self.forget(key)
            return self.models[key]

    def forget(self, newest):
        """Of other models than its own the engine keeps the last FOREIGN."""
        foreign = [key for key in self.models if key[0] != self.ref and key != newest]
        for key in foreign[: len(foreign) - FOREIGN + 1]:
            del self.models[key]

    def run(self, request, role, ref=None):
        """Make one clip: yields Waiting while the device is busy, Loading, Progress ..., and a Result.

        Closing it stops the work within one step and frees the device. AppError E_BUSY after `patience` seconds, and as `generate`.
        """
        yield from self.leased(Clip((ref or self.ref, role), request))

    def compare(self, request, cells, reference, stopped):
        """Make one clip in several ways under one lease: as `run`, but yields what `compare.compare` does. AppError as there."""
        yield from self.leased(Comparison(self.ref, request, cells, reference, stopped))

    def leased(self, job):
        """The events of a Clip or a Comparison, while the device is this job's alone."""
        keys = job.keys
        yield from self.acquire(keys)
        began = time.monotonic()
        try:
            if not self.models.keys() >= set(keys):
                yield Loading(keys[0][0])
            with closing(self.compute(job, self.model)) as events:
                yield from events
        except AppError as error:
            if error.code in SHORT:
                self.keep_own()
            raise
        finally:
            self.pace += (time.monotonic() - began - self.pace) / 4
            self.release()

    def keep_own(self):
        """Memory ran out: of the models only the engine's own stay loaded, so that the next clip has more room."""
        for key in [key for key in self.models if key[0] != self.ref]:
            del self.models[key]

    def seconds_for(self, jobs):
        """About how long so many jobs take, one after another: a whole number from 1."""
        return max(1, math.ceil(jobs * self.pace))

    def acquire(self, keys):
        """Take the device; as long as somebody else has it, yields Waiting, or Loading if a model is not there yet. The caller releases it."""
        yield from self.wait_for(self.take_here, keys)
        try:
            yield from self.wait_for(self.take_between, keys)
        except BaseException:
            self.release()
            raise

    def wait_for(self, take, keys):
        start = time.monotonic()
        while not take():
            waited = time.monotonic() - start
            if waited > self.patience:
                raise AppError("E_BUSY")
            yield Waiting(waited) if self.models.keys() >= set(keys) else Loading(keys[0][0])

    def take_here(self):
        return self.device.acquire(timeout=POLL)

    def take_between(self):
        if self.lease is None or self.lease.try_take():
            return True
        time.sleep(POLL)
        return False

    def release(self):
        """The device is free, for other processes and for this one."""
        if self.lease is not None:
            self.lease.give_back()
        self.device.release()

    def warm(self, role="student"):
        """Load a model and run it once, so that the first visitor's clip is as fast as the second's. AppError as `run`."""
        from videolcm.pipeline import Request

        for _ in self.run(Request("warm up", steps=1), role):
            pass

    def warm_in_background(self):
        """`warm` in a daemon thread. What cannot be loaded is logged, and said again to everybody who asks for it."""
        thread = threading.Thread(target=self._warm_and_log, name="warm", daemon=True)
        thread.start()
        return thread

    def _warm_and_log(self):
        try:
            self.warm()
        except AppError as error:
            log.warning("%s", error)
