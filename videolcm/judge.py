"""The judge, which tells what a clip of Toybox shows, and how well that matches a prompt.

In: frames uint8 (F, H, W, 3) and what a caption says. Out: shares of attributes that are right. The judge is trained on rendered clips alone
(pretrain.py), apart from every generator. It knows nothing about models or samplers.
"""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .checkpoint import read_weights
from .errors import AppError
from .world import ATTRIBUTES, OBJECT_ATTRIBUTES, SCENE_ATTRIBUTES

LOOK_FRAMES, LOOK_SIZE = 8, 128  # the judge sees every second of 16 frames at 128x128
JUDGE = Path(__file__).resolve().parents[1] / "assets" / "toybox"


class Judge(nn.Module):
    """Clips (B, 8, 3, 128, 128) in [-1, 1] -> {(attribute, slot): logits}. Slots 0 and 1: the left and the right object, the
    second absent where there is one object (the last class); slot 2: the scene. It sees frames and what changes to the next one."""

    def __init__(self, width=128, layers=3):
        super().__init__()
        self.near = nn.Sequential(*normed(96, 48, 1), *normed(48, 64, 2))  # 32, then 16 cells a side
        self.far = nn.Sequential(*normed(64, 64, 1), *normed(64, 96, 2), *normed(96, 96, 1), *normed(96, width, 2))  # 16, 8, 4
        self.where = nn.Linear(3, width)
        self.queries = nn.Parameter(torch.randn(3, width) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 3 * width, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(layers)
        )
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(values) + (name in OBJECT_ATTRIBUTES)) for name, values in ATTRIBUTES.items()})

    def features(self, clips):
        """(B, 3, width): what the slots gathered. Also the space of the Frechet distance."""
        change = F.pad(clips[:, 1:] - clips[:, :-1], (0, 0, 0, 0, 0, 0, 0, 1))  # a thing that turns on the spot is hard to see otherwise
        x = self.near(F.pixel_unshuffle(torch.cat([clips, change], 2).flatten(0, 1), 4))  # (B F, 64, 16, 16)
        x = self.far(shifted(x.unflatten(0, (len(clips), -1))).flatten(0, 1))  # (B F, width, 4, 4)
        x = x.flatten(2).transpose(1, 2).unflatten(0, (len(clips), -1))  # (B, F, 16, width)
        frames, cells = x.shape[1:3]
        axes = [torch.linspace(-1, 1, n, device=x.device) for n in (frames, int(cells**0.5), int(cells**0.5))]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)  # (F 16, 3)
        x = x.flatten(1, 2) + self.where(grid.to(x.dtype)).sin()
        x = torch.cat([self.queries.to(x.dtype).expand(len(x), -1, -1), x], 1)
        for layer in self.layers:
            x = layer(x)
        return x[:, :3]

    def forward(self, clips):
        slots = self.features(clips).to(next(self.heads.parameters()).dtype)
        told = {(name, i): self.heads[name](slots[:, i]) for name in OBJECT_ATTRIBUTES for i in (0, 1)}
        return told | {(name, 2): self.heads[name](slots[:, 2]) for name in SCENE_ATTRIBUTES}


def shifted(x):
    """(B, F, C, h, w) with a quarter of the channels from the frame before and a quarter from the one after (arXiv 1811.08383)."""
    n = x.shape[2] // 4
    before = torch.cat([x[:, :1, :n], x[:, :-1, :n]], 1)
    after = torch.cat([x[:, 1:, n : 2 * n], x[:, -1:, n : 2 * n]], 1)
    return torch.cat([before, after, x[:, :, 2 * n :]], 2)


def normed(a, b, stride):
    """A convolution from a to b channels, normalised and activated."""
    return [nn.Conv2d(a, b, 3, stride, 1), nn.GroupNorm(8, b), nn.SiLU()]


def look(frames):
    """Clips uint8 (B, F, H, W, 3) -> what the judge sees, float (B, 8, 3, 128, 128)."""
    chosen = torch.from_numpy(np.linspace(0, frames.shape[1] - 1, 2 * LOOK_FRAMES).round().astype(int)[::2])
    pixels = torch.as_tensor(frames)[:, chosen].permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    return F.interpolate(pixels.flatten(0, 1), (LOOK_SIZE, LOOK_SIZE), mode="area").unflatten(0, pixels.shape[:2])


def has_judge():
    """Whether assets/toybox holds a judge; until one is trained, text match cannot be measured."""
    return "judge" in json.loads((JUDGE / "manifest.json").read_text(encoding="utf-8"))["files"]


@lru_cache(maxsize=1)
def judge():
    """The shipped judge, float32. AppError E_MODEL_FILE or E_CHECKPOINT where its file is missing or was changed."""
    manifest = json.loads((JUDGE / "manifest.json").read_text(encoding="utf-8"))
    entry = manifest["files"].get("judge")
    if entry is None:
        raise AppError("E_MODEL_FILE", folder=JUDGE.name, given="judge")
    net = Judge()
    net.load_state_dict(read_weights(JUDGE / entry["file"], entry["sha256"]))
    return net.float().eval().requires_grad_(False)


@torch.no_grad()
def text_match(net, frames, said):
    """Which of the said attributes a clip shows: {attribute: share right}, and "mean" over all that is said.

    frames uint8 (F, H, W, 3); `said` as a Plot has it: one dict an object, then the scene's. With two objects the better of the two
    ways round counts.
    """
    told = {key: int(logits[0].argmax()) for key, logits in net(look(frames[None])).items()}
    objects, scene = said[:-1], said[-1]
    orders = [(0, 1), (1, 0)][: len(objects)]
    rows = max((judged(told, objects, order) for order in orders), key=lambda rows: np.mean([right for _, right in rows]))
    rows += [(name, told[name, 2] == ATTRIBUTES[name].index(scene[name])) for name in SCENE_ATTRIBUTES if name in scene]
    share = {name: float(np.mean([right for row, right in rows if row == name])) for name in dict(rows)}
    return share | {"mean": float(np.mean([right for _, right in rows]))}


def judged(told, objects, order):
    """[(attribute, right)] of the objects, the first of them looked for in slot order[0]."""
    return [
        (name, told[name, slot] == ATTRIBUTES[name].index(wanted[name]))
        for slot, wanted in zip(order, objects, strict=False)
        for name in OBJECT_ATTRIBUTES
        if name in wanted
    ]
