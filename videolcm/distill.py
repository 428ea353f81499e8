"""Consistency distillation: a teacher that needs many steps -> a student that needs one to eight (Sec. 3.2).

In: three denoisers `denoise(x_t, t, cond) -> x0` (the frozen teacher, the student theta, its average theta*), clean latents and their
conditions. Out: the loss of Eq. 2, whose gradient reaches the student alone, and the averaged weights.
It knows nothing about what the networks are, nor about sampling.
"""

import torch

from videolcm.schedule import consistency, guide


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


@torch.no_grad()
def update_ema(target, student, rate):
    """theta* <- rate theta* + (1 - rate) theta, in place, over parameters and buffers of two modules of one class; rate in 0..1.

    Buffers that count (integers) are copied. Raises ValueError if the modules differ in the number of tensors.
    """
    for average, new in zip(tensors(target), tensors(student), strict=True):
        if average.is_floating_point():
            average.lerp_(new.to(average), 1 - rate)
        else:
            average.copy_(new)


def tensors(module):
    """Every parameter and buffer of a module, in its own order."""
    return [*module.parameters(), *module.buffers()]


def randn_like(x, generator):
    """Standard normal noise of x's shape and device, float32, drawn on the generator's device."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device).to(x.device)
