"""How assets/toybox was made: the stages codec, text, teacher and judge; depth is pretrain_depth.py's. The loop that runs them is training.py's.

In: clips, captions and attributes of Toybox. Out: a Stage a network. It knows nothing about samplers beyond the noise schedule.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .data import CLIPS_PER_SHARD, Clips, cache_latents, conditions, frames_of, render_shards
from .depth import DepthNet, depth_network
from .errors import AppError
from .judge import Judge, judge
from .models import ASSETS, network, pick_dtype, read_manifest
from .models.codec import SPACE, TIME, Codec, blocks
from .models.toybox import Denoiser, DenoiserConfig, TextConfig, TextEncoder
from .pretrain_depth import depth_stage
from .schedule import Schedule
from .shipping import sheet, ship
from .training import Stage, averaged_weights, generator
from .world import ATTRIBUTES, OBJECT_ATTRIBUTES, SCENE_ATTRIBUTES, plot, vocabulary

CROP, CODEC_FRAMES, CODEC_BATCH = 128, 8, 6
LATENT_NOISE = 0.2  # at most, of a sample in the codec's training: what a denoiser leaves is taken away by the decoder


# ---- codec


def codec_stage(folder, iterations=2500):
    """The codec: its transform fitted to blocks of clips, then its decoder trained on windows of 8 frames of 128x128."""
    frames, ids = frames_of(folder, plain=24, free=4)  # (N, 16, 256, 256, 3), (N, 16, 64, 64)

    def make():
        codec = Codec()
        fit_transform(codec, frames, ids)
        return codec

    def loss(net, iteration):
        g = generator(11, iteration)
        pairs = [crop(frames, ids, g) for _ in range(CODEC_BATCH)]
        pixels, weight = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        pixels = pixels.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        latents = net.encode(pixels.to(net.scale.dtype))
        noise = torch.randn(latents.shape, generator=generator(12, iteration)) * torch.rand(CODEC_BATCH, 1, 1, 1, 1, generator=g)
        noisy = latents + LATENT_NOISE * noise.to(latents)
        return picture_loss(net.decode(noisy).float(), pixels, 1 + 3 * weight[:, None])

    @torch.no_grad()
    def validate(net, out, iteration):
        errors, inside = [], []
        for i in range(0, len(frames), len(frames) // 12):
            pixels = torch.from_numpy(frames[i : i + 1]).permute(0, 4, 1, 2, 3).to(net.scale.dtype) / 127.5 - 1
            error = ((net.decode(net.encode(pixels)).float() - pixels.float()) / 2) ** 2
            where = F.interpolate(torch.from_numpy(ids[i])[None].float(), scale_factor=4)[0] > 127
            errors.append(error.mean())
            inside.append(error[0].mean(0)[where].mean())
        return {"psnr": psnr(torch.stack(errors).mean()), "psnr_object": psnr(torch.stack(inside).nanmean())}

    return Stage(make, loss, iterations, 1e-3, CODEC_BATCH, validate=validate, validate_every=250, ema=0.997, warmup=50, cooldown=0.6)


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


def crop(frames, ids, g):
    """A window of a random clip on the codec's grid: uint8 (8, 128, 128, 3), and where objects are (8, 128, 128) in 0..1. Seven of ten
    hold an object."""

    def draw(n):
        return int(torch.randint(n, (1,), generator=g))

    clip, start = draw(len(frames)), TIME * draw((frames.shape[1] - CODEC_FRAMES) // TIME + 1)
    seen = torch.from_numpy(ids[clip, start + CODEC_FRAMES // 2]).nonzero()
    middle = 4 * seen[draw(len(seen))] if len(seen) and draw(10) < 7 else torch.tensor([draw(257), draw(257)])
    y, x = (int(min(max(int(c) - CROP // 2 + draw(65) - 32, 0), 256 - CROP)) // SPACE * SPACE for c in middle)
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
        slots = self.encoder(tokens)
        read = {(name, i): self.heads[name](slots[:, i]).float() for name in OBJECT_ATTRIBUTES for i in (0, 1)}
        return read | {(name, 2): self.heads[name](slots[:, 2]).float() for name in SCENE_ATTRIBUTES}


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
NOISY_SHARE, NOISY = 0.3, 600  # of a batch at 600 and above: a latent this large still tells there where things are
DROP_MAPS = 0.6  # text alone is the hardest of the four tasks
OBJECT_WEIGHT = 3.0  # added to the loss where objects are


def teacher_stage(folder, encode_text, iterations=3000, batch=32, kinds=("plain",), config=None, validate=None, make_backdrop=None, **stage):
    """The denoiser, begun with a trained backdrop where `make_backdrop` gives one: the loss of v-prediction, maps as `data.conditions` drops them,
    text dropped for one sample in ten."""
    clips = Clips(folder, kinds, ("latents", "depth", "edges", "ids", "rgb"))
    schedule = Schedule()

    def loss(net, iteration):
        g, rng = generator(31, iteration), np.random.default_rng((31, iteration))
        chosen = torch.randint(len(clips), (batch,), generator=g)
        x0, cond = clips.arrays["latents"][chosen].float(), conditions(clips, chosen, encode_text, g, rng, drop_maps=DROP_MAPS)
        t = drawn_timesteps(schedule, batch, g)
        eps = torch.randn(x0.shape, generator=g)
        _, sigma = schedule.alpha_sigma(t, x0)
        made = net(schedule.add_noise(x0, eps, t), t, cond)
        # |v - v'| = |x0 - x0'| / sigma_t
        return (object_weight(clips.arrays["ids"][chosen]) * ((made - x0) / sigma) ** 2).mean()

    def make():
        return make_backdrop().requires_grad_(True) if make_backdrop else Denoiser(config or DenoiserConfig())

    plan = {"warmup": 20, "cooldown": 0.8, **stage}
    return Stage(make, loss, iterations, 2e-3, batch, validate=validate, **plan)


def backdrop_stage(folder, encode_text, iterations=500, batch=64, config=None):
    """The denoiser's backdrop alone: mean and spread of clean latents given the text, by the likelihood of a normal distribution."""
    clips = Clips(folder, ("plain",), ("latents",))
    latents = clips.arrays["latents"]

    def make():
        net = Denoiser(config or DenoiserConfig()).requires_grad_(False)
        net.backdrop.requires_grad_(True)
        return net

    def loss(net, iteration):
        g, rng = generator(33, iteration), np.random.default_rng((33, iteration))
        chosen = torch.randint(len(clips), (batch,), generator=g)
        captions = [clips.caption(int(i), rng) if rng.random() >= 0.1 else "" for i in chosen]
        with torch.no_grad():
            context = encode_text(captions).to(net.leave.weight.dtype)
        mean, spread = net.backdrop(context, *latents.shape[3:])
        return (0.5 * ((latents[chosen].float() - mean) / spread) ** 2 + spread.log()).mean()

    return Stage(make, loss, iterations, 2e-3, batch, warmup=20, cooldown=0.7, ema=0.99)


def drawn_timesteps(schedule, n, g):
    """int64 (n,): uniform, but for the shares at the last timestep and at the noisy end."""
    last, noisy = round(n * LAST_SHARE), round(n * NOISY_SHARE)
    t = torch.randint(schedule.train_steps, (n,), generator=g)
    t[last : last + noisy] = torch.randint(NOISY, schedule.train_steps, (noisy,), generator=g)
    t[:last] = schedule.train_steps - 1
    return t


def object_weight(ids):
    """ids (B, 16, 64, 64) -> (B, 1, 4, 16, 16): 1, and more in and around objects; its mean over the batch is 1."""
    seen = F.max_pool3d(ids[:, None].float() / 255, 4)
    weight = 1 + OBJECT_WEIGHT * F.max_pool3d(seen, (1, 3, 3), 1, (0, 1, 1))
    return weight / weight.mean()


# ---- judge


def judge_stage(folder, iterations=1500, batch=24):
    """The judge, on what rendered clips look like at 128x128; one clip in 16 is kept for validation."""
    clips = Clips(folder, ("plain",), ("look",))
    labels = [shown_labels(told) for told in clips.plots]
    held = np.arange(0, len(clips), 16)
    rest = np.setdiff1d(np.arange(len(clips)), held)

    def targets(chosen, swapped=()):
        rows = [flipped(labels[i]) if flip else labels[i] for i, flip in zip(chosen, swapped or [False] * len(chosen), strict=True)]
        return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}

    def loss(net, iteration):
        rng = np.random.default_rng((41, iteration))
        chosen, swapped = rng.choice(rest, batch), list(rng.random(batch) < 0.5)
        pixels = clips.arrays["look"][chosen].permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        pixels = torch.stack([worn(clip.flip(3) if flip else clip, rng) for clip, flip in zip(pixels, swapped, strict=True)])
        told, wanted = net(pixels.to(next(net.parameters()).dtype)), targets(chosen, swapped)
        return sum(F.cross_entropy(logits.float(), wanted[key]) for key, logits in told.items()) / len(told)

    @torch.no_grad()
    def validate(net, out, iteration):
        wanted, right = targets(held), {}
        for at in range(0, len(held), 32):
            pixels = clips.arrays["look"][held[at : at + 32]].permute(0, 1, 4, 2, 3).float() / 127.5 - 1
            for key, logits in net(pixels.to(next(net.parameters()).dtype)).items():
                right.setdefault(key, []).append(logits.argmax(1) == wanted[key][at : at + 32])
        scores = {f"{name}{slot}": float(torch.cat(hits).float().mean()) for (name, slot), hits in right.items()}
        return {"mean": round(sum(scores.values()) / len(scores), 4)} | {key: round(value, 3) for key, value in scores.items()}

    return Stage(Judge, loss, iterations, 1e-3, batch, validate=validate, validate_every=100, warmup=50, cooldown=0.6)


def shown_labels(told):
    """{(attribute, slot): class} of everything that is seen; toys stand from left to right in the order of the caption."""
    slots = {(name, i): ATTRIBUTES[name].index(getattr(toy, name)) for i, toy in enumerate(told.toys) for name in OBJECT_ATTRIBUTES}
    absent = {(name, 1): len(ATTRIBUTES[name]) for name in OBJECT_ATTRIBUTES}
    return absent | slots | {(name, 2): ATTRIBUTES[name].index(getattr(told, name)) for name in SCENE_ATTRIBUTES}


def flipped(labels):
    """The labels of the mirrored clip: left is right, and of two objects the order changes."""
    mirror = {ATTRIBUTES["motion"].index(a): ATTRIBUTES["motion"].index(b) for a, b in (("left", "right"), ("right", "left"))}
    two = labels["shape", 1] < len(ATTRIBUTES["shape"])
    swapped = {(name, 1 - slot if two and slot < 2 else slot): value for (name, slot), value in labels.items()}
    return {key: mirror.get(value, value) if key[0] == "motion" else value for key, value in swapped.items()}


def worn(clip, rng):
    """A clip (F, 3, H, W) as a codec might leave it: a little blurred, noisy, brighter or darker."""
    if rng.random() < 0.4:
        size = int(rng.integers(56, 112))
        clip = F.interpolate(F.interpolate(clip, (size, size), mode="area"), clip.shape[2:], mode="bilinear", align_corners=False)
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**31))))
    return clip * float(rng.uniform(0.92, 1.08)) + float(rng.uniform(-0.04, 0.04)) + noise * float(rng.uniform(0, 0.04))


# ---- the order of work


def trained(runs, name, dtype=None):
    """The network of an earlier stage for inference: the averaged weights of its run, what is shipped where it has not run here.

    AppError E_MODEL_FILE where neither is there.
    """
    dtype = torch.float32 if name in ("text", "depth") else dtype or pick_dtype(None, torch.device("cpu"))
    if not (Path(runs) / name).exists():
        return shipped(name, dtype)
    net = {"codec": Codec, "text": Reader, "backdrop": Denoiser, "teacher": Denoiser, "student": Denoiser, "judge": Judge, "depth": DepthNet}[name]()
    net.load_state_dict(averaged_weights(Path(runs) / name)[1])
    net = net.encoder if name == "text" else net
    return net.to(dtype).eval().requires_grad_(False)


def shipped(name, dtype=torch.float32):
    """The network `name` of assets/toybox. AppError E_MODEL_FILE."""
    if name in ("judge", "depth"):
        return {"judge": judge, "depth": depth_network}[name]().to(dtype)
    folder = ASSETS / "toybox"
    entry = read_manifest(folder)[0]["files"].get(name)
    if entry is None:
        raise AppError("E_MODEL_FILE", folder=folder.name, given=name)
    return network(folder, json.dumps(entry), torch.device("cpu"), dtype)


def stage_of(name, runs, warm=False, **settings):
    """The Stage called `name`, with what it needs of the stages before it in the folder `runs`.

    `warm` begins with the shipped weights, which for text lack the heads that taught it.
    """
    data = Path(runs) / "data"
    stages = {"codec": codec_stage, "judge": judge_stage, "depth": depth_stage}
    if name in stages:
        stage = stages[name](data, **settings)
    elif name == "text":
        stage = text_stage(**settings)
    elif name == "backdrop":
        stage = backdrop_stage(data, trained(runs, "text").encode, **settings)
    else:
        stage = shown_teacher_stage(data, runs, settings)
    return replace(stage, make=lambda: copy.deepcopy(shipped(name)).requires_grad_(True)) if warm else stage


def shown_teacher_stage(data, runs, settings):
    """The teacher's Stage, which draws a contact sheet now and then."""
    codec, text = trained(runs, "codec"), trained(runs, "text")

    @torch.no_grad()
    def validate(net, out, iteration):
        return {"sheet": str(sheet(codec, text, net, out / f"sheet-{iteration:06d}.png"))}

    def make_backdrop():
        return trained(runs, "backdrop", torch.float32) if (Path(runs) / "backdrop").exists() else Denoiser()

    return teacher_stage(data, text.encode, validate=validate, validate_every=250, make_backdrop=make_backdrop, **settings)


def render_clips(runs, clips, free_share=0.1):
    """Renders `clips` clips and a share of free scenes; yields a line for each shard."""
    data, shards = Path(runs) / "data", -(-clips // CLIPS_PER_SHARD)
    for kind, count in (("free", max(6, round(shards * free_share))), ("plain", max(10, shards))):
        for index in render_shards(data, kind, range(count)):
            yield f"rendered {kind} {index + 1}/{count}"


def encode_clips(runs):
    """Encodes every rendered shard that has no latents yet; yields a line for each."""
    for path in cache_latents(Path(runs) / "data", encoder_of(trained(runs, "codec"))):
        yield f"encoded {path.stem}"


def encoder_of(codec):
    """`codec.encode` for uint8-derived float pixels (B, 3, F, H, W), in the codec's own type, without gradients; latents come in float32."""

    @torch.no_grad()
    def encode(pixels):
        return codec.encode(pixels.to(codec.scale.dtype)).float()

    return encode


def ship_all(runs, folder=ASSETS / "toybox"):
    """-> assets/toybox, and a contact sheet of the student."""
    for name in ("codec", "text", "teacher", "judge", "depth", "student"):
        if (Path(runs) / name).exists():
            ship(folder, name, trained(runs, name, torch.float32))
    if (Path(runs) / "student").exists():
        sheet(trained(runs, "codec"), trained(runs, "text"), trained(runs, "student"), folder / "sheet.png", role="student", steps=4)
    return folder
