"""How assets/toybox was made: the stages text, backdrop and teacher, and the order of all; codec and decoder are pretrain_codec.py's, judge and depth
are pretrain_judge.py's and pretrain_depth.py's. The loop that runs them is training.py's.

In: clips, captions and attributes of Toybox. Out: a Stage a network. It knows nothing about samplers beyond the noise schedule.
"""

import copy
import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .data import CLIPS_PER_SHARD, TEACHING, Clips, cache_latents, conditions, object_weight, render_shards, stored
from .depth import DepthNet, depth_network
from .errors import AppError
from .judge import Judge, judge
from .models import ASSETS, network, pick_dtype, read_manifest
from .models.base import Conditions
from .models.codec import Codec
from .models.denoiser import Denoiser, DenoiserConfig, Windows
from .models.toybox import TextConfig, TextEncoder
from .pretrain_codec import codec_stage, decoder_stage
from .pretrain_depth import depth_stage
from .pretrain_judge import judge_stage
from .schedule import Schedule
from .shipping import GUIDED, sheet, ship
from .training import Stage, averaged_weights, fill, generator
from .world import ATTRIBUTES, OBJECT_ATTRIBUTES, SCENE_ATTRIBUTES, plot, sample, vocabulary

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

LAST_SHARE = 0.05  # of a batch at t = 999, where content is decided
NOISY_SHARE, NOISY = 0.1, 600  # of a batch from here on, besides the uniform rest: few, since shapes are lost at little noise (training log)
DROP_MAPS = 0.6  # text alone is the hardest of the four tasks
OBJECT_WEIGHT = 3.0  # added to the loss where objects are
NEAR = 500  # below, windows are looked at: there it is sure where an object is
GOING_ON = {"lr": 5e-4, "warmup": 20, "ema": 0.99, "faster": {"frames.coarse.coarse.": 3.0}}  # of trained weights; these came last
WELL_ON = {"near": 1, "least": 400, "toys": 8.0}  # of a teacher's: what is seen in clips is decided at much noise (training log)
HELD_OUT = range(500_000, 500_048)  # seeds of plain clips that nothing is trained on, nor asked for by the prompts
LOOKED_AT = (50, 250, 400, 500, 750, 900)  # timesteps at which they are denoised
SEAM_WEIGHT = 3.0  # of what changes from one half second to the next and should not, or the other way round


def teacher_stage(
    folder,
    encode_text,
    codec,
    iterations=3000,
    batch=32,
    kinds=("plain", "free"),
    near=3,
    least=0,
    toys=OBJECT_WEIGHT,
    config=None,
    validate=None,
    make_backdrop=None,
    **stage,
):
    """The denoiser, begun with a trained backdrop where `make_backdrop` gives one: the loss of v-prediction, maps as `data.conditions` drops them,
    text dropped for one sample in ten; and of what pictures of `codec` change by where half seconds meet. Of four batches `near` are windows around
    objects, with less noise: twice the samples in half the time; there `toys` is added to the weight where objects are. The rest are whole clips at
    t >= `least`, all places alike: a weight that knows the truth, where the network does not, makes it see objects wherever one may be. Of their
    channels each counts by what it adds to pixels, squared: outlines are in the first few, and where they are is decided at much noise."""
    clips = Clips(folder, kinds, TEACHING)
    schedule, shown = Schedule(), codec.shown[:, None, None, None]

    def loss(net, iteration):
        g, rng = generator(31, iteration), np.random.default_rng((31, iteration))
        cut = iteration % 4 >= 4 - near
        chosen, x0, cond = conditioned_batch(clips, 2 * batch if cut else batch, encode_text, g, rng)
        weight, windows = shown, None
        if cut:
            ids = clips.arrays["ids"][chosen]
            windows = windows_around(ids, x0.shape[2:], g)
            x0, weight = windows(x0), windows(object_weight(ids, x0.shape[2:], toys))
            t = torch.randint(NEAR, (len(x0),), generator=g)
        else:
            t = drawn_timesteps(schedule, batch, g, least)
        eps = torch.randn(x0.shape, generator=g)
        _, sigma = schedule.alpha_sigma(t, x0)
        made = net(schedule.add_noise(x0, eps, t), t, cond, windows)
        error = (made - x0) / sigma  # |v - v'| = |x0 - x0'| / sigma_t
        return (weight * error**2).mean() + SEAM_WEIGHT * (codec.seams(error) ** 2).mean()

    def make():
        net = make_backdrop().requires_grad_(True) if make_backdrop else Denoiser(config or DenoiserConfig())
        net.frames.as_in(codec)
        return net

    plan = {"warmup": 40, "cooldown": 0.8, **stage}
    return Stage(make, loss, iterations, 1.2e-3, batch, validate=validate, **plan)


def windows_around(ids, size, g):
    """Windows of half the height of latents (f, h, w) = `size` around a place of an object of each sample, ids uint8 (B, F, H, W)."""
    f, h, w = size
    side = h // 2
    there = F.adaptive_max_pool3d((ids > 0).float()[:, None], size).flatten(1)
    place = torch.multinomial(there + 1e-6, 1, generator=g)[:, 0] % (h * w)
    before = torch.randint(side, (2, len(ids)), generator=g)
    corners = ((v - more).clamp(0, n - side) // 2 * 2 for v, more, n in zip((place // w, place % w), before, (h, w), strict=True))
    return Windows((h, w), side, *(tuple(v.tolist()) for v in corners))


def held_out(encode):
    """Clips of HELD_OUT: latents (N, C, F', h, w), whether a toy is in each of their places (N, 1, F', h, w), and captions."""
    clips = [sample(seed).render() for seed in HELD_OUT]
    ids = torch.stack([torch.from_numpy(stored(clip)["ids"]) for clip in clips])
    x0 = torch.cat([encode(torch.from_numpy(clip.frames).permute(3, 0, 1, 2)[None] / 127.5 - 1).cpu() for clip in clips])
    return x0, F.adaptive_max_pool3d(ids[:, None].float(), x0.shape[2:]) > 0, [plot(seed).caption for seed in HELD_OUT]


@torch.no_grad()
def errors(net, encode_text, x0, toys, captions):
    """The squared error of x0 over sigma_t^2 at each of LOOKED_AT, by text alone: {"toys": where toys are, "everywhere"}, three digits."""
    schedule, contexts, found = Schedule(), encode_text(captions).split(8), {"toys": [], "everywhere": []}
    for step in LOOKED_AT:
        t, eps = torch.full((len(x0),), step), torch.randn(x0.shape, generator=generator(33, step))
        noised = schedule.add_noise(x0, eps, t)
        parts = zip(noised.split(8), t.split(8), contexts, strict=True)
        made = torch.cat([net(x_t, part, Conditions(context)).float() for x_t, part, context in parts])
        error = ((made - x0) / schedule.alpha_sigma(t, x0)[1]) ** 2
        found["toys"].append(round(float(error.mean(1, keepdim=True)[toys].mean()), 3))
        found["everywhere"].append(round(float(error.mean()), 3))
    return found


def backdrop_stage(folder, encode_text, iterations=500, batch=64, config=None):
    """The denoiser's backdrop alone: mean and spread of clean latents given text and maps, by the likelihood of a normal distribution."""
    clips = Clips(folder, ("plain", "free"), TEACHING)

    def make():
        net = Denoiser(config or DenoiserConfig()).requires_grad_(False)
        net.backdrop.requires_grad_(True)
        return net

    def loss(net, iteration):
        _, x0, cond = conditioned_batch(clips, batch, encode_text, generator(33, iteration), np.random.default_rng((33, iteration)))
        mean, spread = net.expected(cond, *net.stack_maps(x0, cond))
        return (0.5 * ((x0 - mean) / spread) ** 2 + spread.log()).mean()

    return Stage(make, loss, iterations, 2e-3, batch, warmup=20, cooldown=0.7, ema=0.99)


def conditioned_batch(clips, batch, encode_text, g, rng):
    """(indices, x0, Conditions) of a batch."""
    chosen = clips.draw(batch, g)
    return chosen, clips.arrays["latents"][chosen].float(), conditions(clips, chosen, encode_text, g, rng, drop_maps=DROP_MAPS)


def drawn_timesteps(schedule, n, g, least=0):
    """int64 (n,): uniform from `least` on, but for the shares at the last timestep and at the noisy end."""
    last, noisy = round(n * LAST_SHARE), round(n * NOISY_SHARE)
    t = torch.randint(least, schedule.train_steps, (n,), generator=g)
    t[last : last + noisy] = torch.randint(NOISY, schedule.train_steps, (noisy,), generator=g)
    t[:last] = schedule.train_steps - 1
    return t


# ---- the order of work


def trained(runs, name, dtype=None):
    """The network of an earlier stage for inference: the averaged weights of its run, what is shipped where it has not run here.

    AppError E_MODEL_FILE where neither is there, E_RESUME where the run is of another network.
    """
    dtype = torch.float32 if name in ("text", "depth") else dtype or pick_dtype(None, torch.device("cpu"))
    if not (Path(runs) / name).exists():
        return shipped(name, dtype)
    if name == "student":  # may take more than its teacher does, as its folder says
        return shipped(name, dtype, Path(runs) / name)
    net = {
        "codec": Codec,
        "decoder": Codec,
        "text": Reader,
        "backdrop": Denoiser,
        "teacher": Denoiser,
        "judge": Judge,
        "depth": DepthNet,
    }[name]()
    fill(net, averaged_weights(Path(runs) / name)[1])
    net = net.encoder if name == "text" else net
    return net.to(dtype).eval().requires_grad_(False)


def shipped(name, dtype=torch.float32, folder=ASSETS / "toybox"):
    """The network `name` of a model's folder. AppError E_MODEL_FILE."""
    if name in ("judge", "depth"):
        return {"judge": judge, "depth": depth_network}[name]().to(dtype)
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
    elif name == "decoder":
        denoisers = [trained(runs, role) for role in ("student", "teacher")]
        stage = decoder_stage(data, trained(runs, "codec", torch.float32), trained(runs, "text").encode, denoisers, **settings)
    elif name == "backdrop":
        stage = backdrop_stage(data, trained(runs, "text").encode, **settings)
    else:
        stage = shown_teacher_stage(data, runs, (WELL_ON if warm else {}) | settings)
    if not warm:
        return stage
    plan = GOING_ON if name == "teacher" else {}
    return replace(stage, make=lambda: copy.deepcopy(shipped(name)).requires_grad_(True), **plan)


def shown_teacher_stage(data, runs, settings):
    """The teacher's Stage, which now and then draws a contact sheet and denoises clips that it was not trained on."""
    codec, text = trained(runs, "codec"), trained(runs, "text")
    held = cache(partial(held_out, encoder_of(codec)))

    @torch.no_grad()
    def validate(net, out, iteration):
        return {"sheet": str(sheet(codec, text, net, out / f"sheet-{iteration:06d}.png"))} | errors(net, text.encode, *held())

    def make_backdrop():
        return trained(runs, "backdrop", torch.float32) if (Path(runs) / "backdrop").exists() else Denoiser()

    return teacher_stage(data, text.encode, codec, validate=validate, validate_every=100, make_backdrop=make_backdrop, **settings)


def render_clips(runs, clips, free_share=0.1):
    """Renders `clips` clips and a share of free scenes; yields a line for each shard."""
    data, shards = Path(runs) / "data", -(-clips // CLIPS_PER_SHARD)
    counts = {"free": max(6, round(shards * free_share)), "plain": max(10, shards)}
    for kind, index in render_shards(data, [(kind, index) for kind, count in counts.items() for index in range(count)]):
        yield f"rendered {kind} {index + 1}/{counts[kind]}"


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
    for name in ("codec", "decoder", "text", "teacher", "judge", "depth", "student"):
        if (Path(runs) / name).exists():
            facts = {"guided": list(GUIDED)} if name == "teacher" else {}
            ship(folder, "codec" if name == "decoder" else name, trained(runs, name, torch.float32), **facts)
    if (Path(runs) / "student").exists():
        sheet(
            shipped("codec", pick_dtype(None, torch.device("cpu"))),
            trained(runs, "text"),
            trained(runs, "student"),
            folder / "sheet.png",
            role="student",
            steps=4,
        )
    return folder
