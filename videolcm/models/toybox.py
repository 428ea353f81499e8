"""The embedded networks: codec, text encoder and space-time denoiser with its condition maps; small enough for two processor cores.

In: pixels, words, latents, maps, a timestep. Out: latents, context, v. `Toybox` puts them behind the face of models.base. It knows
nothing about training or sampling. Latents compress time by 4 and space by 16; no network holds a table of positions in
space or time, so other sizes and lengths work.
"""

import math
import re
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..checkpoint import write_weights
from ..schedule import Schedule
from .base import VideoModel

TIME, SPACE, MAPS = 4, 16, 4  # frames per latent frame, pixels per latent, map cells per latent
TOKEN = re.compile(r"[a-z]+")


# ---- codec


@dataclass(frozen=True)
class CodecConfig:
    latent: int = 32
    widths: tuple[int, ...] = (64, 128, 256)  # at 1/4, 1/8 and 1/16 of the picture
    encoder_blocks: tuple[int, ...] = (0, 2, 2)
    decoder_blocks: tuple[int, ...] = (2, 3, 3)


class Residual(nn.Module):
    """x + conv(silu(conv(silu(x)))), without normalisation."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.normal_(self.conv2.weight, std=0.01)

    def forward(self, x):
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


def residuals(width, count):
    return [Residual(width) for _ in range(count)]


class Down(nn.Module):
    """Half the size, twice the width; the shortcut folds 2x2 pixels into channels and averages them in pairs (DC-AE, arXiv 2410.10733)."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv(x) + F.pixel_unshuffle(x, 2).unflatten(1, (-1, 2)).mean(2)


class Up(nn.Module):
    """Twice the size, half the width; the shortcut repeats channels and unfolds them."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 3, padding=1)

    def forward(self, x):
        return F.pixel_shuffle(self.conv(x) + x.repeat_interleave(2, 1), 2)


class Mix(nn.Module):
    """x + a convolution over three neighbouring frames, zero at the start. x: (B * F, C, h, w)."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3 * width, width, 1)
        nn.init.zeros_(self.conv.weight)

    def forward(self, x, frames):
        clip = F.silu(x).unflatten(0, (-1, frames))  # (B, F, C, h, w)
        before = torch.cat([clip[:, :1], clip[:, :-1]], 1)
        after = torch.cat([clip[:, 1:], clip[:, -1:]], 1)
        return x + self.conv(torch.cat([before, clip, after], 2).flatten(0, 1))


class Codec(nn.Module):
    """Pixels (B, 3, F, H, W), F a multiple of 4, <-> latents (B, 32, F/4, H/16, W/16) of unit variance."""

    def __init__(self, config=CodecConfig()):
        super().__init__()
        self.config, (a, b, c) = config, config.widths
        e, d = config.encoder_blocks, config.decoder_blocks
        self.stem = nn.Conv2d(48, a, 3, padding=1)
        self.encoder = nn.Sequential(*residuals(a, e[0]), Down(a), *residuals(b, e[1]), Down(b), *residuals(c, e[2]))
        self.to_latent = nn.Conv2d(TIME * c, config.latent, 1)
        self.register_buffer("mean", torch.zeros(config.latent, 1, 1))  # of what to_latent gives, measured on whole clips
        self.register_buffer("std", torch.ones(config.latent, 1, 1))
        self.from_latent = nn.Conv2d(config.latent, TIME * c, 1)
        self.mix = Mix(c)
        self.decoder = nn.Sequential(
            *residuals(c, d[2]), Up(c), *residuals(b, d[1]), Up(b), *residuals(a, d[0]), nn.SiLU(), nn.Conv2d(a, 48, 3, padding=1)
        )
        self.preview_map = nn.Conv2d(config.latent, TIME * 12, 1)  # a linear look: 2x2 pixels of each of the 4 frames per latent

    def encode(self, pixels):
        x = F.pixel_unshuffle(pixels.transpose(1, 2).flatten(0, 1), 4)  # (B F, 48, H/4, W/4)
        x = self.encoder(self.stem(channels_last(x)))
        x = self.to_latent(x.unflatten(0, (-1, TIME)).flatten(1, 2))  # (B f, 24, h, w)
        return ((x - self.mean) / self.std).unflatten(0, (len(pixels), -1)).transpose(1, 2)

    def decode(self, latents):
        x = self.from_latent(channels_last(latents.transpose(1, 2).flatten(0, 1)))
        x = channels_last(x.unflatten(1, (TIME, -1)).flatten(0, 1))  # (B F, 256, h, w)
        x = self.decoder(self.mix(x, TIME * latents.shape[2]))
        return F.pixel_shuffle(x, 4).unflatten(0, (len(latents), -1)).transpose(1, 2)

    def preview(self, latents):
        """latents (B, 32, f, h, w) -> pixels (B, 3, 4 f, 2 h, 2 w) by one linear map."""
        x = self.preview_map(latents.transpose(1, 2).flatten(0, 1))
        x = F.pixel_shuffle(x.unflatten(1, (TIME, -1)).flatten(0, 1), 2)
        return x.unflatten(0, (len(latents), -1)).transpose(1, 2)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


# ---- text


@dataclass(frozen=True)
class TextConfig:
    words: tuple[str, ...] = ()
    width: int = 192
    depth: int = 3
    heads: int = 4
    slots: int = 3  # leading tokens that gather what is said of the first object, the second, the scene
    length: int = 40  # of the context, slots included; longer prompts are cut


class TextEncoder(nn.Module):
    """Prompts -> context (B, 40, 192): three slots, then the words; places without a word hold zeros."""

    def __init__(self, config):
        super().__init__()
        self.config, width = config, config.width
        self.index = {word: i + 2 for i, word in enumerate(config.words)}  # 0: nothing, 1: a word it does not know
        self.embed = nn.Embedding(len(config.words) + 2, width)
        self.slots = nn.Parameter(torch.randn(config.slots, width) * 0.02)
        self.places = nn.Parameter(torch.randn(config.length, width) * 0.02)
        layer = {"dim_feedforward": 4 * width, "dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(width, config.heads, **layer) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)

    def tokens(self, prompts):
        """(B, 37) indices of words, 0 after the end."""
        room = self.config.length - self.config.slots
        rows = [[self.index.get(word, 1) for word in TOKEN.findall(prompt.lower())][:room] for prompt in prompts]
        return torch.tensor([row + [0] * (room - len(row)) for row in rows], device=self.slots.device)

    def encode(self, prompts):
        return self(self.tokens(prompts))

    def forward(self, tokens):
        x = torch.cat([self.slots.expand(len(tokens), -1, -1), self.embed(tokens)], 1) + self.places
        missing = F.pad(tokens == 0, (self.config.slots, 0), value=False)  # slots are always there
        bias = torch.zeros_like(missing, dtype=x.dtype).masked_fill(missing, -torch.inf)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=bias)
        return self.norm(x).masked_fill(missing[..., None], 0)


# ---- denoiser


@dataclass(frozen=True)
class DenoiserConfig:
    latent: int = 32
    context: int = 192
    width: int = 256
    depth: int = 8
    heads: int = 4
    stem: int = 128  # at latent resolution, around the transformer: keeps outlines sharp
    maps: int = 64


class Denoiser(nn.Module):
    """v of x_t (B, 32, f, h, w), h and w even. Convolutions at latent resolution, then a transformer on 2x2 patches and the words."""

    def __init__(self, config=DenoiserConfig()):
        super().__init__()
        self.config, width, stem = config, config.width, config.stem
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.present = nn.Linear(3, width, bias=False)
        self.maps = nn.Sequential(nn.Conv2d(6 * MAPS**2 * TIME, 128, 1), nn.SiLU(), nn.Conv2d(128, config.maps, 3, padding=1))
        self.enter = nn.Conv2d(config.latent + config.maps, stem, 3, padding=1)
        self.before, self.after = Timed(stem, width), Timed(stem, width)
        self.patch, self.unpatch = nn.Linear(4 * stem, width), nn.Linear(width, 4 * stem)
        self.text, self.place = nn.Linear(config.context, width), nn.Linear(36, width)
        self.modulate = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.join = nn.Conv2d(2 * stem, stem, 1)
        self.leave = nn.Conv2d(stem, config.latent, 3, padding=1)
        for layer in (self.modulate, self.leave):
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)

    def forward(self, x_t, t, cond):
        batch, _, f, h, w = x_t.shape
        maps, present = self.stack_maps(x_t, cond)
        emb = self.time(sinusoid(t).to(x_t.dtype)) + self.present(present.to(x_t.dtype))  # (B, width)
        x = torch.cat([x_t.transpose(1, 2).flatten(0, 1), self.maps(maps)], 1)  # (B f, 32 + 64, h, w)
        skip = self.before(self.enter(channels_last(x)), emb)
        tokens = self.patch(F.pixel_unshuffle(skip, 2).flatten(2).transpose(1, 2))  # (B f, hw / 4, width)
        tokens = tokens.reshape(batch, -1, self.config.width) + self.place(places(f, h // 2, w // 2, x_t))
        words = self.text(cond.context.to(x_t.dtype))
        y = torch.cat([words, tokens], 1)  # (B, L + f h w / 4, width)
        shared = self.modulate(F.silu(emb)).unflatten(1, (6, -1))
        for block in self.blocks:
            y = block(y, shared)
        y = self.unpatch(rms(y[:, words.shape[1] :]))
        y = F.pixel_shuffle(y.reshape(batch * f, h * w // 4, -1).transpose(1, 2).unflatten(2, (h // 2, w // 2)), 2)
        y = self.after(self.join(torch.cat([channels_last(y), skip], 1)), emb)
        return self.leave(F.silu(y)).unflatten(0, (batch, f)).transpose(1, 2)

    def stack_maps(self, x_t, cond):
        """(B f, 6 * 16 * 4, h, w) the maps at a quarter of the clip's size, folded as the latents are; (B, 3) which are there.

        A sample whose map is all -1 counts as one without that map: so a batch can mix samples with and without.
        """
        batch, _, f, h, w = x_t.shape
        parts, present = [], []
        for name, channels in (("depth", 1), ("sketch", 1), ("masked", 4)):
            value = getattr(cond, name)
            if value is None:
                parts.append(x_t.new_zeros(batch, channels, TIME * f, MAPS * h, MAPS * w))
                present.append(x_t.new_zeros(batch))
            else:
                there = (value.flatten(1).amax(1) > -1).to(x_t.dtype)
                parts.append(fit_map(value.to(x_t.dtype), TIME * f, MAPS * h, MAPS * w) * there[:, None, None, None, None])
                present.append(there)
        maps = torch.cat(parts, 1).transpose(1, 2).flatten(0, 1)  # (B F, 6, 4 h, 4 w)
        maps = F.pixel_unshuffle(maps, MAPS).unflatten(0, (-1, TIME)).flatten(1, 2)
        return channels_last(maps), torch.stack(present, 1)


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
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
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

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.table = nn.Parameter(torch.zeros(6, width))
        self.gain = nn.Parameter(torch.full((heads, 1, 1), 1.5))  # queries and keys have unit size; this sharpens
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

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


def places(f, h, w, like):
    """(f h w, 36) where each patch is: sines and cosines of its relative position in time, height and width."""
    axes = [(torch.arange(n, device=like.device) + 0.5) / n for n in (f, h, w)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3, 1)
    angle = (grid * math.pi * 2.0 ** torch.arange(-1, 5, device=like.device)).flatten(1)  # (N, 18)
    return torch.cat([angle.cos(), angle.sin()], 1).to(like.dtype)


# ---- the model


class Toybox(VideoModel):
    """The embedded world's networks, already on `device` in `dtype`, behind the common face. Missing frames of the last latent are repeated."""

    schedule = Schedule()

    def __init__(self, info, codec, text, denoiser, device, dtype):
        self.info, self.device, self.dtype = info, torch.device(device), dtype
        self.codec, self.text, self.denoiser = codec, text, denoiser

    @torch.no_grad()
    def encode_text(self, prompts):
        return self.text.encode(prompts)

    def latent_shape(self, frames, height, width):
        return (self.codec.config.latent, math.ceil(frames / TIME), height // SPACE, width // SPACE)

    @torch.no_grad()
    def encode(self, pixels):
        short = -pixels.shape[2] % TIME
        pixels = torch.cat([pixels, pixels[:, :, -1:].expand(-1, -1, short, -1, -1)], 2)
        return self.codec.encode(pixels.to(self.device, self.dtype)).float()

    @torch.no_grad()
    def decode(self, latents, frames):
        return self.codec.decode(latents.to(self.device, self.dtype))[:, :, :frames].float()

    @torch.no_grad()
    def preview(self, latents, frames):
        pixels = self.codec.preview(latents[:1].to(self.device, self.dtype))[0, :, :frames]
        return ((pixels.float() + 1) * 127.5).clamp(0, 255).byte().permute(1, 2, 3, 0).cpu().numpy()

    def denoise(self, x_t, t, cond):
        v = self.denoiser(x_t.to(next(self.denoiser.parameters()).dtype), t, cond).float()
        return self.schedule.x0_from_v(x_t.float(), v, t)


def config_of(net):
    """What rebuilds `net`: the name of its class and its config, where it has one, as plain values."""
    return {"class": type(net).__name__, **(asdict(net.config) if hasattr(net, "config") else {})}


def write_network(path, net):
    """Writes the weights of `net` as float16 at `path`; returns the manifest's entry, from which the door rebuilds it."""
    weights = {name: value.half() if value.is_floating_point() else value for name, value in net.state_dict().items()}
    return {"file": path.name, "sha256": write_weights(path, weights), "config": config_of(net)}


def build(config):
    """The network, with random weights, that `config_of` described."""
    kinds = {"Codec": (Codec, CodecConfig), "TextEncoder": (TextEncoder, TextConfig), "Denoiser": (Denoiser, DenoiserConfig)}
    network, settings = kinds[config["class"]]
    return network(settings(**{key: tuple(value) if isinstance(value, list) else value for key, value in config.items() if key != "class"}))
