"""The embedded denoiser's level of frames, held against the codec's own transform; and windows of latents."""

from dataclasses import replace

import pytest
import tiny
import torch

from videolcm.models.base import Conditions
from videolcm.models.denoiser import Denoiser, Windows
from videolcm.models.frames import CELL, Frames
from videolcm.pretrain import windows_around


@pytest.fixture
def codec():
    return tiny.codec()


@torch.no_grad()
def test_it_works_on_the_pixels_of_the_codecs_transform(codec):
    level = Frames(4, 3 * CELL**2, 0, 16).as_in(codec)
    level.leave.weight.copy_(torch.eye(3 * CELL**2)), level.leave.bias.fill_(0.3)
    x0, noise = tiny.randn(1, 2, 4, 2, 3, 5), tiny.randn(2, 2, 4, 2, 3, 5)
    for seen, weight in ((x0, (1.0, 0.0)), (noise, (0.0, 1.0))):
        level.enter.weight.copy_(torch.cat([part * torch.eye(3 * CELL**2) for part in weight], 1)), level.enter.bias.fill_(0.2)
        pixels = codec.linear(seen) - codec.linear(torch.zeros_like(seen))
        made = torch.nn.functional.silu(pixels + 0.2) + 0.3
        expected = codec.encode(made) - codec.encode(torch.zeros_like(made))
        torch.testing.assert_close(level(x0, noise, tiny.randn(3, 2, 16)), expected, rtol=0, atol=1e-3)


def test_it_begins_as_nothing_and_sees_frames_beside_each_other_alone():
    level, emb = Frames(4, 8, 2, 16), tiny.randn(3, 1, 16)
    x0, noise = tiny.randn(1, 1, 4, 4, 2, 2), tiny.randn(2, 1, 4, 4, 2, 2)
    assert not level(x0, noise, emb).any()
    tiny.awake(level)
    level.basis.copy_(torch.linalg.qr(tiny.randn(4, 3072, 4))[0].T)
    other = x0.clone()
    other[:, :, 3] += 1
    changed = (level(other, noise, emb) - level(x0, noise, emb)).abs().amax((0, 1, 3, 4))
    assert changed[:2].max() == 0 < min(changed[2], changed[3])  # two blocks see two frames away, which are in the latent frame before


# of frames 20 to 23 a block sees one frame down: in 3, in 1 + 3 + 2, and in 1 + 1 + 4 + 2 + 2 blocks; from what is told on in fewer
@pytest.mark.parametrize("coarse, x0_alone, told_alone", [((), 4, []), ((8,), 3, [3]), ((8, 8), 2, [2, 2])])
def test_coarse_parts_begin_as_nothing_and_see_farther_and_are_told_what_x0_comes_of(coarse, x0_alone, told_alone):
    emb, x0, noise = tiny.randn(3, 1, 16), tiny.randn(1, 1, 4, 6, 4, 4), tiny.randn(2, 1, 4, 6, 4, 4)
    told = [tiny.randn(4, 6, 6, 4, 4), tiny.randn(5, 3, 5, 2, 2)][: len(coarse)]
    plain, level = tiny.awake(Frames(4, 8, 3, 16)), Frames(4, 8, 3, 16, coarse, (6, 5))
    plain.basis.copy_(torch.linalg.qr(tiny.randn(4, 3072, 4))[0].T)
    assert all("coarse" in name for name in level.load_state_dict(plain.state_dict(), strict=False).missing_keys)
    assert torch.equal(level(x0, noise, emb, told), plain(x0, noise, emb))
    tiny.awake(level)
    made = level(x0, noise, emb, told)

    def latent_frames_that_stay(x0, told):
        changed = (level(x0, noise, emb, told) - made).abs().amax((0, 1, 3, 4))
        first = int((changed > 0).nonzero()[0])
        assert changed[first:].min() > 0
        return first

    assert latent_frames_that_stay(with_another_end(x0, 2), told) == x0_alone
    for i, first in enumerate(told_alone):
        others = [with_another_end(value, 0) if i == j else value for j, value in enumerate(told)]
        assert latent_frames_that_stay(x0, others) == first


def with_another_end(value, dim):
    """`value` with 1 added to the last of `dim`."""
    value = value.clone()
    value.select(dim, -1).add_(1)
    return value


def test_a_window_that_is_everything_changes_nothing_and_a_part_knows_where_it_is():
    net, x_t, t = tiny.denoiser(), tiny.randn(1, 2, 4, 2, 8, 8), torch.tensor([100, 600])
    cond = Conditions(tiny.randn(2, 2, 3, 16), depth=tiny.randn(3, 2, 1, 8, 32, 32).sigmoid())
    whole = net(x_t, t, cond)
    torch.testing.assert_close(net(x_t, t, cond, Windows((8, 8), 8, (0, 0), (0, 0))), whole, rtol=0, atol=1e-5)
    windows = Windows((8, 8), 4, (0, 4), (2, 4))
    part = net(windows(x_t), t, cond, windows)
    assert part.shape == (2, 4, 2, 4, 4)
    elsewhere = net(windows(x_t), t, cond, replace(windows, tops=(4, 0)))
    assert (part - elsewhere).abs().max() > 1e-3
    inside = (part - windows(whole))[..., 1:3, 1:3].abs().mean() / (windows(x_t) - windows(whole))[..., 1:3, 1:3].abs().mean()
    assert inside < 1  # nearer to what it is in the whole than what came in


def test_windows_lie_around_objects():
    ids = torch.zeros(2, 8, 32, 32, dtype=torch.uint8)
    ids[0, 3, 20:24, 4:8], ids[1, :, 30:, 30:] = 255, 255
    for seed in range(20):
        windows = windows_around(ids, (2, 8, 8), torch.Generator().manual_seed(seed))
        seen = windows(torch.nn.functional.adaptive_max_pool3d(ids[:, None].float(), (2, 8, 8)))
        assert seen.shape == (2, 1, 2, 4, 4) and seen[0].any() and seen[1].any()
        assert all(value % 2 == 0 and 0 <= value <= 4 for value in windows.tops + windows.lefts)


def test_a_network_without_it_is_the_one_of_before():
    plain = Denoiser(replace(tiny.DENOISER, frames_depth=0))
    assert plain.frames is None and not any("frames" in name for name in plain.state_dict())
    net = tiny.denoiser()
    rest = {name: value for name, value in net.state_dict().items() if "frames" not in name}
    plain.load_state_dict(rest)
    x_t, t, cond = tiny.randn(1, 2, 4, 2, 4, 4), torch.tensor([100, 600]), Conditions(tiny.randn(2, 2, 3, 16))
    assert not torch.equal(plain(x_t, t, cond), net(x_t, t, cond))
    torch.nn.init.zeros_(net.frames.leave.weight), torch.nn.init.zeros_(net.frames.leave.bias)
    assert torch.equal(plain(x_t, t, cond), net(x_t, t, cond))
