"""The official VideoLCM and TF-T2V networks (ali-vilab/VGen): diffusers' UNet3DConditionModel, condition encoders and image tokens.

In: a state dict in the official names and a config in VGen's words (what is left out is read off the tensors). Out: a network
`net(x, t, y, depth=...) -> v` that has every tensor of it. Also how the official inference prepares text and depth.
It knows nothing about files, schedules or the face of a VideoModel.
"""

import math
from dataclasses import dataclass, fields
from numbers import Real

import torch
import torch.nn.functional as F
from diffusers.models import UNet3DConditionModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import nn

from ..errors import AppError

# what the official inference appends to every caption, and the text of the teacher's other branch (inference_videolcm_vcomposer_entrance.py)
PROMPT_SUFFIX = ", cinematic, High Contrast, highly detailed, Unreal Engine 5, no blur, 4k render"
NEGATIVE_PROMPT = (
    "Distorted, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured, disconnected limbs, Ugly faces, incomplete arms"
)
UNET3D_HEADS = 8  # of the first temporal transformer, fixed in diffusers
GROUPS = 32  # of every group normalisation
DEEPEST, WIDEST = 64, 2**14  # blocks and channels; the release has 8 and 1280
ENCODERS = {  # argument: (VGen's composition, its two names in a checkpoint, channels of the map)
    "depth": ("depthmap", "depth_embedding", "depth_embedding_after", 1),
    "sketch": ("sketch", "sketch_embedding", "sketch_embedding_after", 1),
    "single_sketch": ("single_sketch", "single_sketch_embedding", "single_sketch_embedding_after", 1),
    "masked": ("mask", "masked_embedding", "mask_embedding_after", 4),
    "motion": ("motion", "motion_embedding", "motion_embedding_after", 2),
    "local_image": ("local_image", "local_image_embedding", "local_image_embedding_after", 3),
}


@dataclass(frozen=True)
class VGenConfig:
    """VGen's words for the shape of a network (UNetSD_VideoLCM). Raises AppError E_VGEN_CONFIG for values that no network has."""

    dim: int  # channels of the first level, a multiple of 32
    dim_mult: tuple[int, ...]  # of each level over dim
    num_res_blocks: int  # in a level
    attn_scales: tuple[float, ...]  # 1, 1/2, 1/4 ...: the levels that have attention
    head_dim: int
    context_dim: int
    num_heads: int = UNET3D_HEADS  # of the first temporal transformer; the others have channels / head_dim
    in_dim: int = 4
    out_dim: int = 4
    concat_dim: int = 8  # channels of the encoded maps
    num_tokens: int = 4  # that an image becomes
    adapter_transformer_layers: int = 1  # in a condition encoder
    video_compositions: tuple[str, ...] = ("text",)
    resolution: tuple[int, int] = (448, 256)  # (W, H) in pixels

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            value = tuple(value) if isinstance(value, list) else value
            if not sound(value, field.type) or value in ((), 0) and field.name not in ("attn_scales", "concat_dim"):
                raise AppError("E_VGEN_CONFIG", detail=f"{field.name} is {value}")
            object.__setattr__(self, field.name, value)
        if self.num_res_blocks * len(self.dim_mult) > DEEPEST or self.adapter_transformer_layers > DEEPEST:
            raise AppError("E_VGEN_CONFIG", detail=f"more than {DEEPEST} blocks or layers")
        if any(channels % GROUPS or channels > WIDEST for channels in (self.dim, *self.channels)):
            raise AppError("E_VGEN_CONFIG", detail=f"dim {self.dim} times dim_mult must give multiples of {GROUPS} up to {WIDEST}")
        if self.dim_mult[0] != 1:
            raise AppError("E_VGEN_CONFIG", detail=f"dim_mult begins with {self.dim_mult[0]}, in diffusers always with 1")

    @property
    def channels(self):
        """Channels of every level, finest first."""
        return tuple(int(self.dim * times) for times in self.dim_mult)

    @property
    def attention(self):
        """Whether each level has attention, finest first."""
        return tuple(any(abs(scale * 2**level - 1) < 1e-6 for scale in self.attn_scales) for level in range(len(self.dim_mult)))

    @property
    def encoders(self):
        """The names in ENCODERS that the network has."""
        return tuple(name for name, (composition, *_) in ENCODERS.items() if composition in self.video_compositions)

    def unet3d(self):
        """The keyword arguments of UNet3DConditionModel. Without encoders the maps' channels are always zero, so it has none."""
        down = [("CrossAttn" if here else "") + "DownBlock3D" for here in self.attention]
        return {
            "in_channels": self.in_dim + (self.concat_dim if self.encoders else 0),
            "out_channels": self.out_dim,
            "block_out_channels": self.channels,
            "layers_per_block": self.num_res_blocks,
            "cross_attention_dim": self.context_dim,
            "attention_head_dim": self.head_dim,
            "down_block_types": tuple(down),
            "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(down)),
        }


def sound(value, kind):
    """Whether a config's value is of the kind that its field declares: a whole number, a tuple of words, or one of numbers above 0."""
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= WIDEST
    if kind == tuple[str, ...]:
        return isinstance(value, tuple) and all(isinstance(word, str) for word in value)
    if kind == tuple[int, int]:
        return isinstance(value, tuple) and len(value) == 2 and all(isinstance(number, int) and number > 0 for number in value)
    return isinstance(value, tuple) and all(isinstance(number, Real) and 0 < number < math.inf for number in value)


# ---- the network


class ConditionEncoder(nn.Module):
    """STC encoder: a map (B, channels, F, H, W) -> (B, width, F, h, w) beside the latents, mixed over time at every place.

    The map is pooled to `grid`, so its own size is free; two convolutions then halve it to (h, w).
    """

    def __init__(self, channels, width, layers):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * width, 3, padding=1)
        self.conv2 = nn.Conv2d(4 * width, 4 * width, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(4 * width, width, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(TemporalLayer(width) for _ in range(layers))

    def forward(self, maps, grid):
        batch = len(maps)
        y = F.silu(self.conv1(maps.transpose(1, 2).flatten(0, 1)))  # (B F, 4 width, H, W)
        y = self.conv3(F.silu(self.conv2(F.adaptive_avg_pool2d(y, grid))))  # (B F, width, h, w)
        y = y.unflatten(0, (batch, -1)).permute(0, 3, 4, 1, 2)  # (B, h, w, F, width)
        tokens = y.flatten(0, 2)  # (B h w, F, width)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens.view(y.shape).permute(0, 4, 3, 1, 2)


class TemporalLayer(nn.Module):
    """Attention of two heads and a feed-forward part, which has no normalisation before it, over frames. x: (N, F, width)."""

    HEADS = 2

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * self.HEADS * width, bias=False), nn.Linear(self.HEADS * width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, self.HEADS, -1)).permute(2, 0, 3, 1, 4)  # each (N, heads, F, width)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(x)))


class VideoUNet(nn.Module):
    """UNet3DConditionModel on latents beside the sum of all encoded maps, with text and image tokens as context."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.unet = UNet3DConditionModel(**config.unet3d())
        if config.num_heads != UNET3D_HEADS:
            self.unet.transformer_in = TransformerTemporalModel(config.num_heads, config.head_dim, config.dim, norm_num_groups=GROUPS)
        size = (config.concat_dim, config.adapter_transformer_layers)
        self.encoders = nn.ModuleDict({name: ConditionEncoder(ENCODERS[name][3], *size) for name in config.encoders})
        if "image" in config.video_compositions:
            width = config.context_dim
            self.image_tokens = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, config.num_tokens * width))

    def forward(self, x, t, y, **conditions):
        """v (B, 4, F, h, w) for latents x (B, 4, F, h, w) at train timesteps t (B,), int or float, and text tokens y (B, L, context_dim).

        Conditions are what the checkpoint has encoders for, None or left out where there is none: depth, sketch and single_sketch
        (B, 1, F, H, W), masked (B, 4, F, H, W), motion (B, 2, F, H, W), local_image (B, 3, F, H, W), H and W of any size, and image
        (B, 1, context_dim), a CLIP embedding. AppError E_CONDITION for another name.
        """
        given = {name: value for name, value in conditions.items() if value is not None}
        known = [*self.encoders, *(["image"] if hasattr(self, "image_tokens") else [])]
        for name in given:
            if name not in known:
                raise AppError("E_CONDITION", given=name, known=", ".join(known) or "none")
        if "image" in given:
            y = torch.cat([y, self.image_context(given.pop("image"))], 1)  # (B, L + num_tokens, context_dim)
        if self.encoders:
            x = torch.cat([x, self.encode_maps(x, given)], 1)  # (B, 4 + concat_dim, F, h, w)
        return self.unet(x, t, y, return_dict=False)[0]

    def encode_maps(self, x, maps):
        """The sum of the encoded `maps`, (B, concat_dim, F, h, w) for latents x (B, 4, F, h, w); zeros if there are none.

        A sample whose map is -1 everywhere counts as one without it, as in `Conditions`.
        """
        total = x.new_zeros(len(x), self.config.concat_dim, *x.shape[2:])
        for name, value in maps.items():
            there = (value.flatten(1) != -1).to(x.dtype).amax(1)  # (B,)
            total = total + self.encoders[name](value, self.grid(*x.shape[3:])) * there[:, None, None, None, None]
        return total

    def grid(self, height, width):
        """What maps are pooled to: half the config's resolution, as VGen fixes it, where this fits latents of that size, else 4 times these."""
        official = (self.config.resolution[1] // 2, self.config.resolution[0] // 2)
        fits = [math.ceil(side / 4) for side in official] == [height, width]
        return official if fits else (4 * height, 4 * width)

    def image_context(self, image):
        """A CLIP image embedding (B, 1, context_dim) -> (B, num_tokens, context_dim)."""
        return self.image_tokens(image).reshape(len(image), self.config.num_tokens, -1)


def build(config):
    """The network without values, on the meta device: fill it with `load_state_dict(..., assign=True)`."""
    with torch.device("meta"):
        return VideoUNet(config).eval()


# ---- from the official names to ours

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
MEMBER = {"resnets": "0", "temp_convs": "0.temopral_conv", "attentions": "1", "temp_attentions": "2"}  # sic
ENCODER = {"conv1": "0", "conv2": "3", "conv3": "5"}
LAYER = {"norm": "0.norm", "qkv": "0.fn.to_qkv", "out": "0.fn.to_out.0", "up": "1.net.0.0", "down": "1.net.2"}


def load_state_dict(state_dict, config=None):
    """The network of an official checkpoint, float32, in eval mode, on the tensors' device. It shares memory with float32 tensors.

    state_dict {official name: tensor}; config as in VGen's yaml (a dict; words that change no shape are ignored), what it leaves out is
    inferred. Raises AppError E_NOT_VGEN for other networks, E_VGEN_CONFIG for an impossible config, E_VGEN_TENSORS, which names the first
    tensors, where config and tensors disagree.
    """
    config = complete_config(state_dict, config)
    net = build(config)
    net.load_state_dict(fitted(net, state_dict), assign=True)
    return net


def fitted(net, state_dict):
    """{our name: tensor} for every tensor of `net`; nothing may be left over."""
    values, wrong = {}, []
    left = dict(state_dict)
    for ours, mine in net.state_dict().items():
        name = official_name(ours, net.config)
        found = reshaped(name, left.pop(name, None), mine, net.config)
        if found is None:
            wrong.append((name, "is missing"))
        elif found.shape != mine.shape:
            wrong.append((name, f"is {times(state_dict[name])} but should give {times(mine)}"))
        else:
            values[ours] = found.float()
    wrong += [(name, "belongs to no part of it") for name in left]
    if wrong:
        more = f", then {wrong[1][0]}" if len(wrong) > 1 else ""
        raise AppError("E_VGEN_TENSORS", count=len(wrong), first=wrong[0][0], problem=wrong[0][1], more=more)
    return values


def reshaped(name, value, mine, config):
    """An official tensor in the shape that diffusers has for the same numbers, where there is one."""
    if value is None:
        return None
    if name == "input_blocks.0.0.weight" and not config.encoders and value.ndim == 4 and value.shape[1] == config.in_dim + config.concat_dim:
        return value[:, : config.in_dim].clone()  # exact: the other channels of the input are zeros
    if value.ndim == 3 and mine.ndim == 2 and value.shape[2] == 1:
        return value.squeeze(2)  # a convolution of length 1 over frames is a linear layer
    return value


def official_name(name, config):
    """Our name of a tensor -> VGen's."""
    match name.split("."):
        case ["unet", *rest]:
            return unet_name(rest, config)
        case ["image_tokens", *rest]:
            return dotted("pre_image_condition", *rest)
        case ["encoders", kind, "layers", i, part, leaf]:
            return dotted(ENCODERS[kind][2], "layers", i, LAYER[part], leaf)
        case ["encoders", kind, conv, leaf]:
            return dotted(ENCODERS[kind][1], ENCODER[conv], leaf)


def unet_name(parts, config):
    """UNet3DConditionModel's name of a tensor, split at its dots -> VGen's, which counts blocks through all levels."""
    n = config.num_res_blocks
    match parts:
        case ["conv_in", leaf]:
            return dotted("input_blocks.0.0", leaf)
        case ["transformer_in", *rest]:
            return dotted("input_blocks.0.1", *rest)
        case ["time_embedding", layer, leaf]:
            return dotted("time_embed", {"linear_1": 0, "linear_2": 2}[layer], leaf)
        case ["conv_norm_out", leaf]:
            return dotted("out.0", leaf)
        case ["conv_out", leaf]:
            return dotted("out.2", leaf)
        case ["mid_block", "attentions" | "temp_attentions" as kind, _, *rest]:
            return dotted("middle_block", MEMBER[kind], *rest)
        case ["mid_block", kind, i, *rest]:
            return dotted("middle_block", 3 * int(i), *MEMBER[kind].split(".")[1:], *inside(kind, rest))
        case ["down_blocks", level, "downsamplers", _, "conv", leaf]:
            return dotted("input_blocks", (int(level) + 1) * (n + 1), "op", leaf)
        case ["down_blocks", level, kind, i, *rest]:
            return dotted("input_blocks", 1 + int(level) * (n + 1) + int(i), MEMBER[kind], *inside(kind, rest))
        case ["up_blocks", level, "upsamplers", _, *rest]:
            last = 3 if config.attention[::-1][int(level)] else 1  # after the resnet and, where there is attention, its two transformers
            return dotted("output_blocks", int(level) * (n + 1) + n, last, *rest)
        case ["up_blocks", level, kind, i, *rest]:
            return dotted("output_blocks", int(level) * (n + 1) + int(i), MEMBER[kind], *inside(kind, rest))


def inside(kind, rest):
    """The end of a name: only residual blocks have other words for their parts."""
    return [RESNET[rest[0]], *rest[1:]] if kind == "resnets" else rest


def dotted(*parts):
    return ".".join(map(str, parts))


def times(tensor):
    """A shape as a message shows it."""
    return "x".join(map(str, tensor.shape)) or "a number"


# ---- what the tensors say about the config

ALWAYS = {"temporal_attention": True, "temporal_attn_times": 1, "use_fps_condition": False, "use_sim_mask": False}  # in every release
CROSS_ATTENTION = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"


def complete_config(state_dict, config=None):
    """A VGenConfig: what `config` (a dict or None) says, and what it does not say inferred."""
    config = config or {}
    for name, value in ALWAYS.items():
        if config.get(name, value) != value:
            raise AppError("E_VGEN_CONFIG", detail=f"{name} is {config[name]}")
    known = {field.name for field in fields(VGenConfig)}
    return VGenConfig(**infer_config(state_dict) | {name: value for name, value in config.items() if name in known})


def infer_config(state_dict):
    """Every word of VGenConfig but the resolution, from the shapes of the tensors. AppError E_NOT_VGEN.

    Taken for granted is what no shape tells: num_heads is 8, as in every release, so that head_dim is an eighth of the first temporal
    transformer's width; in_dim is out_dim.
    """

    def size(name, axis):
        shape = getattr(state_dict.get(name), "shape", ())
        if len(shape) <= axis or not shape[axis]:
            raise AppError("E_NOT_VGEN", detail=name)
        return shape[axis]

    dim, out_dim, context = size("input_blocks.0.0.weight", 0), size("out.2.weight", 0), size(CROSS_ATTENTION, 1)
    blocks = {name.split(".")[1] for name in state_dict if name.startswith("input_blocks.")}
    downs = sorted(int(i) for i in blocks if i.isdecimal() and f"input_blocks.{i}.op.weight" in state_dict)
    stride = downs[0] if downs else len(blocks)
    firsts = [1 + level * stride for level in range(len(downs) + 1)]
    channels = [size(f"input_blocks.{i}.0.out_layers.3.weight", 0) for i in firsts]
    found = [name for name, (_, prefix, *_) in ENCODERS.items() if f"{prefix}.0.weight" in state_dict]
    encoder, after = ENCODERS[found[0]][1:3] if found else ("", "")
    images = "pre_image_condition.2.weight" in state_dict
    return {
        "dim": dim,
        "dim_mult": tuple(width // dim if width % dim == 0 else width / dim for width in channels),
        "num_res_blocks": stride - 1,
        "attn_scales": tuple(0.5**level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.proj_in.weight" in state_dict),
        "head_dim": size("input_blocks.0.1.proj_in.weight", 0) // UNET3D_HEADS,
        "context_dim": context,
        "in_dim": out_dim,
        "out_dim": out_dim,
        "concat_dim": size(f"{encoder}.5.weight", 0) if found else max(0, size("input_blocks.0.0.weight", 1) - out_dim),
        "num_tokens": size("pre_image_condition.2.weight", 0) // context if images else 4,
        "adapter_transformer_layers": max(1, len({name.split(".")[2] for name in state_dict if after and name.startswith(f"{after}.layers.")})),
        "video_compositions": ("text", *(ENCODERS[name][0] for name in found), *(["image"] if images else [])),
    }


# ---- how the official inference prepares depth (inference_videolcm_vcomposer_entrance.py); a hole it lays out as masks.masked_map does


def depth_map(inverse_depth):
    """Inverse depth as MiDaS DPT-Large gives it, >= 0 and large where near, of torch or numpy -> the range that the depth encoder was trained
    on. One that is known in [0, 1] only lies inside of it as it is."""
    return (inverse_depth / 20).clip(0, 10)
