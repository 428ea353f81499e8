"""Students that are told more than t: the guidance w (T2V-Turbo), or the timestep s that they go to (a two-time map), against worlds where the
perfect student is known; and what sampling makes of them."""

import copy
import json
from dataclasses import replace

import pytest
import tiny
import torch
from conftest import FakeModel
from torch import nn

from videolcm import models
from videolcm.arguments import range_of
from videolcm.distill import (
    DistillConfig,
    consistency_pair_loss,
    distill_stage,
    finished_student,
    jump,
    own_beginnings,
    solver_step,
    student_info,
    student_net,
    write_student,
)
from videolcm.errors import AppError
from videolcm.models.base import Conditions
from videolcm.models.denoiser import Denoiser
from videolcm.models.toybox import config_of
from videolcm.optim import update_ema
from videolcm.pipeline import Request, generate
from videolcm.sampling import Noise, sample_lcm, sample_tcd
from videolcm.schedule import Schedule, guide
from videolcm.training import train

SCHEDULE = Schedule()
MEAN, DEVIATION = 1.5, 0.5
NOBODY = Conditions(torch.zeros(1, 1, 1))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def told(batch):
    return Conditions(torch.zeros(batch, 1, 1))


def spread(t, like):
    """The standard deviation of x_t where the data has DEVIATION."""
    alpha, sigma = SCHEDULE.alpha_sigma(t, like)
    return (alpha**2 * DEVIATION**2 + sigma**2).sqrt()


def flow(x_t, t, s):
    """Where the Gaussian world's trajectory through x_t at t is at s."""
    (alpha, _), (alpha_s, _) = SCHEDULE.alpha_sigma(t, x_t), SCHEDULE.alpha_sigma(s, x_t)
    return alpha_s * MEAN + spread(s, x_t) / spread(t, x_t) * (x_t - alpha * MEAN)


def best(x_t, t, cond):
    """The denoiser whose DDIM step from t to cond.s is the Gaussian world's flow."""
    s = cond.s.clamp(max=t.max() - 1)
    (alpha, sigma), (alpha_s, sigma_s) = SCHEDULE.alpha_sigma(t, x_t), SCHEDULE.alpha_sigma(s, x_t)
    room = alpha_s - sigma_s / sigma * alpha
    return torch.where(room > 1e-6, (flow(x_t, t, s) - sigma_s / sigma * x_t) / room.clamp(min=1e-6), x_t)


teacher = tiny.gaussian(MEAN, DEVIATION)


# ---- the two-time map


def test_a_jump_to_where_one_is_changes_nothing_whatever_the_network_says():
    x_t = tiny.randn(0, 3, 1, 1, 4, 4)
    for t in (0, 19, 499, 999):
        torch.testing.assert_close(jump(lambda x, t, cond: 7 * x - 3, SCHEDULE, x_t, t, t, told(3)), x_t, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("t", "s"), [(999, 0), (999, 499), (499, 19), (39, 19)])
def test_a_jump_of_the_perfect_student_is_the_flow(t, s):
    x_t = tiny.randn(1, 4, 1, 1, 8, 8)
    torch.testing.assert_close(jump(best, SCHEDULE, x_t, t, s, told(4)), flow(x_t, t, s), rtol=0, atol=1e-3)


def test_goals_lie_on_the_grid_as_far_below_as_steps_of_students_go():
    for skip, lengths in ((125, {125, 250, 500, 1000}), (20, {140, 260, 500, 1000})):
        t, t_prev = SCHEDULE.sample_pair(4000, seeded(), skip)
        s = SCHEDULE.sample_goal(t, skip, seeded(1))
        assert ((s >= 0) & (s <= t_prev)).all() and set((t - s)[s > 0].tolist()) == lengths - {1000}
        first = s[t == 999]
        assert set(first.tolist()) == {max(999 - length, 0) for length in lengths} and 0.15 < (first == 0).float().mean() < 0.35


def test_the_x0_of_a_step_is_what_takes_it():
    x_t, x0 = tiny.randn(5, 4, 1, 1, 4, 4), tiny.randn(6, 4, 1, 1, 4, 4)
    t, s = torch.tensor([999, 999, 499, 39]), torch.tensor([874, 0, 19, 0])
    x_s = SCHEDULE.ddim_step(x_t, x0, t, s)
    torch.testing.assert_close(SCHEDULE.x0_of_step(x_t, x_s, t, s), x0, rtol=0, atol=2e-4)


def test_the_second_solver_step_is_twice_as_long():
    x_t, t, t_prev = tiny.randn(1, 3, 1, 1, 4, 4), torch.tensor([999, 124, 100]), torch.tensor([874, 0, 99])
    part, end = torch.tensor([958, 83, 100]), solver_step(teacher, SCHEDULE, x_t, t, t_prev, told(3), told(3), 0, 2)
    between = solver_step(teacher, SCHEDULE, x_t, t, part, told(3), told(3), 0)
    torch.testing.assert_close(end, solver_step(teacher, SCHEDULE, between, part, t_prev, told(3), told(3), 0))
    exact, one = flow(x_t, t, t_prev), solver_step(teacher, SCHEDULE, x_t, t, t_prev, told(3), told(3), 0)
    assert (end - exact).abs().max() < 0.7 * (one - exact).abs().max()


def test_from_pure_noise_two_such_steps_keep_more_of_what_differs_between_clips_than_two_equal_ones():
    """What a whole clip has in common is known at much noise: as one number of a wide world."""
    wide, x_t = tiny.gaussian(0.0, 25.0), torch.ones(1, 1, 1, 1, 1)
    t, half, t_prev = (torch.tensor([value]) for value in (999, 937, 874))
    step = lambda x, t, s, n=1: solver_step(wide, SCHEDULE, x, t, s, told(1), told(1), 0, n).item()  # noqa: E731
    alpha, sigma = SCHEDULE.alpha_sigma(t_prev, x_t)
    exact = ((25 * alpha) ** 2 + sigma**2).sqrt().item()
    even = step(torch.full_like(x_t, step(x_t, t, half)), half, t_prev)
    assert step(x_t, t, t_prev) < even < step(x_t, t, t_prev, 2) < step(x_t, t, t_prev, 3) < exact


def test_the_solver_guides_between_timesteps():
    x_t, cond, null = tiny.randn(1, 2, 1, 1, 4, 4), told(2), told(2).null(torch.ones(1, 1, 1))
    biased = lambda x, t, cond: teacher(x, t, cond) + cond.context.mean((1, 2)).reshape(-1, 1, 1, 1, 1)  # noqa: E731
    t, t_prev = torch.tensor([600, 124]), torch.tensor([475, 0])  # by way of 559 and 83
    between = solver_step(biased, SCHEDULE, x_t, t, torch.tensor([559, 83]), cond, null, torch.tensor([2.0, 0.0]))
    wanted = solver_step(biased, SCHEDULE, between, torch.tensor([559, 83]), t_prev, cond, null, 0)
    torch.testing.assert_close(solver_step(biased, SCHEDULE, x_t, t, t_prev, cond, null, 2.0, 2, guided=(570, 1000)), wanted)


def pair_loss(student, target, skip, w=0, batch=512):
    g = seeded()
    t, t_prev = SCHEDULE.sample_pair(batch, g, skip)
    x_t = SCHEDULE.add_noise(MEAN + DEVIATION * torch.randn(batch, 1, 1, 4, 4, generator=g), torch.randn(batch, 1, 1, 4, 4, generator=g), t)
    return consistency_pair_loss(student, target, teacher, SCHEDULE, x_t, t, t_prev, told(batch), told(batch), w, s=SCHEDULE.sample_goal(t, skip, g))


def test_the_loss_of_the_perfect_student_shrinks_with_the_solver_step_and_others_have_more():
    losses = [pair_loss(best, best, skip).item() for skip in (100, 20, 4)]
    assert losses[0] > 4 * losses[1] > 16 * losses[2] and losses[2] < 1e-4
    assert pair_loss(teacher, best, 4) > 20 * losses[2]
    assert pair_loss(lambda x, t, cond: best(x, t, replace(cond, s=torch.zeros_like(cond.s))), best, 4) > 20 * losses[2]  # deaf to s


def test_where_the_data_is_one_video_every_jump_follows_the_line_to_it():
    video, g = tiny.randn(2, 1, 1, 1, 4, 4), seeded()
    t, t_prev = SCHEDULE.sample_pair(256, g, 20)
    x_t = SCHEDULE.add_noise(video.expand(256, -1, -1, -1, -1), torch.randn(256, 1, 1, 4, 4, generator=g), t)
    known = lambda x, t, cond: video.expand_as(x)  # noqa: E731
    s = SCHEDULE.sample_goal(t, 20, g)
    loss = lambda student: consistency_pair_loss(student, known, known, SCHEDULE, x_t, t, t_prev, told(256), told(256), 0, s=s)  # noqa: E731
    assert loss(known) < 1e-5 and loss(lambda x, t, cond: 1.05 * video.expand_as(x)) > 5e-3


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_perfect_student_needs_no_randomness_in_any_number_of_steps(steps):
    shape = (1, 1, 200, 200)
    *_, last = sample_tcd(best, SCHEDULE, Noise(shape, [3]), NOBODY, steps, 0)
    assert last.x0.mean().item() == pytest.approx(MEAN, abs=0.02) and last.x0.std().item() == pytest.approx(
        DEVIATION, abs=0.04
    )  # t = 0 has sigma .03
    *_, without = sample_tcd(teacher, SCHEDULE, Noise(shape, [3]), NOBODY, steps, 0)
    assert DEVIATION - without.x0.std().item() > 0.1


def test_samplers_say_where_a_step_goes():
    seen = []

    def denoise(x_t, t, cond):
        seen.append((int(t[0]), cond.s if cond.s is None else int(cond.s[0])))
        return x_t

    for sampler, gamma in ((sample_tcd, [0]), (sample_tcd, [0.5]), (sample_lcm, [])):
        list(sampler(denoise, SCHEDULE, Noise((1, 1, 2, 2), [0]), NOBODY, 4, *gamma))
    assert seen[:4] == [(999, 759), (759, 499), (499, 259), (259, 0)]
    assert [s for _, s in seen[4:8]] == [379, 249, 129, 0] and [s for _, s in seen[8:]] == [None] * 4


def test_distilling_teaches_every_jump_what_the_teacher_needs_many_steps_for():
    """A gain for each pair (t, s) of a grid, on zero-mean Gaussian data: known is the product of the teacher's DDIM steps between them."""
    grid = torch.tensor([0, *range(124, 1000, 125)])
    alpha, sigma = (a.flatten() for a in SCHEDULE.alpha_sigma(grid, torch.zeros(9, 1)))

    class Gains(nn.Module):
        def __init__(self, columns):
            super().__init__()
            self.gain = nn.Parameter((alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2))[:, None].repeat(1, columns))

        def forward(self, x_t, t, cond):
            s = torch.zeros_like(t) if cond.s is None or self.gain.shape[1] == 1 else (cond.s + 1) // 125
            return self.gain[(t + 1) // 125, s].reshape(-1, 1, 1, 1, 1) * x_t

    known, student = Gains(1), Gains(9)
    target, g = copy.deepcopy(student), seeded()
    optimiser = torch.optim.Adam(student.parameters(), 2e-2)
    for _ in range(700):
        t, t_prev = SCHEDULE.sample_pair(128, g, 125)
        x_t = SCHEDULE.add_noise(DEVIATION * torch.randn(128, 1, 1, 2, 2, generator=g), torch.randn(128, 1, 1, 2, 2, generator=g), t)
        s = SCHEDULE.sample_goal(t, 125, g)
        loss = consistency_pair_loss(student, target, known, SCHEDULE, x_t, t, t_prev, told(128), told(128), 0, s=s)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        update_ema(target, student, 0.95)
    one = torch.ones(1, 1, 1, 1, 1)
    for t, s in ((999, 0), (999, 499), (499, 0), (749, 624), (874, 624)):
        expected = one
        for at in range(t, s, -125):
            expected = SCHEDULE.ddim_step(expected, known(expected, torch.tensor([at]), told(1)), at, max(at - 125, 0))
        assert jump(target, SCHEDULE, one, torch.tensor([t]), torch.tensor([s]), told(1)).item() == pytest.approx(expected.item(), abs=0.04)


def test_a_share_of_a_batch_begins_where_the_student_goes_from_noise():
    t, own = torch.tensor([999, 874, 249, 124]), torch.tensor([True, True, True, False])
    x_t, eps = tiny.randn(1, 4, 1, 1, 4, 4), tiny.randn(2, 4, 1, 1, 4, 4)
    begun = own_beginnings(best, SCHEDULE, x_t, eps, t, told(4), own)
    torch.testing.assert_close(begun[0], eps[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(begun[1:3], flow(eps, torch.full_like(t, 999), t)[1:3], rtol=0, atol=1e-3)
    assert torch.equal(begun[3], x_t[3])


def test_a_student_that_begins_where_it_goes_itself_trains_and_resumes_bit_for_bit(tmp_path):
    teacher, clips = tiny.toybox("teacher", torch.float32), tiny.clips()
    losses = {}
    for name, share in (("none", 0.0), ("some", 0.7)):
        stage = distill_stage(teacher, clips, replace(CONFIG, iterations=4, share_own=share))
        losses[name] = [step.loss for step in train(stage, tmp_path / name)]
    halves = distill_stage(teacher, clips, replace(CONFIG, iterations=4, share_own=0.7))
    first = train(halves, tmp_path / "halves")
    found = [next(first).loss, next(first).loss]
    first.close()
    assert found + [step.loss for step in train(halves, tmp_path / "halves", resume=True)] == losses["some"] != losses["none"]


# ---- guidance as an input


def test_guidance_may_differ_from_sample_to_sample():
    cond, x_t, t = Conditions(tiny.randn(0, 3, 2, 4)), tiny.randn(1, 3, 1, 1, 4, 4), torch.tensor([99, 499, 999])
    null, w = cond.null(tiny.randn(2, 1, 2, 4)), torch.tensor([0.0, 2.5, 9.0])
    denoise = lambda x, t, cond: x * cond.context.mean((1, 2)).reshape(-1, 1, 1, 1, 1)  # noqa: E731
    rows = [[value.map(lambda tensor, i=i: tensor[i : i + 1]) for value in (cond, null)] for i in range(3)]
    one = [guide(denoise, x_t[i : i + 1], t[i], *rows[i], w[i].item()) for i in range(3)]
    torch.testing.assert_close(guide(denoise, x_t, t, cond, null, w), torch.cat(one))


def test_a_student_that_is_told_w_learns_what_each_w_gives():
    """A teacher that knows one video for the text and another for none: guided it goes to (1 + w) video - w other, which is linear in w."""
    video, other = 1.3, -0.4

    def knows(x_t, t, cond):
        return (other + (video - other) * cond.context.mean((1, 2))).reshape(-1, 1, 1, 1, 1).expand_as(x_t)

    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.tensor(video)), nn.Parameter(torch.tensor(0.0))

        def forward(self, x_t, t, cond):
            return (self.a + self.b * cond.w).reshape(-1, 1, 1, 1, 1).expand_as(x_t)

    student, g = Line(), seeded()
    target, optimiser = copy.deepcopy(student), torch.optim.Adam(student.parameters(), 2e-2)
    for _ in range(900):
        t, t_prev = SCHEDULE.sample_pair(64, g, 500)
        w = 3 * torch.rand(64, generator=g)
        cond = Conditions(torch.ones(64, 1, 1), w=w)
        x_t = SCHEDULE.add_noise(torch.full((64, 1, 1, 2, 2), video), torch.randn(64, 1, 1, 2, 2, generator=g), t)
        loss = consistency_pair_loss(student, target, knows, SCHEDULE, x_t, t, t_prev, cond, cond.null(torch.zeros(1, 1, 1)), w, 10.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        update_ema(target, student, 0.95)
    for w in (0.0, 1.0, 2.7):
        assert (target.a + w * target.b).item() == pytest.approx((1 + w) * video - w * other, abs=0.15)


# ---- networks, checkpoints, the door

CONFIG = DistillConfig(iterations=3, batch=4, lr=4e-3, ema=0.4, w_range=(0.5, 3.0), two_time=True)


def inputs(w=None, s=None):
    cond = Conditions(tiny.randn(3, 2, 3, 16))
    return tiny.randn(4, 2, 4, 2, 4, 4), torch.tensor([499, 999]), replace(cond, w=w, s=s)


def test_a_network_that_is_told_more_says_at_first_what_it_said():
    plain, net = tiny.denoiser(), tiny.denoiser().with_inputs(("w", "s"))
    w, s = torch.tensor([0.5, 3.0]), torch.tensor([0, 499])
    assert torch.equal(net(*inputs(w, s)), plain(*inputs()))
    assert set(net.state_dict()) - set(plain.state_dict()) == {"told.weight"}
    tiny.awake(net)
    answers = [net(*inputs(*both)) for both in ((w, s), (w.flip(0), s), (w, s.flip(0)))]
    assert not torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])
    assert torch.equal(net(*inputs(w, None)), net(*inputs(w, torch.zeros(2, dtype=torch.long))))
    again = Denoiser(net.config)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(*inputs(w, s)), answers[0]) and config_of(net)["inputs"] == ("w", "s")


def test_conditions_keep_w_and_s_when_maps_or_text_change():
    cond = Conditions(torch.zeros(2, 1, 1), depth=torch.zeros(2, 1, 1, 1, 1)).with_w(1.5).towards(499)
    for other in (cond.with_maps({}), cond.null(torch.ones(1, 1, 1)), cond.map(lambda value: value)):
        assert other.w.tolist() == [1.5, 1.5] and other.s.tolist() == [499, 499]
    assert cond.with_maps({}).depth is None and cond.cat(cond).w.shape == (4,)


@pytest.fixture
def base(tmp_path):
    return tiny.teacher_folder(tmp_path / "base")


@pytest.mark.parametrize("lora", [None, 2])
def test_a_student_from_training_to_sampling(base, tmp_path, lora):
    config = replace(CONFIG, lora=lora)
    known = models.load(base, "teacher", device="cpu", dtype="float32")
    whole = [step.loss for step in train(distill_stage(known, tiny.clips(), config), tmp_path / "whole")]
    first = train(distill_stage(known, tiny.clips(), config), tmp_path / "run")
    losses = [next(first).loss]
    first.close()
    assert losses + [step.loss for step in train(distill_stage(known, tiny.clips(), config), tmp_path / "run", resume=True)] == whole
    net, iteration = finished_student(tmp_path / "run", known, config)
    write_student(tmp_path / "run", str(base), net, iteration, config)
    student = models.load(tmp_path / "run", device="cpu", dtype="float32")
    assert student.denoiser.told.weight.abs().max() > 0  # it has learned to listen
    assert (student.info.w_range, student.info.guidance, student.info.role) == ((0.5, 3.0), 1.0, "student")
    assert student_info(known.info, config).w_range == (0.5, 3.0)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["distilled"]["two_time"] is True
    made = {w: clip(student, guidance=w) for w in (None, 1.0, 3.0)}
    assert made[None].sha256 == made[1.0].sha256 != made[3.0].sha256
    assert made[None].settings["guidance"] == 1.0 and made[3.0].nfe == 2  # no second branch
    with pytest.raises(AppError, match="E_W_RANGE"):
        clip(student, guidance=9.0)
    assert models.load(tmp_path / "run", "teacher", device="cpu", dtype="float32").info.w_range is None


def clip(model, **knobs):
    *_, result = generate(model, Request("a red ball", steps=2, sampler="tcd", gamma=0, height=128, width=128, frames=8, **knobs))
    return result


def test_w_and_s_are_drawn_for_the_update_and_change_the_loss():
    known = tiny.toybox("teacher")
    stage = distill_stage(known, tiny.clips(), CONFIG)
    net = tiny.awake(stage.make())
    whole, halves = stage.loss(net, net, 1), [stage.loss(net, net, 1, slice(i, i + 2)) for i in (0, 2)]
    assert whole.item() == pytest.approx(sum(half.item() for half in halves) / 2, rel=1e-4)
    plain = distill_stage(known, tiny.clips(), replace(CONFIG, w_range=None, two_time=False))
    assert plain.loss(plain.make(), known.denoiser, 1).item() != pytest.approx(whole.item(), rel=1e-4)


def test_a_network_without_a_place_for_them_is_refused():
    fake = FakeModel("teacher")
    fake.denoiser = nn.Linear(1, 1)
    assert isinstance(student_net(fake, replace(CONFIG, w_range=None, two_time=False)), nn.Linear)
    with pytest.raises(AppError, match="E_INPUTS"):
        student_net(fake, CONFIG)


def test_the_range_of_w():
    assert range_of(None) is None and range_of("0,4.5") == (0.0, 4.5)
    for bad in ("", "3", "3,1", "1,1", "-1,2", "0,31", "a,b", "0,1,2", "nan,1"):
        with pytest.raises(AppError, match="E_NUMBER"):
            range_of(bad)
