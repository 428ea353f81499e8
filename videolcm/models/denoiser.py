"""The embedded space-time denoiser with its condition maps; small enough for two processor cores.

In: noised latents, a timestep, context, maps. Out: x0. It knows nothing about training, sampling or the words behind the context. It holds no table
of positions in space or time, so other sizes and lengths work.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from ..schedule import Schedule
from .codec import TIME, Mix, channels_last, neighbours
from .frames import Frames

MAPS = 4  # map cells per latent


@dataclass(frozen=True)
class DenoiserConfig:
    latent: int = 48
    context: int = 192
    slots: int = 3
    width: int = 384
    depth: int = 8
    heads: int = 6
    hidden: int = 1152  # of a block's feed-forward part
    stem: int = 128  # at latent resolution, around the transformer: what 48 channels hold in detail has to pass here
    stem_depth: int = 2
    fine: int = 64  # on cells of 8 pixels, around the stem
    fine_depth: tuple[int, int] = (1, 2)  # blocks before and after it
    maps: int = 32
    backdrop: int = 384
    hint: int = 96  # channels in which the backdrop sees the maps
    frames: int = 64  # in the last level, on cells of 8 pixels of single frames
    frames_depth: int = 2  # 0: without it
    frames_coarse: tuple[int, ...] = (96, 192)  # in its middle, on cells of 16 and 32 pixels
    inputs: tuple[str, ...] = ()  # what it is told besides t, of "w" and "s" of Conditions


class Backdrop(nn.Module):
    """What text and maps alone tell of each place: mean and spread of x0, (B, 48, 1, h, w) each, the same in every frame."""

    def __init__(self, config):
        super().__init__()
        width, hint = config.backdrop, config.hint
        self.place = nn.Linear(36, width)
        self.said = nn.Linear(config.slots * config.context, 2 * width)
        self.maps = nn.Conv2d(6 * MAPS**2 * TIME, hint, 1)
        self.here, self.overall = nn.Conv2d(hint, width, 3, padding=1), nn.Linear(hint + 3, 2 * width, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.leave, self.doubt = nn.Linear(width, config.latent), nn.Linear(width, config.latent)
        for layer in (self.doubt, self.here, self.overall):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.here.bias)

    def forward(self, context, maps, present):
        """`maps` (B, 384, h, w) and `present` (B, 3) are those of `Denoiser.stack_maps`, the mean of a clip."""
        h, w = maps.shape[2:]
        maps = F.silu(self.maps(maps))
        told = self.said(context.flatten(1)) + self.overall(torch.cat([maps.mean((2, 3)), present], 1))
        scale, shift = told[:, None].chunk(2, 2)  # (B, 1, width) twice
        x = self.place(places(1, h, w, context)) * (1 + scale) + shift  # (B, h w, width)
        x = F.silu(x + self.here(maps).flatten(2).transpose(1, 2))
        for layer in self.hidden:
            x = x + F.silu(layer(x))
        mean, log_spread = (head(x).float().transpose(1, 2).unflatten(2, (1, h, w)) for head in (self.leave, self.doubt))
        return mean, log_spread.clamp(-4, 2).exp()


class Denoiser(nn.Module):
    """x0, float32, of x_t (B, 48, f, h, w), all three even: the best linear guess around what text and maps tell, and what the network adds.

    Convolutions on cells of 8 pixels, then at latent resolution, around a transformer on patches of 2x2x2 latents and the text. A patch is 8
    frames of 32x32 pixels, so two seconds are 128 tokens, and what moves is whole from the start. At the end convolutions on the pixels of single
    frames (frames.py) add what all that has missed. The network sees and says values of unit variance at every channel, place and timestep (Karras
    et al., arXiv 2206.00364, Sec. 5, where spreads differ): where nothing can be, noise is taken away by itself.
    """

    def __init__(self, config=DenoiserConfig()):
        super().__init__()
        self.config, width, stem = config, config.width, config.stem
        self.alphas = Schedule().alphas_cumprod.sqrt().float()  # (1000,), no buffer: it must stay float32
        self.backdrop = Backdrop(config)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.present = nn.Linear(3, width, bias=False)
        self.said = nn.Linear(config.slots * config.context, width, bias=False)
        self.maps = nn.Sequential(nn.Conv2d(6 * MAPS**2 * TIME, 96, 1), nn.SiLU(), nn.Conv2d(96, config.maps, 3, padding=1))
        self.enter = nn.Conv2d(3 * config.latent + config.maps, stem, 3, padding=1)
        self.before, self.after = (nn.ModuleList(Timed(stem, width) for _ in range(config.stem_depth)) for _ in range(2))
        self.mix = nn.ModuleList((Mix(stem), Mix(stem)))  # half seconds agree in detail
        self.patch, self.unpatch = nn.Linear(8 * stem, width), nn.Linear(width, 8 * stem)
        self.text, self.place = nn.Linear(config.context, width), nn.Linear(36, width)
        self.modulate = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, config.heads, config.hidden) for _ in range(config.depth))
        self.join = nn.Conv2d(2 * stem, stem, 1)
        self.fine = Fine(config)
        self.leave = nn.Conv2d(stem, config.latent, 3, padding=1)
        for layer in (self.modulate, self.leave):
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
        depth, coarse = config.frames_depth, config.frames_coarse
        self.frames = Frames(config.latent, config.frames, depth, 256, coarse, (stem, width)) if depth else None
        if config.inputs:
            self.with_inputs(config.inputs)

    def with_inputs(self, names):
        """This network, told more from now on: a layer beside the time embedding, all zeros, so at first it says what it said."""
        self.config = replace(self.config, inputs=tuple(names))
        self.told = nn.Linear(256 * len(names), self.config.width, bias=False).to(self.modulate.weight)
        nn.init.zeros_(self.told.weight)
        return self

    def forward(self, x_t, t, cond, windows=None):
        """`windows`, where x_t is not whole: the Windows that it was cut by; cond is that of the whole."""
        whole = x_t if windows is None else windows.whole(x_t)
        maps, present = self.stack_maps(whole, cond)
        mean, spread = self.expected(cond, maps, present)
        spots = places(*(n // 2 for n in whole.shape[2:]), maps)  # (f h w / 8, 36)
        if windows is not None:
            mean, spread = windows(mean), windows(spread)
            maps = channels_last(windows(maps.unflatten(0, (len(present), -1))).flatten(0, 1))
            grid = spots.T.unflatten(1, [n // 2 for n in whole.shape[2:]]).expand(len(present), -1, -1, -1, -1)
            spots = windows(grid).flatten(2).transpose(1, 2)
        alpha = self.alphas.to(x_t.device)[t][:, None, None, None, None]  # (B, 1, 1, 1, 1)
        sigma = (1 - alpha**2).sqrt()
        size = ((alpha * spread) ** 2 + sigma**2).sqrt()  # of x_t, in each channel
        centred = x_t.float() - alpha * mean
        time = sinusoid(t).to(maps.dtype)  # (B, 256)
        added, told = self.network((centred / size).to(maps.dtype), time, cond, maps, present, spots)
        # x0 = E x0 + alpha spread^2 / size^2 (x_t - E x_t) + sigma spread / size F
        x0 = mean + alpha * (spread / size) ** 2 * centred + sigma * spread / size * added.float()
        if self.frames is None:
            return x0
        noise = (x_t.float() - alpha * x0) / sigma
        return x0 + sigma * self.frames(x0.to(maps.dtype), noise.to(maps.dtype), time, told).float()

    def expected(self, cond, maps, present):
        """Mean and spread of x0 before anything is seen of it, float32, (B, 48, 1, h, w) each."""
        return self.backdrop(cond.context.to(maps.dtype), maps.unflatten(0, (len(present), -1)).mean(1), present)

    def network(self, x_t, time, cond, maps, present, spots):
        """F of unit variance from x_t of unit variance, both (B, 48, f, h, w), and the features that it comes of, (B f, stem, h, w) and those of the
        patches (B f / 2, width, h / 2, w / 2); `time`: its `sinusoid`, `spots`: `places` of its patches."""
        batch, _, f, h, w = x_t.shape
        context = cond.context.to(x_t.dtype)
        emb = self.time(time) + self.present(present) + self.said(context.flatten(1))  # (B, width)
        if self.config.inputs:
            emb = emb + self.told(scalars(cond, self.config.inputs, x_t))
        x = channels_last(torch.cat([with_changes(x_t), self.maps(maps)], 1))  # (B f, 3 * 48 + 32, h, w)
        fine, added = self.fine.before(x, emb)  # (B f, 64, 2 h, 2 w), (B f, stem, h, w)
        skip = self.enter(x) + added
        for block in self.before:
            skip = block(skip, emb)
        skip = self.mix[0](skip, f)
        tokens = self.patch(patches(skip, batch)) + self.place(spots)  # (B, f h w / 8, width)
        y = torch.cat([self.text(context), tokens], 1)  # (B, 3 + f h w / 8, width)
        shared = self.modulate(F.silu(emb)).unflatten(1, (6, -1))
        for block in self.blocks:
            y = block(y, shared)
        known = rms(y[:, context.shape[1] :])
        y = unpatched(self.unpatch(known), f, h, w)
        y = self.mix[1](self.join(torch.cat([channels_last(y), skip], 1)), f)
        for block in self.after:
            y = block(y, emb)
        added = self.leave(F.silu(y)) + self.fine.after(fine, y, emb, f)
        known = known.unflatten(1, (f // 2, h // 2, w // 2)).flatten(0, 1).movedim(-1, 1)
        return added.unflatten(0, (batch, f)).transpose(1, 2), (F.silu(y), known)

    def stack_maps(self, x_t, cond):
        """(B f, 6 * 16 * 4, h, w) the maps at a quarter of the clip's size, folded as the latents are; (B, 3) which are there; as the weights are.

        A sample whose map is all -1 counts as one without that map: so a batch can mix samples with and without.
        """
        batch, _, f, h, w = x_t.shape
        parts, present, like = [], [], x_t.new_zeros((), dtype=self.leave.weight.dtype)
        for name, channels in (("depth", 1), ("sketch", 1), ("masked", 4)):
            value = getattr(cond, name)
            if value is None:
                parts.append(like.new_zeros(batch, channels, TIME * f, MAPS * h, MAPS * w))
                present.append(like.new_zeros(batch))
            else:
                there = (value.flatten(1).amax(1) > -1).to(like.dtype)
                parts.append(fit_map(value.to(like.dtype), TIME * f, MAPS * h, MAPS * w) * there[:, None, None, None, None])
                present.append(there)
        maps = torch.cat(parts, 1).transpose(1, 2).flatten(0, 1)  # (B F, 6, 4 h, 4 w)
        maps = F.pixel_unshuffle(maps, MAPS).unflatten(0, (-1, TIME)).flatten(1, 2)
        return channels_last(maps), torch.stack(present, 1)


@dataclass(frozen=True)
class Windows:
    """Square parts of latents, to learn detail where objects are: of a grid of `grid` (h, w), `side` places at `tops` and `lefts` (B,), all even."""

    grid: tuple[int, int]
    side: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    def __call__(self, value):
        """The windows of (B, ..., H, W), whose H and W are a whole part of the grid's."""
        n = self.grid[0] // value.shape[-2]
        side, corners = self.side // n, zip(value, self.tops, self.lefts, strict=True)
        return torch.stack([one[..., top // n : top // n + side, left // n : left // n + side] for one, top, left in corners])

    def whole(self, value):
        """Something of the size that value (B, C, f, side, side) was cut from."""
        return value.new_zeros(()).expand(*value.shape[:3], *self.grid)


class Fine(nn.Module):
    """The level of detail: each latent is unfolded into 2x2 cells of 8 pixels, which share their convolutions. x: (B f, C, h, w)."""

    def __init__(self, config):
        super().__init__()
        width, stem, emb, (before, after) = config.fine, config.stem, config.width, config.fine_depth
        self.unfold, self.fold = nn.Conv2d(3 * config.latent + config.maps, 4 * width, 1), nn.Conv2d(4 * width, stem, 1)
        self.down, self.up = (nn.ModuleList(Timed(width, emb) for _ in range(n)) for n in (before, after))
        self.guide, self.mix, self.leave = nn.Conv2d(stem, 4 * width, 1), Mix(width), nn.Conv2d(4 * width, config.latent, 1)
        for layer in (self.fold, self.leave):
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)

    def before(self, x, emb):
        """-> cells (B f, 64, 2 h, 2 w), and what they tell the stem (B f, stem, h, w)."""
        cells = channels_last(F.pixel_shuffle(self.unfold(x), 2))
        for block in self.down:
            cells = block(cells, emb)
        return cells, self.fold(channels_last(F.pixel_unshuffle(F.silu(cells), 2)))

    def after(self, cells, y, emb, frames):
        """-> what the cells, told by the stem's y, add to the latents (B f, 48, h, w)."""
        cells = self.mix(cells + channels_last(F.pixel_shuffle(self.guide(F.silu(y)), 2)), frames)
        for block in self.up:
            cells = block(cells, emb)
        return self.leave(channels_last(F.pixel_unshuffle(F.silu(cells), 2)))


def with_changes(x_t):
    """(B, 48, f, h, w) -> (B f, 144, h, w): each latent frame, and what is other in those before and after it: where nothing moves, that is noise."""
    x = x_t.transpose(1, 2)  # (B, f, 48, h, w)
    before, after = neighbours(x)
    return torch.cat([x, before - x, after - x], 2).flatten(0, 1)


def patches(x, batch):
    """(B f, C, h, w) -> (B, f h w / 8, 8 C): what 2x2 latents hold in two latent frames."""
    x = F.pixel_unshuffle(x, 2).unflatten(0, (batch, -1, 2))  # (B, f / 2, 2, 4 C, h / 2, w / 2)
    return x.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)


def unpatched(tokens, f, h, w):
    """The inverse of `patches`: (B, f h w / 8, 8 C) -> (B f, C, h, w)."""
    x = tokens.unflatten(1, (f // 2, h // 2, w // 2)).unflatten(4, (2, -1))  # (B, f / 2, h / 2, w / 2, 2, 4 C)
    return F.pixel_shuffle(x.permute(0, 1, 4, 5, 2, 3).flatten(0, 2), 2)


def fit_map(value, frames, height, width):
    """A map (B, C, F, H, W) at the size the denoiser reads; missing frames repeat the last one."""
    if value.shape[2] < frames:
        value = torch.cat([value, value[:, :, -1:].expand(-1, -1, frames - value.shape[2], -1, -1)], 2)
    if value.shape[3:] == (height, width):
        return value
    flat = F.interpolate(value.transpose(1, 2).flatten(0, 1), (height, width), mode="area")
    return flat.unflatten(0, (-1, frames)).transpose(1, 2)


class Timed(nn.Module):
    """A residual block of two convolutions whose middle is scaled and shifted by the time embedding. x: (B f, C, h, w)."""

    def __init__(self, width, emb):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(width // 8, width), nn.GroupNorm(width // 8, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.emb = nn.Linear(emb, 2 * width)
        for layer in (self.emb, self.conv2):
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)

    def forward(self, x, emb):
        y = self.norm2(self.conv1(F.silu(self.norm1(x))))
        scale, shift = self.emb(F.silu(emb)).repeat_interleave(len(x) // len(emb), 0)[..., None, None].chunk(2, 1)
        return x + self.conv2(F.silu(y * (1 + scale) + shift))


class Block(nn.Module):
    """Full attention and a feed-forward part over words and patches, modulated by time (one shared modulation, one table a block: PixArt)."""

    def __init__(self, width, heads, hidden):
        super().__init__()
        self.heads = heads
        self.table = nn.Parameter(torch.zeros(6, width))
        self.gain = nn.Parameter(torch.full((heads, 1, 1), 1.5))  # queries and keys have unit size; this sharpens
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x, shared):
        shift1, scale1, gate1, shift2, scale2, gate2 = (shared + self.table.to(x.dtype))[:, :, None].unbind(1)
        x = x + gate1 * self.attend(rms(x) * (1 + scale1) + shift1)
        return x + gate2 * self.down(F.gelu(self.up(rms(x) * (1 + scale2) + shift2), approximate="tanh"))

    def attend(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, N, width / heads)
        weights = (rms(q) * (self.gain / math.sqrt(q.shape[-1])) @ rms(k).transpose(2, 3)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


def rms(x):
    return F.rms_norm(x, x.shape[-1:])


def sinusoid(t):
    """Timesteps (B,) -> (B, 256): cosines and sines of 128 frequencies."""
    angle = t.float()[:, None] * torch.exp(torch.arange(128, device=t.device) * (-math.log(10000) / 128))
    return torch.cat([angle.cos(), angle.sin()], 1)


def scalars(cond, names, like):
    """(B, 256 n): each of `names` as `sinusoid` has timesteps; w in thousandths (as LCM embeds it, arXiv 2310.04378), s 0 where nobody says."""
    s = torch.zeros(len(like)) if cond.s is None else cond.s
    values = {"s": s, "w": None if cond.w is None else 1000 * cond.w.float()}
    return torch.cat([sinusoid(values[name].to(like.device)) for name in names], 1).to(like.dtype)


def places(f, h, w, like):
    """(f h w, 36) where each patch is: sines and cosines of its relative position in time, height and width."""
    axes = [(torch.arange(n, device=like.device) + 0.5) / n for n in (f, h, w)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3, 1)
    angle = (grid * math.pi * 2.0 ** torch.arange(-1, 5, device=like.device)).flatten(1)  # (N, 18)
    return torch.cat([angle.cos(), angle.sin()], 1).to(like.dtype)
