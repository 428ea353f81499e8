"""Training data: maps of rendered clips, shards and cached latents, and the conditions that are drawn from them."""

import sys

import numpy as np
import pytest
import torch
from reliability.training import full
from safetensors.numpy import load_file
from tiny import clips

from videolcm import data
from videolcm.data import (
    MAPS,
    Clips,
    bent,
    cache_latents,
    conditions,
    disparity,
    drawn,
    masked_picture,
    object_box,
    object_weight,
    random_box,
    render_shard,
    shard_path,
    small,
)
from videolcm.errors import AppError
from videolcm.world import SHAPE_WORDS, free_sample, plot, sample


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder with one shard of two clips of each kind and their latents by a fake encoder: means of 16x16 pixels."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "CLIPS_PER_SHARD", 2)
        render_shard(folder, "plain", 1), render_shard(folder, "free", 0)
        done = list(cache_latents(folder, encode))
        assert sorted(path.name for path in done) == ["free-00000.safetensors", "plain-00001.safetensors"]
        assert not list(cache_latents(folder, encode))  # nothing twice
        yield folder


def encode(pixels):
    """Means of 16x16 pixels, lying in memory as the real encoder's answer does: channels last."""
    return torch.nn.functional.avg_pool3d(pixels, (4, 16, 16)).movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of the system in place of a full disk")
def test_a_full_disk_is_a_sentence_and_leaves_nothing(shards, tmp_path):
    with full(1000), pytest.raises(AppError, match=r"\[E_DISK\]"):
        data.cache_shard(shard_path(shards, "plain", 1), tmp_path / "a.safetensors", encode)
    assert not list(tmp_path.iterdir())


# ---- maps


def test_disparity_is_one_near_and_zero_in_the_sky():
    depth = np.array([[[2.0, 4.0], [8.0, np.inf]]])
    assert np.allclose(disparity(depth), [[[1, 0.5], [0.25, 0]]])
    assert not disparity(np.full((2, 3, 3), np.inf)).any()


def test_disparity_of_a_clip():
    clip = sample(3).render()
    made = disparity(clip.depth)
    assert made.min() == 0 and made.max() == 1 and np.isinf(clip.depth).any()
    assert (made[np.isinf(clip.depth)] == 0).all() and np.unravel_index(made.argmax(), made.shape) == np.unravel_index(
        clip.depth.argmin(), made.shape
    )


def test_small_is_the_mean_of_each_cell():
    maps = np.zeros((2, 256, 128), np.float32)
    maps[0, :2, :2], maps[1, 252:, 126:] = 0.5, 1
    made = small(maps)
    assert made.shape == (2, 64, 64) and made.dtype == np.uint8
    assert made[0, 0, 0] == 64 and made[1, 63, 63] == 255 and np.count_nonzero(made) == 2


# ---- shards


def test_a_shard_holds_what_its_seeds_render(shards):
    rows, seed = load_file(shard_path(shards, "plain", 1)), data.TRAIN_SEEDS["plain"] + 2
    assert {name: row.shape for name, row in rows.items()} == {
        "frames": (2, 16, 256, 256, 3),
        **dict.fromkeys(("depth", "edges", "ids"), (2, 16, 64, 64)),
    }
    for i in range(2):
        clip = sample(seed + i).render()
        assert np.array_equal(rows["frames"][i], clip.frames)
        assert np.array_equal(rows["ids"][i] > 0, (clip.ids >= 0).reshape(16, 64, 4, 64, 4).any((2, 4)))


def test_cached_latents_are_what_the_encoder_says(shards):
    cached = Clips(shards, ("plain",), ("latents", "rgb", "look", "ids"))
    frames = load_file(shard_path(shards, "plain", 1))["frames"]
    pixels = torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    torch.testing.assert_close(cached.arrays["latents"].float(), encode(pixels), rtol=0, atol=1e-3)
    assert cached.arrays["rgb"].shape == (2, 16, 64, 64, 3) and cached.arrays["look"].shape == (2, 8, 128, 128, 3)
    assert abs(cached.arrays["look"][1, 3].float() - torch.from_numpy(frames[1, 6].reshape(128, 2, 128, 2, 3).mean((1, 3)))).max() <= 0.5001


def test_clips_know_their_plots_and_captions(shards):
    cached, (a, b) = Clips(shards, ("plain", "free"), ("ids",)), (data.TRAIN_SEEDS["plain"] + 2, data.TRAIN_SEEDS["free"])
    assert len(cached) == len(cached.arrays["ids"]) == 4
    assert cached.plots[:2] == [plot(a), plot(a + 1)]
    assert [cached.caption(i, None) for i in (2, 3)] == [free_sample(b).caption, free_sample(b + 1).caption]
    for i in range(20):
        caption = cached.caption(0, np.random.default_rng(i))
        assert any(word in caption for word in SHAPE_WORDS[plot(a).toys[0].shape])
    assert len({cached.caption(0, np.random.default_rng(i)) for i in range(20)}) > 5


# ---- conditions


def draw(seed=0, count=400, drop_text=0.1):
    told, made = [], clips(8)

    def encode_text(captions):
        told.extend(captions)
        return torch.zeros(len(captions), 3, 5)

    g, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    chosen = torch.randint(8, (count,), generator=g)
    return conditions(made, chosen, encode_text, g, rng, drop_text), told, chosen


def test_conditions_have_their_shapes_and_ranges():
    cond, told, _ = draw()
    assert cond.context.shape == (400, 3, 5) and len(told) == 400
    for name, channels in (("depth", 1), ("sketch", 1), ("masked", 4)):
        value = getattr(cond, name)
        dropped = (value == -1).flatten(1).all(1)
        assert value.shape == (400, channels, 8, 16, 16) and value.dtype == torch.float32
        kept = value[~dropped]
        assert kept.amax() <= 1 and kept.amin() >= (-1 if name == "masked" else 0) and kept.std() > 0.1
        assert 0.22 < (~dropped).float().mean() < 0.38  # .6 times a half
    none = torch.stack([(getattr(cond, name) == -1).flatten(1).all(1) for name in ("depth", "sketch", "masked")]).all(0)
    assert 0.4 < none.float().mean() < 0.56  # .4 + .6 / 8


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_text_is_dropped_for_its_share(share):
    empty = [caption == "" for caption in draw(drop_text=share)[1]]
    assert sum(empty) / len(empty) == pytest.approx(share, abs=0.05 if share == 0.1 else 0)


def test_conditions_depend_on_the_generators_alone():
    (a, told, _), (b, again, _), (c, other, _) = draw(1, 20), draw(1, 20), draw(2, 20)
    assert told == again != other
    assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("depth", "sketch", "masked"))
    assert not torch.equal(a.masked, c.masked)


def test_a_part_of_a_batch_is_that_part_of_the_whole_and_what_is_not_kept_is_not_there():
    made, texts = clips(8), lambda captions: torch.tensor([[[float(len(caption))]] for caption in captions])

    def of(**options):
        g, rng = torch.Generator().manual_seed(5), np.random.default_rng(5)
        return conditions(made, torch.arange(8).flip(0), texts, g, rng, **options)

    whole, part, text = of(), of(part=slice(3, 6)), of(kept=("text", "masked"))
    for name in ("context", "depth", "sketch", "masked"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[3:6])
    assert text.depth is None and text.sketch is None and torch.equal(text.masked, whole.masked)


def test_free_scenes_have_their_share_and_always_a_map():
    made, g, rng = clips(8), torch.Generator().manual_seed(5), np.random.default_rng(5)
    made.free = [False] * 5 + [True] * 3
    free, drawn = torch.tensor(made.free), torch.cat([made.draw(32, g) for _ in range(60)])
    assert free[drawn].float().mean() == pytest.approx(data.FREE_SHARE, abs=0.03) and set(drawn.tolist()) == set(range(8))
    assert not free[made.draw(500, g, free=False)].any()
    two = torch.tensor([len(told.toys) == 2 for told in made.plots])[:5]
    assert 0 < two.sum() < 5
    plain = made.draw(2000, g, free=False)
    assert two[plain].float().mean() == pytest.approx(data.TWO_SHARE, abs=0.04)
    chosen = made.draw(300, g)
    for kept in (MAPS, ("text", "sketch"), ("masked",)):
        cond = conditions(made, chosen, lambda texts: torch.zeros(len(texts), 1, 1), g, rng, kept=kept)
        there = torch.stack([(getattr(cond, name) > -1).flatten(1).any(1) for name in MAPS if name in kept])
        assert there[:, free[chosen]].any(0).all() and 0.1 < there[:, ~free[chosen]].any(0).float().mean() < 0.65


def test_bending_keeps_the_ends_and_the_order():
    maps = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(50, -1, -1, -1)
    made = bent(maps, torch.Generator().manual_seed(0), 0.6, 1.6)
    assert made.shape == (50, 1, 1, 16, 16) and (made.flatten(1)[:, 0] == 0).all() and (made.flatten(1)[:, -1] == 1).all()
    assert (made.flatten(1).diff(dim=1) > 0).all()
    power = made.flatten(1)[:, 128].log() / np.log(128 / 255)
    assert 0.6 <= power.min() < 0.8 and 1.4 < power.max() <= 1.6


def test_outlines_stay_or_get_thicker_or_soft():
    line = torch.zeros(60, 1, 1, 9, 9)
    line[..., 4] = 1
    made = drawn(line, torch.Generator().manual_seed(0))[:, 0, 0, 4]  # (60, 9): across the line
    kinds = {tuple(row.mul(3).round().int().tolist()) for row in made}
    assert kinds == {(0, 0, 0, 0, 3, 0, 0, 0, 0), (0, 0, 0, 3, 3, 3, 0, 0, 0), (0, 0, 1, 2, 3, 2, 1, 0, 0)}


def test_the_hole_is_zero_and_the_fourth_channel_says_where():
    made = clips(8)
    rgb = made.arrays["rgb"].clamp(min=130)  # nowhere zero once it is in [-1, 1]
    masked = masked_picture(rgb, made.arrays["ids"], np.random.default_rng(0))
    pixels, kept = masked[:, :3], masked[:, 3:]
    assert set(kept.unique().tolist()) == {0, 1}
    assert torch.equal((pixels == 0).all(1), kept[:, 0] == 0) and torch.equal((pixels != 0).all(1), kept[:, 0] == 1)
    assert torch.equal(kept, kept[:, :, :1].expand_as(kept))  # the hole stays where it is
    real = rgb.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    assert torch.equal(pixels, real * kept)


def test_the_box_of_the_objects_holds_them_all_and_stays_inside():
    rng, margins = np.random.default_rng(0), set()
    for _ in range(60):
        ids = torch.zeros(4, 64, 64, dtype=torch.uint8)
        (y, x), (v, u) = rng.integers(0, 60, (2, 2))
        ids[0, y : y + 4, x : x + 4], ids[3, v : v + 3, u : u + 3] = 255, 9
        y0, y1, x0, x1 = object_box(ids, rng)
        assert 0 <= y0 <= min(y, v) and max(y + 4, v + 3) <= y1 <= 64 and 0 <= x0 <= min(x, u) and max(x + 4, u + 3) <= x1 <= 64
        margins.add(int(min(y, v) - y0))
    assert max(margins) <= 8 and len(margins) > 4
    assert object_box(torch.ones(2, 16, 16, dtype=torch.uint8), rng) == (0, 16, 0, 16)


def test_objects_weigh_more_in_and_around_their_places():
    ids = torch.zeros(2, 16, 64, 64, dtype=torch.uint8)
    ids[0, 5, 20:24, 33] = 255  # in latent frame 1, row 5, column 8
    weight = object_weight(ids, (4, 16, 16), 3)
    near = weight[0, 0] > weight[1].max()
    assert weight.shape == (2, 1, 4, 16, 16) and near.nonzero().tolist() == [[1, y, x] for y in (4, 5, 6) for x in (7, 8, 9)]
    assert weight.mean().item() == pytest.approx(1) and (weight.max() / weight.min()).item() == pytest.approx(4)


@pytest.mark.parametrize("size", [16, 64])
def test_a_random_box_is_not_empty_and_stays_inside(size):
    rng = np.random.default_rng(0)
    for _ in range(200):
        y0, y1, x0, x1 = random_box(rng, size)
        assert 0 <= y0 < y1 <= size and 0 <= x0 < x1 <= size and (y1 - y0) * (x1 - x0) < 0.6 * size**2


def test_a_clip_without_objects_gets_random_holes():
    masked = masked_picture(
        torch.full((6, 2, 16, 16, 3), 255, dtype=torch.uint8), torch.zeros(6, 2, 16, 16, dtype=torch.uint8), np.random.default_rng(1)
    )
    kept = masked[:, 3].flatten(1).mean(1)
    assert (kept < 1).all() and (kept > 0).all() and len(kept.unique()) > 3
