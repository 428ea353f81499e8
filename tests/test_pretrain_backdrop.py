"""The backdrop's stage on clips whose mean and spread are known; what the teacher's loss counts, and its errors on clips it was not trained on."""

import numpy as np
import pytest
import tiny
import torch

from videolcm import pretrain
from videolcm.models.base import Conditions
from videolcm.schedule import Schedule
from videolcm.world import plot, sample


@pytest.fixture
def clips(monkeypatch):
    """Clips whose latents are +1 or -1 everywhere, as their floor is checkerboard or not, plus noise of deviation 0.1."""
    made = tiny.clips(40)
    sign = torch.tensor([1.0 if told.floor == "checkerboard" else -1.0 for told in made.plots])
    made.arrays["latents"] = sign[:, None, None, None, None] + 0.1 * tiny.randn(3, 40, 4, 2, 4, 4)
    monkeypatch.setattr(pretrain, "Clips", lambda *_: made)
    return made


def encode_text(captions):
    """Context (B, 3, 16) that says in its first number whether the caption speaks of a checkerboard."""
    context = torch.zeros(len(captions), 3, 16)
    context[:, 2, 0] = torch.tensor([1.0 if "check" in text or "tiled" in text else 0.0 for text in captions])
    return context


def test_the_backdrop_learns_what_the_text_tells(clips, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(pretrain, "DROP_MAPS", 1.0)
    stage = pretrain.backdrop_stage("nowhere", encode_text, batch=16, config=tiny.DENOISER)
    net = stage.make()
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    assert trained and all(name.startswith("backdrop.") for name in trained)
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 0.02)
    first = stage.loss(net, 0).item()
    for iteration in range(200):
        optimiser.zero_grad()
        stage.loss(net, iteration).backward()
        optimiser.step()
    with torch.no_grad():
        cond = Conditions(encode_text(["on a checkerboard", "on grass"]))
        mean, spread = net.expected(cond, *net.stack_maps(torch.zeros(2, 4, 2, 4, 4), cond))
    assert mean[0].mean() > 0.6 and mean[1].mean() < -0.6
    assert spread.mean() < 0.6 and np.mean([stage.loss(net, 200 + i).item() for i in range(5)]) < first - 0.5


def test_the_teacher_is_also_taught_what_changes_from_one_half_second_to_the_next(clips, monkeypatch):
    stage = pretrain.teacher_stage("nowhere", encode_text, tiny.codec(), batch=8, config=tiny.DENOISER)
    net, losses = stage.make(), []
    for weight in (0.0, 1.0, 3.0):
        monkeypatch.setattr(pretrain, "SEAM_WEIGHT", weight)
        losses.append(stage.loss(net, 0).item())
    assert losses[1] > 1.01 * losses[0] and losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)


@pytest.mark.parametrize("near", [1, 2, 3])
def test_windows_and_whole_clips_take_turns_each_at_their_noise(clips, near):
    stage, seen = pretrain.teacher_stage("nowhere", encode_text, tiny.codec(), batch=8, near=near, least=700, config=tiny.DENOISER), []

    def net(x_t, t, cond, windows):
        seen.append((windows is not None, t))
        return x_t

    for iteration in range(8):
        stage.loss(net, iteration)
    whole, cut = (torch.cat([t for there, t in seen if there is kind]) for kind in (False, True))
    assert len(cut) == 2 * near * 16 and len(whole) == 2 * (4 - near) * 8
    assert whole.min() >= 600 and (whole < 700).float().mean() <= pretrain.NOISY_SHARE
    assert cut.min() < 200 and pretrain.NEAR - 200 < cut.max() < pretrain.NEAR


def test_toys_weigh_as_much_more_as_is_asked_in_windows_alone(clips, monkeypatch):
    """Where it is not sure yet where a toy is, a weight that knows it would make the best guess see more of it than there is."""
    monkeypatch.setattr(pretrain, "SEAM_WEIGHT", 0.0)
    latents, ids = clips.arrays["latents"].zero_(), clips.arrays["ids"].zero_()
    frames = latents.shape[2]
    ids[:, : ids.shape[1] // frames] = 255  # toys are everywhere in the first latent frame, and nowhere later

    def loss(near, toys, frame):
        def net(x_t, t, cond, windows):
            off = torch.zeros_like(x_t)
            off[:, :, frame] = Schedule().alpha_sigma(t, x_t)[1][:, :, 0]
            return off

        return pretrain.teacher_stage("nowhere", encode_text, tiny.codec(), batch=8, near=near, toys=toys, config=tiny.DENOISER).loss(net, 0).item()

    for toys in (0.0, 3.0, 8.0):
        assert loss(4, toys, 0) == pytest.approx((1 + toys) / (frames + toys), rel=1e-4)
        assert loss(4, toys, 1) == pytest.approx(1 / (frames + toys), rel=1e-4)
        assert loss(0, toys, 0) == loss(0, toys, 1) == pytest.approx(1 / frames, rel=1e-4)


@pytest.mark.parametrize("channel", range(4))
def test_a_channel_weighs_in_whole_clips_as_much_as_pictures_show_of_it(clips, monkeypatch, channel):
    monkeypatch.setattr(pretrain, "SEAM_WEIGHT", 0.0)
    codec = tiny.codec()
    codec.scale.copy_(torch.tensor([4.0, 2.0, 1.0, 0.5]))
    clips.arrays["latents"].zero_()

    def net(x_t, t, cond, windows):
        off = torch.zeros_like(x_t)
        off[:, channel] = Schedule().alpha_sigma(t, x_t)[1][:, 0]
        return off

    settings = {"batch": 8, "toys": 0.0, "config": tiny.DENOISER}
    whole, cut = (pretrain.teacher_stage("nowhere", encode_text, codec, near=near, **settings).loss(net, 0).item() for near in (0, 4))
    assert whole == pytest.approx([16, 4, 1, 0.25][channel] / 21.25, rel=1e-4) and cut == pytest.approx(1 / 4, rel=1e-4)


def test_a_teacher_that_goes_on_begins_with_the_shipped_weights_at_a_rate_that_leaves_them(clips, tmp_path):
    anew, on = (pretrain.stage_of("teacher", tmp_path, warm=warm) for warm in (False, True))
    net, known = on.make(), pretrain.shipped("teacher").state_dict()
    assert all(torch.equal(value, known[name]) for name, value in net.state_dict().items()) and all(p.requires_grad for p in net.parameters())
    assert on.rate(300) < anew.rate(300) and on.rate(20) == 5e-4


def test_errors_are_counted_where_toys_are_and_everywhere():
    x0, toys = tiny.randn(4, 10, 4, 2, 4, 4), torch.zeros(10, 1, 2, 4, 4, dtype=torch.bool)
    toys[..., :2] = True
    off = torch.where(toys, 0.3, 0.1)

    def net(x_t, t, cond):
        assert len(x_t) == len(t) == len(cond.context)
        part = slice(8) if len(x_t) == 8 else slice(8, None)
        return x0[part] + Schedule().alpha_sigma(t, x_t)[1] * off[part]

    found = pretrain.errors(net, encode_text, x0, toys, ["on grass"] * 10)
    assert found == {"toys": [0.09] * 6, "everywhere": [0.05] * 6}


def test_clips_that_are_held_out_say_where_their_toys_are(monkeypatch):
    monkeypatch.setattr(pretrain, "HELD_OUT", range(500_000, 500_002))
    x0, toys, captions = pretrain.held_out(lambda pixels: torch.nn.functional.avg_pool3d(pixels, (4, 16, 16)))
    assert captions == [plot(seed).caption for seed in pretrain.HELD_OUT] and all(seed < 1_000_000 for seed in pretrain.HELD_OUT)
    for seed, clip, there in zip(pretrain.HELD_OUT, x0, toys, strict=True):
        rendered = sample(seed).render()
        cells = (rendered.ids >= 0).reshape(4, 4, 16, 16, 16, 16).any((1, 3, 5))
        assert cells.any() and not cells.all() and np.array_equal(there[0].numpy(), cells)
        means = rendered.frames.reshape(4, 4, 16, 16, 16, 16, 3).mean((1, 3, 5)) / 127.5 - 1
        assert np.allclose(clip.permute(1, 2, 3, 0).numpy(), means, atol=1e-4)
