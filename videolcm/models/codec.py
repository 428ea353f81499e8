"""The embedded codec: pixels <-> latents that compress time by 4 and space by 16, and the small blocks that its decoder shares with the denoiser.

In: pixels in [-1, 1] or latents. Out: the other. The encoder is a linear transform, the decoder its inverse plus a network. No table of
positions in space or time, so other sizes and lengths work. It knows nothing about text, noise or training.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

TIME, SPACE = 4, 16  # frames per latent frame, pixels per latent
CELL = 4  # pixels per place of the decoder's last layer
REACH = 2  # latent frames: one by the decoder's first mixing, half a one by its second


@dataclass(frozen=True)
class CodecConfig:
    latent: int = 48
    widths: tuple[int, ...] = (192, 96, 32)  # at 1/16 and a quarter of the frames, 1/8 and half of them, 1/4 and all
    blocks: tuple[int, ...] = (2, 1, 1)


class Codec(nn.Module):
    """Pixels (B, 3, F, H, W), F a multiple of 4, <-> latents (B, 48, F/4, H/16, W/16), of unit variance on average.

    The encoder is linear: the first components of blocks of 4 frames of 16x16 pixels (a Karhunen-Loeve transform), each divided by the square
    root of its deviation. So the strongest latents are what matters most to the picture, which a denoiser then learns first. The decoder is the
    inverse transform plus what a network has learned to add.
    """

    def __init__(self, config=CodecConfig()):
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(BLOCK))
        self.register_buffer("basis", torch.eye(config.latent, BLOCK))  # orthonormal rows
        self.register_buffer("scale", torch.ones(config.latent))
        self.decoder = Decoder(config)

    def encode(self, pixels):
        x = F.linear(blocks(pixels) - self.mean, self.basis) / self.scale  # (B, f, h, w, 48)
        return x.movedim(-1, 1)

    def decode(self, latents):
        return unfolded(self.transformed(latents) + self.decoder(latents))

    def decode_parts(self, latents, size):
        """`decode` in parts of `size` latent frames, with less memory: each sees as far beyond its ends as the decoder's mixing reaches."""
        f, done = latents.shape[2], []
        for start in range(0, f, size):
            first, end = max(0, start - REACH), min(f, start + size)
            part = self.decode(latents[:, :, first : min(f, end + REACH)])
            done.append(part[:, :, TIME * (start - first) : TIME * (end - first)])
        return torch.cat(done, 2) if len(done) > 1 else done[0]

    def linear(self, latents):
        """The inverse transform alone: pixels (B, 3, F, H, W)."""
        return unfolded(self.transformed(latents))

    def transformed(self, latents):
        """The inverse transform as cells (B, F, H/4, W/4, 48)."""
        n = SPACE // CELL
        x = latents.movedim(1, -1) * self.scale  # (B, f, h, w, 48)
        x = x @ in_cells(self.basis) + in_cells(self.mean)  # (B, f, h, w, 3072)
        x = x.unflatten(4, (TIME, n, -1)).permute(0, 1, 4, 2, 5, 3, 6)  # (B, f, 4, h, 4, w, 192)
        return x.flatten(5).flatten(3, 4).flatten(1, 2).unflatten(3, (-1, 3 * CELL**2))  # (B, F, H/4, W/4, 48)

    @property
    def shown(self):
        """(48,) how much pictures show of each channel: the square of what a change of it changes pixels by, 1 on average."""
        power = self.scale.float() ** 2
        return power / power.mean()

    def seams(self, latents):
        """Latents (B, 48, f, h, w) -> (B, f - 1, h, w, 768) what the inverse transform changes from the last frame of a latent frame to the first of
        the next: linear, without the mean, for errors. Independent errors that all pictures show alike and have a mean square of 1 give 1."""
        size = self.shown.sqrt()[:, None]
        first, *_, last = (self.basis.float() * size).unflatten(1, (3, TIME, -1)).transpose(1, 2).flatten(2).unbind(1)  # (48, 768) each
        x = latents.float().movedim(1, -1) * (BLOCK / (2 * self.config.latent)) ** 0.5
        return x[:, 1:] @ first - x[:, :-1] @ last

    def preview(self, latents, factor=8):
        """latents (B, 48, f, h, w) -> pixels (B, 3, F, H / factor, W / factor) by one small linear map."""
        side = SPACE // factor

        def smaller(x):  # (..., 3072) -> (..., 3 * 4 * side * side)
            return x.unflatten(-1, (3 * TIME, side, factor, side, factor)).mean((-3, -1)).flatten(-3)

        return pictures(latents.movedim(1, -1) * self.scale @ smaller(self.basis) + smaller(self.mean), side)


BLOCK = 3 * TIME * SPACE * SPACE


def blocks(pixels):
    """Pixels (B, 3, F, H, W) -> (B, f, h, w, 3072): blocks of 4 frames of 16x16."""
    x = pixels.unflatten(4, (-1, SPACE)).unflatten(3, (-1, SPACE)).unflatten(2, (-1, TIME))  # (B, 3, f, 4, h, 16, w, 16)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def pictures(x, side=SPACE):
    """Blocks (B, f, h, w, 3 * 4 * side * side) -> pixels (B, 3, 4 f, side h, side w)."""
    x = x.unflatten(4, (3, TIME, side, side)).permute(0, 4, 1, 5, 2, 6, 3, 7)  # (B, 3, f, 4, h, side, w, side)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def in_cells(x):
    """Blocks (..., 3072) with their values in the order of cells: frame, row of cells, cell, row of pixels, pixel, colour."""
    n = SPACE // CELL
    return x.unflatten(-1, (3, TIME, n, CELL, n, CELL)).movedim((-6, -3), (-1, -3)).reshape(x.shape)


def unfolded(cells):
    """Cells (B, F, H/4, W/4, 48), their values by row, pixel, colour -> pixels (B, 3, F, H, W), which lie in memory as frames (F, H, W, 3) do."""
    x = cells.unflatten(4, (CELL, 3 * CELL)).transpose(3, 4)  # (B, F, H/4, 4, W/4, 12)
    return x.flatten(4).unflatten(4, (-1, 3)).flatten(2, 3).movedim(-1, 1)


class Decoder(nn.Module):
    """Latents (B, 48, f, h, w) -> cells (B, F, H/4, W/4, 48), zero before it is trained.

    Most of the work is done where there are a quarter of the frames.
    """

    def __init__(self, config):
        super().__init__()
        (a, b, c), d = config.widths, config.blocks
        self.enter = nn.Conv2d(config.latent, a, 3, padding=1)
        self.low, self.middle, self.high = (nn.Sequential(*(Residual(width) for _ in range(n))) for width, n in zip((a, b, c), d, strict=True))
        self.mix = nn.ModuleList((QuickMix(a), QuickMix(b)))
        self.up = nn.ModuleList((Up(a, b), Up(b, c)))
        self.leave = nn.Conv2d(c, 3 * CELL**2, 3, padding=1)
        nn.init.zeros_(self.leave.weight), nn.init.zeros_(self.leave.bias)

    def forward(self, latents):
        batch, _, f = latents.shape[:3]
        x = self.enter(channels_last(latents.transpose(1, 2).flatten(0, 1)))
        x = self.up[0](self.low(self.mix[0](x, f)))
        x = self.up[1](self.middle(self.mix[1](x, 2 * f)))
        x = F.conv2d(F.silu(self.high(x)), unfolding(self.leave.weight, 1), unfolding(self.leave.bias, 1), padding=1)  # (B F, 48, H/4, W/4)
        return x.movedim(1, -1).unflatten(0, (batch, -1))


def unfolding(weight, frames):
    """A convolution's weight or bias with its outputs (frames, channels, places) in the order frames, places, channels: 4 places of two frames, 16 of
    one. Unfolding the places then moves all channels of one at once."""
    places = 4 if frames == 2 else CELL**2
    return weight.unflatten(0, (frames, -1, places)).transpose(1, 2).flatten(0, 2)


class Residual(nn.Module):
    """x + conv(silu(conv(silu(x)))), without normalisation."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.normal_(self.conv2.weight, std=0.01)

    def forward(self, x):
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Up(nn.Module):
    """Twice the size and twice the frames, `a` channels to `b`; the shortcut repeats channels and unfolds them (DC-AE, arXiv 2410.10733).

    x: (B f, a, h, w). The shortcut is added to the weights, and channels come out in the order in which they lie in the result: no pass for either.
    """

    def __init__(self, a, b):
        super().__init__()
        self.conv, self.repeat = nn.Conv2d(a, 8 * b, 3, padding=1), -(-8 * b // a)

    def forward(self, x):
        weight, out = self.conv.weight.clone(), torch.arange(self.conv.out_channels, device=x.device)
        weight[out, out // self.repeat, 1, 1] += 1
        x = F.conv2d(x, unfolding(weight, 2), unfolding(self.conv.bias, 2), padding=1)
        x = x.movedim(1, -1).unflatten(3, (2, 2, 2, -1)).permute(0, 3, 1, 4, 2, 5, 6)  # (B f, 2, h, 2, w, 2, b)
        return x.flatten(4, 5).flatten(2, 3).flatten(0, 1).movedim(-1, 1)


class Mix(nn.Module):
    """x + a convolution over three neighbouring frames, zero at the start. x: (B F, C, h, w)."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3 * width, width, 1)
        nn.init.zeros_(self.conv.weight), nn.init.zeros_(self.conv.bias)

    def forward(self, x, frames):
        clip = F.silu(x).unflatten(0, (-1, frames))  # (B, F, C, h, w)
        before, after = neighbours(clip)
        return x + self.conv(torch.cat([before, clip, after], 2).flatten(0, 1))


def neighbours(clip):
    """(B, F, ...) twice: at each frame the one before it and the one after it; an end is its own neighbour."""
    return torch.cat([clip[:, :1], clip[:, :-1]], 1), torch.cat([clip[:, 1:], clip[:, -1:]], 1)


class QuickMix(Mix):
    """The same in half the time. Its sums round a little otherwise, which frames do not show, but what a denoiser's steps make of it they do: so
    the denoiser keeps the plain one, and clips stay as they are."""

    def forward(self, x, frames):
        return x + over_frames(self.conv, F.silu(x), frames)


def over_frames(conv, x, frames):
    """`conv`, 1x1, of each frame with the one before it and the one after it, in this order before it, it, after it: (B F, C, h, w) -> the same with
    conv's channels. Frames are rows of a picture, each place of a frame is a column, so nothing three times as wide is made."""
    clip = x.movedim(1, -1).unflatten(0, (-1, frames)).flatten(2, 3)  # (B, F, h w, C)
    clip = torch.cat([clip[:, :1], clip, clip[:, -1:]], 1).movedim(-1, 1)  # (B, C, F + 2, h w)
    weight = conv.weight.unflatten(1, (3, -1)).movedim(1, 2).flatten(3).contiguous()  # (C, C, 3, 1)
    mixed = F.conv2d(clip, weight, conv.bias)  # (B, C, F, h w)
    return mixed.movedim(1, -1).unflatten(2, x.shape[2:]).flatten(0, 1).movedim(-1, 1)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)
