"""Metrics of clips against other implementations, closed forms, and clips whose motion and faults are put there."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

from videolcm.judge import Judge
from videolcm.metrics import (
    IDENTICAL,
    depth_error,
    edge_f1,
    feature_distance,
    flicker,
    frechet_distance,
    map_correlation,
    motion,
    motion_ratio,
    motion_warning,
    optical_flow,
    psnr,
    psnr_outside,
    square_root,
)


def texture(height=96, width=128, seed=0):
    """A smooth random picture that repeats at its borders, uint8 (H, W, 3)."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = gaussian_filter(noise, (2, 2, 0), mode="wrap")
    return (127.5 + 50 * smooth / smooth.std()).clip(0, 255).astype(np.uint8)


def moving(x, y, count=6):
    """A texture that goes x pixels to the right and y down every frame, uint8 (F, H, W, 3)."""
    return np.stack([np.roll(texture(), (y * i, x * i), (0, 1)) for i in range(count)])


STANDING = moving(0, 0)


@pytest.mark.parametrize(("x", "y"), [(3, 0), (0, -2), (2, 1), (-3, 4)])
def test_the_flow_of_a_moving_texture_is_its_motion(x, y):
    flow = optical_flow(moving(x, y))
    assert flow.shape == (5, 96, 128, 2) and flow.dtype == np.float32
    inside = flow[:, 16:-16, 16:-16]  # what leaves at one side comes back at the other
    assert np.abs(inside - (x, y)).mean() < 0.1
    assert motion(inside) == pytest.approx(math.hypot(x, y), rel=0.03)


def test_a_still_clip_has_neither_motion_nor_flicker():
    flow = optical_flow(STANDING)
    assert motion(flow) < 1e-3 and flicker(STANDING, flow) < 1e-3


def test_motion_is_no_flicker_and_changing_light_is():
    clip = moving(3, 1)
    lit = (clip * 0.7 + 20 + 12 * (np.arange(6) % 2)[:, None, None, None]).astype(np.uint8)
    steady, flickering = (flicker(frames, optical_flow(frames)) for frames in (clip, lit))
    assert steady < 6 and 9 < flickering < 15
    assert np.abs(np.diff(clip.astype(int), axis=0)).mean() > 4 * steady  # without the flow


def test_flicker_does_not_look_where_something_is_hidden():
    clip = np.stack([texture(seed=1)] * 6)
    for i in range(6):
        clip[i, 30:60, 10 + 8 * i : 40 + 8 * i] = texture(30, 30, seed=2)
    assert flicker(clip, optical_flow(clip)) < 3


def test_motion_ratio_and_warning():
    assert motion_ratio(1.0, 4.0) == 0.25 and motion_ratio(0.0, 1.0) == 0
    assert motion_ratio(1.0, 0.01) is motion_warning(None) is motion_warning(0.6) is motion_warning(1.4) is None
    assert "loses motion" in motion_warning(0.25) and "25%" in motion_warning(0.25) and len(motion_warning(0)) < 200


def test_psnr_is_that_of_scikit_image():
    first, second = moving(1, 0), moving(1, 1)
    assert psnr(first, second) == pytest.approx(peak_signal_noise_ratio(first, second), abs=1e-4)


def test_psnr_of_equal_and_almost_equal_clips_can_be_written_as_json():
    almost = np.zeros((16, 256, 256, 3), np.uint8)
    almost[0, 0, 0, 0] = 1
    values = [psnr(almost, almost), psnr(almost, np.zeros_like(almost))]
    assert json.dumps(values, allow_nan=False) == json.dumps([IDENTICAL, IDENTICAL]) and psnr(almost, almost + 1) < IDENTICAL


def test_psnr_outside_a_mask():
    first, mask = moving(1, 0), np.zeros((6, 96, 128), bool)
    mask[:, :48] = True
    second = first.copy()
    second[:, :48] = 0
    assert psnr_outside(second, first, mask) == IDENTICAL > psnr(second, first)
    second[:, 48:] += 3
    assert psnr_outside(second, first, mask) == pytest.approx(psnr(second[:, 48:], first[:, 48:]))
    assert psnr_outside(second, first, np.ones_like(mask)) is None


# ---- features


class Colours(nn.Module):
    """A judge with one convolution, which copies the pixels."""

    def __init__(self):
        super().__init__()
        self.copy = nn.Conv2d(3, 3, 1, bias=False)
        self.copy.weight.data = torch.eye(3)[:, :, None, None]

    def forward(self, clips):
        return self.copy(clips.flatten(0, 1))


def test_feature_distance_is_two_minus_two_cosines():
    red, green, dark = (np.full((8, 128, 128, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 0)))
    assert feature_distance(Colours(), red, green) == pytest.approx(2 + 2 / 3)  # cosine of (1, -1, -1) and (-1, 1, -1): -1/3
    assert feature_distance(Colours(), red, dark) == pytest.approx(2 - 2 / 3)
    assert feature_distance(Colours(), red, red) == 0


def test_feature_distance_of_the_real_judge_grows_with_the_fault():
    torch.manual_seed(0)
    net, clip = Judge().eval(), moving(2, 0, 16)
    noise = np.random.default_rng(0).normal(size=clip.shape)
    faults = [(clip + size * noise).clip(0, 255).astype(np.uint8) for size in (5, 20, 60)]
    near = [feature_distance(net, fault, clip) for fault in faults]
    assert feature_distance(net, clip, clip) == 0 < near[0] < near[1] < near[2] <= 4
    assert feature_distance(net, clip, faults[0]) == pytest.approx(near[0])
    assert not any(layer._forward_hooks for layer in net.modules())


# ---- control maps


def test_depth_error_knows_no_unit():
    ramp = np.linspace(0, 1, 4 * 8 * 8).reshape(4, 8, 8)
    assert depth_error(ramp, 5 + 300 * ramp) == pytest.approx(0)
    assert depth_error(ramp, 1 - ramp) == pytest.approx(0.5, abs=0.01)
    assert depth_error(ramp, np.full_like(ramp, 7)) == pytest.approx(0.5) and depth_error(0 * ramp, 0 * ramp) == 0


def test_map_correlation_is_pearsons():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 8, 8))
    assert map_correlation(a, a + b) == pytest.approx(np.corrcoef(a.ravel(), (a + b).ravel())[0, 1])
    assert map_correlation(a, 3 - 2 * a) == pytest.approx(-1) and map_correlation(a, np.ones_like(a)) is None
    assert map_correlation(np.arange(64, dtype=np.uint8).reshape(1, 8, 8), np.arange(64).reshape(1, 8, 8)) == pytest.approx(1)


def line(column, rows=slice(None)):
    lines = np.zeros((2, 32, 32))
    lines[:, rows, column] = 1
    return lines


def test_edge_f1():
    assert edge_f1(line(9), line(9)) == edge_f1(line(9), line(12)) == edge_f1(0 * line(9), 0 * line(9)) == 1
    assert edge_f1(line(9), line(13)) == edge_f1(line(9), 0 * line(9)) == edge_f1(0 * line(9), line(9)) == 0
    assert edge_f1(line(9), line(13), tolerance=4) == 1
    half = edge_f1(line(9), line(9, slice(16)), tolerance=0)  # precision 1, recall 1/2
    assert half == pytest.approx(2 / 3) and half == edge_f1(line(9, slice(16)), line(9), tolerance=0)


def test_edges_are_looked_for_in_their_own_frame():
    first, last = line(9), line(9)
    first[1], last[0] = 0, 0
    assert edge_f1(first, last) == 0


def test_edge_f1_is_that_of_an_exact_distance_transform():
    rng = np.random.default_rng(1)
    wanted, made = (rng.random((3, 40, 50)) > 0.985 for _ in range(2))
    far = [np.stack([distance_transform_edt(~frame) for frame in lines]) for lines in (wanted, made)]
    precision, recall = (far[0][made] <= 3).mean(), (far[1][wanted] <= 3).mean()
    assert 0.2 < precision < 0.9
    assert edge_f1(wanted, made) == pytest.approx(2 * precision * recall / (precision + recall))


# ---- Frechet distance


def test_frechet_distance_of_gaussians_in_one_dimension():
    a = np.random.default_rng(0).normal(size=(500, 1))
    a = (a - a.mean()) / a.std(ddof=1)
    assert frechet_distance(2 * a + 1, 5 * a - 3) == pytest.approx((1 + 3) ** 2 + (2 - 5) ** 2)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9) and frechet_distance(a, a) >= 0


@pytest.mark.parametrize("count", [200, 9])  # with 9 of 12 dimensions the covariances are singular
def test_frechet_distance_is_that_of_scipys_square_root(count):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(count, 12)), rng.normal(size=(count, 12)) @ rng.normal(size=(12, 12)) + 0.5
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    cross = sqrtm(cov_a @ cov_b + 1e-12 * np.eye(12)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * cross)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4) and frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_square_root():
    a = np.random.default_rng(0).normal(size=(6, 9))
    root = square_root(a @ a.T)
    assert np.allclose(root @ root, a @ a.T) and np.allclose(root, root.T)
    assert np.allclose(square_root(np.diag([4.0, 0, -1e-18])), np.diag([2.0, 0, 0]))
