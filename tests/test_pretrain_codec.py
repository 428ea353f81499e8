"""The decoder's stage on clips that its codec holds exactly: what is cut from latents and from pixels is the same window."""

import numpy as np
import pytest
import torch
from tiny import CODEC, clips, randn

from videolcm import pretrain_codec
from videolcm.models.codec import BLOCK, Codec
from videolcm.schedule import Schedule


def grey_codec():
    """A codec whose first latent is the mean of a block; its decoder adds nothing."""
    net = Codec(CODEC)
    net.basis.copy_(torch.linalg.qr(torch.cat([torch.ones(BLOCK, 1), randn(1, BLOCK, CODEC.latent - 1)], 1))[0].T)
    return net


@pytest.fixture
def blocky(monkeypatch):
    """Three clips whose blocks each have one grey, and a codec's latents of them."""
    greys = torch.randint(0, 256, (3, 4, 16, 16), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    frames = greys.repeat_interleave(4, 1).repeat_interleave(16, 2).repeat_interleave(16, 3)[..., None].expand(-1, -1, -1, -1, 3)
    ids = np.zeros((3, 16, 64, 64), np.uint8)
    ids[:, :, 5:30, 40:60] = 255
    made = clips(3)
    made.arrays["latents"] = grey_codec().encode(frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1)
    monkeypatch.setattr(pretrain_codec, "frames_of", lambda *_, **__: (frames.contiguous().numpy(), ids))
    monkeypatch.setattr(pretrain_codec, "Clips", lambda *_: made)
    monkeypatch.setattr(pretrain_codec, "LATENT_NOISE", 0.0)
    return made


def encode_text(prompts):
    return torch.zeros(len(prompts), 3, 16)


def perfect(made):
    """A denoiser that knows the clip."""
    return lambda x_t, t, cond: min(made.arrays["latents"], key=lambda x0: (x_t[0] - x0 * Schedule().alpha_sigma(t, x_t)[0][0]).square().mean())[None]


def test_windows_of_latents_and_of_pixels_are_the_same(blocky):
    stage = pretrain_codec.decoder_stage("nowhere", grey_codec(), encode_text, [perfect(blocky)])
    net = stage.make()
    assert max(stage.loss(net, iteration).item() for iteration in range(8)) < 1e-4
    other = pretrain_codec.decoder_stage("nowhere", grey_codec(), encode_text, [lambda x_t, t, cond: blocky.arrays["latents"][:1].flip(3)])
    assert min(other.loss(net, iteration).item() for iteration in range(8)) > 0.1


def test_the_decoder_learns_and_the_transform_stays(blocky):
    noisy = [lambda x_t, t, cond: blocky.arrays["latents"][:1] + 0.5]
    blocky.arrays["latents"], blocky.plots = blocky.arrays["latents"][:1], blocky.plots[:1]
    stage = pretrain_codec.decoder_stage("nowhere", grey_codec(), encode_text, noisy)
    net = stage.make()
    assert {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad} == {"decoder"}
    before = stage.loss(net, 0)
    before.backward()
    assert net.decoder.leave.weight.grad.abs().max() > 0 and before > 0.01


def test_what_is_remade_begins_in_the_middle_and_ends_at_the_last_timestep(blocky):
    seen, last = [], {int(Schedule().lcm_timesteps(n)[-1]) for n in (2, 4, 8)}

    def denoise(x_t, t, cond):
        seen[-1].append(int(t))
        return x_t

    for i in range(40):
        seen.append([])
        pretrain_codec.remade(denoise, Schedule(), torch.zeros(1, 4, 2, 4, 4), None, torch.Generator().manual_seed(i))
    assert {path[-1] for path in seen} == last and all(path == sorted(path, reverse=True) for path in seen)
    assert max(path[0] for path in seen) <= pretrain_codec.MIDDLE and len({len(path) for path in seen}) > 2
