"""The built-in depth network: small, fast on a processor, trained on Toybox's exact depth (pretrain_depth.py), made for simple scenes.

In: pixels of a clip. Out: disparity at a quarter of the size, up to one scale and one shift a clip. `depth_network` loads what is shipped in
assets/toybox. It knows nothing about other extractors or how it was trained.
"""

import json
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .checkpoint import read_weights
from .errors import AppError
from .models.codec import Residual

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "toybox"
CELL = 4  # pixels per cell of the output
GRAIN = 32  # height and width are multiples of it
WIDTHS = (40, 80, 112, 112)  # at 1/4, 1/8, 1/16 and 1/32 of the picture


class DepthNet(nn.Module):
    """Pixels (B, 3, F, H, W) in [-1, 1], H and W multiples of 32 -> disparity (B, F, H/4, W/4), near = large: a U-Net a frame.

    The frames of a clip share one thing, the mean of their deepest features: it lets them agree on a scale.
    """

    def __init__(self, widths=WIDTHS):
        super().__init__()
        steps = list(zip(widths, widths[1:], strict=False))
        self.stem = nn.Conv2d(3 * CELL**2, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(Residual(width) for width in widths[:-1])
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in steps)
        self.deepest = nn.Sequential(Residual(widths[-1]), Residual(widths[-1]))
        self.clip = nn.Linear(widths[-1], widths[-1])
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in steps)
        self.decoder = nn.ModuleList(Residual(width) for width in widths[:-1])
        self.leave = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, pixels):
        frames = pixels.shape[2]
        x = F.pixel_unshuffle(pixels.transpose(1, 2).flatten(0, 1), CELL)  # (B F, 48, H/4, W/4)
        x, skips = self.stem(x.contiguous(memory_format=torch.channels_last)), []
        for block, down in zip(self.encoder, self.down, strict=True):
            skips.append(block(x))
            x = down(skips[-1])
        x = self.deepest(x)  # (B F, 112, H/32, W/32)
        shared = x.mean((2, 3)).unflatten(0, (-1, frames)).mean(1)  # (B, 112)
        x = x + self.clip(F.silu(shared)).repeat_interleave(frames, 0)[..., None, None]
        for block, up in reversed(list(zip(self.decoder, self.up, strict=True))):
            x = block(F.interpolate(up(x), scale_factor=2, mode="nearest") + skips.pop())
        return self.leave(F.silu(x))[:, 0].unflatten(0, (-1, frames))


def entry(folder=FOLDER):
    """The manifest's entry of the shipped network, None where there is none."""
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8"))["files"].get("depth") if path.is_file() else None


@lru_cache(maxsize=2)
def depth_network(device="cpu", dtype=torch.float32, folder=FOLDER):
    """The shipped network, ready to compute. AppError E_MODEL_FILE where it is missing, E_CHECKPOINT where it was changed."""
    found = entry(folder)
    if found is None:
        raise AppError("E_MODEL_FILE", folder=folder.name, given="depth.safetensors")
    net = DepthNet()
    net.load_state_dict(read_weights(folder / found["file"], found["sha256"]))
    return net.to(device, dtype).eval().requires_grad_(False)
