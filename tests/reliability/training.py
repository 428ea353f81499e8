"""Lines on training: deaths (R5), damaged checkpoints (R6), a full disk (R7), clips made meanwhile (R14)."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import ROOT

KILLS = 8  # of one run, at most
SIZES = (0, 1, 50, 300, 1000, 3000)  # bytes that a file may have, where a disk is full


def r5(n, random, figures):
    """`n` kills, two of five inside a save, spread over runs that are compared with an undisturbed one: loss file, weights, EMA, optimiser."""
    saving = kills = runs = 0
    with tempfile.TemporaryDirectory() as place, Nursery() as nursery:
        whole = Path(place, "whole")
        nursery.start(whole, False)
        nursery.ended(True)
        while kills < n:
            parts, killed = Path(place, f"parts{runs}"), 0
            runs += 1
            while killed < min(KILLS, n - kills):
                nursery.start(parts, any(parts.glob("step-*.json")))
                died, inside = kill_at(nursery, parts, random, 2 * saving <= kills + killed)
                saving += inside
                killed += died
                if not died:  # it came to its end
                    break
            nursery.start(parts, any(parts.glob("step-*.json")))
            nursery.ended(True)
            problem = differs(whole, parts)
            for _ in range(killed):
                yield problem
            kills += killed
            if not killed:
                yield "no kill hit the run"
                return
    figures |= {"kills": kills, "of them inside a save": saving, "runs": runs}
    yield "" if saving >= 0.4 * n else f"only {saving} kills inside a save"


class Nursery:
    """A process that has torch ready and forks one run after another. (multiprocessing's forkserver lost a death among some fifty.)"""

    def __init__(self):
        command = [sys.executable, "-c", "from tests.reliability.training import nursery; nursery()"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def ask(self, **order):
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def start(self, folder, resume):
        self.pid = self.ask(folder=str(folder), resume=resume)

    def ended(self, wait=False):
        """The exit code of the run, None as long as it goes on."""
        return self.ask(pid=self.pid, wait=wait)


def nursery():
    """The other side of a Nursery."""
    import test_training as small

    for line in sys.stdin:
        order = json.loads(line)
        if "folder" in order:
            pid = os.fork()
            if not pid:
                small.run_to_be_killed(Path(order["folder"]), order["resume"])
                os._exit(0)
            print(pid, flush=True)
        else:
            pid, status = os.waitpid(order["pid"], 0 if order["wait"] else os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)


def kill_at(nursery, folder, random, inside):
    """Kill the run a moment after its next checkpoint, or inside the save after that: (whether it was alive, whether a save was cut)."""
    before, code = set(folder.glob("step-*.json")), None
    while code is None and set(folder.glob("step-*.json")) <= before:
        time.sleep(0.001)
        code = nursery.ended()
    time.sleep(random.uniform(0, 0.02))
    while inside and code is None and not any(folder.glob(".step-*")):
        code = nursery.ended()
    if code is None:
        os.kill(nursery.pid, signal.SIGKILL)
        code = nursery.ended(True)
    return code == -signal.SIGKILL, any(folder.glob(".*"))


def differs(whole, parts):
    """What differs between two runs, "" if nothing does and nothing is left over."""
    from test_training import same

    from videolcm.checkpoint import load_checkpoint

    (n, tensors, state), (m, others, other) = load_checkpoint(whole), load_checkpoint(parts)
    if n != m or state != other or not same(tensors, others):
        return f"steps {n} and {m}, other tensors or state"
    rows = [[(row["iteration"], row["loss"]) for row in map(json.loads, (folder / "log.jsonl").open())] for folder in (whole, parts)]
    return "the losses differ" if rows[0] != rows[1] else "leftovers" if list(parts.glob(".*")) else ""


# ---- damage


def r6(n, random, figures):
    """Bytes of the newest checkpoint are changed, cut, zeroed, swapped or added: it is passed over for the one before."""
    import test_checkpoint as one
    import torch

    from videolcm.checkpoint import load_checkpoint
    from videolcm.errors import AppError

    with tempfile.TemporaryDirectory() as place:
        good, bad = Path(place, "good"), Path(place, "bad")
        one.save(good, 1, 2)
        for i in range(n):
            shutil.rmtree(bad, ignore_errors=True)
            shutil.copytree(good, bad)
            path = bad / f"step-00000002.{'json' if i % 3 == 0 else 'safetensors'}"
            kind, data = damaged(path.read_bytes(), random)
            path.write_bytes(data)
            try:
                step, tensors, state = load_checkpoint(bad)
            except AppError as error:
                yield f"{kind} of {path.name}: {error}"
                continue
            right = step == 1 and state == {"threads": 1} and torch.equal(tensors["w"], one.randn(1, 4, 3))
            same = step == 2 and state == {"threads": 2} and torch.equal(tensors["w"], one.randn(2, 4, 3))  # white space was hit
            yield "" if right or (same and path.suffix == ".json") else f"{kind} of {path.name} was loaded: step {step}, {state}"


def damaged(data, random):
    """(how, bytes that are not these)."""
    made, at = bytearray(data), random.randrange(len(data))
    kind = random.choice(("a flipped bit", "a cut", "zeros", "a swap", "more", "nothing"))
    end = min(len(data), at + random.randint(1, 64))
    if kind == "a flipped bit":
        made[at] ^= 1 << random.randrange(8)
    elif kind == "a cut":
        del made[at:]
    elif kind == "zeros":
        made[at:end] = bytes(end - at)
    elif kind == "a swap":
        made[at:end] = reversed(made[at:end])
    elif kind == "more":
        made += b"x"
    else:
        made.clear()
    return (kind, bytes(made)) if bytes(made) != data else ("a flipped bit", bytes([data[0] ^ 1]) + data[1:])


# ---- a full disk


@contextlib.contextmanager
def full(size):
    """Files cannot grow beyond `size` bytes, as on a disk that is full. Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def writers(place):
    """{what: (write, read)}: whatever the app writes, and how it is read; `write(i)` says i, `read()` what was said."""
    import numpy as np
    import torch

    from videolcm import checkpoint, grid, training, video
    from videolcm.history import History
    from videolcm.jobs import Jobs, last_note, note
    from videolcm.knobs import Knobs
    from videolcm.lines import read_lines
    from videolcm.training import TrainStep

    weights, journal, history, kept = place / "weights", place / ("0" * 32), History(place / "clips"), []
    journal.mkdir()
    (journal / "job.json").write_text('{"created": 1, "arguments": []}')
    jobs, frames = Jobs(place), np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    job, begun = jobs.read(journal), Jobs(place / "begun")
    begun.spawn = lambda folder, arguments: None  # that a job is written down is what is asked for

    (place / "upload").write_bytes(bytes(4000))

    def keep(i):
        kept.append(history.keep("0" * 32, lambda path: video.write_mp4(path, frames, 8, {"i": i})))

    return {
        "checkpoint": (
            lambda i: checkpoint.save_checkpoint(weights, i, {"w": torch.full((3000,), float(i))}, {"i": i}),
            lambda: checkpoint.load_checkpoint(weights)[2]["i"],
        ),
        "json": (
            lambda i: checkpoint.write_json(place / "a.json", {"i": i, "x": "x" * 4000}),
            lambda: json.loads((place / "a.json").read_text())["i"],
        ),
        "clip": (lambda i: video.write_mp4(place / "a.mp4", frames, 8, {"i": i}), lambda: video.read_settings(place / "a.mp4")["i"]),
        "gif": (lambda i: grid.write_gif(place / "a.gif", [("a", frames)], 8, {"i": i}), lambda: video.read_settings(place / "a.gif")["i"]),
        "sheet": (lambda i: grid.write_sheet(place / "a.png", [("a", frames)], {"i": i}), lambda: video.read_settings(place / "a.png")["i"]),
        "own clips": (
            lambda i: begun.start(Knobs(), "toybox", [(place / "upload", f"clip {i}")]),
            lambda: max(int(path.read_text().split()[1]) for path in begun.folder.rglob("*.txt")),
        ),
        "history": (keep, lambda: history.list("0" * 32)[0].settings["i"]),
        "journal": (lambda i: note(journal, "PAUSED", f"{i} " + "x" * 4000), lambda: int(last_note(journal)["message"].split()[0])),
        "log": (
            lambda i: training.append_line(place / "log.jsonl", TrainStep(i, 9, float(np.float32(i)), 0.1, 1.0, {"x": "x" * 4000})),
            lambda: read_lines(place / "log.jsonl")[-1]["iteration"],
        ),
        "wish": (lambda i: jobs.wish(job, f"{i} " + "x" * 4000), lambda: int((journal / "wish").read_text().split()[0])),
    }


def r7(n, random, figures):
    """Each writer at each size: the error has a code, what was there is there still, nothing is left over, and it goes on when there is room."""
    from videolcm.errors import AppError

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for what, (write, read) in writers(place).items():
            i = 1
            write(i)
            for size in SIZES:
                yield full_once(write, read, i, size, what, AppError) or leftovers(place, what)
                i += 2
                write(i)
                yield "" if read() == i else f"{what} does not go on after {size} bytes"


def full_once(write, read, i, size, what, AppError):
    try:
        with full(size):
            write(i + 1)
        return f"{what} said nothing at {size} bytes"
    except AppError as error:
        if error.code not in ("E_DISK", "E_OUTPUT"):
            return f"{what}: {error}"
    except Exception as error:
        return f"{what} at {size} bytes: {type(error).__name__} {error}"
    return "" if read() == i else f"{what} at {size} bytes: what was there is gone"


def leftovers(place, what):
    found = [path.name for path in place.rglob(".*") if path.is_file()]
    return f"{what} left {found[:3]}" if found else ""


# ---- beside clips


def r14(n, random, figures):
    """Losses and student of a fine-tune beside which clips are made, and those clips, each as alone: the test that compares them."""
    test = ROOT / "tests" / "test_jobs.py"
    for _ in range(n):
        command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", f"{test}::test_clips_while_it_trains_change_neither"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        yield "" if done.returncode == 0 and "1 passed" in done.stdout else done.stdout[-300:]
