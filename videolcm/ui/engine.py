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

POLL = 0.1  # seconds between two looks at a busy device
PATIENCE = 600  # seconds until a waiting job gives up

log = logging.getLogger(__name__)


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
    """The models of one `ref` by role, and the device lease. `load(ref, role) -> VideoModel` may be replaced, as tests do."""

    def __init__(self, ref="toybox", load=load_model, patience=PATIENCE):
        self.ref, self.load, self.patience = ref, load, patience
        self.models, self.loading, self.device = {}, threading.Lock(), threading.Lock()

    def model(self, role):
        """The model, loaded if it was not yet; callers that come meanwhile wait and share it. AppError as `models.load`."""
        with self.loading:
            if role not in self.models:
                self.models[role] = self.load(self.ref, role)
            return self.models[role]

    def run(self, request, role):
        """Make one clip: yields Waiting while the device is busy, Loading, Progress ..., and a Result.

        Closing it stops the work within one step and frees the device. AppError E_BUSY after `patience` seconds, and as `generate`.
        """
        from videolcm.pipeline import generate

        yield from self.acquire(role)
        try:
            if role not in self.models:
                yield Loading(self.ref)
            with closing(generate(self.model(role), request)) as events:
                yield from events
        finally:
            self.device.release()

    def acquire(self, role):
        """Take the device; as long as somebody else has it, yields Waiting, or Loading if the model is not there yet. The caller releases it."""
        start = time.monotonic()
        while not self.device.acquire(timeout=POLL):
            waited = time.monotonic() - start
            if waited > self.patience:
                raise AppError("E_BUSY")
            yield Waiting(waited) if role in self.models else Loading(self.ref)

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
