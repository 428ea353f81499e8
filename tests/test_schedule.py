"""The schedule against diffusers' DDIMScheduler and LCMScheduler, against recorded tables of the official code, and in closed form."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from safetensors.torch import load_file

from videolcm.errors import AppError
from videolcm.models.base import Conditions
from videolcm.schedule import Schedule, consistency, guide

DATA = Path(__file__).parent / "data"
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
SHAPE = (3, 4, 2, 4, 4)  # B, C, F, h, w
BAD_STEPS = [0, 9, -1, 2.5, 4.0, math.nan, math.inf, True, False, "4", None]


def ddim(prediction="v_prediction", zero_snr=True):
    return DDIMScheduler(prediction_type=prediction, rescale_betas_zero_snr=zero_snr, timestep_spacing="trailing", **BETAS)


def lcm():
    return LCMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, **BETAS)


def randn(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol, check_dtype=False)


@pytest.fixture
def schedule():
    return Schedule()


@pytest.mark.parametrize("zero_snr", [True, False])
@pytest.mark.parametrize("reference", [DDIMScheduler, LCMScheduler])
def test_alphas_are_those_of_diffusers(reference, zero_snr):
    expected = reference(rescale_betas_zero_snr=zero_snr, **BETAS).alphas_cumprod
    close(Schedule(zero_terminal_snr=zero_snr).alphas_cumprod, expected.double(), 1e-6)


def test_alphas_are_those_that_the_official_code_trained_with(schedule):
    recorded = load_file(DATA / "schedule.safetensors")
    close(schedule.alphas_cumprod, recorded["train_alphas_cumprod_f64"], 1e-12)
    close(Schedule(zero_terminal_snr=False).alphas_cumprod, recorded["alphas_cumprod_without_zero_snr_f64"], 1e-12)
    assert schedule.alphas_cumprod.dtype == torch.float64 and schedule.alphas_cumprod[-1] == 0


@pytest.mark.parametrize("betas", [(0, 0.1), (0.2, 0.1), (0.1, 1), (math.nan, 0.1)])
def test_impossible_betas_are_refused(betas):
    with pytest.raises(AppError, match="E_NUMBER"):
        Schedule(beta_start=betas[0], beta_end=betas[1])


def test_alpha_sigma_broadcasts_and_is_float32(schedule):
    t = torch.tensor([0, 500, 999])
    alpha, sigma = schedule.alpha_sigma(t, randn(0).half())
    assert alpha.shape == sigma.shape == (3, 1, 1, 1, 1) and alpha.dtype == sigma.dtype == torch.float32
    close(alpha**2 + sigma**2, torch.ones_like(alpha), 1e-6)
    close(alpha.flatten() ** 2, schedule.alphas_cumprod[t], 1e-6)
    assert alpha[2] == 0 and sigma[2] == 1
    assert schedule.alpha_sigma(500, randn(0, (3, 7)))[0].shape == (1, 1)


@pytest.mark.parametrize("t", [-1, 1000, 2.0, torch.tensor([3, -1, 4]), torch.tensor([3, 1000, 4]), torch.tensor([1.0, 2.0, 3.0])])
def test_a_timestep_that_does_not_exist_is_refused(schedule, t):
    with pytest.raises(AppError, match="E_NUMBER"):
        schedule.add_noise(randn(0), randn(1), t)


@pytest.mark.parametrize("t_prev", [-2, 1000, 2.0, torch.tensor([3, -2, 4]), torch.tensor([3, 1000, 4]), torch.tensor([1.0, 2.0, 3.0])])
def test_a_step_to_a_timestep_that_does_not_exist_is_refused(schedule, t_prev):
    with pytest.raises(AppError, match="E_NUMBER"):
        schedule.ddim_step(randn(0), randn(1), 500, t_prev)


@pytest.mark.parametrize("zero_snr", [True, False])
def test_noising_and_velocity_are_those_of_diffusers(zero_snr):
    reference, schedule = ddim(zero_snr=zero_snr), Schedule(zero_terminal_snr=zero_snr)
    x0, eps = randn(0), randn(1)
    for t in [(0, 19, 259), (499, 980, 999)]:
        t = torch.tensor(t)
        close(schedule.add_noise(x0, eps, t), reference.add_noise(x0, eps, t))
        close(schedule.v_from_x0_eps(x0, eps, t), reference.get_velocity(x0, eps, t))


def test_an_int_is_the_same_as_a_tensor_of_it(schedule):
    x, y, t, t_prev = randn(0), randn(1), torch.full((3,), 499), torch.full((3,), 479)
    for method in (schedule.add_noise, schedule.x0_from_v, schedule.eps_from_v, schedule.v_from_x0_eps, schedule.x0_from_eps, schedule.eps_from_x0):
        assert torch.equal(method(x, y, 499), method(x, y, t))
        assert torch.equal(method(x, y, torch.tensor(499)), method(x, y, t))
    assert torch.equal(schedule.ddim_step(x, y, 499, 479), schedule.ddim_step(x, y, t, t_prev))
    assert schedule.c_skip(499) == schedule.c_skip(t)[0] and schedule.c_out(499) == schedule.c_out(t)[0]


def test_half_precision_latents_give_float32(schedule):
    x, y = randn(0).half(), randn(1).half()
    for t in (499, torch.tensor([1, 499, 999])):
        assert schedule.add_noise(x, y, t).dtype == schedule.ddim_step(x, y, t).dtype == torch.float32


@pytest.mark.parametrize("t", [0, 19, 499, 979, torch.tensor([0, 300, 900])])
def test_round_trips_between_x0_eps_and_v(schedule, t):
    x0, eps = randn(0), randn(1)
    x_t, v = schedule.add_noise(x0, eps, t), schedule.v_from_x0_eps(x0, eps, t)
    close(schedule.x0_from_v(x_t, v, t), x0)
    close(schedule.eps_from_v(x_t, v, t), eps)
    close(schedule.eps_from_x0(x_t, x0, t), eps)
    close(schedule.x0_from_eps(x_t, eps, t), x0, 1e-4)  # divided by alpha = .009 at 979
    assert (x0 - v).abs().max() > 0.1 and (x0 - eps).abs().max() > 0.1


def test_at_zero_snr_v_is_minus_x0_and_eps_says_nothing(schedule):
    x0, eps = randn(0), randn(1)
    assert torch.equal(schedule.add_noise(x0, eps, 999), eps)
    assert torch.equal(schedule.x0_from_v(eps, -x0, 999), x0)
    assert torch.equal(schedule.eps_from_x0(eps, x0, 999), eps)
    for t in (999, torch.tensor([5, 999, 7])):
        with pytest.raises(AppError, match="E_NUMBER.*signal"):
            schedule.x0_from_eps(eps, eps, t)
    plain = Schedule(zero_terminal_snr=False)
    close(plain.x0_from_eps(plain.add_noise(x0, eps, 999), eps, 999), x0)


@pytest.mark.parametrize("prediction, zero_snr", [("v_prediction", True), ("v_prediction", False), ("epsilon", False), ("sample", True)])
def test_every_ddim_step_is_that_of_diffusers(prediction, zero_snr):
    reference, schedule = ddim(prediction, zero_snr), Schedule(zero_terminal_snr=zero_snr)
    reference.set_timesteps(50)
    convert = {"v_prediction": schedule.x0_from_v, "epsilon": schedule.x0_from_eps, "sample": lambda x_t, x0, t: x0}[prediction]
    timesteps = schedule.ddim_timesteps(50).tolist()
    for i, t in enumerate(timesteps):
        output = randn(i + 100)
        x_t = schedule.add_noise(randn(i), output + 0.1 * randn(i + 200), t)
        expected = reference.step(output, t, x_t)
        x0 = convert(x_t, output, t)
        close(x0, expected.pred_original_sample)
        close(schedule.ddim_step(x_t, x0, t, timesteps[i + 1] if i < 49 else None), expected.prev_sample)


def test_the_end_is_x0_but_timestep_zero_is_not(schedule):
    x_t, x0 = randn(0), randn(1)
    for end in (None, -1, torch.full((3,), -1)):
        assert torch.equal(schedule.ddim_step(x_t, x0, 19, end), x0)
    eps = schedule.eps_from_x0(x_t, x0, 19)
    close(schedule.ddim_step(x_t, x0, 19, 0), 0.99915**0.5 * x0 + 0.00085**0.5 * eps)
    mixed = schedule.ddim_step(x_t, x0, 19, torch.tensor([-1, 0, -1]))
    assert torch.equal(mixed[0], x0[0]) and (mixed[1] - x0[1]).abs().max() > 1e-3


def test_a_ddim_step_keeps_the_point_on_the_line_between_x0_and_eps(schedule):
    x0, eps = randn(0), randn(1)
    close(schedule.ddim_step(schedule.add_noise(x0, eps, 999), x0, 999, 300), schedule.add_noise(x0, eps, 300))


def test_ddim_timesteps_are_the_trailing_ones_of_diffusers(schedule):
    reference = ddim()
    for steps in range(1, 1001):
        reference.set_timesteps(steps)
        ours = schedule.ddim_timesteps(steps)
        assert ours.dtype == torch.int64 and ours[0] == 999 and len(ours) == steps
        assert ours.tolist() == reference.timesteps[:steps].tolist()  # diffusers has one too many, a -1, for 61 and others
    assert schedule.ddim_timesteps(50).tolist() == list(range(999, 0, -20))


def test_lcm_timesteps_are_those_of_diffusers_and_the_official_code(schedule):
    table = json.loads((DATA / "timesteps.json").read_text())["diffusers_0.26.3_videolcm_config"]
    reference = lcm()
    for steps in range(1, 9):
        reference.set_timesteps(steps)
        assert schedule.lcm_timesteps(steps).tolist() == table[str(steps)] == reference.timesteps.tolist()
    assert schedule.lcm_timesteps(np.int64(4)).tolist() == [999, 759, 499, 259]


@pytest.mark.parametrize("steps", BAD_STEPS)
def test_bad_step_counts_are_refused(schedule, steps):
    with pytest.raises(AppError, match="from 1 to 8") as error:
        schedule.lcm_timesteps(steps)
    assert error.value.code == "E_STEPS"
    with pytest.raises(AppError, match="from 1 to 1000"):
        schedule.ddim_timesteps(1001 if steps == 9 else steps)


def test_boundary_scalings_are_those_of_diffusers_and_the_official_code(schedule):
    reference = lcm()
    for t in (0, 1, 19, 259, 999):
        skip, out = reference.get_scalings_for_boundary_condition_discrete(t)
        assert schedule.c_skip(t).item() == pytest.approx(skip, rel=1e-6) and schedule.c_out(t).item() == pytest.approx(out, rel=1e-6)
    recorded = load_file(DATA / "train_step.safetensors")
    for suffix, t in (("_start", recorded["start_timesteps"]), ("", recorded["timesteps"])):
        close(schedule.c_skip(t), recorded["c_skip" + suffix], 1e-7)
        close(schedule.c_out(t), recorded["c_out" + suffix], 1e-7)
    assert schedule.c_skip(0) == 1 and schedule.c_out(0) == 0


def test_pairs_are_drawn_evenly_from_the_grid_of_the_solver(schedule):
    recorded = load_file(DATA / "train_step.safetensors")["solver_ddim_timesteps"].tolist()
    t, t_prev = schedule.sample_pair(20000, torch.Generator().manual_seed(0))
    assert t.dtype == t_prev.dtype == torch.int64 and t.shape == t_prev.shape == (20000,)
    assert t.unique().tolist() == recorded
    counts = torch.bincount(t)[recorded].double()  # 400 expected for each
    assert ((counts - 400) ** 2 / 400).sum() < 85.4  # chi-square, 49 degrees of freedom, p = .001
    assert torch.equal(t_prev, torch.where(t == 19, 0, t - 20))


@pytest.mark.parametrize("skip, points, first", [(20, 50, 19), (100, 10, 99), (30, 34, 9), (1, 999, 1), (999, 1, 999)])
def test_other_skips_end_at_999_and_never_start_at_0(schedule, skip, points, first):
    t, t_prev = schedule.sample_pair(30000, torch.Generator().manual_seed(1), skip)
    assert len(t.unique()) == points and t.max() == 999 and t.min() == first
    assert t_prev.min() == 0 and (t > t_prev).all() and torch.equal(t_prev, (t - skip).clamp(min=0))


def test_pairs_depend_on_the_generator_alone(schedule):
    pairs = [schedule.sample_pair(16, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(pairs[0][0], pairs[1][0]) and not torch.equal(pairs[0][0], pairs[2][0])


def test_a_share_of_the_batch_can_be_put_on_the_last_timestep(schedule):
    generator = torch.Generator().manual_seed(5)
    shares = {share: torch.cat([schedule.sample_pair(4, generator, 20, share)[0] for _ in range(2000)]) for share in (0.0, 0.1, 0.5, 1.0)}
    assert (shares[1.0] == 999).all()
    for share, t in shares.items():
        assert (t == 999).double().mean().item() == pytest.approx(share + (1 - share) / 50, abs=0.015)
    assert (shares[0.5].reshape(-1, 4)[:, :2] == 999).all()


@pytest.mark.parametrize(
    "arguments", [{"skip": 0}, {"skip": 1000}, {"skip": 2.5}, {"share_last": -0.1}, {"share_last": 1.1}, {"share_last": math.nan}]
)
def test_bad_pairs_are_refused(schedule, arguments):
    with pytest.raises(AppError, match="E_NUMBER"):
        schedule.sample_pair(4, torch.Generator(), **arguments)


def test_f_is_the_identity_at_0_and_the_denoiser_elsewhere(schedule):
    x_t, x0 = randn(0), randn(1)
    result = consistency(lambda x, t, cond: x0, schedule, x_t, torch.tensor([0, 19, 999]), None)
    assert torch.equal(result[0], x_t[0]) and (x_t[0] - x0[0]).abs().max() > 0.1
    close(result[1:], x0[1:], 1e-4)
    close(consistency(lambda x, t, cond: x0, schedule, x_t, 1, None), 0.25 / 100.25 * x_t + 10 / 100.25**0.5 * x0)


def test_the_denoiser_gets_one_int64_timestep_per_sample_and_the_condition(schedule):
    seen = []

    def denoise(x_t, t, cond):
        seen.append((t.tolist(), t.dtype, cond))
        return x_t.half()

    results = [consistency(denoise, schedule, randn(0).half(), t, "cond") for t in (499, torch.tensor(499), torch.tensor([499, 3, 0]))]
    assert seen == [([499] * 3, torch.int64, "cond")] * 2 + [([499, 3, 0], torch.int64, "cond")]
    assert all(result.dtype == torch.float32 for result in results)


def texts(batch):
    depth = randn(7, (batch, 1, 2, 8, 8))
    return Conditions(randn(8, (batch, 5, 6)), depth=depth), randn(9, (1, 5, 6))


@pytest.mark.parametrize("w", [0.5, 2.5, 9.0])
def test_guidance_of_x0_is_guidance_of_v_and_of_eps(schedule, w):
    cond, empty = texts(3)

    def v_of(x_t, t, cond):
        bias = cond.context.mean((1, 2)) + 0.1 * cond.depth.mean((1, 2, 3, 4)) + torch.sin(t / 50)
        return torch.tanh(0.3 * x_t + bias.reshape(-1, 1, 1, 1, 1))

    for t in (torch.tensor([0, 300, 999]), torch.tensor([19, 500, 980])):
        x_t = randn(3)
        v_c, v_null = v_of(x_t, t, cond), v_of(x_t, t, cond.null(empty))
        x0 = guide(lambda x, t, cond: schedule.x0_from_v(x, v_of(x, t, cond), t), x_t, t, cond, cond.null(empty), w)
        close(x0, schedule.x0_from_v(x_t, (1 + w) * v_c - w * v_null, t))
        eps = (1 + w) * schedule.eps_from_v(x_t, v_c, t) - w * schedule.eps_from_v(x_t, v_null, t)
        sigma = schedule.alpha_sigma(t, x_t)[1]
        close(sigma * schedule.eps_from_x0(x_t, x0, t), sigma * eps)
        assert (x0 - schedule.x0_from_v(x_t, v_c, t)).abs().amax((1, 2, 3, 4)).min() > 1e-3


def test_guidance_is_one_call_on_both_texts_with_the_same_maps(schedule):
    cond, empty = texts(3)
    calls = []

    def denoise(x_t, t, cond):
        calls.append((x_t, t, cond))
        return x_t + cond.context.mean((1, 2)).reshape(-1, 1, 1, 1, 1)

    x_t, t = randn(3), torch.tensor([1, 2, 3])
    result = guide(denoise, x_t, t, cond, cond.null(empty), 2.0)
    ((both_x, both_t, both),) = calls
    assert both_t.tolist() == [1, 2, 3, 1, 2, 3] and torch.equal(both_x, torch.cat([x_t, x_t]))
    assert torch.equal(both.context, torch.cat([cond.context, empty.expand(3, 5, 6)])) and torch.equal(both.depth, torch.cat([cond.depth] * 2))
    text, null = cond.context.mean((1, 2)), empty.mean()
    close(result, x_t + (3 * text - 2 * null).reshape(-1, 1, 1, 1, 1))
    plain = guide(denoise, x_t, t, cond, cond.null(empty), 0)
    assert len(calls) == 2 and torch.equal(calls[1][0], x_t) and torch.equal(calls[1][2].context, cond.context)
    close(plain, x_t + text.reshape(-1, 1, 1, 1, 1))


@pytest.mark.parametrize("w", [2.0, torch.tensor([0.5, 1.0, 2.0, 3.0])])
def test_beyond_some_timesteps_nothing_is_guided_nor_asked_for(schedule, w):
    (cond, empty), x_t, t, asked = texts(4), torch.cat([randn(4), randn(5)])[:4], torch.tensor([999, 499, 500, 0]), []
    null = cond.null(empty)

    def denoise(x_t, t, cond):
        asked.append(t.tolist())
        return torch.tanh(0.3 * x_t + cond.context.mean((1, 2)).reshape(-1, 1, 1, 1, 1))

    everywhere, plain = guide(denoise, x_t, t, cond, null, w), guide(denoise, x_t, t, cond, null, 0)
    asked.clear()
    some = guide(denoise, x_t, t, cond, null, w, (500, 1000))
    assert asked == [[999, 499, 500, 0, 999, 500]]
    middle = guide(denoise, x_t, t, cond, null, w, (0, 500))
    assert asked.pop() == [999, 499, 500, 0, 499, 0]
    close(middle[[1, 3]], everywhere[[1, 3]])
    close(middle[[0, 2]], plain[[0, 2]])
    close(some[[0, 2]], everywhere[[0, 2]])
    close(some[[1, 3]], plain[[1, 3]])
    close(guide(denoise, x_t, 499, cond, null, w, (500, 1000)), plain)
    assert asked[1] == [499] * 4 and (everywhere - plain).abs().amax((1, 2, 3, 4)).min() > 1e-3
