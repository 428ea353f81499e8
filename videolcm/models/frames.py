"""The embedded denoiser's last level, where pictures are: latents as pixels of single frames, and back.

In: what the levels beneath take for the clip, and for the noise, as latents. Out: what they have missed. A latent holds 4 frames of 16x16 pixels in
48 numbers, in which an edge that moves is hardly to be recognised; in its frames it is one. No table of positions, so other sizes and lengths work.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .codec import BLOCK, SPACE, TIME, channels_last, over_frames

CELL = 8  # pixels a side of what is one place here
SPLIT = SPACE // CELL  # places along a side of a latent


class Frames(nn.Module):
    """x0 and noise (B, 48, f, h, w) -> what x0 lacks, over sigma_t, the same shape: at first nothing.

    The way from latents to the pixels of a place and the first layer are both linear, so they are one product, and so are the last layer and the way
    back. Half-way through the blocks is a coarse part, with another one inside: `coarse` are their widths, on cells twice as large each time, where a
    toy is seen as a whole. `told` are the widths of what the levels beneath know, which each of them is told.
    """

    def __init__(self, latent, width, depth, emb, coarse=(), told=()):
        super().__init__()
        self.register_buffer("basis", torch.eye(latent, BLOCK))  # the codec's, its columns by frame, row of places, place, row, pixel, colour
        self.register_buffer("scale", torch.ones(latent))  # the codec's
        self.enter, self.leave = nn.Linear(6 * CELL**2, width), nn.Linear(width, 3 * CELL**2)  # of the pixels of a place: x0's, then the noise's
        self.blocks = nn.ModuleList(FrameBlock(width, emb) for _ in range(depth))
        self.coarse = Coarse(width, coarse, depth, emb, told) if coarse else None
        nn.init.zeros_(self.leave.weight), nn.init.zeros_(self.leave.bias)

    @torch.no_grad()
    def as_in(self, codec):
        """This level, with the codec's transform."""
        x = codec.basis.unflatten(1, (3, TIME, SPLIT, CELL, SPLIT, CELL))
        self.basis.copy_(x.permute(0, 2, 3, 5, 4, 6, 1).flatten(1))
        self.scale.copy_(codec.scale)
        return self

    def forward(self, x0, noise, emb, told=()):
        """emb (B, emb): of the timestep; told: for each coarse part features that x0 comes of, (B f, ., h, w), then (B f / 2, ., h / 2, w / 2)."""
        basis, scale = (value.to(self.enter.weight.dtype) for value in (self.basis, self.scale))  # of shares of a network only weights are cast
        basis = basis.unflatten(1, (TIME * SPLIT**2, -1))  # (48, 16, 192)
        weight = torch.einsum("l,lpc,wkc->klpw", scale, basis, self.enter.weight.unflatten(1, (2, -1)))  # (2, 48, 16, width)
        x = torch.cat([x0, noise], 1).movedim(1, -1) @ weight.flatten(2).flatten(0, 1)  # (B, f, h, w, 16 width)
        x = x.unflatten(4, (TIME, SPLIT, SPLIT, -1)).permute(0, 1, 4, 2, 5, 3, 6, 7)  # (B, f, 4, h, 2, w, 2, width)
        x = (x.flatten(5, 6).flatten(3, 4).flatten(0, 2) + self.enter.bias).movedim(-1, 1)  # (B F, width, 2 h, 2 w)
        x = with_coarse(self, x, emb, TIME * x0.shape[2], told)
        weight = torch.einsum("l,lpc,cw->pwl", 1 / scale, basis, self.leave.weight)  # (16, width, 48)
        bias = torch.einsum("l,lpc,c->l", 1 / scale, basis, self.leave.bias)
        x = F.silu(x).movedim(1, -1).unflatten(2, (-1, SPLIT)).unflatten(1, (-1, SPLIT)).unflatten(0, (len(x0), -1, TIME))
        x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4) @ weight.flatten(0, 1) + bias
        return x.movedim(-1, 1)


def with_coarse(level, x, emb, frames, told):
    """The blocks of a level, half-way through them its coarse part."""
    for i, block in enumerate(level.blocks):
        if level.coarse is not None and i == len(level.blocks) // 2:
            x = x + level.coarse(x, emb, frames, told)
        x = block(x, emb, frames)
    return x


class Coarse(nn.Module):
    """x (B F, C, H, W), and features (., ., H / 2, W / 2) of several frames each -> what blocks on 2x2 places of x add, the same shape: at first
    nothing. The smaller the pictures, the more blocks."""

    def __init__(self, width, widths, depth, emb, told, together=TIME):
        super().__init__()
        (coarse, *more), self.together = widths, together  # frames that share features
        self.guide = nn.Conv2d(told[0], together * coarse, 1)
        self.down, self.leave = nn.Conv2d(4 * width, coarse, 1), nn.Conv2d(coarse, 4 * width, 1)
        self.blocks = nn.ModuleList(FrameBlock(coarse, emb) for _ in range(depth))
        self.coarse = Coarse(coarse, more, depth + 1, emb, told[1:], 2 * together) if more else None
        for layer in (self.guide, self.leave):
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)

    def forward(self, x, emb, frames, told):
        x = self.down(channels_last(F.pixel_unshuffle(F.silu(x), 2)))
        here = self.guide(told[0]).movedim(1, -1).unflatten(3, (self.together, -1)).movedim(3, 1).flatten(0, 1)  # (B F, H / 2, W / 2, coarse)
        x = with_coarse(self, x + here.movedim(-1, 1), emb, frames, told[1:])
        return channels_last(F.pixel_shuffle(self.leave(F.silu(x)), 2))


class FrameBlock(nn.Module):
    """A residual block of frames that see those before and after them. x: (B F, C, H, W)."""

    def __init__(self, width, emb):
        super().__init__()
        self.time, self.norm, self.emb = nn.Conv2d(3 * width, width, 1), nn.GroupNorm(width // 8, width), nn.Linear(emb, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight), nn.init.zeros_(self.conv2.bias)

    def forward(self, x, emb, frames):
        y = self.conv1(F.silu(self.norm(over_frames(self.time, F.silu(x), frames))))
        y = y + self.emb(emb).repeat_interleave(frames, 0)[..., None, None]
        return x + self.conv2(F.silu(y))
