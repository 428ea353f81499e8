"""What the page's handlers share: the models, each loaded once, and the one device, leased to one job at a time.

In: a Request and the role of the model that is to answer it. Out: a generator of Waiting, Loading, then the pipeline's Progress and Result.
The lease is a plain lock, given back when the work has really stopped: a queue frees a cancelled job's place while its last step still
runs. It knows nothing about gradio; torch is imported with the first model, not before.
"""

import logging
import threading
import time
from contextlib import closing
from dataclasses import dataclass

from videolcm.errors import AppError
from videolcm.students import students

POLL = 0.1  # seconds between two looks at a busy device
PATIENCE = 600  # seconds until a waiting job gives up
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


def stamp(ref):
    """When a student that was distilled here was written last: one in training is written again and again. None for other models."""
    folder = students().get(ref)
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
    (a lease.Lease, or None where nobody else computes). `load(ref, role) -> VideoModel` may be replaced, as tests do."""

    def __init__(self, ref="toybox", load=load_model, patience=PATIENCE, lease=None):
        self.ref, self.load, self.patience, self.lease = ref, load, patience, lease
        self.models, self.stamps, self.loading, self.device = {}, {}, threading.Lock(), threading.Lock()

    def model(self, role, ref=None):
        """The model, loaded if it was not yet; callers that come meanwhile wait and share it. AppError as `models.load`."""
        key = (ref or self.ref, role)
        with self.loading:
            if key not in self.models or self.stamps[key] != stamp(key[0]):
                self.stamps[key] = stamp(key[0])
                self.models[key] = self.load(*key)
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
        from videolcm.pipeline import generate

        key = (ref or self.ref, role)
        yield from self.leased((key,), lambda models: generate(models[key], request))

    def compare(self, request, cells, reference, stopped):
        """Make one clip in several ways under one lease: as `run`, but yields what `compare.compare` does. AppError as there."""
        from videolcm.compare import compare, model_of, requests_of

        keys = {cell.role: model_of(cell.role, self.ref) for cell in requests_of(request, cells, reference)}

        def make(models):
            return compare({role: models[ref, kind] for role, (ref, kind) in keys.items()}, request, cells, reference, stopped)

        yield from self.leased(tuple(keys.values()), make)

    def leased(self, keys, make):
        """What `make({(ref, role): model})` yields, while the device is this job's alone."""
        yield from self.acquire(keys)
        try:
            if not self.models.keys() >= set(keys):
                yield Loading(keys[0][0])
            with closing(make({(ref, role): self.model(role, ref) for ref, role in keys})) as events:
                yield from events
        finally:
            self.release()

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
