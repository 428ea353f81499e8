"""The networks of the embedded model, tiny and untrained: shapes at any size, what reaches the output, and that nothing strays from its device."""

import pytest
import torch
from tiny import DENOISER, TEXT, codec, denoiser, randn, text, toybox
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from videolcm.models.base import Conditions
from videolcm.models.toybox import Codec, Denoiser, TextEncoder, Toybox, build, config_of
from videolcm.sampling import Noise, guided, sample_lcm
from videolcm.schedule import Schedule

MAPS = {"depth": 1, "sketch": 1, "masked": 4}


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def differ(a, b):
    return (a - b).abs().max() > 1e-3


def a_batch(batch=2, f=2, h=4, w=6, maps=("depth", "sketch", "masked")):
    """(x_t, t, Conditions) with maps at a quarter of the clip's size."""
    values = {name: randn(i, batch, MAPS[name], 4 * f, 4 * h, 4 * w).clamp(0, 1) for i, name in enumerate(MAPS) if name in maps}
    return randn(5, batch, 4, f, h, w), torch.tensor([999, 339, 19][:batch]), Conditions(randn(6, batch, 10, 16), **values)


# ---- codec


@pytest.mark.parametrize("frames, height, width", [(16, 256, 256), (8, 128, 192), (10, 128, 160), (9, 160, 128)])
def test_the_codec_takes_any_size_and_any_number_of_frames(frames, height, width):
    model = toybox()
    pixels = randn(0, 2, 3, frames, height, width)
    latents = model.encode(pixels)
    assert latents.shape[1:] == model.latent_shape(frames, height, width) == (4, -(-frames // 4), height // 16, width // 16)
    made = model.decode(latents, frames)
    assert made.shape == pixels.shape and made.dtype == latents.dtype == torch.float32
    assert made.std() > 0.01


def test_missing_frames_repeat_the_last_and_are_cut_again():
    model, pixels = toybox(), randn(0, 1, 3, 10, 128, 128)
    whole = torch.cat([pixels, pixels[:, :, -1:], pixels[:, :, -1:]], 2)
    latents = model.encode(pixels)
    close(latents, model.encode(whole), 1e-6)
    assert differ(latents[:, :, -1], model.encode(pixels[:, :, :8])[:, :, -1])
    close(model.decode(latents, 10), model.decode(latents, 12)[:, :, :10], 0)


def test_the_preview_is_small_and_uint8():
    look = toybox().preview(3 * randn(1, 2, 4, 3, 8, 12), 10)
    assert look.shape == (10, 16, 24, 3) and look.dtype.name == "uint8"
    assert look.std() > 1


def test_latents_are_normalised_by_the_buffers():
    net, pixels = codec(), randn(0, 1, 3, 4, 64, 64)
    plain = net.encode(pixels)
    net.mean += 2.0
    net.std *= 4.0
    close(net.encode(pixels), (plain - 2) / 4)


def test_frames_of_a_clip_see_their_neighbours_only():
    net, latents = codec(), randn(2, 1, 4, 3, 4, 4)
    other = latents.clone()
    other[:, :, 2] += 1
    changed = (net.decode(latents) - net.decode(other)).abs().amax((0, 1, 3, 4)) > 1e-4
    assert changed.tolist() == [False] * 7 + [True] * 5


# ---- denoiser


@pytest.mark.parametrize("f, h, w", [(4, 16, 16), (2, 8, 12), (3, 10, 8), (8, 4, 4)])
def test_one_denoiser_serves_every_size(f, h, w):
    made = denoiser()(*a_batch(2, f, h, w))
    assert made.shape == (2, 4, f, h, w)
    assert made.isfinite().all() and made.std() > 0.01


def test_a_fresh_denoiser_says_zero():
    torch.manual_seed(0)
    assert not Denoiser(DENOISER)(*a_batch()).any()


def test_the_text_reaches_the_output():
    net, (x_t, t, cond) = denoiser(), a_batch()
    assert differ(net(x_t, t, cond), net(x_t, t, cond.null(randn(9, 1, 10, 16))))


def test_the_timestep_reaches_the_output():
    net, (x_t, t, cond) = denoiser(), a_batch()
    assert differ(net(x_t, t, cond), net(x_t, t - 19, cond))


@pytest.mark.parametrize("name", MAPS)
def test_each_map_reaches_the_output_and_absent_is_not_zero(name):
    net, (x_t, t, cond) = denoiser(), a_batch(maps=(name,))
    value = getattr(cond, name)
    made = [net(x_t, t, Conditions(cond.context, **{name: given})) for given in (value, 1 - value, torch.zeros_like(value), None)]
    assert all(differ(a, b) for i, a in enumerate(made) for b in made[:i])


@pytest.mark.parametrize("name", MAPS)
def test_a_map_of_minus_one_is_an_absent_map_even_for_one_sample(name):
    net, (x_t, t, cond) = denoiser(), a_batch()
    value = getattr(cond, name).clone()
    value[1] = -1
    mixed = net(x_t, t, Conditions(**{**vars(cond), name: value}))
    absent = net(x_t, t, Conditions(**{**vars(cond), name: None}))
    close(mixed[0], net(x_t, t, cond)[0])
    close(mixed[1], absent[1])
    assert differ(mixed[0], absent[0])


def test_maps_at_the_clips_own_size_are_averaged_and_short_ones_repeat_their_last_frame():
    net, (x_t, t, cond) = denoiser(), a_batch()
    large = cond.map(lambda value: value if value.ndim == 3 else value.repeat_interleave(4, 3).repeat_interleave(4, 4))
    close(net(x_t, t, large), net(x_t, t, cond))
    held = cond.map(lambda value: value if value.ndim == 3 else torch.cat([value[:, :, :5], value[:, :, 4:5].expand(-1, -1, 3, -1, -1)], 2))
    short = cond.map(lambda value: value if value.ndim == 3 else value[:, :, :5])
    close(net(x_t, t, short), net(x_t, t, held), 1e-6)


def test_samples_of_a_batch_do_not_influence_each_other():
    net, (x_t, t, cond) = denoiser(), a_batch(3)
    alone = [net(x_t[i : i + 1], t[i : i + 1], cond.map(lambda value, i=i: value[i : i + 1])) for i in range(3)]
    close(net(x_t, t, cond), torch.cat(alone))


def test_the_order_of_frames_and_the_place_of_things_matter():
    net, (x_t, t, cond) = denoiser(), a_batch(maps=())
    made = net(x_t, t, cond)
    for axis in (2, 3, 4):
        assert differ(net(x_t.flip(axis), t, cond).flip(axis), made)


def test_denoise_is_the_x0_of_the_v_that_the_network_says():
    model, (x_t, t, cond) = toybox(), a_batch()
    close(model.denoise(x_t, t, cond), model.schedule.x0_from_v(x_t, model.denoiser(x_t, t, cond), t))


def test_a_model_in_bfloat16_takes_and_gives_float32():
    model, half = toybox(), toybox(dtype=torch.bfloat16)
    x_t, t, cond = a_batch()
    made = half.denoise(x_t, t, cond)
    assert made.dtype == torch.float32
    assert (made - model.denoise(x_t, t, cond)).std() < 0.05 * made.std()


@pytest.mark.parametrize("make", [codec, text, denoiser])
def test_a_network_is_rebuilt_from_its_config(make):
    net, twin = make(), build(config_of(make()))
    assert type(twin) is type(net) and twin.config == net.config
    assert {k: v.shape for k, v in twin.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}


# ---- text


def test_unknown_words_become_index_one_and_known_ones_their_own():
    tokens = text().tokens(["A red dinosaur, on SNOW", "ball"])
    words = {word: i + 2 for i, word in enumerate(TEXT.words)}
    assert tokens[0].tolist() == [words["a"], words["red"], 1, words["on"], words["snow"], 0, 0]
    assert tokens[1].tolist() == [words["ball"]] + [0] * 6


def test_too_long_prompts_are_cut():
    net, seven = text(), "a red ball rolls on blue snow"
    close(net.encode([seven + " grass" * 50]), net.encode([seven]), 0)
    assert net.encode([seven]).shape == (1, 10, 16)


def test_places_without_a_word_are_zero_and_the_others_are_not():
    lengths = net_lengths(["", "a ball", "a red ball rolls on blue snow"])
    assert lengths == [3, 5, 10]


def net_lengths(prompts):
    context = text().encode(prompts)
    assert context.isfinite().all()
    there = (context != 0).any(2)
    assert all(row[: int(row.sum())].all() for row in there)  # words first, then nothing
    return there.sum(1).tolist()


def test_a_prompt_means_the_same_in_any_company():
    net = text()
    together = net.encode(["", "a red ball", "a blue cube rolls on grass"])
    close(together[:2], torch.cat([net.encode([""]), net.encode(["a red ball"])]))
    assert differ(net.encode(["a red ball"]), net.encode(["a blue ball"])) and differ(net.encode(["red a"]), net.encode(["a red"]))


# ---- devices


@pytest.fixture
def pretend(monkeypatch):
    """Tensors without values on a device that is not there: operations on two devices fail as on a real one. Checks of values pass."""
    monkeypatch.setattr(FakeTensor, "any", lambda self: False, raising=False)
    monkeypatch.setattr(FakeTensor, "all", lambda self: True, raising=False)
    monkeypatch.setattr(FakeTensor, "tolist", lambda self: [999, 499], raising=False)  # of the two timesteps of LCM
    with FakeTensorMode(allow_non_fake_inputs=False):
        yield


def fake_toybox(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # modules of fake tensors cannot be converted, so they are made as they shall be
    try:
        with torch.device("cuda"):
            nets = [Codec().eval(), TextEncoder(TEXT).eval(), Denoiser().eval()]
    finally:
        torch.set_default_dtype(before)
    model = Toybox(None, *nets, "cuda", dtype)
    model.schedule = Schedule()
    return model


def test_the_pretended_device_notices_a_stray_tensor(pretend):
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(3, device="cuda") + torch.zeros(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nothing_strays_from_the_device(pretend, dtype):
    model = fake_toybox(dtype)
    context = torch.zeros(2, 40, 192, device="cuda")
    cond = Conditions(context, *(torch.zeros(2, MAPS[name], 16, 256, 256, device="cuda") for name in MAPS))
    noise = Noise(model.latent_shape(16, 256, 256), (1, 2), model.device)
    *_, step = sample_lcm(guided(model.denoise, context[:1], 2.0), model.schedule, noise, cond, 2)
    assert step.i == 2 and step.t == 499
    assert step.x0.device.type == "cuda" and step.x0.shape == (2, 32, 4, 16, 16) and step.x0.dtype == torch.float32
    assert model.encode_text(["a red ball", ""]).device.type == "cuda"
    assert model.decode(step.x0, 16).device.type == "cuda"
    assert model.encode(torch.zeros(1, 3, 10, 128, 128)).device.type == "cuda"


def test_conversions_stay_on_the_device(pretend):
    schedule, x, t = Schedule(), torch.zeros(2, 32, 4, 16, 16, device="cuda"), torch.zeros(2, dtype=torch.int64, device="cuda")
    made = [f(x, x, t) for f in (schedule.add_noise, schedule.x0_from_v, schedule.eps_from_v, schedule.v_from_x0_eps, schedule.eps_from_x0)]
    made += [schedule.ddim_step(x, x, t, t), schedule.ddim_step(x, x, t), schedule.c_skip(t), schedule.c_out(t)]
    assert {value.device.type for value in made} == {"cuda"}
