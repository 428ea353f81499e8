"""The embedded model: its text encoder, and `Toybox`, which puts this, the denoiser (denoiser.py) and the codec (codec.py) behind the face of
models.base.

In: words, latents, maps, a timestep. Out: context, x0, pixels; networks as files, and what rebuilds them. It knows nothing of training or sampling.
"""

import math
import re
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..checkpoint import require_finite, write_weights
from ..memory import in_parts
from ..schedule import Schedule
from .base import VideoModel
from .codec import SPACE, TIME, Codec, CodecConfig
from .denoiser import Denoiser, DenoiserConfig

TOKEN = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class TextConfig:
    words: tuple[str, ...] = ()
    width: int = 192
    depth: int = 3
    heads: int = 4
    slots: int = 3  # leading tokens that gather what is said of the first object, the second, the scene
    length: int = 40  # slots and words; longer prompts are cut


class TextEncoder(nn.Module):
    """Prompts -> context (B, 3, 192): slots that have gathered from the words what is said of the first object, the second, the scene."""

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
        return self.norm(x[:, : self.config.slots])


class Toybox(VideoModel):
    """The embedded world's networks, already on `device` in `dtype`, behind the common face. Clips are made in eights of frames."""

    schedule = Schedule()
    # with the paper's Huber threshold and k, differences below bfloat16's rounding became grain; AdamW learns this small network four times slower,
    # and long runs of Muon at three times this rate made one step no better and four steps worse
    distilling = {"lr": 1.5e-4, "optimiser": "muon", "skips": (100,), "huber": 0.03, "share_last": 0.3}

    def __init__(self, info, codec, text, denoiser, device, dtype):
        self.info, self.device, self.dtype = info, torch.device(device), dtype
        self.codec, self.text, self.denoiser = codec, text, denoiser

    @property
    def text_encoder(self):
        return self.text

    @property
    def autoencoder(self):
        return self.codec

    @torch.no_grad()
    def encode_text(self, prompts):
        return self.text.encode(prompts)

    def latent_shape(self, frames, height, width):
        return (self.codec.config.latent, 2 * math.ceil(frames / TIME / 2), height // SPACE, width // SPACE)

    @torch.no_grad()
    def encode(self, pixels):
        short = -pixels.shape[2] % (2 * TIME)
        pixels = torch.cat([pixels, pixels[:, :, -1:].expand(-1, -1, short, -1, -1)], 2)
        return self.codec.encode(pixels.to(self.device, self.dtype)).float()

    @torch.no_grad()
    def decode(self, latents, frames):
        latents = latents.to(self.device, self.dtype)
        pixels = in_parts(lambda size: self.codec.decode_parts(latents, size), (latents.shape[2], 2, 1))
        return pixels[:, :, :frames]

    def seams(self, latents):
        return self.codec.seams(latents)

    @property
    def shown(self):
        return self.codec.shown

    @torch.no_grad()
    def preview(self, latents, frames):
        pixels = self.codec.preview(latents[:1].to(self.device, self.dtype))[0, :, :frames]
        return ((pixels.float() + 1) * 127.5).clamp(0, 255).byte().permute(1, 2, 3, 0).cpu().numpy()

    def denoise(self, x_t, t, cond):
        if cond.w is None and "w" in self.denoiser.config.inputs:
            cond = cond.with_w(self.info.guidance)
        return self.denoiser(x_t, t, cond)


def config_of(net):
    """What rebuilds `net`: the name of its class and its config, where it has one, as plain values."""
    return {"class": type(net).__name__, **(asdict(net.config) if hasattr(net, "config") else {})}


def write_network(path, net):
    """Writes the weights of `net` as float16 at `path`; returns the manifest's entry, from which the door rebuilds it. AppError E_NOT_FINITE."""
    weights = {name: value.half() if value.is_floating_point() else value for name, value in net.state_dict().items()}
    require_finite(path.stem, weights)
    return {"file": path.name, "sha256": write_weights(path, weights), "config": config_of(net)}


def build(config):
    """The network, with random weights, that `config_of` described."""
    kinds = {"Codec": (Codec, CodecConfig), "TextEncoder": (TextEncoder, TextConfig), "Denoiser": (Denoiser, DenoiserConfig)}
    network, settings = kinds[config["class"]]
    if network is Denoiser:  # manifests from before this could be said
        config = {"hidden": 4 * config["width"], "frames_depth": 0, "frames_coarse": (), **config}
        if isinstance(config["frames_coarse"], int):
            config["frames_coarse"] = (config["frames_coarse"],)
    return network(settings(**{key: tuple(value) if isinstance(value, list) else value for key, value in config.items() if key != "class"}))
