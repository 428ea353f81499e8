"""How assets/toybox was made: the stages codec, text, teacher and judge. The loop that runs them is training.py's.

In: clips, captions and attributes of Toybox. Out: a Stage a network. It knows nothing about samplers beyond the noise schedule.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .data import CLIPS_PER_SHARD, Clips, cache_latents, conditions, frames_of, render_shards
from .metrics import Judge
from .models import ASSETS
from .models.toybox import Codec, Denoiser, DenoiserConfig, TextConfig, TextEncoder
from .schedule import Schedule
from .shipping import sheet, ship
from .training import Stage, averaged_weights, generator
from .world import ATTRIBUTES, OBJECT_ATTRIBUTES, SCENE_ATTRIBUTES, plot, vocabulary

CROP, CODEC_FRAMES, CODEC_BATCH = 128, 8, 6


# ---- codec


def codec_stage(folder, iterations=4000):
    """The codec, on crops of 128x128x8, seven of ten around an object."""
    frames, ids = frames_of(folder, plain=10, free=6)  # (N, 16, 256, 256, 3), (N, 16, 64, 64)

    def batch(iteration):
        g = generator(11, iteration)
        pairs = [crop(frames, ids, g) for _ in range(CODEC_BATCH)]
        pixels, weight = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        return pixels.permute(0, 4, 1, 2, 3).float() / 127.5 - 1, 1 + 3 * weight[:, None]

    def loss(net, iteration):
        pixels, weight = batch(iteration)
        half = pixels.to(next(net.parameters()).dtype)
        latents = net.encode(half)
        noisy = latents + 0.05 * torch.randn(latents.shape, generator=generator(12, iteration)).to(latents)
        look = F.avg_pool3d(pixels, (1, 8, 8))
        return picture_loss(net.decode(noisy).float(), pixels, weight) + 0.1 * F.mse_loss(net.preview(latents.detach()).float(), look)

    @torch.no_grad()
    def validate(net, out, iteration):
        clips = [torch.from_numpy(frames[i : i + 1]).permute(0, 4, 1, 2, 3) for i in range(0, len(frames), len(frames) // 12)]
        errors, inside = [], []
        for clip, mask in zip(clips, ids[:: len(frames) // 12], strict=False):
            pixels = clip.to(torch.bfloat16) / 127.5 - 1
            error = ((net.decode(net.encode(pixels)).float() - pixels.float()) / 2) ** 2
            where = F.interpolate(torch.from_numpy(mask)[None].float(), scale_factor=4)[0] > 127
            errors.append(error.mean())
            inside.append(error[0].mean(0)[where].mean())
        errors, inside = torch.stack(errors), torch.stack(inside)
        return {"psnr": psnr(errors.mean()), "psnr_object": psnr(inside.nanmean())}

    def before(net, iteration):
        if iteration in (100, 300, 1000):  # later the encoder hardly moves, and the decoder wants to rely on it
            settle_norm(net, frames[:: max(1, len(frames) // 40)])

    return Stage(Codec, loss, iterations, 5e-4, CODEC_BATCH, validate=validate, validate_every=250, ema=0.997, warmup=50, cooldown=0.7, before=before)


@torch.no_grad()
def settle_norm(codec, frames):
    """Sets the mean and the deviation that latents are normalised by to those of whole clips (N, 16, H, W, 3).

    Statistics of a training batch, as batch normalisation has them, hide the colour of the whole picture: clips came out grey.
    """
    codec.mean.zero_(), codec.std.fill_(1)
    pixels = (torch.from_numpy(clip).permute(3, 0, 1, 2)[None].to(codec.stem.weight.dtype) / 127.5 - 1 for clip in frames)
    latents = torch.cat([codec.encode(clip).float() for clip in pixels]).transpose(0, 1).flatten(1)  # (C, all)
    codec.mean.copy_(latents.mean(1)[:, None, None]), codec.std.copy_(latents.std(1)[:, None, None])


def psnr(error):
    return round(float(-10 * torch.log10(error)), 2)


def crop(frames, ids, g):
    """8 frames of a 128x128 window of a random clip, uint8 (8, 128, 128, 3), and where objects are (8, 128, 128) in 0..1."""

    def draw(n):
        return int(torch.randint(n, (1,), generator=g))

    clip, start = draw(len(frames)), draw(frames.shape[1] - CODEC_FRAMES + 1)
    y, x = 2 * draw(65), 2 * draw(65)
    seen = torch.from_numpy(ids[clip, start + CODEC_FRAMES // 2]).nonzero()
    if len(seen) and draw(10) < 7:
        at = seen[draw(len(seen))]
        y, x = (int(min(max(4 * int(c) - CROP // 2 + draw(65) - 32, 0), 256 - CROP)) // 4 * 4 for c in at)
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
        slots = self.encoder(tokens)[:, :3]
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
OBJECT_WEIGHT = 3.0  # added to the loss where objects are


def teacher_stage(folder, encode_text, iterations=6000, batch=16, kinds=("plain",), config=None, validate=None, **stage):
    """The denoiser: v-prediction, text dropped for one sample in ten, every map dropped for four in ten, else each kept with a chance of half."""
    clips = Clips(folder, kinds, ("latents", "depth", "edges", "ids", "rgb"))
    schedule = Schedule()

    def loss(net, iteration):
        g, rng = generator(31, iteration), np.random.default_rng((31, iteration))
        chosen = torch.randint(len(clips), (batch,), generator=g)
        x0, cond = clips.arrays["latents"][chosen].float(), conditions(clips, chosen, encode_text, g, rng)
        t = torch.randint(schedule.train_steps, (batch,), generator=g)
        t[: round(batch * LAST_SHARE)] = schedule.train_steps - 1
        eps = torch.randn(x0.shape, generator=g)
        x_t, v = schedule.add_noise(x0, eps, t), schedule.v_from_x0_eps(x0, eps, t)
        kind = next(net.parameters()).dtype
        made = net(x_t.to(kind), t, cond.map(lambda value: value.to(kind))).float()
        return (object_weight(clips.arrays["ids"][chosen]) * (made - v) ** 2).mean()

    return Stage(lambda: Denoiser(config or DenoiserConfig()), loss, iterations, 1e-3, batch, validate=validate, **stage)


def object_weight(ids):
    """ids (B, 16, 64, 64) -> (B, 1, 4, 16, 16): 1, and more in and around objects; its mean over the batch is 1."""
    seen = F.max_pool3d(ids[:, None].float() / 255, 4)
    weight = 1 + OBJECT_WEIGHT * F.max_pool3d(seen, (1, 3, 3), 1, (0, 1, 1))
    return weight / weight.mean()


# ---- judge


def judge_stage(folder, iterations=700, batch=24):
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

    return Stage(Judge, loss, iterations, 1e-3, batch, validate=validate, validate_every=100, warmup=100)


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


def trained(runs, name):
    """The network of an earlier stage with its averaged weights, for inference. AppError E_NO_CHECKPOINT before that stage has run."""
    net = {"codec": Codec, "text": Reader, "teacher": Denoiser, "student": Denoiser, "judge": Judge}[name]()
    net.load_state_dict(averaged_weights(Path(runs) / name)[1])
    net = net.encoder if name == "text" else net
    return net.to(torch.float32 if name == "text" else torch.bfloat16).eval().requires_grad_(False)


def stage_of(name, runs, **settings):
    """The Stage called `name`, with what it needs of the stages before it in the folder `runs`."""
    data = Path(runs) / "data"
    if name == "codec":
        return codec_stage(data, **settings)
    if name == "text":
        return text_stage(**settings)
    if name == "judge":
        return judge_stage(data, **settings)
    codec, text = trained(runs, "codec"), trained(runs, "text")

    @torch.no_grad()
    def validate(net, out, iteration):
        return {"sheet": str(sheet(codec, text, net, out / f"sheet-{iteration:06d}.png"))}

    return teacher_stage(data, text.encode, validate=validate, validate_every=1000, **settings)


def prepare(runs, clips, free_share=0.1):
    """Renders `clips` clips, some of them free scenes, and encodes what the codec has not seen yet; yields a line for each shard.

    Before the codec is trained this renders only; call it again afterwards.
    """
    data, shards = Path(runs) / "data", -(-clips // CLIPS_PER_SHARD)
    for kind, count in (("free", max(6, round(shards * free_share))), ("plain", max(10, shards))):
        for index in render_shards(data, kind, range(count)):
            yield f"rendered {kind} {index + 1}/{count}"
    if (Path(runs) / "codec").exists():
        codec = trained(runs, "codec")
        for path in cache_latents(data, encoder_of(codec)):
            yield f"encoded {path.stem}"


def encoder_of(codec):
    """`codec.encode` for uint8-derived float pixels (B, 3, F, H, W), in the codec's own type, without gradients; latents come in float32."""

    @torch.no_grad()
    def encode(pixels):
        return codec.encode(pixels.to(codec.stem.weight.dtype)).float()

    return encode


def ship_all(runs, folder=ASSETS / "toybox"):
    """-> assets/toybox, and a contact sheet of the student."""
    for name in ("codec", "text", "teacher", "judge", "student"):
        if (Path(runs) / name).exists():
            ship(folder, name, trained(runs, name))
    if (Path(runs) / "student").exists():
        sheet(trained(runs, "codec"), trained(runs, "text"), trained(runs, "student"), folder / "sheet.png", role="student", steps=4)
    return folder
