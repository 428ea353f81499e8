"""The bench of a training step on a tiny teacher: what is in it and how its figures hang together, never how fast it was."""

import pytest
import tiny

from videolcm import bench_training
from videolcm.models.denoiser import Denoiser


def test_a_step_beside_its_parts(monkeypatch, tmp_path):
    configs, calls = [], []
    stage, forward = bench_training.distill_stage, Denoiser.forward
    monkeypatch.setattr(bench_training, "distill_stage", lambda teacher, clips, config: configs.append(config) or stage(teacher, clips, config))
    monkeypatch.setattr(
        Denoiser, "forward", lambda net, x_t, t, cond: calls.append((len(x_t), cond.masked is not None)) or forward(net, x_t, t, cond)
    )
    monkeypatch.setattr(bench_training, "toybox_clips", lambda folder, teacher, report, least: tiny.clips())
    monkeypatch.setattr(bench_training, "operations", lambda model, size: 1e6)
    monkeypatch.setattr(bench_training, "matmul_peak", lambda dtype, device: 100.0)
    monkeypatch.setattr(bench_training, "official_operations", lambda: 1e12)
    heard, teacher = [], tiny.toybox("teacher")
    found = bench_training.training_step(teacher, tmp_path, heard.append, batch=2, rounds=2)
    assert len(heard) == 3 and found["peak_mebibytes"] > 50
    assert [(one.optimiser, one.guidance, one.batch) for one in configs] == [("muon", teacher.info.guidance, 2)]
    step, part = [(4, True), (2, True), (2, True)], (2, True)  # the teacher with and without text, target, student; the same maps for all
    assert calls == [*step, part, part] * 3
    assert all(found[f"seconds_{name}"] >= 0 for name in ("step", "forward", "forward_and_backward")) and found["step_over_parts"] > 0
    assert found["share_of_peak"] == pytest.approx(6 * found["samples_per_second"] * 1e6 / 1e11, abs=1e-3)


def test_an_estimate_is_work_over_speed(monkeypatch):
    monkeypatch.setattr(bench_training, "official_operations", lambda: 312e12 / 6)
    assert bench_training.paper_estimate(0.5) == {"samples_per_second_and_gpu": 0.5, "hours": 35.6, "gpu_hours": 142.2}


def test_the_official_network_is_counted_without_being_computed():
    assert 5e12 < bench_training.official_operations() < 5e13
