"""The samplers against diffusers' schedulers and recorded trajectories of the official loop, on Gaussian data with a known answer."""

import inspect
import itertools
import json
import math
import threading
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler, TCDScheduler
from diffusers.schedulers import scheduling_ddpm, scheduling_lcm, scheduling_tcd
from safetensors.torch import load_file

from videolcm.errors import AppError
from videolcm.models.base import Conditions
from videolcm.sampling import GAMMA, SAMPLERS, START, Noise, Step, guided, sample_ddim, sample_ddpm, sample_lcm, sample_tcd
from videolcm.schedule import Schedule, consistency

DATA = Path(__file__).parent / "data"
V_ZERO_SNR = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=True
)
SHAPE = (4, 2, 4, 6)  # C, F, h, w
BAD_STEPS = [0, 9, -1, 2.5, 4.0, math.nan, math.inf, True, False, "4", None]
SCHEDULE = Schedule()


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def condition(batch):
    return Conditions(torch.randn(batch, 5, 6, generator=torch.Generator().manual_seed(8)))


def network(x_t, t, cond):
    """A v-prediction that depends on everything it is given, differently for each sample."""
    bias = cond.context.mean((1, 2)) + torch.sin(t / 50)  # (B,)
    return torch.tanh(0.8 * x_t + 0.3 * x_t.roll(1, -1) + bias.reshape(-1, 1, 1, 1, 1))


def denoise(x_t, t, cond):
    return SCHEDULE.x0_from_v(x_t, network(x_t, t, cond), t)


class Recorded:
    """A noise whose values are given: the first one, then those of the re-noising in their order."""

    def __init__(self, first, later):
        self.first, self.later = first, iter(later)

    def initial(self):
        return self.first

    def at(self, t):
        return next(self.later)


@pytest.mark.parametrize("steps", range(1, 9))
def test_every_lcm_step_is_that_of_diffusers(monkeypatch, steps):
    noise, cond = Noise(SHAPE, [1, 2]), condition(2)
    reference = LCMScheduler(**V_ZERO_SNR)
    reference.set_timesteps(steps)
    timesteps = reference.timesteps.tolist()
    later = iter(timesteps[1:])
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *arguments, **options: noise.at(next(later)))
    x_t, ours = noise.at(timesteps[0]), list(sample_lcm(denoise, SCHEDULE, noise, cond, steps))
    assert [(step.i, step.n, step.t) for step in ours] == [(i + 1, steps, t) for i, t in enumerate(timesteps)]
    for step in ours:
        x_t, denoised = reference.step(network(x_t, torch.full((2,), step.t), cond), step.t, x_t, return_dict=False)
        close(step.x0, denoised)
    close(ours[-1].x0, x_t)
    assert next(later, None) is None


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lcm_is_the_official_loop(steps):
    recorded = load_file(DATA / "sampler_lcm.safetensors")
    assert json.loads((DATA / "sampler_lcm.json").read_text())["denoiser"] == "v = 0.1*x"
    seen = []

    def fake(x_t, t, cond):
        seen.append(x_t)
        return SCHEDULE.x0_from_v(x_t, 0.1 * x_t, t)

    noise = Recorded(recorded[f"{steps}/noise"], recorded[f"{steps}/step_noise"])
    ours = list(sample_lcm(fake, SCHEDULE, noise, None, steps))
    assert [step.t for step in ours] == recorded[f"{steps}/timesteps"].tolist()
    close(torch.stack([step.x0 for step in ours]), recorded[f"{steps}/denoised"])
    close(torch.stack([*seen, ours[-1].x0]), recorded[f"{steps}/latents"])


@pytest.mark.parametrize("gamma", [0, 0.3, 0.55, 1])
@pytest.mark.parametrize("steps", range(1, 9))
def test_every_tcd_step_is_that_of_diffusers(monkeypatch, steps, gamma):
    noise, cond, seen = Noise(SHAPE, [1, 2]), condition(2), []
    reference = TCDScheduler(**V_ZERO_SNR)
    reference.set_timesteps(steps)
    timesteps = reference.timesteps.tolist()
    later = iter(timesteps[1:])
    monkeypatch.setattr(scheduling_tcd, "randn_tensor", lambda *arguments, **options: noise.at(next(later)))

    def spy(x_t, t, cond):
        seen.append(x_t)
        return denoise(x_t, t, cond)

    x_t, ours = noise.at(timesteps[0]), list(sample_tcd(spy, SCHEDULE, noise, cond, steps, gamma))
    assert [(step.i, step.n, step.t) for step in ours] == [(i + 1, steps, t) for i, t in enumerate(timesteps)]
    for ours_t, step in zip(seen, ours, strict=True):
        close(ours_t, x_t)
        x_t, x_s = reference.step(network(x_t, torch.full((2,), step.t), cond), step.t, x_t, eta=gamma, return_dict=False)
    close(SCHEDULE.ddim_step(ours_t, ours[-1].x0, step.t, 0), x_s)  # where diffusers ends: not at alpha 1 but at t = 0


def test_tcd_draws_noise_unless_gamma_is_zero():
    first, best = Noise(SHAPE, [1, 2]).initial(), gaussian_denoiser(1.5, 0.5)
    spread = {}
    for gamma in (0, 0.3, 1):
        ends = [list(sample_tcd(best, SCHEDULE, Recorded(first, [draw] * 3), None, 4, gamma))[-1].x0 for draw in (first.flip(-2), first.flip(-1))]
        spread[gamma] = (ends[0] - ends[1]).abs().mean().item()
    assert spread[0] == 0 and min(spread[0.3], spread[1]) > 0.1


def test_tcd_has_a_gamma_of_its_own():
    cond, noise = condition(2), Noise(SHAPE, [1, 2])
    own, given = (list(sample_tcd(denoise, SCHEDULE, noise, cond, 4, *gamma))[-1].x0 for gamma in ([], [GAMMA]))
    assert torch.equal(own, given)


def test_one_step_of_tcd_is_one_of_lcm():
    cond, noise = condition(2), Noise(SHAPE, [1, 2])
    assert torch.equal(*(next(sampler(denoise, SCHEDULE, noise, cond, 1)).x0 for sampler in (sample_tcd, sample_lcm)))


def test_tcd_without_randomness_is_ddim_on_the_timesteps_of_lcm():
    found = moments(sample_tcd(gaussian_denoiser(1.5, 0.5), SCHEDULE, Noise((1, 1, 400, 400), [3]), None, 8, 0))
    assert found[0] == pytest.approx(1.5, abs=0.02)
    assert found[1] == pytest.approx(ddim_deviation(0.5, SCHEDULE.lcm_timesteps(8).tolist()), rel=0.006)


def test_tcd_with_the_perfect_student_finds_the_gaussian_at_full_randomness_and_spreads_it_below():
    deviations = []
    for gamma in (1, 0.3, 0):
        mean, deviation = moments(sample_tcd(gaussian_flow(1.5, 0.5), SCHEDULE, Noise((1, 1, 400, 400), [3]), None, 8, gamma))
        assert mean == pytest.approx(1.5, abs=0.01)
        deviations.append(deviation)
    assert deviations[0] == pytest.approx(0.5, rel=0.03) and deviations[0] < deviations[1] < deviations[2]


@pytest.mark.parametrize("steps", [1, 5, 25, 50])  # whole strides: elsewhere diffusers does not step to its own next timestep
def test_every_ddim_step_is_that_of_diffusers(steps):
    noise, cond = Noise(SHAPE, [1, 2]), condition(2)
    reference = DDIMScheduler(timestep_spacing="trailing", **V_ZERO_SNR)
    reference.set_timesteps(steps)
    x_t, ours = noise.initial(), list(sample_ddim(denoise, SCHEDULE, noise, cond, steps))
    assert [step.t for step in ours] == reference.timesteps.tolist() and ours[0].t == 999
    for step in ours:
        x_t, x0 = reference.step(network(x_t, torch.full((2,), step.t), cond), step.t, x_t, return_dict=False)
        close(step.x0, x0)
    close(ours[-1].x0, x_t)


@pytest.mark.parametrize("steps", [1, 5, 25, 50])
def test_every_ddpm_step_is_that_of_diffusers(monkeypatch, steps):
    noise, cond = Noise(SHAPE, [1, 2]), condition(2)
    reference = DDPMScheduler(timestep_spacing="trailing", **V_ZERO_SNR)
    reference.set_timesteps(steps)
    x_t, ours = noise.initial(), list(sample_ddpm(denoise, SCHEDULE, noise, cond, steps))
    assert [step.t for step in ours] == reference.timesteps.tolist()
    for step, t_next in zip(ours, [*(step.t for step in ours[1:]), 0], strict=True):
        fresh = noise.at(t_next)
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *given, fresh=fresh, **more: fresh)
        x_t, x0 = reference.step(network(x_t, torch.full((2,), step.t), cond), step.t, x_t, return_dict=False)
        close(step.x0, x0)
    close(ours[-1].x0, x_t)


def ddpm_deviation(deviation, timesteps):
    """The standard deviation that DDPM reaches on N(., deviation^2), whose every step draws from q(x_prev | x_t, x0) with the exact denoiser's x0."""
    abar, variance = SCHEDULE.alphas_cumprod.tolist(), 1.0
    for t, t_prev in itertools.pairwise([*timesteps, None]):
        slope = abar[t] ** 0.5 * deviation**2 / (abar[t] * deviation**2 + 1 - abar[t])  # d E[x0 | x_t] / d x_t
        if t_prev is None:
            return variance**0.5 * slope
        kept, left = abar[t] / abar[t_prev], (1 - abar[t_prev]) / (1 - abar[t])
        of_x_t = kept**0.5 * left + (1 - kept) / (1 - abar[t]) * abar[t_prev] ** 0.5 * slope
        variance = of_x_t**2 * variance + (1 - kept) * left


@pytest.mark.parametrize("mean, deviation", [(1.5, 0.5), (-0.7, 1.3), (0.0, 0.9)])
def test_ddpm_with_the_exact_denoiser_finds_the_gaussian_whatever_it_begins_with(mean, deviation):
    """A mistake is forgotten: all but nothing is left of a beginning that is far off, which by DDIM decides everything."""
    exact, noise = gaussian_denoiser(mean, deviation), Noise((1, 1, 400, 400), [3])
    found = moments(sample_ddpm(exact, SCHEDULE, noise, None, 50))
    assert found == (pytest.approx(mean, abs=0.02), pytest.approx(ddpm_deviation(deviation, range(999, 0, -20)), rel=0.006))
    assert ddpm_deviation(deviation, range(999, -1, -1)) == pytest.approx(deviation, rel=0.03)  # which many steps come to
    fresh = [torch.randn(1, 1, 1, 400, 400, generator=torch.Generator().manual_seed(i)) for i in range(50)]
    ends = {}
    for sampler in (sample_ddpm, sample_ddim):
        ends[sampler] = [moments(sampler(exact, SCHEDULE, Recorded(more + noise.initial(), fresh), None, 50))[0] for more in (0.0, 2.0)]
    assert abs(ends[sample_ddpm][0] - ends[sample_ddpm][1]) < 0.02 < 0.5 < abs(ends[sample_ddim][0] - ends[sample_ddim][1])


def gaussian_denoiser(mean, deviation):
    """E[x0 | x_t] for data N(mean, deviation^2)."""

    def best(x_t, t, cond):
        alpha, sigma = SCHEDULE.alpha_sigma(t, x_t)
        return mean + alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2) * (x_t - alpha * mean)

    return best


def gaussian_flow(mean, deviation):
    """The end of the probability flow ODE from x_t for data N(mean, deviation^2): the perfect consistency function."""

    def end(x_t, t, cond):
        alpha, sigma = SCHEDULE.alpha_sigma(t, x_t)
        return mean + deviation * (x_t - alpha * mean) / (alpha**2 * deviation**2 + sigma**2).sqrt()

    return end


def moments(steps):
    x0 = list(steps)[-1].x0.double()
    return x0.mean().item(), x0.std().item()


def ddim_deviation(deviation, timesteps):
    """The standard deviation that DDIM reaches on N(., deviation^2): with the exact denoiser every step scales the noise by a known factor."""
    abar, result = SCHEDULE.alphas_cumprod.tolist(), 1.0
    for t, t_prev in itertools.pairwise([*timesteps, None]):
        prev = 1.0 if t_prev is None else abar[t_prev]
        slope = abar[t] ** 0.5 * deviation**2 / (abar[t] * deviation**2 + 1 - abar[t])  # d E[x0 | x_t] / d x_t
        result *= prev**0.5 * slope + ((1 - prev) / (1 - abar[t])) ** 0.5 * (1 - abar[t] ** 0.5 * slope)
    return result


@pytest.mark.parametrize("mean, deviation", [(1.5, 0.5), (-0.7, 1.3), (0.0, 0.9)])
def test_ddim_with_the_exact_denoiser_finds_the_gaussian(mean, deviation):
    noise = Noise((1, 1, 400, 400), [3])
    found = moments(sample_ddim(gaussian_denoiser(mean, deviation), SCHEDULE, noise, None, 50))
    assert found[0] == pytest.approx(mean, abs=0.02)
    assert found[1] == pytest.approx(ddim_deviation(deviation, range(999, 0, -20)), rel=0.006)  # 160,000 values: .002
    assert found[1] == pytest.approx(deviation, rel=0.08)  # 50 steps of first order are that near


def test_ddim_converges_to_the_flow_sample_by_sample():
    noise = Noise(SHAPE, [4])
    goal = gaussian_flow(1.5, 0.5)(noise.initial(), 999, None)
    ends = [list(sample_ddim(gaussian_denoiser(1.5, 0.5), SCHEDULE, noise, None, steps))[-1].x0 for steps in (10, 50, 250)]
    errors = [(end - goal).abs().max().item() for end in ends]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.03


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lcm_with_the_perfect_student_finds_the_gaussian_in_any_number_of_steps(steps):
    mean, deviation = moments(sample_lcm(gaussian_flow(1.5, 0.5), SCHEDULE, Noise((1, 1, 400, 400), [3]), None, steps))
    assert mean == pytest.approx(1.5, abs=0.01) and deviation == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("steps", range(1, 9))
def test_a_constant_is_a_fixed_point_of_lcm(steps):
    noise = Noise(SHAPE, [1, 2])
    constant = Noise(SHAPE, [5, 6]).initial()
    for step in sample_lcm(lambda x_t, t, cond: constant, SCHEDULE, noise, None, steps):
        close(step.x0, constant)
    assert (noise.initial() - constant).abs().max() > 1


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_the_denoiser_gets_an_int64_timestep_per_sample_and_the_same_condition(sampler):
    cond, seen = condition(2), []

    def spy(x_t, t, given):
        seen.append((x_t.shape, x_t.dtype, t.dtype, t.shape, given.context is cond.context))
        return denoise(x_t, t, given).half()

    steps = list(sampler(spy, SCHEDULE, Noise(SHAPE, [1, 2]), cond, 3))
    assert seen == [((2, *SHAPE), torch.float32, torch.int64, (2,), True)] * 3
    assert all(isinstance(step, Step) and step.x0.dtype == torch.float32 and step.x0.shape == (2, *SHAPE) for step in steps)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_bad_step_counts_are_refused_before_the_first_call(sampler):
    for steps in BAD_STEPS:
        steps = 1001 if steps == 9 and sampler in (sample_ddim, sample_ddpm) else steps
        with pytest.raises(AppError) as error:
            next(sampler(lambda *arguments: pytest.fail("called"), SCHEDULE, Noise(SHAPE, [1]), None, steps))
        assert error.value.code == "E_STEPS"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_value_that_is_not_a_number_names_its_step(sampler, value):
    calls = itertools.count(1)

    def breaks(x_t, t, cond):
        x0 = x_t.clone()
        if next(calls) == 3:
            x0[-1, -1, -1, -1, -1] = value
        return x0

    steps = sampler(breaks, SCHEDULE, Noise(SHAPE, [1, 2]), None, 4)
    assert [next(steps).i, next(steps).i] == [1, 2]
    with pytest.raises(AppError, match="step 3") as error:
        next(steps)
    assert error.value.code == "E_NONFINITE"


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_gradients_are_off_inside_a_step_and_untouched_between_steps(sampler):
    weight, inside = torch.ones((), requires_grad=True), []

    def trainable(x_t, t, cond):
        inside.append(torch.is_grad_enabled())
        return weight * x_t

    for step in sampler(trainable, SCHEDULE, Noise(SHAPE, [1]), None, 2):
        assert torch.is_grad_enabled() and not step.x0.requires_grad and not step.x0.is_inference()
    assert inside == [False, False]
    (weight * step.x0).sum().backward()
    assert weight.grad == step.x0.sum()


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_every_step_can_be_taken_by_another_thread(sampler):
    cond, noise = condition(2), Noise(SHAPE, [1, 2])
    hopping, modes = [], []
    steps = sampler(denoise, SCHEDULE, noise, cond, 4)

    def take():
        hopping.append(next(steps))
        modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))

    for _ in range(4):
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
    for ours, expected in zip(hopping, sampler(denoise, SCHEDULE, noise, cond, 4), strict=True):
        assert torch.equal(ours.x0, expected.x0)
    assert modes == [(True, False)] * 4


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_closing_cancels(sampler):
    calls = []
    steps = sampler(lambda x_t, t, cond: calls.append(1) or x_t, SCHEDULE, Noise(SHAPE, [1]), None, 8)
    next(steps)
    steps.close()
    assert len(calls) == 1 and list(steps) == []


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(sampler):
    cond = condition(3)
    together = list(sampler(denoise, SCHEDULE, Noise(SHAPE, [5, 6, 7]), cond, 4))[-1].x0
    alone = list(sampler(denoise, SCHEDULE, Noise(SHAPE, [6]), cond.map(lambda x: x[1:2]), 4))[-1].x0
    close(together[1:2], alone)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_the_first_noise_is_the_same_for_any_step_count():
    firsts = []

    def spy(x_t, t, cond):
        firsts.append((x_t, t.item()))
        return x_t

    for sampler, most in ((sample_lcm, 8), (sample_tcd, 8), (sample_ddim, 50), (sample_ddpm, 50)):
        for steps in range(1, most + 1):
            next(sampler(spy, SCHEDULE, Noise(SHAPE, 11), None, steps))
    assert len(firsts) == 116 and all(t == START for _, t in firsts)
    assert all(torch.equal(x_t, Noise(SHAPE, [11]).at(999)) for x_t, _ in firsts)


@pytest.mark.parametrize("w", [2.5, 9.0])
def test_guided_sampling_is_diffusers_with_guided_v(w):
    cond, empty, noise = condition(2), torch.full((1, 5, 6), 0.2), Noise(SHAPE, [1, 2])
    reference = DDIMScheduler(timestep_spacing="trailing", **V_ZERO_SNR)
    reference.set_timesteps(50)
    x_t = noise.initial()
    for step in sample_ddim(guided(denoise, empty, w), SCHEDULE, noise, cond, 50):
        t = torch.full((2,), step.t)
        v_c, v_null = network(x_t, t, cond), network(x_t, t, cond.null(empty))
        x_t, x0 = reference.step(v_null + (1 + w) * (v_c - v_null), step.t, x_t, return_dict=False)
        close(step.x0, x0)
    plain = list(sample_ddim(denoise, SCHEDULE, noise, cond, 50))[-1].x0
    assert (plain - step.x0).abs().max() > 0.1


def test_guidance_of_zero_does_not_pay_for_the_other_branch():
    sizes, cond, empty = [], condition(2), torch.zeros(1, 5, 6)

    def spy(x_t, t, cond):
        sizes.append(len(x_t))
        return denoise(x_t, t, cond)

    results = {w: list(sample_lcm(guided(spy, empty, w), SCHEDULE, Noise(SHAPE, [1, 2]), cond, 2))[-1].x0 for w in (0, 1.5)}
    assert sizes == [2, 2, 4, 4]
    assert torch.equal(results[0], list(sample_lcm(denoise, SCHEDULE, Noise(SHAPE, [1, 2]), cond, 2))[-1].x0)


def test_the_samplers_are_generators_over_f():
    assert set(SAMPLERS) == {"lcm", "tcd", "ddim", "ddpm"} and all(inspect.isgeneratorfunction(sampler) for sampler in SAMPLERS.values())
    cond, noise = condition(1), Noise(SHAPE, 1)
    first = next(sample_lcm(denoise, SCHEDULE, noise, cond, 4))
    assert torch.equal(first.x0, consistency(denoise, SCHEDULE, noise.initial(), 999, cond))
