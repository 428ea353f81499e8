"""How long the stages of a clip take. In: blocks of code and generators, by stage. Out: seconds. It knows nothing about what they do."""

import time
from contextlib import contextmanager

STAGES = ("text", "conditions", "denoise", "decode", "write")


class Stopwatch:
    """Seconds per stage. Only what happens inside `with watch("stage")` counts, never the time that a generator's consumer takes."""

    def __init__(self):
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def __call__(self, stage):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def each(self, stage, events):
        """Passes `events` on; the seconds until each of them count."""
        while True:
            with self(stage):
                event = next(events, None)
            if event is None:
                return
            yield event


def timed(seconds):
    """Seconds per stage with their sum as total."""
    stages = {stage: seconds[stage] for stage in STAGES}
    return {**stages, "total": sum(stages.values())}
