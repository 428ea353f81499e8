"""The official network read a second time, from what is written about it and not from our code: names and shapes of a config, and its forward pass.

It walks over the state dict by its names, so that any config works. Slow and plain; for tests.
"""

import math

import torch
import torch.nn.functional as F

ENCODERS = {  # argument: (composition, its two names, channels)
    "depth": ("depthmap", "depth_embedding", "depth_embedding_after", 1),
    "sketch": ("sketch", "sketch_embedding", "sketch_embedding_after", 1),
    "single_sketch": ("single_sketch", "single_sketch_embedding", "single_sketch_embedding_after", 1),
    "masked": ("mask", "masked_embedding", "mask_embedding_after", 4),
    "motion": ("motion", "motion_embedding", "motion_embedding_after", 2),
    "local_image": ("local_image", "local_image_embedding", "local_image_embedding_after", 3),
}


class Shapes(dict):
    """{name: shape} of everything in a network of this config, a dict in VGen's words."""

    def __init__(self, config):
        super().__init__()
        self.config, dim = config, config["dim"]
        self.linear("time_embed.0", dim, 4 * dim)
        self.linear("time_embed.2", 4 * dim, 4 * dim)
        self.conditions()
        self.conv("input_blocks.0.0", config["in_dim"] + config["concat_dim"], dim, 3, 3)
        self.temporal("input_blocks.0.1", dim, config["num_heads"] * config["head_dim"])
        skips, out, levels, n = [dim], dim, len(config["dim_mult"]), 0
        for level, times in enumerate(config["dim_mult"]):
            for _ in range(config["num_res_blocks"]):
                n += 1
                out = self.block(f"input_blocks.{n}", level, out, dim * times)
                skips.append(out)
            if level < levels - 1:
                n += 1
                self.conv(f"input_blocks.{n}.op", out, out, 3, 3)
                skips.append(out)
        self.residual("middle_block.0", out, out)
        self.spatial("middle_block.1", out)
        self.temporal("middle_block.2", out, out)
        self.residual("middle_block.3", out, out)
        n = 0
        for level in reversed(range(levels)):
            for j in range(config["num_res_blocks"] + 1):
                out = self.block(f"output_blocks.{n}", level, out + skips.pop(), dim * config["dim_mult"][level])
                if level and j == config["num_res_blocks"]:
                    self.conv(f"output_blocks.{n}.{3 if self.attends(level) else 1}.conv", out, out, 3, 3)
                n += 1
        self.norm("out.0", out)
        self.conv("out.2", out, config["out_dim"], 3, 3)

    def attends(self, level):
        return 0.5**level in self.config["attn_scales"]

    def linear(self, name, inside, out, bias=True):
        self[f"{name}.weight"] = (out, inside)
        if bias:
            self[f"{name}.bias"] = (out,)

    def conv(self, name, inside, out, *kernel):
        self[f"{name}.weight"], self[f"{name}.bias"] = (out, inside, *kernel), (out,)

    def norm(self, name, channels):
        self[f"{name}.weight"] = self[f"{name}.bias"] = (channels,)

    def conditions(self):
        context, width = self.config["context_dim"], self.config["concat_dim"]
        if "image" in self.config["video_compositions"]:
            self.linear("pre_image_condition.0", context, context)
            self.linear("pre_image_condition.2", context, context * self.config["num_tokens"])
        for composition, maps, after, channels in ENCODERS.values():
            if composition not in self.config["video_compositions"]:
                continue
            for i, (inside, out) in {0: (channels, 4 * width), 3: (4 * width, 4 * width), 5: (4 * width, width)}.items():
                self.conv(f"{maps}.{i}", inside, out, 3, 3)
            for i in range(self.config["adapter_transformer_layers"]):
                self.norm(f"{after}.layers.{i}.0.norm", width)
                self.linear(f"{after}.layers.{i}.0.fn.to_qkv", width, 6 * width, bias=False)
                self.linear(f"{after}.layers.{i}.0.fn.to_out.0", 2 * width, width)
                self.linear(f"{after}.layers.{i}.1.net.0.0", width, 4 * width)
                self.linear(f"{after}.layers.{i}.1.net.2", 4 * width, width)

    def block(self, name, level, inside, out):
        self.residual(f"{name}.0", inside, out)
        if self.attends(level):
            self.spatial(f"{name}.1", out)
            self.temporal(f"{name}.2", out, out)
        return out

    def residual(self, name, inside, out):
        self.norm(f"{name}.in_layers.0", inside)
        self.conv(f"{name}.in_layers.2", inside, out, 3, 3)
        self.linear(f"{name}.emb_layers.1", 4 * self.config["dim"], out)
        self.norm(f"{name}.out_layers.0", out)
        self.conv(f"{name}.out_layers.3", out, out, 3, 3)
        if inside != out:
            self.conv(f"{name}.skip_connection", inside, out, 1, 1)
        for i in (1, 2, 3, 4):
            self.norm(f"{name}.temopral_conv.conv{i}.0", out)
            self.conv(f"{name}.temopral_conv.conv{i}.{2 if i == 1 else 3}", out, out, 3, 1, 1)

    def transformer(self, name, width, context):
        for part, keys in {"attn1": width, "attn2": context}.items():
            self.linear(f"{name}.{part}.to_q", width, width, bias=False)
            self.linear(f"{name}.{part}.to_k", keys, width, bias=False)
            self.linear(f"{name}.{part}.to_v", keys, width, bias=False)
            self.linear(f"{name}.{part}.to_out.0", width, width)
        self.linear(f"{name}.ff.net.0.proj", width, 8 * width)
        self.linear(f"{name}.ff.net.2", 4 * width, width)
        for i in (1, 2, 3):
            self.norm(f"{name}.norm{i}", width)

    def spatial(self, name, channels):
        self.norm(f"{name}.norm", channels)
        self.linear(f"{name}.proj_in", channels, channels)
        self.transformer(f"{name}.transformer_blocks.0", channels, self.config["context_dim"])
        self.linear(f"{name}.proj_out", channels, channels)

    def temporal(self, name, channels, width):
        self.norm(f"{name}.norm", channels)
        self.conv(f"{name}.proj_in", channels, width, 1)
        self.transformer(f"{name}.transformer_blocks.0", width, width)
        self.conv(f"{name}.proj_out", width, channels, 1)


def random_weights(config, seed=0):
    """A state dict in which nothing is zero."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, shape in Shapes(config).items():
        value = torch.randn(shape, generator=generator)
        scale = 0.1 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5
        found[name] = scale * value + (len(shape) == 1 and name.endswith("weight"))
    return found


class Network:
    """`Network(state_dict, config)(x, t, y, **maps) -> v`."""

    def __init__(self, weights, config):
        self.weights, self.config = weights, config

    def __call__(self, x, t, y, image=None, **maps):
        self.batch, self.frames = len(x), x.shape[2]
        half = self.config["dim"] // 2
        angles = t.double()[:, None] * 10000 ** (-torch.arange(half, dtype=torch.float64) / half)
        wave = torch.cat([angles.cos(), angles.sin()], 1).float()
        self.time = self.linear("time_embed.2", F.silu(self.linear("time_embed.0", wave))).repeat_interleave(self.frames, 0)
        if image is not None:
            tokens = self.linear("pre_image_condition.2", F.silu(self.linear("pre_image_condition.0", image)))
            y = torch.cat([y, tokens.reshape(len(x), self.config["num_tokens"], -1)], 1)
        self.context = y.repeat_interleave(self.frames, 0)
        added = sum((self.encoded(name, value) for name, value in maps.items()), torch.zeros(len(x), self.config["concat_dim"], *x.shape[2:]))
        z = self.conv("input_blocks.0.0", self.flat(torch.cat([x, added], 1)), padding=1)
        passed = [self.temporal("input_blocks.0.1", z, self.config["num_heads"])]
        for i in range(1, self.count("input_blocks")):
            passed.append(self.members(f"input_blocks.{i}", passed[-1]))
        z = self.members("middle_block", passed[-1])
        for i in range(self.count("output_blocks")):
            z = self.members(f"output_blocks.{i}", torch.cat([z, passed.pop()], 1))
        return self.clip(self.conv("out.2", F.silu(self.norm("out.0", z)), padding=1))

    def count(self, blocks):
        return 1 + max(int(name.split(".")[1]) for name in self.weights if name.startswith(f"{blocks}."))

    def members(self, name, z):
        """Everything in a block, one after the other, by what its tensors are called."""
        if f"{name}.op.weight" in self.weights:
            return self.conv(f"{name}.op", z, stride=2, padding=1)
        for member in (f"{name}.{i}" for i in range(4)):
            if f"{member}.in_layers.0.weight" in self.weights:
                z = self.residual(member, z)
            elif f"{member}.conv.weight" in self.weights:
                z = self.conv(f"{member}.conv", F.interpolate(z, scale_factor=2, mode="nearest"), padding=1)
            elif f"{member}.proj_in.weight" in self.weights:
                z = (self.temporal if self.weights[f"{member}.proj_in.weight"].ndim == 3 else self.spatial)(member, z)
        return z

    def clip(self, z):
        return z.unflatten(0, (self.batch, self.frames)).transpose(1, 2)  # (B, C, F, h, w)

    def flat(self, z):
        return z.transpose(1, 2).flatten(0, 1)  # (B F, C, h, w)

    def linear(self, name, z):
        weight = self.weights[f"{name}.weight"]
        return F.linear(z, weight.flatten(1), self.weights.get(f"{name}.bias"))

    def conv(self, name, z, **options):
        return F.conv2d(z, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], **options)

    def norm(self, name, z, eps=1e-5):
        return F.group_norm(z, 32, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps)

    def layer_norm(self, name, z):
        return F.layer_norm(z, z.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def attend(self, q, k, v, heads):
        q, k, v = (z.unflatten(2, (heads, -1)).transpose(1, 2) for z in (q, k, v))
        return ((q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def encoded(self, kind, maps):
        _, name, after, _ = ENCODERS[kind]
        width, height = self.config["resolution"]
        z = F.adaptive_avg_pool2d(F.silu(self.conv(f"{name}.0", self.flat(maps), padding=1)), (height // 2, width // 2))
        z = self.conv(f"{name}.5", F.silu(self.conv(f"{name}.3", z, stride=2, padding=1)), stride=2, padding=1)
        z = self.clip(z).permute(0, 3, 4, 2, 1)  # (B, h, w, F, C)
        tokens = z.flatten(0, 2)
        for i in range(self.config["adapter_transformer_layers"]):
            layer = f"{after}.layers.{i}"
            qkv = self.linear(f"{layer}.0.fn.to_qkv", self.layer_norm(f"{layer}.0.norm", tokens)).chunk(3, -1)
            tokens = tokens + self.linear(f"{layer}.0.fn.to_out.0", self.attend(*qkv, 2))
            tokens = tokens + self.linear(f"{layer}.1.net.2", F.gelu(self.linear(f"{layer}.1.net.0.0", tokens)))
        return tokens.view(z.shape).permute(0, 4, 3, 1, 2)

    def residual(self, name, z):
        y = self.conv(f"{name}.in_layers.2", F.silu(self.norm(f"{name}.in_layers.0", z)), padding=1)
        y = y + self.linear(f"{name}.emb_layers.1", F.silu(self.time))[..., None, None]
        y = self.conv(f"{name}.out_layers.3", F.silu(self.norm(f"{name}.out_layers.0", y)), padding=1)
        y = self.clip(y + (self.conv(f"{name}.skip_connection", z) if f"{name}.skip_connection.weight" in self.weights else z))
        mixed = y
        for i in (1, 2, 3, 4):
            part = f"{name}.temopral_conv.conv{i}"
            last = f"{part}.{2 if i == 1 else 3}"
            mixed = F.conv3d(F.silu(self.norm(f"{part}.0", mixed)), self.weights[f"{last}.weight"], self.weights[f"{last}.bias"], padding=(1, 0, 0))
        return self.flat(y + mixed)

    def transformer(self, name, z, context, heads):
        for i, given in ((1, None), (2, context)):
            y, part = self.layer_norm(f"{name}.norm{i}", z), f"{name}.attn{i}"
            other = y if given is None else given
            found = self.attend(self.linear(f"{part}.to_q", y), self.linear(f"{part}.to_k", other), self.linear(f"{part}.to_v", other), heads)
            z = z + self.linear(f"{part}.to_out.0", found)
        value, gate = self.linear(f"{name}.ff.net.0.proj", self.layer_norm(f"{name}.norm3", z)).chunk(2, -1)
        return z + self.linear(f"{name}.ff.net.2", value * F.gelu(gate))

    def spatial(self, name, z):
        y = self.norm(f"{name}.norm", z, 1e-6).permute(0, 2, 3, 1)  # (B F, h, w, C)
        tokens = self.linear(f"{name}.proj_in", y.flatten(1, 2))
        tokens = self.transformer(f"{name}.transformer_blocks.0", tokens, self.context, tokens.shape[2] // self.config["head_dim"])
        return z + self.linear(f"{name}.proj_out", tokens).view(y.shape).permute(0, 3, 1, 2)

    def temporal(self, name, z, heads=None):
        clip = self.clip(z)
        y = self.norm(f"{name}.norm", clip, 1e-6).permute(0, 3, 4, 2, 1)  # (B, h, w, F, C)
        tokens = self.linear(f"{name}.proj_in", y.flatten(0, 2))
        tokens = self.transformer(f"{name}.transformer_blocks.0", tokens, None, heads or tokens.shape[2] // self.config["head_dim"])
        return self.flat(clip + self.linear(f"{name}.proj_out", tokens).view(y.shape).permute(0, 4, 3, 1, 2))
