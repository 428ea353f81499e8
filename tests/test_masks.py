"""Inpainting masks: where the hole is, that it follows what it covers, and that nothing outside it changes."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage

from videolcm.errors import AppError
from videolcm.masks import composite, feather, follow, from_box, from_mask, grow, masked_map, overlay

SHAPE = (4, 64, 96)
PHOTOS = Path(skimage.__file__).parent / "data"


def code(function, *args):
    with pytest.raises(AppError) as error:
        function(*args)
    assert len(str(error.value)) < 200
    return error.value.code


def film(frames=4, height=64, width=96, name="coffee.png"):
    picture = cv2.resize(cv2.imread(str(PHOTOS / name))[:, :, ::-1], (width + 3 * frames, height), interpolation=cv2.INTER_AREA)
    return np.stack([picture[:, 3 * f : 3 * f + width] for f in range(frames)])


# ---- a hole


def test_a_box():
    hole = from_box((0.25, 0.5, 0.75, 1), SHAPE)
    assert hole.shape == SHAPE and hole.dtype == np.float32
    wanted = np.zeros(SHAPE)
    wanted[:, 32:, 24:72] = 1
    assert np.array_equal(hole, wanted)


@pytest.mark.parametrize(
    "box", [(0.5, 0, 0.5, 1), (0.6, 0, 0.5, 1), (-0.1, 0, 1, 1), (0, 0, 1.1, 1), (0, 0, 1), "left", None, (0, 0, float("nan"), 1)]
)
def test_boxes_that_are_none(box):
    assert code(from_box, box, SHAPE) == "E_BOX"


def masks():
    mark = np.zeros((64, 96), bool)
    mark[10:30, 20:50] = True
    layer = np.zeros((64, 96, 4), np.uint8)
    layer[mark] = (255, 0, 0, 3)  # thinly painted
    grey = np.where(mark, 200, 50).astype(np.uint8)
    return mark, {
        "bool": mark,
        "bytes": grey,
        "floats": grey / 255,
        "colours": np.repeat(grey[..., None], 3, 2),
        "painted": layer,
        "large": cv2.resize(grey, (192, 128), interpolation=cv2.INTER_NEAREST),
        "one frame": grey[None],
        "video": np.repeat(grey[None], 4, 0),
        "video in colour": np.repeat(np.repeat(grey[None], 4, 0)[..., None], 3, 3),
    }


@pytest.mark.parametrize("kind", masks()[1])
def test_masks_of_every_kind(kind):
    mark, kinds = masks()
    hole = from_mask(kinds[kind], SHAPE)
    assert hole.shape == SHAPE and hole.dtype == np.float32 and all(np.array_equal(picture, mark) for picture in hole)


def test_a_mask_video_moves():
    moving = np.zeros((4, 64, 96), np.uint8)
    for f in range(4):
        moving[f, 10 * f : 10 * f + 10] = 255
    assert np.array_equal(from_mask(moving, SHAPE), moving / 255)


def test_masks_that_do_not_fit():
    for bad in (np.ones((3, 64, 96)), np.ones((96, 64)), np.ones(5), np.ones((4, 64, 96, 2)), np.ones((0, 0))):
        assert code(from_mask, bad, SHAPE) == "E_MASK_SHAPE"
    hole = from_box((0, 0, 0.5, 1), SHAPE)
    for function in (overlay, masked_map):
        assert code(function, film(3), hole) == code(function, film()[:, 1:], hole) == code(function, film(), hole[0]) == "E_MASK_SHAPE"
    assert code(composite, film(), film(3), hole) == "E_MASK_SHAPE"


def test_nothing_and_everything_are_refused():
    assert code(from_mask, np.zeros((64, 96)), SHAPE) == code(from_mask, np.zeros((64, 96, 4)), SHAPE) == "E_MASK_EMPTY"
    assert code(from_mask, np.ones((64, 96)), SHAPE) == code(from_box, (0, 0, 1, 1), SHAPE) == "E_MASK_FULL"
    assert code(from_box, (0.5, 0, 0.501, 1), SHAPE) == "E_MASK_EMPTY"
    assert code(grow, from_box((0.05, 0.05, 0.95, 0.95), SHAPE), 10) == "E_MASK_FULL"


# ---- moving with the picture


def moving_square(speed, turn=0.0, growth=1.0, start=30, side=64, frames=16):
    """A textured square before a textured ground, uint8 (F, 256, 256, 3), and where it is, bool (F, 256, 256)."""
    rng = np.random.default_rng(1)
    back = cv2.resize(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), (256, 256), interpolation=cv2.INTER_CUBIC)
    front = cv2.resize(rng.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8), (side, side), interpolation=cv2.INTER_CUBIC)
    clip, where = [], []
    for f in range(frames):
        place = cv2.getRotationMatrix2D((side / 2, side / 2), turn * f, growth**f)
        place[:, 2] += (start + speed[0] * f, 60 + speed[1] * f)
        where.append(cv2.warpAffine(np.ones((side, side), np.float32), place, (256, 256)) > 0.5)
        clip.append(np.where(where[-1][..., None], cv2.warpAffine(front, place, (256, 256)), back))
    return np.stack(clip), np.stack(where)


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("motion", [{"speed": (3, 1)}, {"speed": (7, 2)}, {"speed": (3, 1), "turn": 3}, {"speed": (2, 1), "growth": 1.03}], ids=str)
def test_the_hole_follows_a_moving_square(motion):
    frames, where = moving_square(**motion)
    hole = follow(where[0], frames)
    assert hole.shape == where.shape and hole.dtype == np.float32 and set(np.unique(hole)) == {0, 1}
    assert np.array_equal(hole[0], where[0]) and overlap(where[15], where[0]) < 0.75
    assert min(overlap(hole[f] > 0, where[f]) for f in range(16)) > 0.85


def test_the_hole_stays_where_nothing_moves():
    frames = np.repeat(film(1, 128, 128), 10, 0)
    hole = follow(from_box((0.3, 0.3, 0.7, 0.7), (1, 128, 128))[0], frames)
    assert np.array_equal(hole, np.repeat(hole[:1], 10, 0))


def test_the_hole_leaves_the_picture_with_what_it_covers():
    frames, where = moving_square((8, 0), start=140)
    hole = follow(where[0], frames)
    assert overlap(hole[9] > 0, where[9]) > 0.8 and hole[15].sum() < 0.05 * hole[0].sum()


# ---- its outline


def test_grow_and_feather_by_pixels():
    hole = np.zeros((2, 65, 65), np.float32)
    hole[:, 30:35, 30:35] = 1
    y, x = np.mgrid[:65, :65]
    distance = np.hypot(np.clip(np.abs(y - 32) - 2, 0, None), np.clip(np.abs(x - 32) - 2, 0, None))
    large, gentle = grow(hole, 6)[1], feather(hole, 6)[1]
    assert (large[distance <= 5.5] == 1).all() and (large[distance > 6.6] == 0).all() and large[32, 40] == 1
    assert (gentle[distance == 0] == 1).all() and (gentle[distance >= 7.3] == 0).all()
    ray = gentle[32, 34:42]
    assert (np.diff(ray) < 0).all() and ray[0] == 1 and 0.3 < ray[3] < 0.9 and 0 < ray[6] < 0.1 and ray[7] == pytest.approx(0, abs=1e-6)
    assert np.array_equal(grow(hole, 0), hole) and np.array_equal(feather(hole, 0) > 0.5, hole > 0.5)


# ---- with a clip


def test_the_overlay_shows_the_hole_and_leaves_the_rest():
    frames, hole = film(), from_box((0.25, 0.25, 0.75, 0.75), SHAPE)
    shown = overlay(frames, hole)
    far = np.stack([cv2.dilate(picture, np.ones((3, 3))) for picture in hole]) == 0
    assert shown.dtype == np.uint8 and np.array_equal(shown[far], frames[far])
    assert shown[..., 0][hole > 0].mean() > frames[..., 0][hole > 0].mean() + 30


def test_the_masked_map_has_vgens_layout():
    frames, hole = film(), from_box((0.25, 0.25, 0.75, 0.75), SHAPE)
    made = masked_map(frames, hole)
    assert made.shape == (4, *SHAPE) and made.dtype == np.float32
    assert np.array_equal(made[3], 1 - hole) and not made[:3, hole > 0].any()
    back = (made[:3].transpose(1, 2, 3, 0) + 1) * 127.5
    assert np.abs(back - frames)[hole == 0].max() < 1e-3


def test_outside_the_feathered_hole_nothing_changes():
    frames, hole = film(), feather(from_box((0.3, 0.3, 0.6, 0.7), SHAPE), 5)
    made = np.random.default_rng(0).integers(0, 256, frames.shape, dtype=np.uint8)
    done = composite(frames, made, hole)
    assert done.dtype == np.uint8 and np.array_equal(done[hole == 0], frames[hole == 0])
    assert (hole == 0).mean() > 0.5 and not np.array_equal(done[hole == 1], frames[hole == 1])


def test_putting_the_same_back_changes_nothing():
    frames, hole = film(), feather(from_box((0.3, 0.3, 0.6, 0.7), SHAPE), 5)
    assert np.array_equal(composite(frames, frames, hole), frames)


def test_what_was_made_stays_where_its_surroundings_agree():
    frames, hole = film(), from_box((0.3, 0.3, 0.6, 0.7), SHAPE)
    made = frames.copy()
    made[hole > 0] = 255 - made[hole > 0]
    assert np.array_equal(composite(frames, made, hole), made)


def test_colours_meet_at_the_rim():
    frames, hole = film(2, 128, 128), from_box((0.3, 0.3, 0.7, 0.7), (2, 128, 128))
    frames = (frames * 0.6 + 50).astype(np.uint8)  # room to shift in
    slope = np.linspace(-25, 25, 128)[None, None, :, None]
    for shift in (np.array([20, -15, 10]), slope):
        made = np.clip(frames + shift, 0, 255).astype(np.uint8)
        left = composite(frames, made, feather(hole, 4)).astype(float) - frames
        edge = (hole > 0) & (np.stack([cv2.erode(picture, np.ones((7, 7))) for picture in hole]) == 0)
        assert np.abs(made.astype(float) - frames)[edge].mean() > 6 and np.abs(left[edge]).mean() < 2.5


def test_frames_without_a_hole_are_the_clips():
    frames, hole = film(), from_box((0.3, 0.3, 0.6, 0.7), SHAPE)
    hole[2] = 0
    made = 255 - frames
    done = composite(frames, made, feather(hole, 3))
    assert np.array_equal(done[2], frames[2]) and not np.array_equal(done[1], frames[1])
