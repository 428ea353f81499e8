"""Processes that share a run: two gloo processes, as torchrun starts them, beside one that takes a batch twice as large."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from videolcm import __main__ as command_line
from videolcm import models
from videolcm.checkpoint import load_checkpoint
from videolcm.distill import DistillConfig, distill_stage
from videolcm.errors import AppError
from videolcm.processes import agreed, average, rank, together, world
from videolcm.training import Run, train

TESTS = Path(__file__).parent
KNOBS = "--iterations 10 --skip 100 --dtype float32 --threads 1 --seed 3 --optimiser adamw"


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder):
    return [row["loss"] for row in log(folder)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the runs of two processes, and what they printed: whole, halted after an iteration and resumed, with shares of the network."""
    folder = tmp_path_factory.mktemp("runs")
    teacher, data = tiny.teacher_folder(folder / "tiny"), tiny.data_folder(folder / "data")
    common = f"distill --teacher {teacher} --data {data} {KNOBS}"
    lines = [
        f"{common} --batch 2 --out {folder}/whole",
        f"{common} --batch 2 --out {folder}/parts --minutes 1e-9",
        f"{common} --batch 2 --out {folder}/parts --resume",
        f"{common} --batch 2 --out {folder}/shares --shard --lora 2 --minutes 1e-9",
        f"{common} --batch 2 --out {folder}/shares --shard --lora 2 --resume",
        f"{common} --batch 2 --out {folder}/half --shard --lora 2 --dtype bfloat16",
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(TESTS / "processes_script.py")]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
        "VIDEOLCM_JOBS": str(folder / "jobs"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([*torchrun, *lines], env=env, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-12000:]
    for name, options in (("one", "--batch 4"), ("goes", "--batch 2 --accumulate 2"), ("alone", "--batch 4 --lora 2")):
        assert command_line.main([*common.split(), *options.split(), "--out", str(folder / name)]) == 0
    return folder, done.stdout


def test_two_processes_are_one_with_twice_the_batch(runs):
    one = losses(runs[0] / "one")
    assert len(one) == 10 and len(set(one)) == 10
    for name in ("whole", "goes"):
        assert losses(runs[0] / name) == pytest.approx(one, abs=1e-5)
    (_, mine, _), (_, theirs, _) = (load_checkpoint(runs[0] / name) for name in ("one", "whole"))
    moved = max((value - theirs[name.replace("net/", "ema/")]).abs().max() for name, value in theirs.items() if name.startswith("net/"))
    assert mine.keys() == theirs.keys()
    assert max((mine[name] - theirs[name]).abs().max() for name in mine if name.startswith("net/")) < 0.5 * moved


def test_two_processes_go_on_bit_for_bit(runs):
    assert losses(runs[0] / "parts") == losses(runs[0] / "whole")
    (n, mine, _), (m, theirs, _) = (load_checkpoint(runs[0] / name) for name in ("parts", "whole"))
    assert n == m == 10 and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_shares_of_a_network_learn_what_the_whole_one_does_and_go_on(runs):
    assert losses(runs[0] / "shares") == pytest.approx(losses(runs[0] / "alone"), abs=1e-5)
    whole, shares = (load_checkpoint(runs[0] / name)[1] for name in ("alone", "shares"))
    assert {name: value.shape for name, value in whole.items()} == {name: value.shape for name, value in shares.items()}


def test_shares_compute_in_half_precision_too(runs):
    assert losses(runs[0] / "half") == pytest.approx(losses(runs[0] / "alone"), rel=0.1)
    assert losses(runs[0] / "half") != losses(runs[0] / "alone")


def test_the_first_process_alone_writes_and_speaks(runs):
    folder, said = runs
    told = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [row["folder"] for row in told] == [str(folder / name) for name in ("whole", "parts", "parts", "shares", "shares", "half")]
    assert [row["iteration"] for row in log(folder / "whole")] == list(range(1, 11))
    assert not list((folder / "whole").glob(".*"))
    for name in ("whole", "shares"):
        assert models.load(folder / name, device="cpu").info.role == "student"


def test_a_batch_in_several_goes_is_the_batch():
    found = []
    for batch, accumulate in ((4, 1), (2, 2), (1, 4)):
        stage = distill_stage(tiny.toybox("teacher", torch.float32), tiny.clips(), DistillConfig(batch=batch, accumulate=accumulate, huber=1.0))
        torch.manual_seed(0)
        run = Run(stage, stage.make())
        loss = run.gradients(5)
        found.append([loss.item(), torch.cat([p.grad.flatten() for p in run.net.parameters()])])
        assert stage.samples == 4
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert (gradient - found[0][1]).norm() < 1e-4 * found[0][1].norm()


def test_half_precision_adds_its_goes_in_float32():
    stage = distill_stage(tiny.toybox("teacher", torch.bfloat16), tiny.clips(), DistillConfig(batch=1, accumulate=4))
    run = Run(stage, stage.make())
    run.gradients(0)
    assert all(p.grad.dtype == torch.float32 for p in run.net.parameters()) and all(p.grad is None for p in run.half.net.parameters())
    assert any((p.grad != p.grad.bfloat16().float()).any() for p in run.net.parameters())  # sums that bfloat16 does not hold


def test_one_process_needs_no_others(tmp_path):
    with together():
        assert (rank(), world(), agreed(True, 0)) == (0, 1, (True, 0))
        average([torch.ones(2)])
    stage = distill_stage(tiny.toybox("teacher"), tiny.clips(), DistillConfig(iterations=3, batch=2))
    steps = []
    for step in train(stage, tmp_path, stop=lambda: len(steps) == 2):
        steps.append(step)
    assert len(steps) == 2 and load_checkpoint(tmp_path)[0] == 2


REFUSED = [("--shard", {}), ("--job", {"WORLD_SIZE": "2", "RANK": "0"}), ("--shard --preview-every 5", {"WORLD_SIZE": "2", "RANK": "0"})]


@pytest.mark.parametrize(("options", "environ"), REFUSED)
def test_what_does_not_go_together(monkeypatch, tmp_path, capsys, options, environ):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert command_line.main(["distill", "--out", str(tmp_path / "run"), *options.split()]) == 2
    assert capsys.readouterr().err.startswith("[E_ARGUMENTS]") and not list(tmp_path.iterdir())


def test_processes_that_nobody_started(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(AppError, match="E_PROCESSES"), together():
        pass


def test_no_thread_of_the_group_outlives_it():
    """An import in the middle of the work, as torch.compile's in an optimiser, took the group as a default argument for good."""
    script = """
import os
from videolcm import processes
processes.share_of = lambda environ: processes.Share(0, 2)
def threads():
    return [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
with processes.together():
    import torch
    import torch.distributed.nn
    torch.distributed.all_reduce(torch.ones(3))
    print(sum("gloo" in name for name in threads()))
print(sum("gloo" in name for name in threads()))
"""
    if not Path("/proc/self/task").exists():
        pytest.skip("threads are counted where /proc is")
    env = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=300, check=True)
    during, after = (int(line) for line in done.stdout.split())
    assert during > 0 and after == 0
