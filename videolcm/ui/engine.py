"""What the page's handlers share: the models, each loaded once, and the one device, leased to one job at a time.

In: a Request and which model is to answer it. Out: a generator of Waiting, Loading, then the pipeline's Progress and Result.
The lease is a plain lock, given back when the work has really stopped: a queue frees a cancelled job's place while its last step still
runs. It knows nothing about gradio; torch is imported with the first model, not before.
"""

import threading
import time
from contextlib import closing
from dataclasses import dataclass

from videolcm.errors import AppError

POLL = 0.1  # seconds between two looks at a busy device
PATIENCE = 600  # seconds until a waiting job gives up


@dataclass(frozen=True)
class Waiting:
    """Another clip is being made; this one has waited so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Loading:
    """The model is being read from disk for the first time."""

    ref: str


def load_model(ref, role):
    """The door, imported late: it brings torch with it."""
    from videolcm import models

    return models.load(ref, role=role)


class Engine:
    """Models by (ref, role) and the device lease. `load(ref, role) -> VideoModel` may be replaced, as tests do."""

    def __init__(self, load=load_model, patience=PATIENCE):
        self.load, self.patience = load, patience
        self.models, self.loading, self.device = {}, threading.Lock(), threading.Lock()

    def is_loaded(self, ref, role):
        return (ref, role) in self.models

    def model(self, ref, role):
        """The model, loaded if it was not yet; callers that come meanwhile wait and share it. AppError as `models.load`."""
        with self.loading:
            if (ref, role) not in self.models:
                self.models[ref, role] = self.load(ref, role)
            return self.models[ref, role]

    def run(self, request, ref, role):
        """Make one clip: yields Waiting while the device is busy, Loading, Progress ..., and a Result.

        Closing it stops the work within one step and frees the device. AppError E_BUSY after `patience` seconds, and as `generate`.
        """
        from videolcm.pipeline import generate

        yield from self.acquire()
        try:
            if not self.is_loaded(ref, role):
                yield Loading(ref)
            with closing(generate(self.model(ref, role), request)) as events:
                yield from events
        finally:
            self.device.release()

    def acquire(self):
        """Take the device; yields Waiting as long as somebody else has it. The caller releases it."""
        start = time.monotonic()
        while not self.device.acquire(timeout=POLL):
            waited = time.monotonic() - start
            if waited > self.patience:
                raise AppError("E_BUSY")
            yield Waiting(waited)

    def warm(self, ref, role):
        """Load a model and run it once, so that the first visitor's clip is as fast as the second's."""
        from videolcm.pipeline import Request

        for _ in self.run(Request("warm up", steps=1), ref, role):
            pass

    def warm_in_background(self, ref="toybox", role="student"):
        """`warm` in a daemon thread; what it cannot load is said again to the first who asks for it."""

        def work():
            try:
                self.warm(ref, role)
            except AppError as error:
                print(error, flush=True)

        thread = threading.Thread(target=work, name="warm", daemon=True)
        thread.start()
        return thread
