"""What every model looks like from the front of the door: prompts and maps in, latents and pixels out, `denoise -> x0`.

It knows nothing about any network, sampler or file. Shapes and names are those of the README's table: `pixels` (B, 3, F, H, W) in
[-1, 1], latents (B, C, f, h, w), context (B, L, D), maps at the clip's own size.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import NamedTuple

import torch

from ..schedule import EVERYWHERE

TASKS = ("text", "depth", "sketch", "inpaint")


@dataclass(frozen=True)
class Conditions:
    """What a denoiser is conditioned on. A map that is None is absent, which is not the same as a map of zeros; so is, in a training batch,
    the map of a sample that is -1 everywhere.

    depth (B, 1, F, H, W) and sketch (B, 1, F, H, W) in [0, 1], near = 1 and line = 1; masked (B, 4, F, H, W): the picture in [-1, 1]
    with the hole at 0, then 1 where it is kept (VGen's layout). w (B,) is the guidance of Eq. 5, for a student that takes it as an input, and
    s (B,) the train timestep that the answer is for (0 if None), for one that learned a two-time map; other networks pass over both.
    """

    context: torch.Tensor
    depth: torch.Tensor | None = None
    sketch: torch.Tensor | None = None
    masked: torch.Tensor | None = None
    w: torch.Tensor | None = None
    s: torch.Tensor | None = None

    def null(self, empty):
        """The guidance's other branch (Eq. 5): the text becomes `empty` (1, L, D), the maps stay."""
        return replace(self, context=empty.to(self.context).expand_as(self.context))

    def maps(self):
        """{name: map} of those that are there, if for no sample of this batch: processes that share an update must run the same encoders."""
        named = {"depth": self.depth, "sketch": self.sketch, "masked": self.masked}
        return {name: value for name, value in named.items() if value is not None}

    def with_maps(self, maps):
        """The same text with `maps` ({"depth": ...}) and no others."""
        return replace(self, **{"depth": None, "sketch": None, "masked": None, **maps})

    def with_w(self, w):
        """The same with this guidance, a number, for every sample."""
        return replace(self, w=torch.full((len(self.context),), float(w), device=self.context.device))

    def towards(self, s):
        """The same with the train timestep, an int or (B,), that the answer is for."""
        return replace(self, s=torch.as_tensor(s, device=self.context.device).expand(len(self.context)))

    def map(self, function):
        """`function` applied to every tensor that is there."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Conditions(**{name: None if value is None else function(value) for name, value in values.items()})

    def cat(self, other):
        """This batch followed by `other`; both have the same maps."""
        values = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return Conditions(**{name: None if a is None else torch.cat([a, b]) for name, (a, b) in values.items()})


@dataclass(frozen=True)
class ModelInfo:
    """What the page and the samplers may know about a model without touching its networks."""

    name: str  # as `models.load` was given it
    role: str  # "teacher": many DDIM steps, can be distilled; "student": 1 to 8 LCM steps
    tasks: tuple[str, ...]
    guidance: float  # w of Eq. 5 that the teacher is sampled and distilled with
    fps: int
    sha256: str  # of the manifest: goes into every clip's settings
    words: frozenset[str] | None = None  # the vocabulary of a closed world, None where any word goes
    w_range: tuple[float, float] | None = None  # of a student that takes w as an input; `guidance` is its usual one
    guided: tuple[int, int] = EVERYWHERE  # the timesteps low <= t < high at which a teacher is guided
    two_time: bool = False  # whether it is told the timestep that its answer is for, so that tcd with gamma 0 suits it

    def taking(self, w_range):
        """This of a model that takes w as an input in this range, or None: its usual w lies there."""
        if not w_range:
            return self
        low, high = w_range
        return replace(self, guidance=min(max(self.guidance, low), high), w_range=(low, high))


class Learned(NamedTuple):
    """Which maps of one kind a network was trained on, where those of another extractor are not as good."""

    extractor: str  # a name of conditions.EXTRACTORS: the nearest to them
    what: str  # for people
    exact: bool = True  # whether that extractor's are the very same
    scale: Callable | None = None  # from that extractor's own units to those of the training; None for [0, 1]


class VideoModel(ABC):
    """A text encoder, an autoencoder and a denoiser behind one face. Subclasses set info, schedule, device, dtype and denoiser."""

    info: ModelInfo
    device: torch.device
    dtype: torch.dtype
    denoiser: torch.nn.Module  # what distilling trains a copy of
    learned: Mapping[str, Learned] = MappingProxyType({})  # by map: depth, sketch; empty where any extractor will do
    seams = None  # a method, where latent frames are decoded apart from each other: an error of latents -> what pictures change by where two meet
    shown = None  # (C,), where it is known: how much pictures show of an error in each channel of latents, 1 on average
    distilling: Mapping[str, object] = MappingProxyType({})  # fields of DistillConfig that are otherwise than the paper's where nobody says

    @property
    def text_encoder(self):
        """What makes a context of a prompt: models that share it give the same contexts. The model itself where nothing else is known."""
        return self

    @property
    def autoencoder(self):
        """The network behind `encode` and `decode`, whose weights tell whether cached latents are still this model's; None if nobody knows."""
        return None

    def with_denoiser(self, net):
        """This model with another denoising network; everything else is shared."""
        other = copy.copy(self)
        other.denoiser = net
        return other

    @abstractmethod
    def encode_text(self, prompts):
        """A list of B prompts -> context (B, L, D). The empty prompt gives the null text of the guidance."""

    @abstractmethod
    def latent_shape(self, frames, height, width):
        """(C, f, h, w) of a clip; frames, height and width are in frames and pixels."""

    @abstractmethod
    def encode(self, pixels):
        """pixels (B, 3, F, H, W) in [-1, 1] -> latents (B, C, f, h, w), about unit variance."""

    @abstractmethod
    def decode(self, latents, frames):
        """latents (B, C, f, h, w) -> pixels (B, 3, frames, H, W) in [-1, 1]."""

    @abstractmethod
    def preview(self, latents, frames):
        """A small, cheap look at latents (1, C, f, h, w): uint8 (frames, h', w', 3)."""

    @abstractmethod
    def denoise(self, x_t, t, cond):
        """x_t (B, C, f, h, w), t (B,) integer train timesteps, cond -> x0, float32, same shape as x_t."""
