"""Sampling: noise -> video latents, in 1 to 8 LCM steps of a student or many DDIM or DDPM steps of a teacher.

In: a callable `denoise(x_t, t, cond) -> x0` with t (B,) int64, a Schedule, a Noise and the conditions. Out: a generator of Step, one per
call of the denoiser; the last .x0 is the video, and closing the generator cancels.
It knows nothing about models, text, pixels or progress bars. Gradients are off inside a step and untouched between steps, so that
another thread may take the next one.
"""

import hashlib
import math
from dataclasses import dataclass
from numbers import Integral

import torch

from .errors import AppError
from .schedule import EVERYWHERE, consistency, guide, per_sample

GAMMA = 0.3  # of sample_tcd, as TCD's authors and diffusers have it
START = 999  # the timestep that every sampler begins at, whatever the number of steps


@dataclass(frozen=True)
class Step:
    """What is known after one call of the denoiser."""

    i: int  # 1..n
    n: int  # steps in all
    t: int  # the train timestep that was denoised, 999..0
    x0: torch.Tensor  # the video as it looks now, (B, C, F, h, w) float32


class Noise:
    """Standard normal noise that depends on a sample's seed and on the timestep, and on nothing else.

    Two runs with the same seed share the noise of every timestep they share, the first one always, whatever their step counts, batch size,
    place in the batch or device: it is drawn on the CPU in float32 and then moved. shape is one sample's (C, F, h, w); seeds is one int per
    sample, or an int for a batch of one.
    """

    def __init__(self, shape, seeds, device="cpu"):
        self.shape, self.device = tuple(shape), device
        self.seeds = (seeds,) if isinstance(seeds, Integral) else tuple(seeds)

    def initial(self):
        """x_T, (B, C, F, h, w): the noise of the first timestep."""
        return self.at(START)

    def at(self, t):
        """The noise of train timestep t (an int), (B, C, F, h, w)."""
        return torch.stack([draw(self.shape, seed, t) for seed in self.seeds]).to(self.device)


def draw(shape, seed, t):
    """One sample's noise: float32 `shape` on the CPU from a generator that nothing else uses."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(mix(seed, t)), dtype=torch.float32)


def mix(seed, t):
    """(seed, t) -> a 64-bit generator seed: the first 8 bytes of SHA-256 of the text "seed:t".

    Neighbouring seeds and timesteps become unrelated; the same pair gives the same number in every process and release. torch's CPU
    generator uses the low 32 bits, which are as good as any others.
    """
    return int.from_bytes(hashlib.sha256(f"{int(seed)}:{int(t)}".encode()).digest()[:8], "little")


def sample_lcm(denoise, schedule, noise, cond, steps):
    """Multistep consistency sampling: yields `steps` (1..8) of Step. AppError E_STEPS at the first step, E_NONFINITE at any.

    The same as diffusers' LCMScheduler with v-prediction and zero terminal SNR, as VideoLCM was released.
    """

    def renoise(x_t, x0, t, t_next):
        return schedule.add_noise(x0, noise.at(t_next), t_next)

    yield from consistency_steps(denoise, schedule, noise, cond, steps, renoise)


def consistency_steps(denoise, schedule, noise, cond, steps, renoise, goal=None):
    """The steps of a consistency model, between which `renoise(x_t, x0, t, t_next)` makes the next x_t. `goal(t_next)` is the timestep s that
    a step goes down to before, 0 without it: a student of a two-time map wants to know it, and reads it from the conditions."""
    timesteps = schedule.lcm_timesteps(steps).tolist()  # (steps,) descending
    x_t = noise.initial()  # (B, C, F, h, w)
    for i, (t, t_next) in enumerate(zip(timesteps, [*timesteps[1:], 0], strict=True)):
        # Eq. 1: x0 = f(x_t, t)
        x0 = checked(i + 1, consistency, denoise, schedule, x_t, t, cond.towards(goal(t_next)) if cond and goal else cond)
        yield Step(i + 1, steps, t, x0)
        if i + 1 < steps:
            x_t = renoise(x_t, x0, t, t_next)


def sample_ddim(denoise, schedule, noise, cond, steps):
    """DDIM with eta 0: yields `steps` (1..1000; 50 in the paper) of Step. AppError E_STEPS at the first step, E_NONFINITE at any.

    The last step would go to alpha 1, so its x0 is the result. Guidance is in `denoise`: see `guided`.
    """
    # Eq. 4 on the sampler's own grid
    yield from many_steps(denoise, schedule, noise, cond, steps, schedule.ddim_step)


def sample_ddpm(denoise, schedule, noise, cond, steps):
    """DDPM's ancestral sampling, DDIM with eta 1, on the timesteps of `sample_ddim`: yields and raises as that does.

    Fresh noise at every step takes the place of what was predicted, and of most mistakes in it: where a network has not learned all of its world,
    outlines are truer. The clip is another one than other samplers make of the same seed.
    """

    def step(x_t, x0, t, t_next):
        return schedule.ddpm_step(x_t, x0, t, t_next, noise.at(t_next))

    yield from many_steps(denoise, schedule, noise, cond, steps, step)


def many_steps(denoise, schedule, noise, cond, steps, step):
    """The steps of a diffusion model, between which `step(x_t, x0, t, t_next)` makes the next x_t."""
    timesteps = schedule.ddim_timesteps(steps).tolist()  # (steps,) descending
    x_t = noise.initial()  # (B, C, F, h, w)
    for i, t in enumerate(timesteps):
        x0 = checked(i + 1, denoise, x_t, per_sample(t, x_t), cond)
        yield Step(i + 1, steps, t, x0)
        if i + 1 < steps:
            x_t = step(x_t, x0, t, timesteps[i + 1])


def sample_tcd(denoise, schedule, noise, cond, steps, gamma=GAMMA):
    """Strategic stochastic sampling (TCD, arXiv 2402.19159): yields `steps` (1..8) of Step on the timesteps of sample_lcm.

    Each step goes down to s = floor((1 - gamma) t) with the noise that f's own answer predicts, and only from s up to the next t with
    fresh noise. gamma 0 is deterministic, gamma 1 almost sample_lcm; one step is sample_lcm's. AppError as sample_lcm.

    The same as diffusers' TCDScheduler, but that the end is x0 itself instead of x_0, which still has sigma = .03. A student of Eq. 1 keeps
    the spread of its data at gamma 1; less randomness gives more contrast. One that learned a two-time map keeps it at gamma 0.
    """

    def goal(t_next):
        return math.floor((1 - gamma) * t_next)

    def renoise(x_t, x0, t, t_next):
        s = goal(t_next)
        x_s = schedule.ddim_step(x_t, x0, t, s)  # at t = 999, where alpha is 0, the predicted noise is x_t itself
        return schedule.add_noise_from(x_s, noise.at(t_next), s, t_next)

    yield from consistency_steps(denoise, schedule, noise, cond, steps, renoise, goal)


SAMPLERS = {"lcm": sample_lcm, "tcd": sample_tcd, "ddim": sample_ddim, "ddpm": sample_ddpm}


def guided(denoise, empty, w, between=EVERYWHERE):
    """A denoiser with the guidance of Eq. 5 inside: one call on a batch twice as large, none of it if w = 0.

    `empty` (1, L, D) is the context that stands for no text (or a negative one); maps stay in both halves. w and `between` as in `schedule.guide`.
    """
    return lambda x_t, t, cond: guide(denoise, x_t, t, cond, cond.null(empty), w, between)


@torch.no_grad()
def checked(step, function, *arguments):
    """`function(*arguments)` in float32 and without gradients; AppError E_NONFINITE if a value is not finite at this step."""
    x0 = function(*arguments).float()
    if not x0.isfinite().all():
        raise AppError("E_NONFINITE", given=step)
    return x0
