"""Toybox: the same seed gives the same clip, and every truth that it claims agrees with geometry computed here."""

import numpy as np
import pytest

from videolcm.render import FPS, Camera, Scene, render
from videolcm.solids import Solid, blocked, intersect, surface
from videolcm.world import ATTRIBUTES, DISTANCE, SIZES, Toy, free_sample, plot, read_prompt, sample, stage, vocabulary

FACING = np.eye(3, dtype=np.float32)[None]


def toy(**change):
    return Toy(**{"shape": "sphere", "colour": "red", "material": "matte", "size": "big", "motion": "still", **change})


def centres(clip):
    """Horizontal and vertical middle of the object in each frame, in pixels."""
    return np.array([[axis.mean() for axis in np.nonzero(ids >= 0)[::-1]] for ids in clip.ids])


def test_a_seed_is_a_clip():
    first, again, other = sample(5), sample(5), sample(6)
    assert first.caption == again.caption
    assert np.array_equal(first.render().frames, again.render().frames)
    assert not np.array_equal(first.render().frames, other.render().frames)


def test_shapes_and_types_at_any_size():
    clip = sample(3, frames=10).render((128, 192))
    assert clip.frames.shape == (10, 128, 192, 3) and clip.frames.dtype == np.uint8
    assert clip.depth.shape == clip.ids.shape == clip.edges.shape == (10, 128, 192)
    assert set(np.unique(clip.ids)) <= {-1, 0, 1}


def test_depth_of_a_sphere_and_of_the_floor_is_exact():
    camera = Camera(height=2.0, pitch=0.0)
    ball = Solid("sphere", np.ones(3, np.float32), np.array([[0, 2, 8]], np.float32), FACING, np.array([1, 0, 0]))
    clip = render(Scene((ball,), "wood", "day", camera), (128, 128))
    assert clip.depth[0, 64, 64] == pytest.approx(7.0, abs=0.01)
    focal = 64 / np.tan(camera.fov / 2)
    row = 120
    down = (row + 0.25 - 64) / focal  # the first subpixel of the row
    assert clip.depth[0, row, 5] == pytest.approx(camera.height / down, rel=1e-4)
    assert np.isinf(clip.depth[0, 5, 5])


def test_ids_cover_the_projected_disc_and_edges_lie_on_its_rim():
    ball = Solid("sphere", np.ones(3, np.float32), np.array([[0, 2, 8]], np.float32), FACING, np.array([1, 0, 0]))
    camera = Camera(height=2.0, pitch=0.0)
    clip = render(Scene((ball,), "snow", "studio", camera), (128, 128))
    focal = 64 / np.tan(camera.fov / 2)
    radius = focal / np.sqrt(8**2 - 1)  # of the outline of a unit sphere at distance 8
    y, x = np.mgrid[:128, :128] + 0.5 - 64
    away = np.hypot(x, y) - radius
    assert (clip.ids[0][away < -1] == 0).all() and (clip.ids[0][away > 1] == -1).all()
    assert clip.edges[0][np.abs(away) < 0.5].min() > 0 and clip.edges[0][np.abs(away) > 2].max() == 0


@pytest.mark.parametrize("shape", ATTRIBUTES["shape"])
def test_hits_lie_on_the_surface_and_normals_point_outwards(shape):
    rng = np.random.default_rng(0)
    solid = Solid(shape, np.array([0.8, 1.1, 0.6], np.float32), np.array([[0, 0, 5]], np.float32), FACING, np.ones(3))
    directions = np.stack([rng.uniform(-0.2, 0.2, 4000), rng.uniform(-0.25, 0.25, 4000), np.ones(4000)]).astype(np.float32)
    t = intersect(solid, 0, np.zeros((3, 1), np.float32), directions)
    hit = np.isfinite(t)
    points = directions[:, hit] * t[hit]
    p, normal = (points - np.array([[0], [0], [5]])) / solid.scale[:, None], surface(solid, 0, points)[0]
    outside = {
        "sphere": lambda: np.linalg.norm(p, axis=0),
        "cube": lambda: np.abs(p).max(0),
        "cylinder": lambda: np.maximum(np.hypot(p[0], p[2]), np.abs(p[1])),
        "cone": lambda: np.maximum(np.hypot(p[0], p[2]) + (p[1] - 1) / 2 + 1, -p[1]),
    }[shape]()
    assert hit.sum() > 500
    np.testing.assert_allclose(outside, 1, atol=2e-3)
    assert ((normal * (p - np.array([[0], [-0.2], [0]]))).sum(0) > 0).all()


def test_a_share_of_the_rays_is_blocked():
    solid = Solid("sphere", np.ones(3, np.float32), np.array([[0, 0, 5]], np.float32), FACING, np.ones(3))
    ways = np.array([[0, 0, 1], [0, 0, -1], [0, 1, 0], [0.1, 0, 1]], np.float32)
    points = np.array([[0, 9], [0, 0], [0, 0]], np.float32)  # one in front of the solid, one beside it
    assert blocked(solid, 0, points, ways).tolist() == [0.5, 0]


@pytest.mark.parametrize(
    ("motion", "check"),
    [
        ("left", lambda x, y, size: x[-1] < x[0] - 60 and np.diff(x).max() < 0),
        ("right", lambda x, y, size: x[-1] > x[0] + 60 and np.diff(x).min() > 0),
        ("closer", lambda x, y, size: size[-1] > 2 * size[0]),
        ("away", lambda x, y, size: size[0] > 2 * size[-1]),
        ("bounce", lambda x, y, size: np.ptp(y) > 15 and (np.diff(np.sign(np.diff(y))) != 0).sum() >= 3),
        ("jump", lambda x, y, size: np.ptp(y) > 30 and abs(y[0] - y[-1]) < 3),
        ("circle", lambda x, y, size: np.ptp(x) > 40 and abs(x[0] - x[-1]) < 0.6 * np.ptp(x) and np.ptp(size) > 0.2 * size.mean()),
        ("spin", lambda x, y, size: np.ptp(x) < 2 and np.ptp(y) < 2),
        ("still", lambda x, y, size: np.ptp(x) < 1 and np.ptp(y) < 1),
    ],
)
def test_motions_do_what_they_are_called(motion, check):
    clip = render(stage([toy(motion=motion, size="small" if motion == "jump" else "big")]))
    x, y = centres(clip).T
    assert check(x, y, (clip.ids >= 0).sum((1, 2)))


def test_spinning_is_seen_and_standing_still_is_still():
    spin, still = (render(stage([toy(motion=motion)])).frames.astype(int) for motion in ("spin", "still"))
    assert np.abs(np.diff(spin, axis=0)).mean() > 0.3
    assert np.abs(np.diff(still, axis=0)).max() == 0


def test_a_small_ball_is_smaller_and_a_red_one_redder():
    small, big = (render(stage([toy(size=size)])) for size in SIZES)
    assert (big.ids >= 0).sum() > 2 * (small.ids >= 0).sum()
    red, blue = (render(stage([toy(colour=colour)], "snow", "night")) for colour in ("red", "blue"))
    assert red.frames[red.ids == 0].mean(0).argmax() == 0
    assert blue.frames[blue.ids == 0].mean(0).argmax() == 2


def test_two_objects_never_touch():
    for seed in range(40):
        scene = sample(seed, objects=2).scene
        a, b = scene.solids
        assert np.linalg.norm((a.position - b.position)[:, [0, 2]], axis=1).min() > a.scale[0] + b.scale[0]


def test_captions_name_what_they_say():
    known = set(vocabulary())
    for seed in range(300):
        told = plot(seed)
        words = told.caption.replace(",", "").split()
        assert set(words) <= known
        assert len(words) <= 37
        assert len(told.said) == len(told.toys) + 1
        for toy_, said in zip(told.toys, told.said, strict=False):
            assert all(getattr(toy_, name) == value for name, value in said.items())
            if "colour" in said and said["colour"] not in ("red", "purple"):
                assert said["colour"] in words


def test_every_attribute_occurs():
    plots = [plot(seed) for seed in range(400)]
    for name, values in ATTRIBUTES.items():
        seen = {getattr(told, name) for told in plots} if name in ("floor", "sky") else {getattr(t, name) for told in plots for t in told.toys}
        assert seen == set(values)


def test_free_scenes_have_other_cameras_and_shapes():
    samples = [free_sample(seed) for seed in range(8)]
    assert len({s.scene.camera for s in samples}) == 8
    assert any(len(s.scene.solids) > len(s.toys) for s in samples)
    clip = samples[0].render((64, 64))
    assert np.isfinite(clip.depth[clip.ids >= 0]).all()


def test_the_clip_lasts_as_long_as_its_frames():
    long = sample(2, objects=1, frames=32).scene.solids[0].position
    short = sample(2, objects=1, frames=16).scene.solids[0].position
    assert FPS == 8 and len(long) == 32
    np.testing.assert_allclose(long[:16], short)
    assert DISTANCE > 0


# ---- reading prompts


def test_generated_captions_are_read_as_they_were_meant():
    plots = [plot(seed) for seed in range(500)]
    assert sum(read_prompt(told.caption) == told.said for told in plots) >= 0.99 * len(plots)
    assert {len(told.said) for told in plots} == {2, 3}


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a red ball rolls to the left over snow", ({"shape": "sphere", "colour": "red", "motion": "left"}, {"floor": "snow"})),
        ("At NIGHT, a small cube!", ({"shape": "cube", "size": "small"}, {"sky": "night"})),
        ("a red dragon and a ball in the deep snow", ({"shape": "sphere"}, {"floor": "snow"})),
        ("a green cone on a green lawn under a blue sky", ({"shape": "cone", "colour": "green"}, {"floor": "grass", "sky": "day"})),
        ("a ball spins and a box", ({"shape": "sphere", "motion": "spin"}, {"shape": "cube"}, {})),
        ("a drum, big blue", ({"shape": "cylinder"}, {})),
        ("jumps", ({},)),
        ("", ({},)),
    ],
)
def test_prompts_of_people(prompt, said):
    assert read_prompt(prompt) == said


def test_every_attribute_that_is_read_exists():
    for seed in range(100):
        for named in read_prompt(plot(seed).caption):
            assert all(value in ATTRIBUTES[name] for name, value in named.items())
