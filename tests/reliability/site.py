"""A page in a process of its own that makes known clips, and what that process costs.

`python -m tests.reliability.site` prints its address, then answers every line of JSON on stdin ({}, {"delay": seconds a step}, {"clips": true} or
{"clean": true}) by one line on stdout: what it holds, and the most that ever computed at once. It ends when its stdin does.
SITE_MODEL=toybox: the built-in model.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

from . import ROOT

MEMORY = 600 << 20  # bytes of address space that a child has for reading a file, less than outside of tests


class Site:
    """The child, from outside."""

    def __init__(self, **environ):
        self.folder = tempfile.TemporaryDirectory(prefix="reliability-")
        place = {"TMPDIR": self.folder.name, "GRADIO_TEMP_DIR": f"{self.folder.name}/gradio", "VIDEOLCM_JOBS": f"{self.folder.name}/jobs"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.site"],
            cwd=ROOT,
            env={**os.environ, **place, "VIDEOLCM_CLIPS": f"{self.folder.name}/clips", "OMP_NUM_THREADS": "1", **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(Path(self.folder.name) / "log", "wb"),  # noqa: SIM115  as long as the child
            text=True,
        )
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.log()

    def log(self):
        return (Path(self.folder.name) / "log").read_text(errors="replace")

    def tell(self, **orders):
        """What the child holds now, once it did as told."""
        print(json.dumps(orders), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)
        self.folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Counter:
    """How many are inside a block, and the most that ever were."""

    def __init__(self):
        self.inside = self.most = self.calls = 0
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def __call__(self):
        with self.lock:
            self.inside, self.calls = self.inside + 1, self.calls + 1
            self.most = max(self.most, self.inside)
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1


def known_model(role="student", delay=0.0, inside=None):
    """A FakeModel whose square is as bright as the seed says, so that nobody's clip can be taken for another's."""
    import torch
    from conftest import FakeModel, moving_square

    class KnownModel(FakeModel):
        def denoise(self, x_t, t, cond):
            with inside() if inside else contextlib.nullcontext():
                answer = super().denoise(x_t, t, cond)
            if cond.depth is None and cond.sketch is None and cond.masked is None:
                bright = torch.sigmoid(x_t.flatten(1)[:, :64].sum(1) / 8).view(-1, 1, 1, 1, 1)
                answer = answer + (moving_square(x_t.shape[1:]) > 0) * (bright - 0.8)
            return answer

    return KnownModel(role, delay)


def main():
    from gradio.route_utils import delete_files_created_by_app

    from videolcm import conditions, footage
    from videolcm.history import History
    from videolcm.jobs import Jobs
    from videolcm.lease import Lease
    from videolcm.ui import Engine, build_ui, launch
    from videolcm.ui.distil_handlers import Guard

    inside, models = Counter(), []
    for slow in ("hed", "hed-fast", "pidinet"):
        del conditions.EXTRACTORS[slow]

    def load(ref, role):
        models.append(known_model(role, 0.0, inside))
        return models[-1]

    footage.LIMITS = replace(footage.LIMITS, memory=MEMORY)
    if os.environ.get("SITE_SLOW"):  # nobody judges seconds
        footage.LIMITS = replace(footage.LIMITS, wall=600.0, cpu=600)
    jobs = Jobs()
    loading = {} if os.environ.get("SITE_MODEL") else {"load": load}
    engine = Engine(lease=Lease(jobs.folder), **loading)
    guard = Guard() if os.environ.get("SITE_DISTILS") else Guard("this page only makes clips")
    page = build_ui(engine, tempfile.mkdtemp(), (jobs, guard, {"toybox": "toybox"}), History())
    _, url, _ = launch(page, engine, jobs, quiet=True, server_name="127.0.0.1")
    engine.warm()
    print(url.rstrip("/"), flush=True)
    for line in sys.stdin:
        orders = json.loads(line)
        for model in models:
            model.delay = orders.get("delay", model.delay)
        if orders.get("clean"):
            delete_files_created_by_app(page, None)
        print(json.dumps(held(engine, inside, orders.get("clips") or orders.get("clean"))), flush=True)
    os._exit(0)


def held(engine, inside, clips):
    """Megabytes, threads, open files, `clips` that lie about where they should not, those `given` to visitors, which gradio removes; whether the
    device is taken, the most that computed at once."""
    status = Path("/proc/self/status").read_text()
    files = list(Path(tempfile.gettempdir()).rglob("*.mp4")) if clips else []
    return {
        "rss": int(status.split("VmRSS:")[1].split()[0]) / 1024,
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
        "clips": len([path for path in files if not {"gradio", "clips"} & set(path.parts)]),
        "given": len([path for path in files if "gradio" in path.parts]),
        "taken": engine.device.locked(),
        "most": inside.most,
        "steps": inside.calls,
    }


if __name__ == "__main__":
    main()
