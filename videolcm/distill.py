"""Consistency distillation: a teacher that needs many steps -> a student that needs one to eight (Sec. 3.2).

In: three denoisers `denoise(x_t, t, cond) -> x0` (the frozen teacher, the student theta, its average theta*), clean latents and their
conditions. Out: the loss of Eq. 2, whose gradient reaches the student alone, and the averaged weights.
It knows nothing about what the networks are, nor about sampling.
"""

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from .checkpoint import write_json
from .data import CLIPS_PER_SHARD, MAPS, Clips, cache_latents, conditions, render_shards
from .errors import AppError
from .models import write_student as write_denoiser
from .schedule import consistency, guide
from .training import Stage, averaged_weights, generator


@dataclass(frozen=True)
class DistillConfig:
    """The method's knobs. Where the paper says a number it stands behind; Toybox has its own where the paper's did harm."""

    iterations: int = 1000  # paper: about 4,000
    batch: int = 16
    lr: float = 1e-4  # paper: 1e-5, for 1.4 billion parameters; four times as much filled this small model's clips with grain
    guidance: float = 2.0  # w; paper: 9.0, which over-saturates a small model
    skips: tuple[int, ...] = (20,)  # k of each phase, equally long; paper: 20
    huber: float = 1e-3
    ema: float = 0.95  # Sec. 4.1
    share_last: float = 0.5  # of a batch at t = 999
    seed: int = 0
    conditions: tuple[str, ...] = ("text", *MAPS)  # what the student learns to follow


def distill_stage(teacher, clips, config):
    """The Stage that trains a student of `teacher` (a VideoModel) on cached `clips`. The target, theta*, is what should be shipped."""
    empty = teacher.encode_text([""])  # (1, L, D)

    def loss(net, target, iteration):
        g, rng = generator(51 + config.seed, iteration), np.random.default_rng((51 + config.seed, iteration))
        chosen = clips.draw(config.batch, g)
        drop_text = 0.0 if "text" in config.conditions else 1.0
        cond = conditions(clips, chosen, teacher.encode_text, g, rng, drop_text, kept=config.conditions).map(lambda value: value.to(teacher.device))
        x0 = clips.arrays["latents"][chosen].float().to(teacher.device)
        skip = config.skips[iteration * len(config.skips) // config.iterations]
        student, average = teacher.with_denoiser(net).denoise, teacher.with_denoiser(target).denoise
        return consistency_loss(
            student, average, teacher.denoise, teacher.schedule, x0, cond, cond.null(empty), config.guidance, g, skip, config.huber, config.share_last
        )

    return Stage(
        lambda: copy.deepcopy(teacher.denoiser).float().requires_grad_(True),
        loss,
        config.iterations,
        config.lr,
        config.batch,
        ema=config.ema,
        warmup=20,
        cooldown=0.7,
        dtype=teacher.dtype,
        muon=False,
        with_target=True,
    )


def toybox_clips(folder, teacher, report, least=600, latents=None):
    """Clips of Toybox in `folder`, their latents in `latents` (the same, if None): rendered and encoded first where there are fewer than
    `least`. `report(line)` hears of it."""
    shards, latents = -(-least // CLIPS_PER_SHARD), latents or folder
    if len(list(Path(latents).glob("latents-plain-*.safetensors"))) < shards:
        for index in render_shards(folder, "plain", range(shards)):
            report(f"rendered {index + 1}/{shards}")
        for path in cache_latents(folder, teacher.encode, latents):
            report(f"encoded {path.stem}")
    return cached_clips(latents)


def cached_clips(folder):
    """The cached clips that lie in `folder`, latents-plain-*.safetensors as `data.cache_latents` writes them. AppError E_DATA if there are none."""
    if not any(Path(folder).glob("latents-plain-*.safetensors")):
        raise AppError("E_DATA", given=Path(folder).name)
    return Clips(folder, ("plain",), ("latents", "depth", "edges", "ids", "rgb"))


def finished_student(out, teacher):
    """(denoiser, iteration): the averaged weights (theta*) of the newest checkpoint of the run in `out`."""
    net = copy.deepcopy(teacher.denoiser)
    iteration, weights = averaged_weights(out)
    net.load_state_dict(weights)
    return net, iteration


def write_student(out, base, net, iteration, config):
    """Makes the run folder `out` a model that the door loads: the denoiser `net` after so many iterations, and a manifest that names its base."""
    written = write_denoiser(net, base, out)
    distilled = {"iteration": iteration, **asdict(config)}
    write_json(Path(out) / "manifest.json", {"base": base, **written, "distilled": distilled})


def student_iteration(out):
    """After how many iterations the student that lies in `out` was written; None where there is none."""
    path = Path(out) / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8"))["distilled"]["iteration"] if path.exists() else None


def consistency_loss(student, target, teacher, schedule, x0, cond, null, w, generator, skip=20, c=1e-3, share_last=0.0):
    """Eq. 2 on a batch: a scalar, float32. x0 (B, C, F, h, w) clean latents; `null` is `cond` with the empty or negative text.

    w >= 0 is the fixed guidance of Eq. 5 (the paper's 9 is the usual scale 10), skip the train timesteps between t_{n+k} and t_n, c the
    Huber threshold. share_last as in `Schedule.sample_pair`. Timesteps and noise come from `generator`, on its device.
    """
    t, t_prev = schedule.sample_pair(len(x0), generator, skip, share_last)  # t_{n+k}, t_n: (B,) twice
    x_t = schedule.add_noise(x0, randn_like(x0, generator), t)  # (B, C, F, h, w)
    return consistency_pair_loss(student, target, teacher, schedule, x_t, t, t_prev, cond, null, w, c)


def consistency_pair_loss(student, target, teacher, schedule, x_t, t, t_prev, cond, null, w, c=1e-3):
    """Eq. 2 for given noised latents x_t (B, C, F, h, w) and timesteps t > t_prev (B,): a scalar, float32."""
    with torch.no_grad():
        x_prev = solver_step(teacher, schedule, x_t, t, t_prev, cond, null, w)
        goal = consistency(target, schedule, x_prev, t_prev, cond)
    # Eq. 2: d(f_theta(x_{t_{n+k}}, t_{n+k}), f_theta*(x_{t_n}, t_n))
    return pseudo_huber(consistency(student, schedule, x_t, t, cond), goal, c)


def solver_step(teacher, schedule, x_t, t, t_prev, cond, null, w):
    """Where the guided teacher goes from x_t at t: x_prev at t_prev, float32, by one DDIM step and one call on a batch of 2 B.

    For the grid's first point t_prev is 0, which is abar_0 and not the clean end: f is the identity there.
    """
    # Eq. 5 in x0 form
    x0 = guide(teacher, x_t, t, cond, null, w)
    # Eq. 4: x_prev = x_t + Psi(x_t, t, t_prev, c)
    return schedule.ddim_step(x_t, x0, t, t_prev)


def pseudo_huber(a, b, c):
    """mean(sqrt((a - b)^2 + c^2) - c): quadratic below c > 0, absolute above it; no weight by timestep (Sec. 4.1: "a Huber loss")."""
    return (((a - b) ** 2 + c**2).sqrt() - c).mean()


def randn_like(x, generator):
    """Standard normal noise of x's shape and device, float32, drawn on the generator's device."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device).to(x.device)
