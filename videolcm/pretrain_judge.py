"""The stage that trains the judge, which reads from a clip what it shows.

In: a folder of cached shards (data.py). Out: a Stage. What is read of a clip turned round is known too, so each clip serves as four. It knows nothing
about captions, nor what the judge is asked for.
"""

import numpy as np
import torch
import torch.nn.functional as F

from .data import Clips
from .judge import Judge
from .training import Stage
from .world import ATTRIBUTES, OBJECT_ATTRIBUTES, SCENE_ATTRIBUTES


def judge_stage(folder, iterations=2000, batch=24):
    """The judge, on what rendered clips look like at 128x128, also mirrored, backwards and moved; one clip in 16 is kept for validation."""
    clips = Clips(folder, ("plain",), ("look",))
    labels = [shown_labels(told) for told in clips.plots]
    held = np.arange(0, len(clips), 16)
    rest = np.setdiff1d(np.arange(len(clips)), held)

    def targets(rows):
        return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}

    def loss(net, iteration):
        rng = np.random.default_rng((41, iteration))
        chosen = rng.choice(rest, batch)
        pixels = clips.arrays["look"][chosen].permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        seen, rows = zip(*(turned(clip, labels[i], *(rng.random(2) < 0.5)) for clip, i in zip(pixels, chosen, strict=True)), strict=True)
        pixels = torch.stack([worn(clip, rng) for clip in seen])
        told, wanted = net(pixels.to(next(net.parameters()).dtype)), targets(rows)
        return sum(F.cross_entropy(logits.float(), wanted[key]) for key, logits in told.items()) / len(told)

    @torch.no_grad()
    def validate(net, out, iteration):
        wanted, right = targets([labels[i] for i in held]), {}
        for at in range(0, len(held), 32):
            pixels = clips.arrays["look"][held[at : at + 32]].permute(0, 1, 4, 2, 3).float() / 127.5 - 1
            for key, logits in net(pixels.to(next(net.parameters()).dtype)).items():
                right.setdefault(key, []).append(logits.argmax(1) == wanted[key][at : at + 32])
        scores = {f"{name}{slot}": float(torch.cat(hits).float().mean()) for (name, slot), hits in right.items()}
        return {"mean": round(sum(scores.values()) / len(scores), 4)} | {key: round(value, 3) for key, value in scores.items()}

    return Stage(Judge, loss, iterations, 1e-3, batch, validate=validate, validate_every=100, warmup=50, cooldown=0.6)


def shown_labels(told):
    """{(attribute, slot): class} of everything that is seen; toys stand from left to right in the order of the caption."""
    slots = {(name, i): ATTRIBUTES[name].index(getattr(toy, name)) for i, toy in enumerate(told.toys) for name in OBJECT_ATTRIBUTES}
    absent = {(name, 1): len(ATTRIBUTES[name]) for name in OBJECT_ATTRIBUTES}
    return absent | slots | {(name, 2): ATTRIBUTES[name].index(getattr(told, name)) for name in SCENE_ATTRIBUTES}


def turned(clip, labels, mirrored, backwards):
    """A clip (F, 3, H, W) and its labels, mirrored, backwards, or both."""
    if mirrored:
        clip, labels = clip.flip(3), flipped(labels)
    if backwards:
        clip, labels = clip.flip(0), exchanged(exchanged(labels, "left", "right"), "closer", "away")
    return clip, labels


def flipped(labels):
    """The labels of the mirrored clip: left is right, and of two objects the order changes."""
    two = labels["shape", 1] < len(ATTRIBUTES["shape"])
    return exchanged({(name, 1 - slot if two and slot < 2 else slot): value for (name, slot), value in labels.items()}, "left", "right")


def exchanged(labels, one, other):
    """The labels with two motions in each other's place."""
    a, b = (ATTRIBUTES["motion"].index(name) for name in (one, other))
    return {key: {a: b, b: a}.get(value, value) if key[0] == "motion" else value for key, value in labels.items()}


def worn(clip, rng):
    """A clip (F, 3, H, W) as a codec might leave it: a little blurred, noisy, brighter or darker; and moved by up to 4 pixels up or down and 8
    to a side."""
    down, right = rng.integers(-4, 5), rng.integers(-8, 9)
    rows, columns = (np.clip(np.arange(n) + by, 0, n - 1) for n, by in zip(clip.shape[2:], (down, right), strict=True))
    clip = clip[:, :, rows][..., columns]
    if rng.random() < 0.4:
        size = int(rng.integers(56, 112))
        clip = F.interpolate(F.interpolate(clip, (size, size), mode="area"), clip.shape[2:], mode="bilinear", align_corners=False)
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**31))))
    return clip * float(rng.uniform(0.92, 1.08)) + float(rng.uniform(-0.04, 0.04)) + noise * float(rng.uniform(0, 0.04))
