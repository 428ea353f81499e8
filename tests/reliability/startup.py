"""The line on starting (R15): whatever is wrong, one line within five seconds, and exit code 2 or a page that answers."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from . import ROOT
from .shared import late
from .visitor import Visitor

SECONDS = 5
LEAVE = 10  # from SIGTERM to the end
PATIENCE = 300  # until a fine-tune has made its first iteration


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def refuses(code, *arguments, program=("app.py",), **environ):
    """What is wrong with how the program says no: exit code 2, one line with this code, in time."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *program, *arguments], cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, timeout=300, check=False
    )
    seconds = time.monotonic() - began
    if done.returncode != 2 or done.stderr.count("\n") != 1 or not done.stderr.startswith(f"[{code}] "):
        return f"{arguments} {environ}: exit {done.returncode}, {done.stderr[-300:]!r}"
    return late(seconds, SECONDS, f"{code} came")


@contextlib.contextmanager
def app(*arguments, **environ):
    """(process, address, seconds until it was said) of a page; its folders are new ones."""
    port = free_port()
    with tempfile.TemporaryDirectory() as place:
        folders = {"VIDEOLCM_JOBS": f"{place}/jobs", "VIDEOLCM_CLIPS": f"{place}/clips"}
        began = time.monotonic()
        with open(f"{place}/said", "wb") as said:
            command = [sys.executable, "app.py", "--port", str(port), *arguments]
            process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **folders, **environ}, stdout=subprocess.PIPE, stderr=said, text=True)
        try:
            line = process.stdout.readline().strip()
            process.said = Path(place, "said")
            yield process, line.rpartition(" ")[2].rstrip("/"), time.monotonic() - began
        finally:
            process.kill()
            process.wait()


def starts(*arguments, **environ):
    """What is wrong with how a page starts nevertheless: it answers in time, without a traceback."""
    with app(*arguments, **environ) as (process, url, seconds):
        if not url.startswith("http"):
            return f"{environ}: no page, {process.said.read_text()[-300:]!r}"
        alive = httpx.get(f"{url}/healthz", timeout=60).status_code == 200
        if not alive or "Traceback" in process.said.read_text():
            return f"{environ}: {process.said.read_text()[-300:]!r}"
    return late(seconds, SECONDS, f"{environ}: up")


def r15(n, random, figures):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield refuses("E_PORT", "--port", str(taken.getsockname()[1]))
    for code, arguments in (
        ("E_NETWORK", ["--listen"]),
        ("E_NETWORK", ["--share"]),
        ("E_ARGUMENTS", ["--auth", "ann"]),
        ("E_ARGUMENTS", ["--port", "99999"]),
        ("E_ARGUMENTS", ["--nonsense"]),
        ("E_ARGUMENTS", ["--host", "192.0.2.1", "--auth", "a:b"]),
    ):
        yield refuses(code, *arguments)
    yield refuses("E_DEVICE", "generate", "a red ball", "--device", "cuda", program=("-m", "videolcm"), CUDA_VISIBLE_DEVICES="")
    yield refuses("E_MODEL", "generate", "a red ball", "--model", "no/such/folder", program=("-m", "videolcm"))
    with tempfile.TemporaryDirectory() as place, hole() as address:
        Path(place, "file").touch()
        yield refuses("E_FOLDER", "--port", str(free_port()), VIDEOLCM_JOBS=f"{place}/file/jobs")
        yield starts(VIDEOLCM_CLIPS=f"{place}/file/clips")
        online = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
        yield starts(HF_ENDPOINT="http://127.0.0.1:9", **online)  # refuses
        yield starts(HF_ENDPOINT=address, **online)  # never answers
        yield starts(CUDA_VISIBLE_DEVICES="")
        yield starts(GRADIO_SERVER_PORT="x", GRADIO_ALLOWED_PATHS="/", GRADIO_MCP_SERVER="true", GRADIO_ANALYTICS_ENABLED="maybe")
    yield from files()
    yield from leaves()


@contextlib.contextmanager
def hole():
    """The address of a server that lets everybody connect, as the system does for it, and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def files():
    """Each file of a model in turn is missing, empty, damaged, or another network's: one sentence that names it."""
    import tiny

    from videolcm import models
    from videolcm.errors import AppError

    with tempfile.TemporaryDirectory() as folder:
        whole = tiny.teacher_folder(Path(folder, "whole"))
        names = sorted(path.name for path in whole.iterdir())
        for name in names:
            for kind in ("missing", "empty", "damaged", "another"):
                place = Path(folder, f"{name}-{kind}")  # loaders remember what they read
                shutil.copytree(whole, place)
                spoil(place / name, kind)
                try:
                    for role in ("student", "teacher"):
                        models.load(str(place), role, "cpu", "float32")
                    yield f"{name}, {kind}: nobody noticed"
                except AppError as error:
                    yield "" if len(str(error)) < 200 and "\n" not in str(error) else str(error)
                except Exception as error:
                    yield f"{name}, {kind}: {type(error).__name__} {error}"
                shutil.rmtree(place)


def spoil(path, kind):
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "damaged":
        path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    else:
        path.write_bytes(next(other for other in sorted(path.parent.iterdir()) if other != path).read_bytes())


def leaves():
    """SIGTERM while a clip is made and a student trained: gone within ten seconds, nobody left behind, and the student can be trained on."""
    import psutil
    import tiny
    from media import corners, make

    from videolcm.checkpoint import load_checkpoint

    with tempfile.TemporaryDirectory() as folder, app("--teacher", str(tiny.teacher_folder(Path(folder, "tiny")))) as (process, url, _):
        if not url.startswith("http"):
            yield f"no page, {process.said.read_text()[-300:]!r}"
            return
        while httpx.get(f"{url}/readyz", timeout=60).status_code != 200 and process.poll() is None:
            time.sleep(0.2)
        with Visitor(url) as visitor:
            own = [visitor.upload(make(Path(folder, "a.mp4"), corners()))]
            event, data = visitor.call("distill", teacher="tiny", batch=2, conditions=["text"], clips=own, captions="a red ball on snow")
            yield "" if event == "complete" else f"no fine-tune: {data}"
            if event != "complete":
                return
            log, end = process.said.parent / "jobs" / data[0]["id"] / "log.jsonl", time.monotonic() + PATIENCE
            while not (log.exists() and log.stat().st_size) and time.monotonic() < end:
                time.sleep(0.2)
            visitor.post("/gradio_api/call/text", json.dumps({"data": ["a red ball", 50, 0, "ddim", 32, "512x512", "teacher", "toybox"]}))
            time.sleep(1)
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        began = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        seconds = time.monotonic() - began
        left = [child for child in children if child.is_running() and child.status() != "zombie"]
        yield "" if process.returncode == 0 and children and not left else f"SIGTERM: exit {process.returncode}, {len(left)} of {len(children)} left"
        yield late(seconds, LEAVE, "SIGTERM: it ended")
        state = json.loads(log.with_name("journal.jsonl").read_text().splitlines()[-1])["state"]
        step, *_ = load_checkpoint(log.parent)
        yield "" if state == "PAUSED" and step > 0 else f"SIGTERM: the fine-tune is {state} at step {step}"
