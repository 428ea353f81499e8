"""Noise is of its seed and its timestep, and of nothing else."""

import numpy as np
import pytest
import torch

from videolcm.sampling import Noise, mix

SHAPE = (4, 2, 4, 6)  # C, F, h, w


def test_noise_is_float32_and_depends_on_seed_and_timestep_alone():
    torch.manual_seed(0)
    state, noise = torch.get_rng_state(), Noise(SHAPE, [3, 4, 3])
    drawn = noise.at(499)
    assert drawn.shape == (3, *SHAPE) and drawn.dtype == torch.float32 and drawn.device.type == "cpu"
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn, noise.at(499)) and torch.equal(drawn, noise.at(torch.tensor(499)))
    assert torch.equal(drawn[1:2], Noise(SHAPE, 4).at(499)) and torch.equal(drawn[1:2], Noise(SHAPE, np.int64(4)).at(499))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(drawn, noise.initial())


def test_noise_is_moved_after_it_was_drawn():
    assert Noise(SHAPE, [1, 2], "meta").initial().device.type == "meta"


def test_the_generator_seed_is_the_same_in_every_process_and_release():
    assert mix(0, 999) == 17719952573435211927 and mix(1, 999) == 14907768049245813216


def test_neighbouring_seeds_and_timesteps_are_independent():
    size = 10000
    fields = [Noise((size,), seed).at(t)[0] for seed in (0, 1, 2, 3) for t in (979, 980, 998, 999)]
    correlation = torch.corrcoef(torch.stack(fields)).fill_diagonal_(0)
    assert correlation.abs().max() < 4.5 / size**0.5
    for field in fields:
        assert abs(field.mean()) < 4.5 / size**0.5 and field.std().item() == pytest.approx(1, abs=0.04)
    used = {mix(seed, t) & 0xFFFFFFFF for seed in range(500) for t in (999, 759, 499, 259)}
    assert len(used) == 2000


def test_a_seed_and_timestep_cannot_be_confused_with_others():
    assert mix(1, 23) != mix(12, 3) and mix(5, 7) != mix(7, 5)
