"""The training loop on a network of three layers: resuming bit for bit, closing, losses that are not numbers, rates, and Muon's core."""

import copy
import json
import os
import random
import signal
import time
from multiprocessing import get_all_start_methods, get_context

import pytest
import torch
from torch import nn

from videolcm import optim
from videolcm.checkpoint import load_checkpoint
from videolcm.errors import AppError
from videolcm.optim import HalfCopy, MuonAdamW, orthogonal
from videolcm.training import Run, Stage, averaged_weights, cut_log, generator, train


class Small(nn.Module):
    """A convolution and two layers, one of them an output, with buffers of both kinds."""

    def __init__(self):
        super().__init__()
        self.conv, self.hidden, self.leave = nn.Conv1d(1, 8, 3, padding=1), nn.Linear(48, 16), nn.Linear(16, 2)
        self.register_buffer("shift", torch.full((6,), 0.5))
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x):
        return self.leave(torch.tanh(self.hidden(torch.tanh(self.conv((x + self.shift)[:, None]).flatten(1)))))


def stage(bad=(), **settings):
    """A Stage that learns to copy two of six numbers, with `bad` iterations whose loss is not a number."""

    def loss(net, *rest):
        target, iteration = rest if len(rest) == 2 else (None, *rest)
        x = torch.randn(8, 6, generator=generator(1, iteration))
        half = x.to(net.shift.dtype)
        error = (net(half).float() - x[:, :2]).square().mean()
        if target is not None:
            with torch.no_grad():
                goal = target(half).float()
            error = error + (net(half).float() - goal).square().mean()
        return error * float("nan") if iteration in bad else error

    return Stage(Small, loss, **{"iterations": 7, "lr": 0.02, "batch": 8, "warmup": 3, "dtype": torch.float32, **settings})


def snapshot(run):
    tensors = {**run.net.state_dict(prefix="net."), **run.ema.state_dict(prefix="ema."), **run.optimiser.state()}
    return {name: value.clone() for name, value in tensors.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("with_target", [False, True])
@pytest.mark.parametrize("muon", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_is_an_undisturbed_one_bit_for_bit(tmp_path, dtype, muon, with_target):
    settings = {"dtype": dtype, "muon": muon, "with_target": with_target}
    whole = [step.loss for step in train(stage(**settings), tmp_path / "whole")]
    first = train(stage(**settings), tmp_path / "parts")
    losses = [next(first).loss for _ in range(3)]
    first.close()
    torch.rand(5)  # the global random source is somewhere else
    steps = list(train(stage(**settings), tmp_path / "parts", resume=True))
    assert [step.iteration for step in steps] == [4, 5, 6, 7]
    assert losses + [step.loss for step in steps] == whole and len(set(whole)) == 7
    (n, tensors, _), (m, others, _) = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "parts")
    assert n == m == 7 and same(tensors, others)
    assert any(name.startswith("muon/") for name in tensors) == muon and any(name.startswith("adam/") for name in tensors)


def test_the_average_follows_in_the_log_and_on_disk(tmp_path):
    seen = []
    validate = lambda net, out, iteration: seen.append(net.state_dict()) or {"at": iteration, "folder": out.name}  # noqa: E731
    steps = list(train(stage(validate=validate, validate_every=3), tmp_path / "run"))
    assert [step.figures and step.figures["at"] for step in steps] == [None, None, 3, None, None, 6, 7]
    iteration, weights = averaged_weights(tmp_path / "run")
    assert iteration == 7 and same(weights, seen[-1])
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines == [step.__dict__ for step in steps]


def test_it_learns(tmp_path):
    for muon in (True, False):
        losses = [step.loss for step in train(stage(iterations=200, muon=muon, lr=0.01), tmp_path / f"{muon}")]
        assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


def test_closing_saves(tmp_path):
    running = train(stage(), tmp_path)
    next(running), next(running)
    assert not list(tmp_path.glob("step-*"))
    running.close()
    assert load_checkpoint(tmp_path)[0] == 2


def test_minutes_end_a_run_with_a_checkpoint(tmp_path):
    for minutes in (1e-9, 0):
        steps = list(train(stage(), tmp_path / str(minutes), minutes=minutes))
        assert len(steps) == 1 and load_checkpoint(tmp_path / str(minutes))[0] == 1


def test_every_step_says_how_long_the_run_has_gone_on(tmp_path):
    steps = list(train(stage(), tmp_path))
    assert steps[-1].spent + 0.1 >= sum(step.seconds for step in steps) and steps == sorted(steps, key=lambda step: step.spent)
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["spent"] == steps[-1].spent


def test_resuming_nothing_is_refused(tmp_path):
    with pytest.raises(AppError) as error:
        next(train(stage(), tmp_path, resume=True))
    assert error.value.code == "E_NO_CHECKPOINT"


def test_three_losses_that_are_not_numbers_stop_the_run(tmp_path):
    done = []
    with pytest.raises(AppError) as error:
        for step in train(stage(bad=(2, 3, 4)), tmp_path):
            done.append(step.iteration)
    assert error.value.code == "E_NAN" and done == [1, 2, 3, 4]


@pytest.mark.parametrize("bad", [(2,), (2, 3), (1, 2, 4, 5)])
def test_one_or_two_are_passed_over(tmp_path, bad):
    steps = list(train(stage(bad=bad), tmp_path))
    assert [i for i, step in enumerate(steps) if step.loss != step.loss] == list(bad)
    assert load_checkpoint(tmp_path)[0] == 7


@pytest.mark.parametrize("with_target", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loss_that_is_not_a_number_changes_nothing(dtype, with_target):
    torch.manual_seed(0)
    made = stage(bad=(1,), dtype=dtype, with_target=with_target)
    run = Run(made, made.make())
    run.step(0)
    before = snapshot(run)
    assert run.step(1) != run.step(1)
    assert same(snapshot(run), before)
    run.step(2)
    assert not same(snapshot(run), before)


def test_a_null_in_the_log_and_a_count_of_what_was_skipped(tmp_path):
    steps = list(train(stage(bad=(1, 2, 4)), tmp_path))
    assert [step.skipped for step in steps] == [0, 1, 2, 2, 3, 3, 3]
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] is None for line in lines] == [False, True, True, False, True, False, False]


def test_the_third_in_a_row_leaves_the_last_good_state(tmp_path):
    with pytest.raises(AppError):
        list(train(stage(bad=(2, 3, 4)), tmp_path / "bad"))
    list(train(stage(iterations=7), tmp_path / "good", minutes=None))
    first = train(stage(), tmp_path / "two")
    next(first), next(first), first.close()
    step, tensors, state = load_checkpoint(tmp_path / "bad")
    assert step == 4 and (state["skipped"], state["bad"]) == (2, 2) and all(value.isfinite().all() for value in tensors.values())
    assert same(tensors, load_checkpoint(tmp_path / "two")[1])
    with pytest.raises(AppError, match="E_NAN"):  # as without the interruption
        list(train(stage(bad=(2, 3, 4)), tmp_path / "bad", resume=True))


def test_the_number_of_threads_is_that_of_the_beginning(tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first = train(stage(), tmp_path)
        next(first), first.close()
        torch.set_num_threads(1)
        next(train(stage(), tmp_path, resume=True))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_log_is_cut_to_the_checkpoint(tmp_path):
    first = train(stage(), tmp_path)
    next(first), next(first), first.close()
    whole = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(whole + whole.splitlines()[1].replace('"iteration": 2', '"iteration": 3') + '\n{"iteration": 4, "lo')
    list(train(stage(), tmp_path, resume=True))
    assert [json.loads(line)["iteration"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6, 7]
    list(train(stage(), tmp_path, minutes=1e-9))
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(tmp_path, monkeypatch, fails):
    whole = [step.loss for step in train(stage(), tmp_path / "whole")]
    real, calls = os.fsync, []

    def full(file):
        calls.append(file)
        if len(calls) > 2 * 2 + fails:  # two saves of two files, the log's first
            raise OSError(28, "No space left on device")
        return real(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(AppError, match=r"\[E_DISK\] The disk is full"):
            list(train(stage(), tmp_path / "parts", save_seconds=0))
    at = load_checkpoint(tmp_path / "parts")[0]
    assert 1 <= at < 7 and not list((tmp_path / "parts").glob(".*"))
    assert [step.loss for step in train(stage(), tmp_path / "parts", resume=True)] == whole[at:]
    assert same(load_checkpoint(tmp_path / "whole")[1], load_checkpoint(tmp_path / "parts")[1])


def run_to_be_killed(folder, resume):
    """In a process of its own: saves after every iteration, so that most deaths fall into a save."""
    torch.set_num_threads(1)  # a forked process has no others
    list(train(stage(iterations=40, with_target=True), folder, resume=resume, save_seconds=0))


@pytest.mark.skipif("forkserver" not in get_all_start_methods(), reason="processes are forked from one that has torch ready")
def test_killed_at_any_moment_it_goes_on_bit_for_bit(tmp_path):
    context, moments = get_context("forkserver"), random.Random(5)
    context.set_forkserver_preload([__name__])
    run_to_be_killed(tmp_path / "whole", False)

    def start(name):
        resume = any((tmp_path / name).glob("step-*.json"))
        process = context.Process(target=run_to_be_killed, args=(tmp_path / name, resume))
        process.start()
        return process

    kills = saving = 0
    for turn in range(6):
        process, before = start("parts"), set((tmp_path / "parts").glob("step-*.json"))
        while process.is_alive() and set((tmp_path / "parts").glob("step-*.json")) <= before:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        while turn % 2 and process.is_alive() and not list((tmp_path / "parts").glob(".step-*")):
            pass  # every other time inside a save
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        saving += bool(list((tmp_path / "parts").glob(".*")))
    start("parts").join()
    assert kills >= 4 and saving >= 1
    (n, tensors, _), (m, others, _) = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "parts")
    assert n == m == 40 and same(tensors, others)
    logs = [[(row["iteration"], row["loss"]) for row in map(json.loads, (tmp_path / name / "log.jsonl").open())] for name in ("whole", "parts")]
    assert logs[0] == logs[1] and not list((tmp_path / "parts").glob(".*"))


def test_float16_keeps_gradients_that_it_could_not_hold():
    found = {}
    for dtype in (torch.float32, torch.float16):
        torch.manual_seed(0)
        made = stage(dtype=dtype)
        loss = made.loss
        made.loss = lambda net, iteration, loss=loss: 1e-5 * loss(net, iteration)
        run = Run(made, made.make())
        run.gradients(0)
        run.half.clip_gradients()
        found[dtype] = run.net.conv.weight.grad
    assert found[torch.float32].abs().max() < 1e-5
    torch.testing.assert_close(found[torch.float16], found[torch.float32], rtol=0.1, atol=1e-8)


def test_what_makes_its_own_copies_in_float16_is_scaled_too():
    net = Small()
    half = HalfCopy(net, None, torch.float16, sharded=True)
    (half.scale * net.leave.weight.sum()).backward()
    half.add_gradients()
    assert half.net is net and half.scale > 1
    assert half.clip_gradients() == pytest.approx(32**0.5) and net.leave.weight.grad.norm() == pytest.approx(1, rel=1e-4)


def test_a_run_that_begins_anew_leaves_none_of_another_to_go_on_with(tmp_path):
    list(train(stage(), tmp_path))
    began = train(stage(iterations=3), tmp_path)
    next(began)
    assert not list(tmp_path.glob("step-*"))
    began.close()
    assert [path.name for path in tmp_path.glob("step-*.json")] == ["step-00000001.json"]


def test_the_rate_warms_up_stays_and_falls_to_zero():
    plan = Stage(None, None, 1000, 0.5, 1, warmup=100, cooldown=0.2)
    assert [plan.rate(i) for i in (0, 49, 99)] == [0.005, 0.25, 0.5]
    assert {plan.rate(i) for i in range(99, 801)} == {0.5}
    assert plan.rate(900) == pytest.approx(0.25) and plan.rate(1000) == 0 and 0 < plan.rate(999) < 0.003
    falling = [plan.rate(i) for i in range(800, 1001)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("shape", [(3, 16, 64), (3, 64, 16), (1, 2, 128)])
def test_orthogonal_makes_singular_values_near_one_and_keeps_directions(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * torch.tensor([1e-4, 1, 1e4])[: shape[0], None, None]
    made = orthogonal(x)
    values = torch.linalg.svdvals(made)
    assert made.shape == x.shape and made.dtype == torch.float32
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(made.flatten(1), (u @ v).flatten(1)).min() > 0.95


def test_muon_leaves_what_has_no_gradient_alone():
    net = Small()
    optimiser, before = MuonAdamW(net), net.hidden.weight.detach().clone()
    net.conv.weight.grad = torch.ones_like(net.conv.weight)
    conv = net.conv.weight.detach().clone()
    optimiser.step(1e-2)
    assert torch.equal(net.hidden.weight, before) and not torch.equal(net.conv.weight, conv)


@pytest.mark.parametrize("muon", [True, False])
def test_some_parameters_can_learn_faster_and_resume(tmp_path, muon, monkeypatch):
    monkeypatch.setattr(optim, "WEIGHT_DECAY", 0.0)
    begun, moved = Small(), {}
    for times in (1.0, 3.0):
        run = Run(stage(muon=muon, faster={"conv.": times}), copy.deepcopy(begun))
        run.step(0)
        moved[times] = {name: value - begun.get_parameter(name) for name, value in run.net.named_parameters()}
    for name, change in moved[3.0].items():
        torch.testing.assert_close(change, moved[1.0][name] * (3 if name.startswith("conv.") else 1), rtol=1e-3, atol=1e-6)
    faster = stage(muon=muon, faster={"conv.": 3.0})
    whole = [step.loss for step in train(faster, tmp_path / "whole")]
    first = train(faster, tmp_path / "run")
    losses = [next(first).loss, next(first).loss]
    first.close()
    assert losses + [step.loss for step in train(faster, tmp_path / "run", resume=True)] == whole


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_muon_does_not_lose_small_gradients(dtype):
    x = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(orthogonal(1e-9 * x, dtype), orthogonal(x, dtype))


def test_muon_alone_learns_and_resumes(tmp_path):
    class Adapters(Small):
        """Its matrices learn, and nothing else."""

        def __init__(self):
            super().__init__()
            for name, p in self.named_parameters():
                p.requires_grad_(name in ("conv.weight", "hidden.weight"))

    made = stage()
    made.make = Adapters
    whole = [step.loss for step in train(made, tmp_path / "whole")]
    first = train(made, tmp_path / "parts")
    losses = [next(first).loss, next(first).loss]
    first.close()
    assert len(set(whole)) == 7 and losses + [step.loss for step in train(made, tmp_path / "parts", resume=True)] == whole


def test_muon_takes_hidden_matrices_and_adam_the_rest():
    net = Small()
    assert set(MuonAdamW(net).momentum) == {"conv.weight", "hidden.weight"}
    assert set(MuonAdamW(net).rest) == {"conv.bias", "hidden.bias", "leave.weight", "leave.bias"}
    assert not MuonAdamW(net, muon=False).momentum


def test_of_a_log_what_was_said_up_to_the_checkpoint_stays_and_nothing_that_is_no_step(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"iteration": 1, "loss": 0.5}\n3\n{"iteration": null}\n{"loss": 1}\n{"iteration": 2, "loss": null}\n{"iteration": 3}\n{"iterat')
    cut_log(path, 2)
    assert path.read_text() == '{"iteration": 1, "loss": 0.5}\n{"iteration": 2, "loss": null}\n'
