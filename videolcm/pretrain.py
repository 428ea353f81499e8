"""How assets/toybox was made: the stages codec, text, teacher and judge. The loop that runs them is training.py's.

In: clips, captions and attributes of Toybox. Out: a Stage a network. It knows nothing about samplers beyond the noise schedule.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .data import Clips, conditions, frames_of
from .models.toybox import Codec, Denoiser, DenoiserConfig, TextConfig, TextEncoder
from .schedule import Schedule
from .training import Stage, generator
from .world import ATTRIBUTES, OBJECT_ATTRIBUTES, SCENE_ATTRIBUTES, plot, vocabulary

CROP, CODEC_FRAMES, CODEC_BATCH = 128, 8, 6


# ---- codec


def codec_stage(folder, iterations=4000):
    """The codec, on crops of 128x128x8, seven of ten around an object."""
    frames, ids = frames_of(folder, plain=10, free=6)  # (N, 16, 256, 256, 3), (N, 16, 64, 64)

    def batch(iteration):
        g = generator(11, iteration)
        pairs = [crop(frames, ids, g) for _ in range(CODEC_BATCH)]
        pixels, weight = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        return pixels.permute(0, 4, 1, 2, 3).float() / 127.5 - 1, 1 + 3 * weight[:, None]

    def loss(net, iteration):
        pixels, weight = batch(iteration)
        half = pixels.to(next(net.parameters()).dtype)
        latents = net.encode(half)
        noisy = latents + 0.1 * torch.randn(latents.shape, generator=generator(12, iteration)).to(latents)
        look = F.avg_pool3d(pixels, (1, 8, 8))
        return picture_loss(net.decode(noisy).float(), pixels, weight) + 0.1 * F.mse_loss(net.preview(latents.detach()).float(), look)

    @torch.no_grad()
    def validate(net, out, iteration):
        clips = [torch.from_numpy(frames[i : i + 1]).permute(0, 4, 1, 2, 3) for i in range(0, len(frames), len(frames) // 12)]
        errors, inside = [], []
        for clip, mask in zip(clips, ids[:: len(frames) // 12], strict=False):
            pixels = clip.to(torch.bfloat16) / 127.5 - 1
            error = ((net.decode(net.encode(pixels)).float() - pixels.float()) / 2) ** 2
            where = F.interpolate(torch.from_numpy(mask)[None].float(), scale_factor=4)[0] > 127
            errors.append(error.mean())
            inside.append(error[0].mean(0)[where].mean())
        errors, inside = torch.stack(errors), torch.stack(inside)
        return {"psnr": psnr(errors.mean()), "psnr_object": psnr(inside.nanmean())}

    return Stage(Codec, loss, iterations, 1e-3, CODEC_BATCH, validate=validate, validate_every=250, ema=0.997, warmup=50)


def psnr(error):
    return round(float(-10 * torch.log10(error)), 2)


def crop(frames, ids, g):
    """8 frames of a 128x128 window of a random clip, uint8 (8, 128, 128, 3), and where objects are (8, 128, 128) in 0..1."""

    def draw(n):
        return int(torch.randint(n, (1,), generator=g))

    clip, start = draw(len(frames)), draw(frames.shape[1] - CODEC_FRAMES + 1)
    y, x = 2 * draw(65), 2 * draw(65)
    seen = torch.from_numpy(ids[clip, start + CODEC_FRAMES // 2]).nonzero()
    if len(seen) and draw(10) < 7:
        at = seen[draw(len(seen))]
        y, x = (int(min(max(4 * int(c) - CROP // 2 + draw(65) - 32, 0), 256 - CROP)) // 4 * 4 for c in at)
    window = frames[clip, start : start + CODEC_FRAMES, y : y + CROP, x : x + CROP]
    mask = torch.from_numpy(ids[clip, start : start + CODEC_FRAMES, y // 4 : (y + CROP) // 4, x // 4 : (x + CROP) // 4])
    mask = F.max_pool2d(mask.float() / 255, 3, 1, 1)
    return torch.from_numpy(window), F.interpolate(mask[:, None], size=(CROP, CROP))[:, 0]


def picture_loss(made, real, weight):
    """L1 of the picture and of its gradients at three scales, weighted (B, 1, F, H, W)."""
    total = 0.0
    for _ in range(3):
        difference = made - real
        total = total + (weight * difference.abs()).mean()
        for axis in (3, 4):
            total = total + 0.7 * (weight.narrow(axis, 1, weight.shape[axis] - 1) * difference.diff(dim=axis).abs()).mean()
        made, real, weight = (F.avg_pool3d(x, (1, 2, 2)) for x in (made, real, weight))
    return total


# ---- text


class Reader(nn.Module):
    """The text encoder with heads that must tell from its slots what the caption says: that is how it learns to bind words."""

    def __init__(self):
        super().__init__()
        self.encoder = TextEncoder(TextConfig(words=tuple(vocabulary())))
        width = self.encoder.config.width
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(ATTRIBUTES[name]) + 1) for name in ATTRIBUTES})  # the last class: unsaid

    def forward(self, prompts, unknown=None):
        tokens = self.encoder.tokens(prompts)
        if unknown is not None:
            tokens = torch.where(unknown & (tokens > 0), 1, tokens)
        slots = self.encoder(tokens)[:, :3].float()
        read = {(name, i): self.heads[name](slots[:, i]) for name in OBJECT_ATTRIBUTES for i in (0, 1)}
        return read | {(name, 2): self.heads[name](slots[:, 2]) for name in SCENE_ATTRIBUTES}


def spoken_labels(said):
    """`said` of a plot -> {(attribute, slot): class}; unsaid, or no such object, is the class after the last."""
    slots = {0: said[0], 1: said[1] if len(said) == 3 else {}, 2: said[-1]}
    keys = [(name, i) for name in OBJECT_ATTRIBUTES for i in (0, 1)] + [(name, 2) for name in SCENE_ATTRIBUTES]
    return {(name, i): ATTRIBUTES[name].index(slots[i][name]) if name in slots[i] else len(ATTRIBUTES[name]) for name, i in keys}


def text_stage(iterations=1200, batch=192):
    """The text encoder, on endless captions; words are hidden now and then so that unknown ones do no harm."""

    def draw(first, count):
        plots = [plot(first + i) for i in range(count)]
        labels = [spoken_labels(told.said) for told in plots]
        return [told.caption for told in plots], {key: torch.tensor([row[key] for row in labels]) for key in labels[0]}

    def loss(net, iteration):
        captions, labels = draw(10_000_000 + iteration * batch, batch)
        unknown = torch.rand(batch, 37, generator=generator(21, iteration)) < 0.02
        return sum(F.cross_entropy(logits, labels[key]) for key, logits in net(captions, unknown).items()) / len(labels)

    @torch.no_grad()
    def validate(net, out, iteration):
        captions, labels = draw(0, 500)
        right = torch.stack([(logits.argmax(1) == labels[key]).float().mean() for key, logits in net(captions).items()])
        return {"accuracy": round(float(right.mean()), 4), "worst": round(float(right.min()), 4)}

    return Stage(Reader, loss, iterations, 1e-3, batch, validate=validate, validate_every=200, warmup=100)


# ---- teacher

LAST_SHARE = 0.1  # of a batch at t = 999, where content is decided
OBJECT_WEIGHT = 3.0  # added to the loss where objects are


def teacher_stage(folder, text, iterations=6000, batch=32, kinds=("plain",), config=DenoiserConfig(), validate=None, **stage):
    """The denoiser: v-prediction, text dropped for one sample in ten, every map dropped for four in ten, else each kept with a chance of half."""
    clips = Clips(folder, kinds, ("latents", "depth", "edges", "ids", "rgb"))
    schedule = Schedule()

    def loss(net, iteration):
        g, rng = generator(31, iteration), np.random.default_rng((31, iteration))
        chosen = torch.randint(len(clips), (batch,), generator=g)
        x0, cond = clips.arrays["latents"][chosen].float(), conditions(clips, chosen, text, g, rng)
        t = torch.randint(schedule.train_steps, (batch,), generator=g)
        t[: round(batch * LAST_SHARE)] = schedule.train_steps - 1
        eps = torch.randn(x0.shape, generator=g)
        x_t, v = schedule.add_noise(x0, eps, t), schedule.v_from_x0_eps(x0, eps, t)
        kind = next(net.parameters()).dtype
        made = net(x_t.to(kind), t, cond.map(lambda value: value.to(kind))).float()
        return (object_weight(clips.arrays["ids"][chosen]) * (made - v) ** 2).mean()

    return Stage(lambda: Denoiser(config), loss, iterations, 1e-3, batch, validate=validate, **stage)


def object_weight(ids):
    """ids (B, 16, 64, 64) -> (B, 1, 4, 16, 16): 1, and more in and around objects; its mean over the batch is 1."""
    seen = F.max_pool3d(ids[:, None].float() / 255, 4)
    weight = 1 + OBJECT_WEIGHT * F.max_pool3d(seen, (1, 3, 3), 1, (0, 1, 1))
    return weight / weight.mean()
