"""The noise schedule, and the formulas that every run shares: f (Eq. 1), the two-time map and guidance (Eq. 5).

In: latents or predictions of them, and integer train timesteps. Out: noised latents, a prediction in another form, one DDIM step, the
timesteps of a sampler or of a training pair. All results are float32 on the device of the latents.
It knows nothing about networks (it calls a denoiser `denoise(x_t, t, cond) -> x0`), about what a condition holds, or about loops.
"""

from numbers import Integral

import torch

from .errors import AppError

SOLVER_STEPS = 50  # points of the solver's grid 19, 39 ... 999 that LCM steps are chosen from (VGen and diffusers agree)
LCM_LIMIT = 8  # more steps than this gain nothing over the grid: use DDIM
POWERS = {"scaled_linear": 2, "linear": 1}  # diffusers' names for how betas grow
EVERYWHERE = (0, 1000)  # timesteps low <= t < high: all of them
CLEAN = -1  # the timestep after the last one: alpha 1, sigma 0


class Schedule:
    """alpha_t = sqrt(abar_t) and sigma_t = sqrt(1 - abar_t) for integer train timesteps t = 0 .. train_steps - 1; 0 is nearly clean.

    Betas are scaled-linear, or linear as AnimateDiff has them. With `zero_terminal_snr` the last timestep is pure noise (alpha 0; Lin et al.,
    arXiv 2305.08891, Algorithm 1), as VideoLCM and Toybox have it; Stable Diffusion 1.5 and ModelScope have the plain schedule. Wherever a method
    takes `t`, it is an int for the whole batch or a (B,) integer tensor; other timesteps raise AppError E_NUMBER. `alphas_cumprod` (train_steps,)
    is float64.
    """

    def __init__(
        self,
        train_steps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        zero_terminal_snr=True,
        sigma_data=0.5,
        timestep_scaling=10.0,
        beta_schedule="scaled_linear",
    ):
        if beta_schedule not in POWERS:
            raise AppError("E_NUMBER", name="The schedule of betas", range=" or ".join(POWERS), given=beta_schedule)
        if not 0 < beta_start <= beta_end < 1:
            raise AppError("E_NUMBER", name="The pair of betas", range="ascending between 0 and 1", given=(beta_start, beta_end))
        self.train_steps, self.zero_terminal_snr = train_steps, zero_terminal_snr
        self.sigma_data, self.timestep_scaling = sigma_data, timestep_scaling
        self.alphas_cumprod = alphas_cumprod(train_steps, beta_start, beta_end, zero_terminal_snr, POWERS[beta_schedule])  # (T,)
        ends_clean = torch.cat([self.alphas_cumprod, self.alphas_cumprod.new_ones(1)])  # the last entry is found at t = CLEAN = -1
        self._table = torch.stack([ends_clean.sqrt(), (1 - ends_clean).sqrt()]).float()  # (2, T + 1)

    def alpha_sigma(self, t, like):
        """alpha_t and sigma_t, float32, shaped to broadcast over `like` (B, ...) and on its device. alpha^2 + sigma^2 = 1."""
        return self._look_up(t, like, first=0)

    def add_noise(self, x0, eps, t):
        """x0 and standard normal eps, both (B, ...) -> x_t, the forward process."""
        alpha, sigma = self.alpha_sigma(t, x0)
        # x_t = alpha_t x0 + sigma_t eps
        return alpha * x0 + sigma * eps

    def add_noise_from(self, x_s, eps, s, t):
        """x_s at train timestep s or CLEAN (B, ...) -> x_t at t >= s, the forward process from there; t = s changes nothing."""
        alpha_s, _ = self._look_up(s, x_s, first=CLEAN)
        alpha_t, _ = self.alpha_sigma(t, x_s)
        ratio = alpha_t / alpha_s
        # x_t = (alpha_t / alpha_s) x_s + sqrt(1 - (alpha_t / alpha_s)^2) eps
        return ratio * x_s + (1 - ratio**2).sqrt() * eps

    def x0_of_renoised(self, x_t, x_s, s, t):
        """What a denoiser learns of x_t that `add_noise_from` made of x_s at s or CLEAN, and the weight of its squared error, both (B, ...).

        Its mean given x_t is E[x0 | x_t], though x0 itself is not known: what x_s tells of the score of x_t, in x0 form (Tweedie). From CLEAN
        it is x_s. The weight takes back what makes it vary more the nearer t is to s, and counts signal as x_t holds it.
        """
        alpha_s, _ = self._look_up(s, x_s, first=CLEAN)
        alpha, sigma = self.alpha_sigma(t, x_t)
        ratio = alpha / alpha_s
        variance = 1 - ratio**2  # of x_t given x_s
        # alpha_t x0 = x_t + sigma_t^2 grad log p(x_t | x_s)
        x0 = (x_t - sigma**2 * (x_t - ratio * x_s) / variance) / alpha
        return x0, (alpha * variance / sigma**2) ** 2

    def x0_from_v(self, x_t, v, t):
        """The x0 that a v prediction means (Salimans & Ho, arXiv 2202.00512); exact at zero SNR, where x0 = -v."""
        alpha, sigma = self.alpha_sigma(t, x_t)
        # x0 = alpha_t x_t - sigma_t v
        return alpha * x_t - sigma * v

    def eps_from_v(self, x_t, v, t):
        """The eps that a v prediction means."""
        alpha, sigma = self.alpha_sigma(t, x_t)
        # eps = alpha_t v + sigma_t x_t
        return alpha * v + sigma * x_t

    def v_from_x0_eps(self, x0, eps, t):
        """What a v-predicting network is trained to say."""
        alpha, sigma = self.alpha_sigma(t, x0)
        # v = alpha_t eps - sigma_t x0
        return alpha * eps - sigma * x0

    def x0_from_eps(self, x_t, eps, t):
        """The x0 that an eps prediction means. Impossible at zero SNR, where x_t = eps says nothing about x0: raises AppError E_NUMBER."""
        alpha, sigma = self.alpha_sigma(t, x_t)
        if (alpha == 0).any():
            raise AppError("E_NUMBER", name="The timestep of an eps prediction", range="one that has signal", given=shown(t))
        # x0 = (x_t - sigma_t eps) / alpha_t
        return (x_t - sigma * eps) / alpha

    def eps_from_x0(self, x_t, x0, t):
        """The eps that an x0 prediction means; sigma_t > 0 at every train timestep."""
        alpha, sigma = self.alpha_sigma(t, x_t)
        # eps = (x_t - alpha_t x0) / sigma_t
        return (x_t - alpha * x0) / sigma

    def ddim_step(self, x_t, x0, t, t_prev=None):
        """From x_t at t to the less noisy t_prev, given the prediction x0; eta = 0 (Song et al., arXiv 2010.02502, Eq. 12).

        t_prev None or -1 is the end of sampling: alpha 1 (diffusers' set_alpha_to_one), which returns x0. t_prev 0 is not the end: it
        still has sigma = .03. Noise that is predicted at t is kept, so the step is affine in x0, which Eq. 5 in x0 form rests on.
        """
        alpha_prev, sigma_prev = self._look_up(CLEAN if t_prev is None else t_prev, x_t, first=CLEAN)
        # x_prev = alpha_prev x0 + sigma_prev eps
        return alpha_prev * x0 + sigma_prev * self.eps_from_x0(x_t, x0, t)

    def ddpm_step(self, x_t, x0, t, t_prev, noise):
        """From x_t at t to the less noisy t_prev >= 0, given the prediction x0 and fresh noise: a draw from q(x_prev | x_t, x0) (Ho et al., arXiv
        2006.11239, Eq. 6 and 7), which is DDIM's step with eta = 1."""
        (alpha, sigma), (alpha_prev, sigma_prev) = self.alpha_sigma(t, x_t), self.alpha_sigma(t_prev, x_t)
        kept = alpha / alpha_prev
        added = 1 - kept**2
        # mean = (kept sigma_prev^2 x_t + added alpha_prev x0) / sigma_t^2, variance = added sigma_prev^2 / sigma_t^2
        mean = (kept * sigma_prev**2 * x_t + added * alpha_prev * x0) / sigma**2
        return mean + added.sqrt() * sigma_prev / sigma * noise

    def x0_of_step(self, x_t, x_s, t, s):
        """The x0 by which `ddim_step` goes from x_t at t to x_s at s < t, both timesteps, not the end: what a step means, whatever its length."""
        (alpha, sigma), (alpha_s, sigma_s) = self.alpha_sigma(t, x_t), self.alpha_sigma(s, x_t)
        # x_s = alpha_s x0 + sigma_s (x_t - alpha_t x0) / sigma_t
        kept = sigma_s / sigma
        return (x_s - kept * x_t) / (alpha_s - kept * alpha)

    def ddim_timesteps(self, steps):
        """The teacher's timesteps, int64 (steps,), descending from the last one; steps in 1..train_steps or AppError E_STEPS.

        diffusers' "trailing" spacing: at zero SNR sampling must begin at the timestep that is pure noise.
        """
        steps = whole(steps, self.train_steps)
        stride = self.train_steps - (self.train_steps - self.train_steps / steps)  # rounded as in numpy's arange: it decides ties
        return torch.tensor([round(self.train_steps - i * stride) - 1 for i in range(steps)])  # (steps,)

    def lcm_timesteps(self, steps):
        """The student's timesteps, int64 (steps,), descending from 999; steps in 1..8 or AppError E_STEPS.

        Entry floor(i * 50 / steps) of the solver's grid, as in diffusers' LCMScheduler since 0.24.
        """
        steps = whole(steps, LCM_LIMIT)
        grid = self.ddim_timesteps(SOLVER_STEPS)  # (50,)
        return grid[torch.arange(steps) * SOLVER_STEPS // steps]  # (steps,)

    def c_skip(self, t):
        """How much of f is x_t: 1 at t = 0, below 1e-5 from t = 19 on. float32, shaped as t."""
        # c_skip = s^2 / ((10 t)^2 + s^2)
        return self.sigma_data**2 / (self._scaled(t) ** 2 + self.sigma_data**2)

    def c_out(self, t):
        """How much of f is the network's x0: 0 at t = 0, practically 1 from t = 19 on. float32, shaped as t."""
        # c_out = 10 t / sqrt((10 t)^2 + s^2)
        return self._scaled(t) / (self._scaled(t) ** 2 + self.sigma_data**2).sqrt()

    def sample_pair(self, n, generator=None, skip=20, share_last=0.0):
        """Draw t_{n+k} and t_n of Eq. 4 for n samples: int64 (n,) twice, on the generator's device.

        t is uniform on the solver's grid 999, 999 - skip ... > 0 and t_prev = max(t - skip, 0): 50 points for skip 20, 10 for 100.
        `share_last` in 0..1 is the share of samples put on the last timestep instead, since at zero SNR the first step decides what is
        seen; a fraction of a sample is drawn. skip is in 1..train_steps - 1. AppError E_NUMBER otherwise.
        """
        if not isinstance(skip, Integral) or not 0 < skip < self.train_steps:
            raise AppError("E_NUMBER", name="skip", range=f"a whole number from 1 to {self.train_steps - 1}", given=skip)
        if not 0 <= share_last <= 1:
            raise AppError("E_NUMBER", name="share_last", range="a number from 0 to 1", given=share_last)
        device = "cpu" if generator is None else generator.device
        grid = torch.arange(self.train_steps - 1, 0, -skip, device=device)  # (grid,)
        t = grid[torch.randint(len(grid), (n,), generator=generator, device=device)]  # (n,)
        forced = int(n * share_last + torch.rand((), generator=generator, device=device))
        t[:forced] = self.train_steps - 1
        return t, (t - skip).clamp(min=0)

    def sample_goal(self, t, skip, generator=None):
        """Draw where a student that may stop anywhere goes from each t of `sample_pair`: s <= t_prev, int64 (n,), on the generator's device.

        As far as a step goes of one, two, four or eight that lead from noise to the end, each as likely, rounded up to whole skips; 0 where that
        would be below 0.
        """
        device = "cpu" if generator is None else generator.device
        steps = 2 ** torch.randint(4, (len(t),), generator=generator, device=device)  # (n,)
        length = -(-self.train_steps // (steps * skip)) * skip
        return (t - length).clamp(min=0)

    def _look_up(self, t, like, first):
        index = torch.as_tensor(t).cpu()
        if index.is_floating_point() or ((index < first) | (index >= self.train_steps)).any():
            raise AppError("E_NUMBER", name="The timestep", range=f"a whole number from {first} to {self.train_steps - 1}", given=shown(t))
        alpha, sigma = self._table[:, index].to(like.device)  # (B,) or ()
        return as_column(alpha, like), as_column(sigma, like)  # (B, 1, 1, 1, 1) or (1, 1, 1, 1, 1)

    def _scaled(self, t):
        return torch.as_tensor(t).float() * self.timestep_scaling


def alphas_cumprod(train_steps, beta_start, beta_end, zero_terminal_snr, power=2):
    """abar, float64 (train_steps,), of betas whose root of that power is linear in t."""
    betas = torch.linspace(beta_start ** (1 / power), beta_end ** (1 / power), train_steps, dtype=torch.float64) ** power
    root = (1 - betas).cumprod(0).sqrt()  # sqrt(abar), (T,)
    if zero_terminal_snr:
        # sqrt(abar_t) <- (sqrt(abar_t) - sqrt(abar_T)) sqrt(abar_0) / (sqrt(abar_0) - sqrt(abar_T))
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


def consistency(denoise, schedule, x_t, t, cond):
    """f of Eq. 1: x_t (B, ...) at t -> the start of its trajectory, float32, same shape. At t = 0 it is x_t itself."""
    t = per_sample(t, x_t)  # (B,)
    x0 = denoise(x_t, t, cond).float()
    c_skip, c_out = as_column(schedule.c_skip(t), x_t), as_column(schedule.c_out(t), x_t)  # (B, 1, 1, 1, 1)
    # Eq. 1: f(x_t, t) = c_skip(t) x_t + c_out(t) x0
    return c_skip * x_t.float() + c_out * x0


def jump(denoise, schedule, x_t, t, s, cond):
    """The two-time map: from x_t at t to where its trajectory is at s <= t (CTM, arXiv 2310.02279, Eq. 8, in TCD's form, arXiv 2402.19159, Eq. 13).

    One DDIM step, whose x0 is f's answer by a network that knows s: at s = t it is x_t itself, whatever the network says. (B, C, F, h, w), float32.
    """
    return schedule.ddim_step(x_t, consistency(denoise, schedule, x_t, t, cond.towards(s)), t, s)


def guide(denoise, x_t, t, cond, null, w, between=EVERYWHERE):
    """Eq. 5 in x0 form: x0 (B, ...), float32, by one call on a batch of 2 B; w = 0 calls on `cond` alone, and so do samples whose t is not
    low <= t < high of `between`, which then are no part of the second half (guidance in a limited interval of noise: Kynkäänniemi et al., arXiv
    2404.07724).

    `null` is `cond` with another text. w, a number or (B,), is the paper's: the usual guidance scale is 1 + w. A DDIM step is affine in x0
    for fixed x_t, so guiding x0 is guiding the step, eps or v, and needs no division by alpha.
    """
    t = per_sample(t, x_t)  # (B,)
    if torch.is_tensor(w):
        w = as_column(w, x_t)  # (B, 1, 1, 1, 1)
    elif w == 0:
        return denoise(x_t, t, cond).float()
    some = slice(None) if between == EVERYWHERE else inside(t, between).nonzero()[:, 0]  # of the batch: (n,) that are guided
    told = cond.cat(null.map(lambda value: value[some]))
    x0, x0_null = denoise(torch.cat([x_t, x_t[some]]), torch.cat([t, t[some]]), told).float().tensor_split([len(x_t)])  # (B, ...), (n, ...)
    w = w[some] if torch.is_tensor(w) else w
    # Eq. 5: x0 = x0_c + w (x0_c - x0_null)
    x0_guided = x0[some] + w * (x0[some] - x0_null)
    return x0_guided if between == EVERYWHERE else x0.index_copy(0, some, x0_guided)


def inside(t, between):
    """Whether low <= t < high, for each of some timesteps."""
    low, high = between
    return (t >= low) & (t < high)


def per_sample(t, like):
    """An int or (B,) t as int64 (B,) on the device of `like` (B, ...)."""
    return torch.as_tensor(t, dtype=torch.int64, device=like.device).expand(len(like))


def as_column(values, like):
    """(B,) or () -> (B, 1, ...) or (1, 1, ...) with as many dimensions as `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def whole(steps, limit):
    """`steps` if it is a whole number in 1..limit (not a bool, not a string), else AppError E_STEPS."""
    if isinstance(steps, bool) or not isinstance(steps, Integral) or not 1 <= steps <= limit:
        raise AppError("E_STEPS", given=steps, limit=limit)
    return int(steps)


def shown(t):
    """A timestep as an error message shows it."""
    return t.tolist() if torch.is_tensor(t) else t
