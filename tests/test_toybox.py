"""The networks of the embedded model, tiny and untrained: shapes at any size, what reaches the output, and that nothing strays from its device."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import CODEC, DENOISER, TEXT, codec, denoiser, randn, text, toybox

from videolcm.errors import AppError
from videolcm.models import load
from videolcm.models.base import Conditions
from videolcm.models.codec import Codec
from videolcm.models.denoiser import Denoiser, with_changes
from videolcm.models.toybox import TextEncoder, Toybox, build, config_of, write_network
from videolcm.pipeline import to_frames
from videolcm.pretrain_codec import fit_transform
from videolcm.sampling import Noise, guided, sample_lcm
from videolcm.schedule import Schedule

MAPS = {"depth": 1, "sketch": 1, "masked": 4}


def close(a, b, atol=2e-5):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=atol)


def differ(a, b):
    return (a - b).abs().max() > 1e-3


def a_batch(batch=2, f=2, h=4, w=6, maps=("depth", "sketch", "masked")):
    """(x_t, t, Conditions) with maps at a quarter of the clip's size."""
    values = {name: randn(i, batch, MAPS[name], 4 * f, 4 * h, 4 * w).clamp(0, 1) for i, name in enumerate(MAPS) if name in maps}
    return randn(5, batch, 4, f, h, w), torch.tensor([999, 339, 19][:batch]), Conditions(randn(6, batch, 3, 16), **values)


# ---- codec


@pytest.mark.parametrize("frames, height, width", [(16, 256, 256), (8, 128, 192), (10, 128, 160), (9, 160, 128)])
def test_the_codec_takes_any_size_and_any_number_of_frames(frames, height, width):
    model = toybox()
    pixels = randn(0, 2, 3, frames, height, width)
    latents = model.encode(pixels)
    assert latents.shape[1:] == model.latent_shape(frames, height, width) == (4, 2 * -(-frames // 8), height // 16, width // 16)
    made = model.decode(latents, frames)
    assert made.shape == pixels.shape and made.dtype == latents.dtype == torch.float32
    assert made.std() > 0.01


def test_missing_frames_repeat_the_last_and_are_cut_again():
    model, pixels = toybox(), randn(0, 1, 3, 10, 128, 128)
    whole = torch.cat([pixels, *[pixels[:, :, -1:]] * 6], 2)
    latents = model.encode(pixels)
    close(latents, model.encode(whole), 1e-6)
    assert differ(latents[:, :, 2], model.encode(pixels[:, :, :8])[:, :, -1])
    close(model.decode(latents, 10), model.decode(latents, 16)[:, :, :10], 0)


def test_the_preview_is_small_and_uint8():
    look = toybox().preview(30 * randn(1, 2, 4, 4, 8, 12), 10)
    assert look.shape == (10, 16, 24, 3) and look.dtype.name == "uint8"
    assert look.std() > 1


def test_the_transform_is_undone_by_its_inverse_where_the_components_suffice():
    net, latents = codec(), randn(2, 2, 4, 3, 4, 6)
    net.mean.copy_(randn(3, *net.mean.shape)), net.scale.copy_(torch.tensor([4.0, 2.0, 1.0, 0.5]))
    close(net.encode(net.linear(latents)), latents, 1e-4)
    assert differ(net.decode(latents), net.linear(latents))  # the network adds to it


def test_the_transform_is_one_matrix_product_a_block():
    net, pixels = codec(), randn(0, 1, 3, 8, 32, 48)
    net.mean += 0.5
    net.scale *= 2.0
    block = pixels[0, :, 4:8, 16:32, 32:48].flatten()  # colour, frame, row, column
    close(net.encode(pixels)[0, :, 1, 1, 2], net.basis @ (block - 0.5) / 2)


def test_the_preview_is_the_mean_of_what_the_transform_gives():
    net, latents = codec(), randn(1, 1, 4, 2, 4, 4)
    net.mean += 0.1
    close(net.preview(latents), torch.nn.functional.avg_pool3d(net.linear(latents), (1, 8, 8)))


def test_seams_are_what_pictures_change_by_from_one_half_second_to_the_next():
    net, error = codec(), randn(1, 2, 4, 3, 2, 3)
    net.mean += 0.1
    net.scale.copy_(torch.tensor([4.0, 2.0, 1.0, 0.5]))
    shown = net.linear(error).diff(dim=2)[:, :, [3, 7]]  # (2, 3, 2, 32, 48): frames 3 to 4 and 7 to 8
    size = (net.scale**2).mean() * 2 * 4 / (3 * 4 * 16**2)
    close((net.seams(error) ** 2).mean((2, 3, 4)), (shown**2).mean((1, 3, 4)) / size)
    assert net.seams(error).shape == (2, 2, 2, 3, 768)


def test_the_transform_is_fitted_to_the_principal_components():
    frames = (randn(4, 6, 8, 32, 32, 1).sigmoid() * randn(5, 3).exp() * 90).clamp(0, 255).byte().numpy()
    net, ids = Codec(CODEC), (randn(6, 6, 8, 8, 8) > 1).byte().numpy()
    fit_transform(net, frames, ids, clips=6, each=32)
    close(net.basis @ net.basis.T, torch.eye(4), 1e-4)
    found = net.encode(torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1)
    assert (found.std((0, 2, 3, 4)).diff() < 0.1).all()  # the strongest first


def plainly_decoded(net, latents):
    """The codec's decoding as it is defined, by pixel_shuffle and one pass for each thing: what the quick one has to give."""

    def mixed(layer, x, frames):
        clip = F.silu(x).unflatten(0, (-1, frames))
        before, after = torch.cat([clip[:, :1], clip[:, :-1]], 1), torch.cat([clip[:, 1:], clip[:, -1:]], 1)
        return x + layer.conv(torch.cat([before, clip, after], 2).flatten(0, 1))

    def larger(layer, x):
        x = layer.conv(x) + x.repeat_interleave(layer.repeat, 1)[:, : layer.conv.out_channels]
        return F.pixel_shuffle(x.unflatten(1, (2, -1)).flatten(0, 1), 2)

    def upwards(blocks):  # (B, f, h, w, 3072), by colour, frame, row, column -> pixels
        x = blocks.unflatten(4, (3, 4, 16, 16)).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)

    own, (batch, _, f) = net.decoder, latents.shape[:3]
    x = own.enter(latents.transpose(1, 2).flatten(0, 1))
    x = larger(own.up[0], own.low(mixed(own.mix[0], x, f)))
    x = larger(own.up[1], own.middle(mixed(own.mix[1], x, 2 * f)))
    x = F.pixel_shuffle(own.leave(F.silu(own.high(x))), 4)
    return x.unflatten(0, (batch, -1)).transpose(1, 2) + upwards(latents.movedim(1, -1) * net.scale @ net.basis + net.mean)


def test_the_quick_decoder_gives_what_the_plain_one_gives():
    net, latents = codec(), randn(2, 2, 4, 3, 4, 6)
    net.mean += 0.1 * randn(3, *net.mean.shape)
    close(net.decode(latents), plainly_decoded(net, latents), 2e-4)
    first = net.decode(latents)[0].permute(1, 2, 3, 0)
    assert first.is_contiguous()  # as frames lie, so that no pass turns them


def test_shipped_frames_are_those_of_the_plain_decoder_within_one_level():
    model = load("toybox")
    latents = randn(1, 1, 48, 2, 8, 12).to(model.dtype)
    quick, plain = (to_frames(pixels).astype(int) for pixels in (model.decode(latents, 8), plainly_decoded(model.codec, latents)))
    assert np.abs(quick - plain).max() <= 1 and plain.std() > 10


def test_frames_of_a_clip_see_their_neighbours_only():
    net, latents = codec(), randn(2, 1, 4, 6, 4, 4)
    other = latents.clone()
    other[:, :, 5] += 1
    changed = (net.decode(latents) - net.decode(other)).abs().amax((0, 1, 3, 4)) > 1e-4
    assert not changed[:14].any() and changed[20:].all()


# ---- denoiser


@pytest.mark.parametrize("f, h, w", [(4, 16, 16), (2, 8, 12), (6, 10, 8), (8, 4, 4)])
def test_one_denoiser_serves_every_size(f, h, w):
    made = denoiser()(*a_batch(2, f, h, w))
    assert made.shape == (2, 4, f, h, w)
    assert made.isfinite().all() and made.std() > 0.01


COLUMN = (slice(None), None, None, None)
MEAN, SPREAD = torch.tensor([3.0, -1.0, 0.0, 0.5]), torch.tensor([4.0, 1.0, 0.5, 0.1])


def with_statistics(net):
    """`net`, whose backdrop is MEAN everywhere and whose spread is SPREAD."""
    for head, values in ((net.backdrop.leave, MEAN), (net.backdrop.doubt, SPREAD.log())):
        head.weight.data.zero_(), head.bias.data.copy_(values)
    return net


def latents_of(seed):
    """Latents (2, 4, 2, 16, 16) with these statistics."""
    return randn(seed, 2, 4, 2, 16, 16) * SPREAD[COLUMN] + MEAN[COLUMN]


def test_the_network_is_told_what_is_other_in_the_latent_frames_before_and_after():
    x = randn(1, 2, 4, 3, 2, 2)
    now, before, after = with_changes(x).unflatten(0, (2, 3)).movedim(2, 1).chunk(3, 1)  # (2, 4, 3, 2, 2) each
    assert torch.equal(now, x) and not before[:, :, 0].any() and not after[:, :, -1].any()
    close(before[:, :, 1:], x[:, :, :-1] - x[:, :, 1:])
    close(after[:, :, :-1], x[:, :, 1:] - x[:, :, :-1])


def test_a_fresh_denoiser_gives_the_best_linear_guess():
    torch.manual_seed(0)
    net, (_, _, cond) = with_statistics(Denoiser(DENOISER)), a_batch(2, 2, 16, 16, maps=())
    x0, t = latents_of(1), torch.tensor([259, 999])
    x_t = Schedule().add_noise(x0, randn(2, *x0.shape), t)
    made = net(x_t, t, cond)
    close(made[1], MEAN[COLUMN].expand_as(made[1]))  # pure noise says nothing but the mean
    for channel in range(4):
        x, y = x_t[0, channel].flatten(), x0[0, channel].flatten()
        slope, level = np.polyfit(x, y, 1)
        assert (made[0, channel].flatten() - (slope * x + level)).abs().mean() < 0.25 * SPREAD[channel]  # least squares says so too


def test_the_network_sees_unit_variance_at_every_timestep(monkeypatch):
    net, (_, _, cond), seen = with_statistics(denoiser()), a_batch(2, 2, 16, 16, maps=()), []
    told = torch.zeros(2 * 2, net.config.stem, 16, 16), torch.zeros(2, net.config.width, 8, 8)
    monkeypatch.setattr(net, "network", lambda x, *_: seen.append(x) or (torch.zeros_like(x), told))
    x0 = latents_of(1)
    for t in (19, 499, 999):
        net(Schedule().add_noise(x0, randn(t, *x0.shape), t), torch.tensor([t, t]), cond)
    for x in seen:
        close(x.mean((0, 2, 3, 4)), torch.zeros(4), 0.15)
        close(x.std((0, 2, 3, 4)), torch.ones(4), 0.15)


def test_the_backdrop_depends_on_text_place_and_maps_but_not_on_the_frame():
    net, cond = denoiser(), Conditions(randn(6, 2, 3, 16))

    def expected(h, w, **maps):
        told = replace(cond, **maps)
        return net.expected(told, *net.stack_maps(torch.zeros(2, 4, 2, h, w), told))

    for made in expected(4, 6):
        assert made.shape == (2, 4, 1, 4, 6) and differ(made[0], made[1]) and differ(made, made.flip(3)) and differ(made, made.flip(4))
    assert (expected(4, 6)[1] > 0).all()
    close(expected(8, 12)[0].mean(), expected(4, 6)[0].mean(), 0.2)  # places are relative: other sizes show the same scene
    depth = torch.zeros(2, 1, 8, 16, 24)
    flat, stepped = expected(4, 6, depth=depth), expected(4, 6, depth=depth.index_fill(4, torch.arange(12), 1.0))
    for none, there, step in zip(expected(4, 6), flat, stepped, strict=True):
        assert differ(none, there) and differ(there, step)


def test_the_text_reaches_the_output():
    net, (x_t, t, cond) = denoiser(), a_batch()
    assert differ(net(x_t, t, cond), net(x_t, t, cond.null(randn(9, 1, 3, 16))))


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
    assert net.encode([seven]).shape == (1, 3, 16)


def test_places_without_a_word_say_nothing():
    net = text()
    before = net.encode(["a ball", ""])
    net.embed.weight.data[0] += 10
    close(net.encode(["a ball", ""]), before, 0)
    assert before.isfinite().all()


def test_a_prompt_means_the_same_in_any_company():
    net = text()
    together = net.encode(["", "a red ball", "a blue cube rolls on grass"])
    close(together[:2], torch.cat([net.encode([""]), net.encode(["a red ball"])]))
    assert differ(net.encode(["a red ball"]), net.encode(["a blue ball"])) and differ(net.encode(["red a"]), net.encode(["a red"]))


# ---- devices


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
    context = torch.zeros(2, 3, 192, device="cuda")
    cond = Conditions(context, *(torch.zeros(2, MAPS[name], 16, 256, 256, device="cuda") for name in MAPS))
    noise = Noise(model.latent_shape(16, 256, 256), (1, 2), model.device)
    *_, step = sample_lcm(guided(model.denoise, context[:1], 2.0), model.schedule, noise, cond, 2)
    assert step.i == 2 and step.t == 499
    assert step.x0.device.type == "cuda" and step.x0.shape == (2, 48, 4, 16, 16) and step.x0.dtype == torch.float32
    assert model.encode_text(["a red ball", ""]).device.type == "cuda"
    assert model.decode(step.x0, 16).device.type == "cuda"
    assert model.encode(torch.zeros(1, 3, 10, 128, 128)).device.type == "cuda"


def test_conversions_stay_on_the_device(pretend):
    schedule, x, t = Schedule(), torch.zeros(2, 32, 4, 16, 16, device="cuda"), torch.zeros(2, dtype=torch.int64, device="cuda")
    made = [f(x, x, t) for f in (schedule.add_noise, schedule.x0_from_v, schedule.eps_from_v, schedule.v_from_x0_eps, schedule.eps_from_x0)]
    made += [schedule.ddim_step(x, x, t, t), schedule.ddim_step(x, x, t), schedule.c_skip(t), schedule.c_out(t)]
    assert {value.device.type for value in made} == {"cuda"}


@pytest.mark.parametrize("value", [math.nan, math.inf, 70000.0])
def test_weights_that_float16_cannot_hold_are_not_written(tmp_path, value):
    net = denoiser()
    net.leave.bias.data[0] = value
    with pytest.raises(AppError, match="E_NOT_FINITE"):
        write_network(tmp_path / "student.safetensors", net)
    assert not list(tmp_path.iterdir())
