"""Distribution matching against a Gaussian world, where the teacher and what denoises the student's results are known; and a training with it."""

import copy
from dataclasses import replace
from functools import partial
from itertools import islice
from types import SimpleNamespace

import pytest
import tiny
import torch

from videolcm import models
from videolcm.distill import DistillConfig, carried, distill_stage, finished_student, student_net, write_student
from videolcm.errors import AppError
from videolcm.matching import LAST, draw_matching, matching_losses
from videolcm.models.base import Conditions
from videolcm.models.denoiser import Denoiser
from videolcm.sampling import sample_lcm, sample_tcd
from videolcm.schedule import CLEAN, Schedule
from videolcm.train_verbs import beginning, distill_namespace, run_distill
from videolcm.training import train

SCHEDULE = Schedule()
MEAN, DEVIATION = 1.5, 0.5
CONFIG = DistillConfig(iterations=3, batch=4, skips=(250,), huber=0.1, guidance=1.0, two_time=True, matching=0.5)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def told(batch):
    return Conditions(torch.zeros(batch, 1, 1))


@pytest.mark.parametrize("s", [CLEAN, 259, 499, 759])
def test_what_is_learned_from_renoised_videos_is_the_denoiser_of_clean_ones(s):
    g, n = seeded(s + 2), 400_000
    x0 = MEAN + DEVIATION * torch.randn(n, 1, 1, 1, 1, generator=g)
    x_s = x0 if s == CLEAN else SCHEDULE.add_noise(x0, torch.randn(x0.shape, generator=g), s)
    t = max(s, 0) + (999 - max(s, 0)) // 3
    x_t = SCHEDULE.add_noise_from(x_s, torch.randn(x0.shape, generator=g), s, t)
    goal, weight = SCHEDULE.x0_of_renoised(x_t, x_s, s, t)
    near = (goal - tiny.gaussian(MEAN, DEVIATION)(x_t, t, None)).flatten().double()
    error = near.std() / n**0.5  # of its mean: the goal itself is noisy
    for regressor in (torch.ones(n), (x_t.flatten() - x_t.mean()) / x_t.std()):
        assert abs((near * regressor).mean()) < 4 * error  # right on average, and wherever x_t is
    assert weight.min() > 0 and weight.max() <= 1
    if s == CLEAN:
        torch.testing.assert_close(goal, x0, rtol=0, atol=1e-4)


def test_a_student_comes_to_the_mean_and_the_spread_of_its_teacher():
    """One that only averages has no spread; a loss of Eq. 2's kind never gives a network it that cannot see what decides."""
    mean, spread = torch.tensor(0.2, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    optimiser = torch.optim.Adam([mean, spread], lr=0.05)
    for iteration in range(250):
        way, drawn = (999, CLEAN), draw_matching(SCHEDULE, (64, 1, 1, 4, 4), True, seeded(iteration))[1]
        score = tiny.gaussian(mean.detach(), spread.detach())
        nets = (lambda x, t, c: mean + spread * x, score, score, tiny.gaussian(MEAN, DEVIATION))
        loss, _ = matching_losses(*nets, SCHEDULE, way, drawn, told(64), told(64), 0)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert mean.item() == pytest.approx(MEAN, abs=0.08) and spread.item() == pytest.approx(DEVIATION, abs=0.08)


def test_each_loss_teaches_its_own_network_and_alike_scores_teach_nothing():
    student, fake = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    nets = [lambda x, t, c, net=net: net(x.unsqueeze(-1)).squeeze(-1) for net in (student, fake)]
    known = tiny.gaussian(MEAN, DEVIATION)
    for seed in range(6):
        way, drawn = draw_matching(SCHEDULE, (8, 1, 1, 4, 4), seed % 2 == 0, seeded(seed))
        loss, learned = matching_losses(nets[0], nets[1], nets[1], known, SCHEDULE, way, drawn, told(8), told(8), 0)
        assert all(g.abs().max() > 0 for g in torch.autograd.grad(loss, [*student.parameters()], retain_graph=True))
        assert all(g is None for g in torch.autograd.grad(loss, [*fake.parameters()], allow_unused=True))
        assert all(g is None for g in torch.autograd.grad(learned, [*student.parameters()], allow_unused=True, retain_graph=True))
        assert all(g.abs().max() > 0 for g in torch.autograd.grad(learned, [*fake.parameters()]))
        alike, _ = matching_losses(nets[0], nets[1], known, known, SCHEDULE, way, drawn, told(8), told(8), 0)
        assert alike.item() == 0


@pytest.mark.parametrize("two_time", [True, False])
def test_ways_are_those_of_samplers_and_looks_lie_beyond_their_ends(two_time):
    drawn = [draw_matching(SCHEDULE, (16, 1, 1, 2, 2), two_time, seeded(seed)) for seed in range(300)]
    fours = SCHEDULE.lcm_timesteps(4).tolist()
    expected = {(999, CLEAN), (999, 499, CLEAN), (*fours, CLEAN)}
    expected |= {(999, 499), *((*fours[: n + 1],) for n in (1, 2, 3))} if two_time else {(*fours[:n], CLEAN) for n in (2, 3)}
    assert {way for way, _ in drawn} == expected
    for way, (eps, at, noise, at_too, noise_too, *fresh) in drawn:
        s = max(way[-1], 0)
        assert eps.shape == noise.shape == noise_too.shape == (16, 1, 1, 2, 2) and not torch.equal(at, at_too)
        assert s + (999 - s) // 4 <= min(at.min(), at_too.min()) and max(at.max(), at_too.max()) < 999 - LAST
        assert len(fresh) == (0 if two_time else len(way) - 2)


def test_what_is_matched_lies_where_samplers_go():
    """The last step's beginning is what lcm or tcd with gamma 0 come to by themselves."""
    seen, known = [], tiny.gaussian(MEAN, DEVIATION)

    def student(x_t, t, cond):
        seen.append((int(t.reshape(-1)[0]), x_t))
        return known(x_t, t, cond)

    fours = SCHEDULE.lcm_timesteps(4).tolist()
    first, look, *fresh = (tiny.randn(seed, 2, 1, 1, 4, 4) for seed in range(5))
    noise = SimpleNamespace(initial=lambda: first, at=lambda t: fresh[fours.index(t) - 1])
    samplers = {True: partial(sample_tcd, gamma=0), False: sample_lcm}
    for two_time, sampler in samplers.items():
        drawn = (first, torch.tensor([900, 950]), look, torch.tensor([800, 990]), look, *([] if two_time else fresh[:2]))
        matching_losses(student, known, known, known, SCHEDULE, (*fours[:3], fours[3] if two_time else CLEAN), drawn, told(2), told(2), 0)
        mine = seen[:]
        seen.clear()
        [*islice(sampler(student, SCHEDULE, noise, told(2), 4), 3)]
        assert [t for t, _ in mine] == [t for t, _ in seen] == fours[:3]
        for (_, one), (_, other) in zip(mine, seen, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        seen.clear()


# ---- a whole training


@pytest.fixture
def base(tmp_path):
    return tiny.teacher_folder(tmp_path / "base")


@pytest.mark.parametrize("two_time", [True, False])
def test_a_student_trains_with_it_and_what_helped_is_left_behind(base, tmp_path, two_time):
    config = replace(CONFIG, two_time=two_time)
    known = models.load(base, "teacher", device="cpu", dtype="float32")
    whole = [step.loss for step in train(distill_stage(known, tiny.clips(), config), tmp_path / "whole")]
    without = [step.loss for step in train(distill_stage(known, tiny.clips(), replace(config, matching=0.0)), tmp_path / "without")]
    first = train(distill_stage(known, tiny.clips(), config), tmp_path / "run")
    losses = [next(first).loss]
    first.close()
    assert losses + [step.loss for step in train(distill_stage(known, tiny.clips(), config), tmp_path / "run", resume=True)] == whole != without
    net, iteration = finished_student(tmp_path / "run", known, config)
    write_student(tmp_path / "run", str(base), net, iteration, config)
    student = models.load(tmp_path / "run", device="cpu", dtype="float32")
    assert student.info.two_time is two_time and not any("fake" in name for name in student.denoiser.state_dict())
    with pytest.raises(AppError, match="E_RESUME"):
        finished_student(tmp_path / "without", known, config)


def test_processes_can_share_it():
    stage = distill_stage(tiny.toybox("teacher"), tiny.clips(), replace(CONFIG, iterations=40))
    net = tiny.awake(stage.make())
    whole, halves = stage.loss(net, net, 30), [stage.loss(net, net, 30, slice(i, i + 2)) for i in (0, 2)]
    assert whole.item() == pytest.approx(sum(half.item() for half in halves) / 2, rel=1e-3)


def test_what_is_not_told_apart_at_first_is_heard_little_by_little():
    known, losses = tiny.toybox("teacher"), {}
    stage = distill_stage(known, tiny.clips(), CONFIG)
    net = tiny.awake(stage.make(), 1)
    for weight in (1.0, 2.0, 4.0):
        stage = distill_stage(known, tiny.clips(), replace(CONFIG, iterations=40, matching=weight))
        losses[weight] = [stage.loss(net, net, iteration).item() for iteration in (0, 5, 30)]
    first, early, late = ([high - low for low, high in ((row[0], row[1]), (row[1], row[2]))] for row in zip(*losses.values(), strict=True))
    assert first == [0, 0]
    for one, two in (early, late):
        assert one > 0.05 and two == pytest.approx(2 * one, rel=1e-3)


def test_a_student_can_begin_as_another(base):
    known = models.load(base, "teacher", device="cpu", dtype="float32")
    begin = copy.deepcopy(student_net(known, CONFIG))
    tiny.awake(begin, 5)
    made = student_net(known, CONFIG, begin.state_dict())
    assert all(torch.equal(value, begin.state_dict()[name]) for name, value in made.state_dict().items())
    assert torch.equal(distill_stage(known, tiny.clips(), CONFIG, begin=begin.state_dict()).make().student.told.weight, begin.told.weight)
    with pytest.raises(AppError, match="E_RESUME"):
        student_net(known, replace(CONFIG, two_time=False), begin.state_dict())


def test_a_student_follows_a_teacher_that_has_learned_more(base):
    """Also where the teacher has grown; what the student alone has stays as it is."""
    now = models.load(base, "teacher", device="cpu", dtype="float32")
    before = Denoiser(replace(tiny.DENOISER, frames_depth=0))
    student = copy.deepcopy(before).with_inputs(("s",))
    tiny.awake(before, 1), tiny.awake(student, 2)
    made, new = carried(student, before, now.denoiser), now.denoiser.state_dict()
    net, old, mine = student_net(now, CONFIG, made).state_dict(), before.state_dict(), student.state_dict()
    for name, value in net.items():
        if name in old:
            torch.testing.assert_close(value - mine[name], new[name] - old[name], rtol=0, atol=1e-5)
        else:
            assert torch.equal(value, new[name] if "frames" in name else mine[name])
    assert any(name not in old and "frames" in name for name in net) and not torch.equal(net["patch.weight"], mine["patch.weight"])


def test_what_a_student_begins_as_is_named_on_the_command_line(base, tmp_path, monkeypatch):
    """Of its own teacher it is that student; of one that is the teacher itself nothing is added."""
    known, begun = models.load(base, "teacher", device="cpu", dtype="float32"), {}
    student = tiny.awake(student_net(known, CONFIG), 5)
    write_student(tmp_path, str(base), student, 1, CONFIG)
    for since in (None, str(base)):
        begun[since] = beginning(replace(CONFIG, begin=str(tmp_path), since=since), str(base))
    assert all(torch.equal(value, begun[None][name]) for name, value in begun[str(base)].items())
    assert torch.equal(begun[None]["told.weight"], student.told.weight.half().float())


@pytest.mark.parametrize("words", ["--two-time --matching 1 --shard", "--begin toybox --lora 4", "--two-time --matching -1", "--since toybox"])
def test_what_does_not_go_together_is_refused(words, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(AppError):
        run_distill(distill_namespace(words.split()))
