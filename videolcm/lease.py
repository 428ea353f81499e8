"""One device between processes: a clip that somebody waits for goes before the next iteration of a fine-tune.

In: a folder that the processes share. Out: `turn()` for whoever works in small pieces, `try_take()` and `give_back()` for whoever has a person
waiting. Two file locks make a turnstile: a clip keeps the first while it waits for the second, so no iteration begins before it. A killed
process loses its locks, so nothing is ever left taken. It knows nothing about what the device does.
"""

from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import AppError

POLL = 0.02  # seconds between two looks


class Lease:
    """The device, as this process sees it. One thread at a time may hold it; it may be given back from another thread."""

    def __init__(self, folder):
        """AppError E_FOLDER where the folder cannot be made or written to."""
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / "device.lock").touch()
        except OSError as error:
            raise AppError("E_FOLDER", given="fine-tunes", variable="VIDEOLCM_JOBS") from error
        self.next, self.device = (FileLock(Path(folder) / f"{name}.lock", thread_local=False, poll_interval=POLL) for name in ("next", "device"))

    @contextmanager
    def turn(self):
        """The device for one piece of work; waits as long as somebody else has it or has asked for it."""
        with self.next:
            pass
        with self.device:
            yield

    def try_take(self):
        """Asks for the device: True if it is ours now; False means ask again soon, or `give_back()` to ask no more."""
        try:
            if not self.next.is_locked:
                self.next.acquire(timeout=0)
            self.device.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def give_back(self):
        """The device is free again, and so is the place of whoever still waited for it."""
        self.device.release(force=True)
        self.next.release(force=True)
