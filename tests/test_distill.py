"""The loss of Eq. 2 against a recorded step of the official training code, diffusers' DDIM step, and worlds where the perfect student is known."""

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from torch import nn

from videolcm.distill import consistency_loss, consistency_pair_loss, pseudo_huber, solver_step
from videolcm.models.base import Conditions
from videolcm.optim import update_ema
from videolcm.schedule import Schedule, consistency

DATA = Path(__file__).parent / "data"
SHAPE = (5, 4, 2, 4, 4)  # B, C, F, h, w
SCHEDULE = Schedule()


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol, check_dtype=False)


def randn(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def texts(batch=5):
    cond = Conditions(randn(8, (batch, 5, 8)), depth=randn(7, (batch, 1, 2, 8, 8)))
    return cond, cond.null(randn(9, (1, 5, 8)))


class Net(nn.Module):
    """v(x, t, y) = a x + b mean(y) + c sin(t / 50), as a denoiser: the fake network of the recorded step."""

    def __init__(self, *coefficients):
        super().__init__()
        self.coefficients = nn.Parameter(torch.tensor(coefficients))
        self.calls = []

    def v(self, x_t, t, cond):
        a, b, c = self.coefficients
        return a * x_t + (b * cond.context.mean((1, 2)) + c * torch.sin(t / 50)).reshape(-1, 1, 1, 1, 1)

    def forward(self, x_t, t, cond):
        self.calls.append(len(x_t))
        return SCHEDULE.x0_from_v(x_t, self.v(x_t, t, cond), t)


@pytest.fixture
def recorded():
    return load_file(DATA / "train_step.safetensors")


@pytest.fixture
def official():
    return json.loads((DATA / "train_step.json").read_text())


@pytest.fixture
def nets(official):
    return {role: Net(*coefficients) for role, coefficients in official["coef"].items()}


def test_every_number_of_the_official_training_step(recorded, official, nets):
    r, (t, t_prev) = recorded, (recorded["start_timesteps"], recorded["timesteps"])
    cond, null = Conditions(r["y"]), Conditions(r["y_uncond"])
    assert t.tolist() == [19, 39, 259, 759, 999] and t_prev.tolist() == [0, 19, 239, 739, 979]
    x_t = SCHEDULE.add_noise(r["latents"], r["noise"], t)
    close(x_t, r["noisy_model_input"])
    with torch.no_grad():
        close(nets["student"].v(x_t, t, cond), r["student_v"])
        close(consistency(nets["student"], SCHEDULE, x_t, t, cond), r["model_pred"])
        x_prev = solver_step(nets["teacher"], SCHEDULE, x_t, t, t_prev, cond, null, official["w"])
        close(x_prev, r["x_prev"])
        close(nets["target"].v(x_prev, t_prev, cond), r["target_v"])
        close(consistency(nets["target"], SCHEDULE, x_prev, t_prev, cond), r["target"])
        loss = consistency_pair_loss(*nets_of(nets), SCHEDULE, x_t, t, t_prev, cond, null, official["w"], official["huber_c"])
    close(loss, r["loss"][0], 1e-6)
    assert loss.item() == pytest.approx(official["loss"], abs=1e-6)


def nets_of(nets):
    return nets["student"], nets["target"], nets["teacher"]


@pytest.mark.parametrize("change", ["w", "teacher", "target", "swapped texts", "c"])
def test_the_official_loss_notices_every_ingredient(recorded, official, nets, change):
    r, w, c = recorded, official["w"], official["huber_c"]
    texts = [Conditions(r["y"]), Conditions(r["y_uncond"])]
    if change in nets:
        nets[change] = nets["student"]
    texts.reverse() if change == "swapped texts" else None
    w, c = (8.0, c) if change == "w" else (w, 0.01) if change == "c" else (w, c)
    with torch.no_grad():
        loss = consistency_pair_loss(*nets_of(nets), SCHEDULE, r["noisy_model_input"], r["start_timesteps"], r["timesteps"], *texts, w, c)
    assert abs(loss.item() - official["loss"]) > 1e-4


@pytest.mark.parametrize("w", [0.0, 2.5, 9.0])
def test_the_solver_is_equation_5_in_ddim_steps_of_diffusers(w):
    reference = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
    )  # fmt: skip
    reference.set_timesteps(50)
    teacher, (cond, null) = Net(0.4, 0.2, -0.01), texts()
    for t in (39, 259, 759, 999):
        x_t, times = randn(t), torch.full((5,), t)
        with torch.no_grad():
            psi = [reference.step(teacher.v(x_t, times, c), t, x_t).prev_sample - x_t for c in (cond, null)]
            x_prev = solver_step(teacher, SCHEDULE, x_t, times, times - 20, cond, null, w)
            close(solver_step(teacher, SCHEDULE, x_t, t, t - 20, cond, null, w), x_prev, 0)
        close(x_prev, x_t + (1 + w) * psi[0] - w * psi[1])
        assert (x_prev - x_t).abs().max() > 1e-3 and (psi[0] - psi[1]).abs().max() > 1e-4


def test_the_first_point_of_the_grid_goes_to_abar_0():
    x0, eps, t = randn(0), randn(1), torch.full((5,), 19)
    x_prev = solver_step(lambda x_t, t, cond: x0, SCHEDULE, SCHEDULE.add_noise(x0, eps, t), t, t - 19, None, None, 0)
    close(x_prev, 0.99915**0.5 * x0 + 0.00085**0.5 * eps)


def test_the_teacher_is_called_once_on_both_texts_and_the_students_once():
    student, target, teacher = (Net(0.5, 0.1, 0.02) for _ in range(3))
    cond, null = texts()
    for w, expected in ((9.0, 10), (0, 5)):
        for net in (student, target, teacher):
            net.calls.clear()
        consistency_loss(student, target, teacher, SCHEDULE, randn(0), cond, null, w, seeded())
        assert (student.calls, target.calls, teacher.calls) == ([5], [5], [expected])


def test_pseudo_huber_is_quadratic_then_absolute():
    a, c = torch.tensor([0.0, 1e-4, 3.0, -5.0], dtype=torch.float64), 1e-2
    expected = [0, (1e-8 + c**2) ** 0.5 - c, (9 + c**2) ** 0.5 - c, (25 + c**2) ** 0.5 - c]
    for value, known in zip(a, expected, strict=True):
        assert pseudo_huber(value, torch.zeros(()), c).item() == pytest.approx(known, rel=1e-6)
    assert pseudo_huber(a, torch.zeros(4), c).item() == pytest.approx(sum(expected) / 4)
    assert pseudo_huber(torch.tensor(1e-4), torch.zeros(()), c).item() == pytest.approx(1e-8 / (2 * c), rel=1e-2)
    assert pseudo_huber(torch.tensor(5.0), torch.zeros(()), c).item() == pytest.approx(5 - c, rel=1e-4)


def perfect(flow):
    """A denoiser whose f (Eq. 1) is `flow`, for t > 0."""

    def denoise(x_t, t, cond):
        c_skip, c_out = (c(t).reshape(-1, 1, 1, 1, 1) for c in (SCHEDULE.c_skip, SCHEDULE.c_out))
        return torch.where(c_out > 0, (flow(x_t, t) - c_skip * x_t) / c_out.clamp(min=1e-6), 0)

    return denoise


@pytest.mark.parametrize("skip", [20, 100])
@pytest.mark.parametrize("w", [0.0, 9.0])
def test_the_loss_of_perfect_nets_is_0_where_the_data_is_one_video(skip, w):
    video, (cond, null) = randn(1, (1, *SHAPE[1:])), texts(256)
    best = perfect(lambda x_t, t: SCHEDULE.ddim_step(x_t, video.expand_as(x_t), t, 0))  # the trajectory's point at t = 0

    def teacher(x_t, t, cond):
        return video.expand_as(x_t)

    arguments = (SCHEDULE, video.expand(256, *SHAPE[1:]), cond, null, w)
    assert consistency_loss(best, best, teacher, *arguments, seeded(), skip).abs() < 1e-6
    off = perfect(lambda x_t, t: SCHEDULE.ddim_step(x_t, 1.05 * video.expand_as(x_t), t, 0))
    assert consistency_loss(off, best, teacher, *arguments, seeded(), skip) > 0.02
    assert consistency_loss(best, off, teacher, *arguments, seeded(), skip) > 0.02
    assert consistency_loss(best, best, lambda x_t, t, cond: 1.05 * video.expand_as(x_t), *arguments, seeded(), skip) > 1e-4


def test_the_loss_of_perfect_nets_shrinks_with_the_step_where_the_data_is_gaussian():
    mean, deviation = 1.5, 0.5
    marginal = lambda alpha, sigma: (alpha**2 * deviation**2 + sigma**2).sqrt()  # noqa: E731

    def flow(x_t, t):
        alpha, sigma = SCHEDULE.alpha_sigma(t, x_t)
        alpha_0, sigma_0 = SCHEDULE.alpha_sigma(0, x_t)
        return alpha_0 * mean + marginal(alpha_0, sigma_0) * (x_t - alpha * mean) / marginal(alpha, sigma)

    def teacher(x_t, t, cond):
        alpha, sigma = SCHEDULE.alpha_sigma(t, x_t)
        return mean + alpha * deviation**2 / marginal(alpha, sigma) ** 2 * (x_t - alpha * mean)

    x0, (cond, null) = mean + deviation * randn(2, (512, *SHAPE[1:])), texts(512)
    best = perfect(flow)
    losses = [consistency_loss(best, best, teacher, SCHEDULE, x0, cond, null, 0, seeded(), skip).item() for skip in (100, 20, 4)]
    assert losses[0] > 4 * losses[1] > 16 * losses[2] and losses[2] < 1e-4
    teacher_as_student = consistency_loss(teacher, best, teacher, SCHEDULE, x0, cond, null, 0, seeded(), 4).item()
    assert teacher_as_student > 100 * losses[2]


def test_gradient_flows_to_the_student_alone():
    student, target, teacher = Net(0.5, 0.1, 0.02), Net(0.45, 0.15, 0.03), Net(0.4, 0.2, -0.01)
    x0, (cond, null) = randn(0).requires_grad_(), texts()
    loss = consistency_loss(student, target, teacher, SCHEDULE, x0.detach(), cond, null, 9.0, seeded())
    assert loss.shape == () and loss.dtype == torch.float32
    loss.backward()
    assert student.coefficients.grad.abs().min() > 0
    assert target.coefficients.grad is None and teacher.coefficients.grad is None and x0.grad is None


def test_the_gradient_is_the_slope_of_the_loss():
    student, target, teacher = Net(0.5, 0.1, 0.02), Net(0.45, 0.15, 0.03), Net(0.4, 0.2, -0.01)
    x0, (cond, null) = randn(0), texts()

    def loss():
        return consistency_loss(student, target, teacher, SCHEDULE, x0, cond, null, 9.0, seeded(3))

    loss().backward()
    for i, slope in enumerate(student.coefficients.grad.tolist()):
        values = []
        for shift in (1e-2, -1e-2):
            with torch.no_grad():
                student.coefficients[i] += shift
                values.append(loss().item())
                student.coefficients[i] -= shift
        assert (values[0] - values[1]) / 2e-2 == pytest.approx(slope, rel=0.05, abs=2e-3)


def test_a_net_that_serves_as_its_own_target_gets_no_gradient_from_that_side():
    a, b, (cond, null) = Net(0.5, 0.1, 0.02), Net(0.5, 0.1, 0.02), texts()
    teacher = Net(0.4, 0.2, -0.01)
    for student, target in ((a, a), (b, copy.deepcopy(b))):
        consistency_loss(student, target, teacher, SCHEDULE, randn(0), cond, null, 2.0, seeded()).backward()
    close(a.coefficients.grad, b.coefficients.grad, 0)


def test_the_loss_is_that_of_the_pair_it_draws():
    nets, (cond, null), x0 = (Net(0.5, 0.1, 0.02), Net(0.45, 0.15, 0.03), Net(0.4, 0.2, -0.01)), texts(), randn(0)
    options = dict(skip=100, c=1e-2, share_last=0.5)
    for seed in (1, 2):
        loss = consistency_loss(*nets, SCHEDULE, x0, cond, null, 9.0, seeded(seed), **options)
        generator = seeded(seed)
        t, t_prev = SCHEDULE.sample_pair(5, generator, 100, 0.5)
        x_t = SCHEDULE.add_noise(x0, torch.randn(SHAPE, generator=generator), t)
        assert (t[:2] == 999).all() and t_prev[0] == 899
        close(loss, consistency_pair_loss(*nets, SCHEDULE, x_t, t, t_prev, cond, null, 9.0, 1e-2), 0)
        assert (loss - consistency_loss(*nets, SCHEDULE, x0, cond, null, 9.0, seeded(seed))).abs() > 1e-4


def test_the_loss_depends_on_its_generator_and_on_no_global_state():
    nets, (cond, null) = (Net(0.5, 0.1, 0.02), Net(0.45, 0.15, 0.03), Net(0.4, 0.2, -0.01)), texts()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    losses = [consistency_loss(*nets, SCHEDULE, randn(0), cond, null, 9.0, seeded(seed)).item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2] and torch.equal(state, torch.get_rng_state())


class Buffered(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        for tensor in (*self.parameters(), self.norm.running_mean, self.norm.running_var):
            nn.init.constant_(tensor, value)
        self.norm.num_batches_tracked.fill_(int(value))


def test_the_average_moves_parameters_and_buffers_in_place():
    target, student = Buffered(1.0), Buffered(3.0)
    places = [tensor.data_ptr() for tensor in target.state_dict().values()]
    for expected in (1.1, 1.195):  # 0.95 (1, then 1.1) + 0.05 3
        update_ema(target, student, 0.95)
        for name, tensor in target.state_dict().items():
            known = torch.full_like(tensor, 3 if "tracked" in name else expected)
            close(tensor, known, 1e-6)
    assert places == [tensor.data_ptr() for tensor in target.state_dict().values()]
    assert all((tensor == 3).all() for tensor in student.state_dict().values()) and target.layer.weight.requires_grad


@pytest.mark.parametrize("rate, expected", [(1.0, 1.0), (0.0, 3.0), (0.5, 2.0)])
def test_the_average_at_its_ends(rate, expected):
    target, student = Buffered(1.0), Buffered(3.0)
    update_ema(target, student, rate)
    assert (target.layer.weight == expected).all() and (target.norm.running_var == expected).all()


def test_a_half_precision_student_is_averaged_in_the_precision_of_the_target():
    target, student = Buffered(1.0), Buffered(3.0).bfloat16()
    update_ema(target, student, 0.999)
    close(target.layer.weight, torch.full((2, 2), 1.002), 1e-6)


def test_modules_that_differ_cannot_be_averaged():
    with pytest.raises(ValueError):
        update_ema(Buffered(1.0), nn.Linear(2, 2), 0.95)


def test_distilling_teaches_one_step_what_the_teacher_needs_many_for():
    """A gain per timestep on zero-mean Gaussian data: the best denoiser says 0 at t = 999, the distilled one must learn to say 0.5 x_t."""
    deviation, grid = 0.5, torch.arange(99, 1000, 100)

    class Gains(nn.Module):
        def __init__(self):
            super().__init__()
            alpha, sigma = (a.flatten() for a in SCHEDULE.alpha_sigma(grid, randn(0, (10, 1))))
            self.gain = nn.Parameter(alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2))

        def forward(self, x_t, t, cond):
            return self.gain[((t - 99) // 100).clamp(min=0)].reshape(-1, 1, 1, 1, 1) * x_t

    teacher, student, cond = Gains(), Gains(), Conditions(torch.zeros(64, 1, 1))
    target, generator = copy.deepcopy(student), seeded()
    optimiser = torch.optim.Adam(student.parameters(), 1e-2)
    assert teacher.gain[-1].abs() < 1e-6
    for _ in range(600):
        x0 = deviation * torch.randn(64, 1, 1, 4, 4, generator=generator)
        loss = consistency_loss(student, target, teacher, SCHEDULE, x0, cond, cond, 0, generator, skip=100)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        update_ema(target, student, 0.95)
    abar, expected = SCHEDULE.alphas_cumprod[[*grid.tolist()]].tolist(), 1.0
    for i in range(9, -1, -1):  # ten DDIM steps of the teacher, 999 -> 0, in scalars
        prev = abar[i - 1] if i else SCHEDULE.alphas_cumprod[0].item()
        gain = teacher.gain[i].item()
        expected *= prev**0.5 * gain + ((1 - prev) / (1 - abar[i])) ** 0.5 * (1 - abar[i] ** 0.5 * gain)
    assert 0.35 < expected < 0.6
    assert target.gain[-1].item() == pytest.approx(expected, abs=0.03)
