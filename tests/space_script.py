"""What a Space with a shared GPU runs, `python app.py`, with the real spaces package: only Hugging Face and CUDA are not there.

Run by test_space.py in a process of its own, for `spaces` changes torch when it is imported. Arguments: a port; a folder with a tiny model, which
is loaded on the GPU that it pretends, and whose student is distilled; and a clip for that. FakeModels on the processor answer in place of the model.
The last line of stdout is JSON: what was seen.
"""

# ruff: noqa: I001
import app  # first of all, as on a Space

import json
import os
import sys
import tempfile

import gradio as gr
import httpx
from conftest import FakeModel, wait_for
from gradio_client import Client, handle_file
from spaces.zero import client as hub
from spaces.zero import decorator
from spaces.zero import torch as pretended
from spaces.zero.api import ScheduleResponse

from videolcm import models, ui
from videolcm.checkpoint import load_checkpoint
from videolcm.jobs import GOING, Jobs
from videolcm.students import name_of
from videolcm.ui import Engine, space

PROMPT = "a red ball rolls to the left over snow"
SMALL = {"size": "128x128", "frames": 8}
seen = {"devices": [], "asked": [], "released": 0}
kept, real, full, engines = [], models.load, [], []


def load(ref, role="student", **where):
    """The tiny model is loaded and kept; a FakeModel answers. What distilling asks for is real, on the processor."""
    if where:
        return real(ref, role, **where)
    kept.append(real(sys.argv[2], role))
    parameters = next(kept[-1].denoiser.parameters())
    seen["devices"].append([str(kept[-1].device), str(parameters.device)])
    return Unlucky(role, delay=0.2)


class Unlucky(FakeModel):
    """Notes where it computes; clips 160 pixels wide are not numbers."""

    def decode(self, latents, frames):
        with open(os.environ["FAKE_PIDS"], "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        return super().decode(latents, frames) * (float("nan") if latents.shape[-1] == 20 else 1)


def schedule(task_id, request=None, duration=None, gpu_size=None):
    if full:
        raise gr.Error("No GPU was available", print_exception=False)
    seen["asked"].append([duration.seconds, request is not None])
    return ScheduleResponse(idle=len(seen["asked"]) > 1, nvidiaIndex=0, nvidiaUUID="x", allowToken="x")


def release(token, **options):
    seen["released"] += 1


def refusal(page, **values):
    try:
        page.predict(**{"prompt": PROMPT, "steps": 1, **SMALL, "api_name": "/text", **values})
    except Exception as error:
        return str(error)


def visit(blocks):
    """A visitor of the page, in place of block_thread."""
    url = blocks.local_url.rstrip("/")
    seen["ready"] = httpx.get(f"{url}/readyz").status_code
    page = Client(url, verbose=False)
    seen["settings"] = page.predict(PROMPT, steps=2, seed=3, **SMALL, api_name="/text")[1]
    seen["nonfinite"] = refusal(page, size="160x128")
    full.append(True)
    seen["full"] = refusal(page)
    full.clear()
    cells = page.predict(PROMPT, steps=[1, 2], teacher_steps=3, **SMALL, api_name="/compare")[1]
    seen["cells"] = [[cell["label"], cell["metrics"]["psnr"] is not None] for cell in cells]
    asked, released = len(seen["asked"]), seen["released"]
    job = page.submit(PROMPT, steps=8, **SMALL, api_name="/text")
    wait_for(lambda: len(seen["asked"]) > asked)
    job.cancel()
    wait_for(lambda: seen["released"] > released)
    seen["after"] = page.predict(PROMPT, steps=1, **SMALL, api_name="/text")[1]["steps"]
    distil(page)
    blocks.close()


def distil(page):
    """A fine-tune of three iterations on a clip of one's own, in parts of one; then a clip of the student."""
    told = {"teacher": os.path.basename(sys.argv[2]), "preset": "", "iterations": 3, "batch": 2, "conditions": ["text"], "password": "open"}
    told |= {"clips": [handle_file(sys.argv[3])], "captions": "a red ball", "api_name": "/distill"}
    asked, jobs = len(seen["asked"]), Jobs()
    job = jobs.get(page.predict(**told)["id"])
    wait_for(lambda: jobs.get(job.id).state not in GOING, 300)
    seen["distilled"] = [jobs.get(job.id).state, [step["iteration"] for step in job.steps()], len(seen["asked"]) - asked]
    seen["said"] = jobs.get(job.id).message + (job.folder / "output.txt").read_text(encoding="utf-8")
    seen["checkpoint"], tensors, state = load_checkpoint(job.folder)
    seen["student"] = page.predict(PROMPT, steps=1, model=name_of(job.id), **SMALL, api_name="/text")[1]["steps"]
    seen["loaded here"] = [key[0] for key in engines[0].models]


class Known(Engine):
    """Tells the visitor which engine the page has."""

    def __init__(self, *values, **named):
        super().__init__(*values, **named)
        engines.append(self)


models.load, space.PART = load, 1e-4
ui.Engine = Known
hub.schedule, hub.release, hub.allow = schedule, release, lambda token: None
hub.startup_report = lambda: seen.update(decorated=len(decorator.decorated_cache))
pretended.init, pretended.move = lambda uuid: None, lambda callback=None: None
gr.Blocks.block_thread = visit
with tempfile.TemporaryDirectory() as folder:
    os.environ["FAKE_PIDS"] = os.path.join(folder, "pids")
    app.main(["--port", sys.argv[1], "--teacher", sys.argv[2]])
    with open(os.environ["FAKE_PIDS"], encoding="utf-8") as file:
        seen["elsewhere"] = str(os.getpid()) not in file.read().split()
print(json.dumps(seen))
