"""The depth stage: what a batch holds, that the loss sees what it should, and that the network learns; and the shipped network, once there is one."""

from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from safetensors.numpy import save_file

from videolcm import depth, pretrain_depth
from videolcm.conditions import extract
from videolcm.errors import AppError
from videolcm.pretrain_depth import agreement, aligned, batch, depth_clips, depth_stage, midas_loss, worn
from videolcm.training import generator, train


@pytest.fixture
def folder(tmp_path):
    """Two shards of four clips whose depth can be seen: the nearer, the redder, in squares of 64 pixels."""
    rng = np.random.default_rng(0)
    for kind in ("plain", "free"):
        near = rng.integers(0, 256, (4, 1, 4, 4), dtype=np.uint8).repeat(16, 1)
        frames = np.zeros((4, 16, 256, 256, 3), np.uint8)
        frames[..., 0] = near.repeat(64, 2).repeat(64, 3)
        frames[..., 1] = np.arange(16)[:, None, None] * 10
        save_file({"frames": frames, "depth": near.repeat(16, 2).repeat(16, 3)}, tmp_path / f"{kind}-00000.safetensors")
        save_file({"frames": frames}, tmp_path / f"latents-{kind}-00000.safetensors")  # lies there too, is no shard
    return tmp_path


def test_some_frames_of_every_clip_are_kept(folder):
    frames, near = depth_clips(folder)
    assert frames.shape == (8, 4, 256, 256, 3) and near.shape == (8, 4, 64, 64)
    assert set(np.unique(frames[..., 1])) == {0, 50, 100, 150}
    with pytest.raises(AppError, match="E_INPUT"):
        depth_clips(folder / "nothing")


def test_pixels_and_depth_of_a_batch_belong_together(folder, monkeypatch):
    monkeypatch.setattr(pretrain_depth, "worn", lambda pixels, g: 2 * pixels - 1)
    frames, near = depth_clips(folder)
    for iteration, (size, count) in enumerate(pretrain_depth.SIZES):
        pixels, wanted = batch(frames, near, iteration)
        assert pixels.shape == (count, 3, 2, size, size) and wanted.shape == (count, 2, size // 4, size // 4)
        red = torch.nn.functional.avg_pool2d((pixels[:, 0] + 1) / 2, 4)
        assert (red - wanted).abs().mean() < 0.01 < wanted.std()
        assert (pixels[:, 1, 0] < pixels[:, 1, 1]).all()  # the earlier frame first
    again = batch(frames, near, len(pretrain_depth.SIZES) - 1)
    assert torch.equal(again[0], pixels) and torch.equal(again[1], wanted)


def test_worn_pictures_keep_their_outlines():
    g = torch.Generator().manual_seed(0)
    pixels = torch.zeros(32, 2, 3, 64, 64)
    pixels[..., 32:] = torch.rand(32, 1, 3, 1, 1, generator=g) * 0.5 + 0.5
    made = worn(pixels, generator(1, 1))
    assert made.shape == pixels.shape and made.min() >= -1 and made.max() <= 1 and made.isfinite().all()
    left, right = made[..., 20:30].mean((1, 2, 3, 4)), made[..., 34:44].mean((1, 2, 3, 4))
    assert (right > left + 0.1).all() and right.std() > 0.1


def test_the_loss_is_blind_to_scale_and_shift_of_a_clip_only():
    g = torch.Generator().manual_seed(0)
    clips = torch.rand(3, 2, 16, 16, generator=g)
    other = torch.rand(3, 2, 16, 16, generator=g)
    scale, shift = torch.tensor([2.0, 0.5, 7]).view(3, 1, 1, 1), torch.tensor([-1.0, 3, 0]).view(3, 1, 1, 1)
    assert midas_loss(clips, clips) == 0 and midas_loss(clips * scale + shift, clips) < 1e-5
    assert midas_loss(-clips, clips) > 1 and midas_loss(other, clips) > 1
    flicker = clips * torch.tensor([1.0, 0.5]).view(1, 2, 1, 1)
    assert midas_loss(flicker, clips) > 0.3
    even = aligned(clips)
    assert torch.allclose(even.flatten(1).abs().mean(1), torch.ones(3)) and even.flatten(1).median(1).values.abs().max() == 0
    assert aligned(torch.full((1, 2, 4, 4), 0.3)).abs().max() == 0


def test_it_learns(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain_depth, "held_out", lambda: {"plain": tuple(rows[:1] for rows in depth_clips(folder))})
    monkeypatch.setattr(pretrain_depth, "SIZES", ((64, 2),))
    monkeypatch.setattr(pretrain_depth, "DepthNet", lambda: depth.DepthNet((8, 16, 24, 24)))
    stage = depth_stage(folder, iterations=30, warmup=5, validate_every=30, dtype=torch.float32)
    steps = list(train(stage, tmp_path / "run"))
    losses = [step.loss for step in steps]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
    assert -1 <= steps[-1].figures["plain"] <= 1


def test_agreement_is_the_correlation():
    class Red(torch.nn.Module):
        stem = torch.nn.Conv2d(1, 1, 1)

        def forward(self, pixels):
            return torch.nn.functional.avg_pool2d(pixels[:, 0], 4)

    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 64, 64, 3), dtype=np.uint8)
    red = frames[..., 0].reshape(2, 4, 16, 4, 16, 4).mean((3, 5))
    assert agreement(Red(), frames, red) == pytest.approx(1, abs=1e-3) and agreement(Red(), frames, 255 - red) == pytest.approx(-1, abs=1e-3)


def test_the_network_is_small_and_takes_any_size():
    net = depth.DepthNet()
    assert sum(p.numel() for p in net.parameters()) <= 1.5e6
    assert net(torch.zeros(2, 3, 3, 64, 96)).shape == (2, 3, 16, 24)


# ---- the shipped network

shipped = pytest.mark.skipif(depth.entry() is None, reason="no depth network in assets/toybox yet")


@shipped
def test_it_sees_depth_of_clips_that_it_never_saw():
    net = depth.depth_network()
    held = pretrain_depth.held_out()
    assert agreement(net, *held["plain"]) > 0.95 and agreement(net, *held["free"]) > 0.85


@shipped
def test_it_tells_near_from_far_in_a_real_room():
    """skimage's motorcycle (Middlebury 2014) has true disparity."""
    folder = Path(skimage.__file__).parent / "data"
    cv2 = pytest.importorskip("cv2")
    picture = cv2.resize(cv2.imread(str(folder / "motorcycle_left.png"))[:, :, ::-1], (384, 256), interpolation=cv2.INTER_AREA)
    true = cv2.resize(np.load(folder / "motorcycle_disp.npz")["arr_0"].astype(np.float32), (384, 256), interpolation=cv2.INTER_NEAREST)
    known = np.isfinite(true)
    made = extract("builtin-depth", picture[None])[0]
    assert np.corrcoef(made[known], true[known])[0, 1] > 0.3
