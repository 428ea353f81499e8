"""Run folders -> assets/toybox, and the contact sheets by which a run is judged while it goes on.

In: the averaged weights of a run. Out: float16 safetensors with a manifest, or PNG sheets of clips for fixed prompts. It knows nothing about
how the weights were trained.
"""

import json
from pathlib import Path

import cv2
import numpy as np

from .checkpoint import write_json
from .models.base import TASKS, ModelInfo
from .models.toybox import Toybox, write_network
from .pipeline import SAMPLER_OF, Request, generate

SHEET_PROMPTS = (
    "a red ball rolls to the left over snow",
    "a big shiny green cube spins on a wooden floor at sunset",
    "a small white cone jumps on the grass by day",
    "a blue cylinder comes closer on a checkerboard at night",
    "a yellow ball bounces on sand in a studio",
    "a small pink cube slides right and a big blue ball stands still on grass",
)
SHEET_FRAMES = (0, 3, 6, 9, 12, 15)
GUIDANCE = 1.0  # w of a teacher that is shipped for the first time
GUIDED = (500, 900)  # timesteps at which the shipped one is: below, guidance makes clips flicker, above, it makes floors alike


def ship(folder, part, net, **facts):
    """Writes one network's weights as float16 into `folder` and puts it, and `facts` such as guidance, into the manifest."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"guidance": GUIDANCE, "fps": 8, "files": {}}
    manifest["files"][part] = write_network(folder / f"{part}.safetensors", net)
    write_json(path, {"tasks": list(TASKS)} | manifest | facts)


def sheet(codec, text, denoiser, path, prompts=SHEET_PROMPTS, role="teacher", steps=20, guidance=GUIDANCE):
    """A PNG at `path`: one clip a row, six frames across, by networks that may still be in training."""
    info = ModelInfo("in training", role, ("text",), guidance, 8, "", two_time="s" in denoiser.config.inputs, guided=GUIDED)
    parameter = next(denoiser.parameters())
    model = Toybox(info, codec, text, denoiser, parameter.device, parameter.dtype)
    sampler = SAMPLER_OF[role]
    rows = []
    for prompt in prompts:
        *_, result = generate(model, Request(prompt, steps=steps, sampler=sampler, guidance=guidance if role == "teacher" else 0))
        rows.append(np.concatenate([result.frames[i] for i in SHEET_FRAMES], 1))
    cv2.imwrite(str(path), np.concatenate(rows)[:, :, ::-1])
    return path
