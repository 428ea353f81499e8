"""The stage that trains the built-in depth network on Toybox: real uploads are the point, so pictures are worn and recoloured hard.

In: a folder of rendered shards (data.py). Out: a Stage. The loss is MiDaS's: blind to scale and shift, here of a clip instead of a picture, so
that the frames of a clip agree. It knows nothing about extractors.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open

from .data import disparity, small
from .depth import CELL, DepthNet
from .errors import AppError
from .models import pick_dtype
from .training import Stage, generator
from .world import free_sample, sample

SEEN = (0, 5, 10, 15)  # frames of each clip that are kept in memory
SHARDS = {"plain": 12, "free": 48}  # at most; free scenes look more like real clips
SIZES = ((128, 8), (192, 4), (256, 2))  # pixels a side and clips a batch, in turn
CLIP_FRAMES = 2
GRADIENT_WEIGHT, SCALES = 0.5, 4  # MiDaS (arXiv 1907.01341), Eq. 11
HELD_OUT = range(6)  # seeds of either kind


def depth_stage(folder, iterations=3000, **stage):
    """The built-in depth network, on crops of half the clip to all of it, from the shards of both kinds in `folder`."""
    frames, depth = depth_clips(folder)  # (N, 4, 256, 256, 3), (N, 4, 64, 64) uint8
    held = held_out()

    def loss(net, iteration):
        pixels, wanted = batch(frames, depth, iteration)
        return midas_loss(net(pixels.to(net.stem.weight.dtype)).float(), wanted)

    @torch.no_grad()
    def validate(net, out, iteration):
        return {kind: agreement(net, *clips) for kind, clips in held.items()}

    settings = {"validate": validate, "validate_every": 500, "warmup": 50, "cooldown": 0.7, "dtype": pick_dtype(None, torch.device("cpu"))}
    return Stage(DepthNet, loss, iterations, 1e-3, sum(count for _, count in SIZES) // len(SIZES), **{**settings, **stage})


def depth_clips(folder):
    """SEEN frames and their disparity of the first SHARDS of each kind that are in `folder`. AppError E_INPUT if there are none."""
    paths = [path for kind, most in SHARDS.items() for path in sorted(Path(folder).glob(f"{kind}-*.safetensors"))[:most]]
    if not paths:
        raise AppError("E_INPUT", given="plain-00000.safetensors")
    parts = {"frames": [], "depth": []}
    for path in paths:
        with safe_open(path, "numpy") as file:
            for name, rows in parts.items():
                part = file.get_slice(name)  # reads what is asked for, not the shard
                rows.append(np.concatenate([part[:, f : f + 1] for f in SEEN], 1))
    return tuple(np.concatenate(rows) for rows in parts.values())


def held_out():
    """{kind: (frames (N, 4, 256, 256, 3), disparity (N, 4, 64, 64))}, uint8, of clips that are in no shard."""
    clips = {kind: [draw(seed).render() for seed in HELD_OUT] for kind, draw in (("plain", sample), ("free", free_sample))}
    seen = list(SEEN)
    return {
        kind: (np.stack([clip.frames[seen] for clip in rows]), np.stack([small(disparity(clip.depth))[seen] for clip in rows]))
        for kind, rows in clips.items()
    }


# ---- a batch


def batch(frames, depth, iteration):
    """Pixels (B, 3, 2, S, S) in [-1, 1] and disparity (B, 2, S/4, S/4) in [0, 1]; size and count go round by the iteration."""
    (size, count), rng = SIZES[iteration % len(SIZES)], np.random.default_rng((51, iteration))
    pairs = [window(frames, depth, size, rng) for _ in range(count)]
    pixels, wanted = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    return worn(pixels, generator(52, iteration)).permute(0, 2, 1, 3, 4), wanted


def window(frames, depth, size, rng):
    """A square of half to all of a random clip, now and then mirrored, two of its frames: (2, 3, size, size) in [0, 1], (2, size/4, size/4)."""
    clip, side = rng.integers(len(frames)), int(rng.integers(32, 65))  # in cells of 4 pixels
    y, x = rng.integers(0, 65 - side, 2)
    which = np.sort(rng.choice(len(SEEN), CLIP_FRAMES, replace=False))
    picture = frames[clip, which, CELL * y : CELL * (y + side), CELL * x : CELL * (x + side)]
    pixels = torch.from_numpy(picture).permute(0, 3, 1, 2).float() / 255
    wanted = torch.from_numpy(depth[clip, which, y : y + side, x : x + side])[:, None].float() / 255
    pixels = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False, antialias=True)
    wanted = F.interpolate(wanted, (size // CELL,) * 2, mode="bilinear", align_corners=False, antialias=True)[:, 0]
    return (pixels.flip(3), wanted.flip(2)) if rng.random() < 0.5 else (pixels, wanted)


def worn(pixels, g):
    """Clips (B, 2, 3, S, S) in [0, 1] as other cameras might have taken them, in [-1, 1]: colours turned and bent, light uneven, noise, blur."""
    b, _, _, size, _ = pixels.shape

    def draw(low, high, *shape):
        return low + (high - low) * torch.rand(b, 1, *shape, generator=g)

    turn = (torch.eye(3) + 0.35 * torch.randn(b, 3, 3, generator=g)).abs()  # mixes the three colours
    mixed = torch.einsum("bij,bfjyx->bfiyx", turn / turn.sum(2, keepdim=True), pixels)
    grey = mixed.mean(2, keepdim=True)
    saturation = draw(0, 1.5, 1, 1, 1) * (draw(0, 1, 1, 1, 1) > 0.15)
    light = F.interpolate(draw(0.6, 1.4, 3, 3)[:, 0, None], (size, size), mode="bicubic", align_corners=True)[:, :, None]  # (B, 1, 1, S, S)
    made = (grey + saturation * (mixed - grey)) * light * draw(0.7, 1.3, 1, 1, 1)
    made = made.clamp(1e-3, 1) ** draw(0.6, 1.6, 1, 1, 1)
    blurred = F.avg_pool2d(F.pad(made.flatten(0, 1), (1, 1, 1, 1), "replicate"), 3, 1).view_as(made)
    made = torch.lerp(made, blurred, draw(-0.5, 1, 1, 1, 1))
    made = made + draw(0, 0.04, 1, 1, 1) * torch.randn(made.shape, generator=g)
    return 2 * made.clamp(0, 1) - 1


# ---- loss and figures


def aligned(clips):
    """(B, F, h, w) with median 0 and mean deviation 1 in every clip; hardly varying clips stay small."""
    flat = clips.flatten(1)
    flat = flat - flat.median(1, keepdim=True).values
    return (flat / flat.abs().mean(1, keepdim=True).clamp(min=0.02)).view_as(clips)


def midas_loss(made, wanted):
    """L1 of aligned disparities and of their differences between neighbours at four scales."""
    difference = aligned(made) - aligned(wanted)
    total = difference.abs().mean()
    for scale in range(SCALES):
        step = difference[..., :: 2**scale, :: 2**scale]
        total = total + GRADIENT_WEIGHT * (step.diff(dim=2).abs().mean() + step.diff(dim=3).abs().mean())
    return total


def agreement(net, frames, depth):
    """Mean correlation of the network's disparity with the true one, clip by clip; 1 is perfect."""
    kind, figures = net.stem.weight.dtype, []
    for clip, true in zip(frames, depth, strict=True):
        pixels = torch.from_numpy(clip).permute(3, 0, 1, 2)[None].to(kind) / 127.5 - 1
        figures.append(np.corrcoef(net(pixels).float().numpy().ravel(), true.ravel())[0, 1])
    return round(float(np.mean(figures)), 4)
