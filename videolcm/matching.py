"""Distribution matching: a student whose videos are as likely as its teacher's, from whatever noise they come (DMD, arXiv 2311.18828; at every
step of a way, TDM, arXiv 2503.06674; beside a consistency loss, rCM, arXiv 2510.08431).

In: denoisers `denoise(x_t, t, cond) -> x0`: the frozen teacher, the student, and `fake`, which learns to denoise what the student makes. Out: a loss
whose gradient moves the student's results from where fake denoises them to, to where the teacher does; and fake's own.
It knows nothing about networks, data or the loss of Eq. 2.
"""

from itertools import pairwise

import torch
from torch import nn

from .schedule import CLEAN, EVERYWHERE, consistency, guide, jump

WAYS = (1, 2, 4)  # steps of the ways to videos that are matched
LAST = 20  # timesteps before pure noise, where there is nothing left to tell apart
FASTER = 2.0  # times the student's learning rate, for fake has to follow it (DMD2, arXiv 2405.14867, has it follow by more updates)
ALONE = 20  # updates over which fake learns by itself before the student hears of it in full


class Matched(nn.Module):
    """What is trained together: a student, and `fake`, which begins as the teacher and is for training alone."""

    def __init__(self, student, fake):
        super().__init__()
        self.student, self.fake = student, fake


def draw_matching(schedule, shape, two_time=True, generator=None):
    """(way, drawn): what `matching_losses` wants for a batch of that shape (B, C, F, h, w), on the CPU.

    `way` is the timesteps (T - 1, ..., t, s) from noise to where one step, from t to s, will be matched: of 1, 2 or 4 steps as samplers take
    them, all or the first of them, each as likely. After the last one s is CLEAN, and always for a student that is no two-time map: its
    steps end there, and are followed by fresh noise. `drawn` is the noise a way begins with, then twice timesteps int64 (B,) and noise to look at
    what was made, beyond a quarter of what is between s and pure noise, then the fresh noise of each further step.
    """
    steps = WAYS[draw(len(WAYS), generator)]
    gone, timesteps = draw(steps, generator) + 1, (*schedule.lcm_timesteps(steps).tolist(), CLEAN)
    way = timesteps[: gone + 1] if two_time else (*timesteps[:gone], CLEAN)
    s, end = max(way[-1], 0), schedule.train_steps - 1
    times = [torch.randint(s + (end - s) // 4, end - LAST, shape[:1], generator=generator) for _ in range(2)]
    eps, *noises = (torch.randn(shape, generator=generator) for _ in range(3))
    fresh = [torch.randn(shape, generator=generator) for _ in range(0 if two_time else gone - 1)]
    return way, (eps, times[0], noises[0], times[1], noises[1], *fresh)


def draw(below, generator):
    return int(torch.randint(below, (), generator=generator))


def matching_losses(student, fake, score, teacher, schedule, way, drawn, cond, null, w, guided=EVERYWHERE):
    """(loss of the student, loss of fake), scalars, float32, for what `draw_matching` drew; `score` is fake's average.

    The student's gradient by its x0 is (score's x0 - the guided teacher's) at its result, noised, over how far the teacher's is from the
    student's own in the mean of each sample (DMD, Eq. 7 and 8): zero where both denoise what it made alike. fake learns to denoise it.
    """
    (*before, t, s), (eps, at, noise, at_too, noise_too, *fresh) = way, drawn
    x_t = eps
    with torch.no_grad():
        for step, (here, there) in enumerate(pairwise((*before, t))):
            if fresh:
                x_t = schedule.add_noise(consistency(student, schedule, x_t, here, cond), fresh[step], there)
            else:
                x_t = jump(student, schedule, x_t, filled(here, eps), filled(there, eps), cond)
    x0 = consistency(student, schedule, x_t, t, cond.towards(filled(max(s, 0), eps)))
    made = schedule.ddim_step(x_t, x0.detach(), t, s)  # x_s
    with torch.no_grad():
        noised = schedule.add_noise_from(made, noise, s, at)
        real = guide(teacher, noised, at, cond, null, w, guided)
        pull = (score(noised, at, cond).float() - real) / (x0 - real).abs().mean((1, 2, 3, 4), keepdim=True)
    noised = schedule.add_noise_from(made, noise_too, s, at_too)
    goal, weight = schedule.x0_of_renoised(noised, made, s, at_too)
    learned = (weight * (fake(noised, at_too, cond).float() - goal) ** 2).mean()
    return 0.5 * ((x0 - (x0 - pull).detach()) ** 2).mean(), learned


def filled(t, like):
    return torch.full((len(like),), t, dtype=torch.int64, device=like.device)
