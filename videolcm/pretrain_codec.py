"""The stages that train the embedded codec: its transform and decoder on rendered clips, then the decoder on what the student leaves.

In: a folder of rendered shards (data.py). Out: a Stage. It knows nothing about maps or guidance.
"""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from .data import CLIPS_PER_SHARD, Clips, frames_of
from .models.base import Conditions
from .models.codec import SPACE, TIME, Codec, blocks
from .schedule import Schedule
from .training import Stage, generator

CROP, CODEC_FRAMES, CODEC_BATCH = 128, 8, 6
PLAIN = 24  # shards
CELLS = CROP // SPACE
MIDDLE = 620  # the last timestep where a noised clip still says where its toys are
LATENT_NOISE = 0.2  # at most, of a sample in the codec's training: what a denoiser leaves is taken away by the decoder


def codec_stage(folder, iterations=2500):
    """The codec: its transform fitted to blocks of clips, then its decoder trained on windows of 8 frames of 128x128."""
    frames, ids = frames_of(folder, plain=PLAIN, free=4)  # (N, 16, 256, 256, 3), (N, 16, 64, 64)

    def make():
        codec = Codec()
        fit_transform(codec, frames, ids)
        return codec

    def loss(net, iteration):
        return clean_loss(net, frames, ids, iteration, CODEC_BATCH)

    validate = partial(restored, frames, ids)
    return Stage(make, loss, iterations, 1e-3, CODEC_BATCH, validate=validate, validate_every=250, ema=0.997, warmup=50, cooldown=0.6)


def decoder_stage(folder, codec, encode_text, denoisers, iterations=1200):
    """The decoder of `codec`, taught further on what `denoisers` (student and teacher) make of rendered clips that were noised half way: what few
    steps leave in the latents then does not reach the picture. One half of a batch is that, the other as in `codec_stage`."""
    frames, ids = frames_of(folder, plain=PLAIN, free=4)
    clips, schedule, half = Clips(folder, ("plain",), ("latents",)), Schedule(), CODEC_BATCH // 2

    def loss(net, iteration):
        g, rng = generator(14, iteration), np.random.default_rng((14, iteration))
        i = int(torch.randint(min(len(clips), PLAIN * CLIPS_PER_SHARD), (1,), generator=g))  # plain shards come first
        cond = Conditions(encode_text([clips.caption(i, rng)]))
        made = remade(denoisers[iteration % len(denoisers)], schedule, clips.arrays["latents"][i, None].float(), cond, g)
        windows = [window(ids, i, g) for _ in range(half)]
        pixels, weight = cut(frames, ids, windows)
        corners = [(start // TIME, y // SPACE, x // SPACE) for _, start, y, x in windows]
        latents = torch.cat([made[:, :, f : f + CODEC_FRAMES // TIME, y : y + CELLS, x : x + CELLS] for f, y, x in corners])
        decoded = net.decode(latents.to(net.scale.dtype)).float()
        return (picture_loss(decoded, pixels, 1 + 3 * weight) + clean_loss(net, frames, ids, iteration, half)) / 2

    def make():
        return codec.requires_grad_(True)

    validate = partial(restored, frames, ids)
    return Stage(make, loss, iterations, 5e-4, CODEC_BATCH, validate=validate, validate_every=250, ema=0.995, warmup=50, cooldown=0.6)


@torch.no_grad()
def remade(denoise, schedule, x0, cond, g):
    """Latents (1, 48, f, h, w): what the sampler of 2, 4 or 8 steps ends in when it comes to one of its middle timesteps with x0 noised to there."""
    steps = (2, 4, 8)[int(torch.randint(3, (1,), generator=g))]
    path = [t for t in schedule.lcm_timesteps(steps).tolist() if t <= MIDDLE]
    for t in path[int(torch.randint(len(path), (1,), generator=g)) :]:
        t = torch.tensor([t])
        x0 = denoise(schedule.add_noise(x0, torch.randn(x0.shape, generator=g), t), t, cond)
    return x0


def clean_loss(net, frames, ids, iteration, batch):
    """The loss on windows whose latents are the encoder's, but for a little noise."""
    g = generator(11, iteration)
    pixels, weight = cut(frames, ids, [window(ids, int(torch.randint(len(frames), (1,), generator=g)), g) for _ in range(batch)])
    latents = net.encode(pixels.to(net.scale.dtype))
    noise = torch.randn(latents.shape, generator=generator(12, iteration)) * torch.rand(batch, 1, 1, 1, 1, generator=g)
    return picture_loss(net.decode(latents + LATENT_NOISE * noise.to(latents)).float(), pixels, 1 + 3 * weight)


@torch.no_grad()
def restored(frames, ids, net, out, iteration):
    """PSNR in dB of twelve clips that were encoded and decoded."""
    errors, inside = [], []
    for i in range(0, len(frames), len(frames) // 12):
        pixels = torch.from_numpy(frames[i : i + 1]).permute(0, 4, 1, 2, 3).to(net.scale.dtype) / 127.5 - 1
        error = ((net.decode(net.encode(pixels)).float() - pixels.float()) / 2) ** 2
        where = F.interpolate(torch.from_numpy(ids[i])[None].float(), scale_factor=4)[0] > 127
        errors.append(error.mean())
        inside.append(error[0].mean(0)[where].mean())
    return {"psnr": psnr(torch.stack(errors).mean()), "psnr_object": psnr(torch.stack(inside).nanmean())}


def fit_transform(codec, frames, ids, clips=600, each=48, seed=0):
    """Sets the transform of `codec` to the principal components of blocks: `each` from `clips` clips, half of these around objects.

    frames (N, 16, H, W, 3) and ids (N, 16, H / 4, W / 4), uint8. The scale makes the variance of the latents 1 on average.
    """
    rng, rows = np.random.default_rng(seed), []
    for i in np.linspace(0, len(frames) - 1, min(clips, len(frames))).astype(int):
        found = blocks(torch.from_numpy(frames[i]).movedim(-1, 0)[None]).flatten(0, 3)  # (256, 3072) uint8
        seen = F.max_pool3d(torch.from_numpy(ids[i])[None].float(), 4).flatten() > 0
        near, far = seen.nonzero()[:, 0], (~seen).nonzero()[:, 0]
        rows += [found[torch.from_numpy(rng.choice(where, min(len(where), each // 2), replace=False))] for where in (near, far)]
    x = torch.cat(rows).float() / 127.5 - 1
    mean = x.mean(0)
    variance, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    variance, basis = variance.flip(0)[: codec.config.latent], vectors.T.flip(0)[: codec.config.latent]
    scale = variance**0.25
    scale = scale * (variance.sqrt() / scale).square().mean().sqrt()
    codec.mean.copy_(mean), codec.basis.copy_(basis), codec.scale.copy_(scale)


def psnr(error):
    return round(float(-10 * torch.log10(error)), 2)


def window(ids, clip, g):
    """(clip, first frame, y, x) of a random window of 8 frames of 128x128 on the codec's grid. Seven of ten hold an object."""

    def draw(n):
        return int(torch.randint(n, (1,), generator=g))

    start = TIME * draw((ids.shape[1] - CODEC_FRAMES) // TIME + 1)
    seen = torch.from_numpy(ids[clip, start + CODEC_FRAMES // 2]).nonzero()
    middle = 4 * seen[draw(len(seen))] if len(seen) and draw(10) < 7 else torch.tensor([draw(257), draw(257)])
    y, x = (int(min(max(int(c) - CROP // 2 + draw(65) - 32, 0), 256 - CROP)) // SPACE * SPACE for c in middle)
    return clip, start, y, x


def cut(frames, ids, windows):
    """The windows' pixels (B, 3, 8, 128, 128) in [-1, 1], and where objects are (B, 1, 8, 128, 128) in [0, 1]."""
    pixels, masks = [], []
    for clip, start, y, x in windows:
        pixels.append(torch.from_numpy(frames[clip, start : start + CODEC_FRAMES, y : y + CROP, x : x + CROP]))
        mask = torch.from_numpy(ids[clip, start : start + CODEC_FRAMES, y // 4 : (y + CROP) // 4, x // 4 : (x + CROP) // 4])
        masks.append(F.interpolate(F.max_pool2d(mask.float() / 255, 3, 1, 1)[:, None], size=(CROP, CROP))[:, 0])
    return torch.stack(pixels).permute(0, 4, 1, 2, 3).float() / 127.5 - 1, torch.stack(masks)[:, None]


def picture_loss(made, real, weight):
    """L1 of the picture and of its gradients in time and space at three scales, weighted (B, 1, F, H, W): half seconds that do not agree flicker."""
    total = 0.0
    for _ in range(3):
        difference = made - real
        total = total + (weight * difference.abs()).mean()
        for axis in (2, 3, 4):
            total = total + 0.7 * (weight.narrow(axis, 1, weight.shape[axis] - 1) * difference.diff(dim=axis).abs()).mean()
        made, real, weight = (F.avg_pool3d(x, (1, 2, 2)) for x in (made, real, weight))
    return total
