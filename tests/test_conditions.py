"""Condition maps: HED against controlnet_aux, and how a whole clip is treated."""

import io
import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import skimage
import torch

from videolcm import conditions, depth
from videolcm.conditions import EXTRACTORS, KEEP, Maps, as_is, choose, controlnet, extract, extracting, known, looks_like_map, per_clip
from videolcm.data import disparity
from videolcm.depth import DepthNet
from videolcm.errors import AppError
from videolcm.models.toybox import write_network
from videolcm.video import write_mp4
from videolcm.world import sample

PHOTOS = Path(skimage.__file__).parent / "data"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(conditions, "MAPS", Maps())
    for cached in (conditions.hed_network, conditions.pidinet_network, conditions.midas_network, depth.depth_network):
        cached.cache_clear()


def photo(name="astronaut.png", height=128, width=192):
    """A real picture, uint8 (H, W, 3) RGB."""
    return cv2.resize(cv2.imread(str(PHOTOS / name))[:, :, ::-1], (width, height), interpolation=cv2.INTER_AREA)


def disk_clip(frames=3, side=96):
    """A dark disk of radius 24 on a light ground, moving to the right."""
    y, x = np.mgrid[:side, :side]
    inside = np.stack([(x - 40 - 4 * f) ** 2 + (y - 48) ** 2 < 24**2 for f in range(frames)])
    return np.where(inside[..., None], np.uint8((70, 40, 30)), np.uint8((200, 210, 190)))


def rim(f=0, side=96):
    """How far each pixel is from the outline of the disk."""
    y, x = np.mgrid[:side, :side]
    return np.abs(np.hypot(x - 40 - 4 * f, y - 48) - 24)


def code(function, *args, **settings):
    with pytest.raises(AppError) as error:
        function(*args, **settings)
    assert len(str(error.value)) < 200
    return error.value.code


def damaged(source, target):
    """A copy of a file with one byte changed."""
    content = bytearray(Path(source).read_bytes())
    content[-1] ^= 1
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


# ---- the table


def test_every_row_says_what_it_is():
    for name, row in EXTRACTORS.items():
        assert set(row.kinds) <= {"depth", "sketch"} and len(row.what) < 80 and row.needs, name
    assert {"hed", "pidinet", "canny"} < {name for name, row in EXTRACTORS.items() if row.kinds == ("sketch",)}
    assert {"midas", "dpt-large", "builtin-depth"} == {name for name, row in EXTRACTORS.items() if row.kinds == ("depth",)}


@pytest.mark.parametrize("name", ["hed", "hed-fast", "canny", "as-is"])
@pytest.mark.parametrize("shape", [(1, 64, 96), (2, 30, 46)])
def test_maps_have_the_size_of_the_clip(name, shape):
    frames = np.stack([photo(height=shape[1], width=shape[2])] * shape[0])
    made = extract(name, frames)
    assert made.shape == shape and made.dtype == np.float32 and made.min() >= 0 and made.max() <= 1 and np.ptp(made) > 0.3


def test_what_is_not_a_clip_is_refused():
    good = disk_clip()
    for bad in (good[0], good.astype(np.float32), good[..., :1], good[:0], good[:, :8], [1, 2], None):
        assert code(extract, "canny", bad) == "E_CLIP"
    assert code(extract, "hedd", good) == "E_EXTRACTOR"


# ---- HED


def test_hed_is_the_packages_own_detector_on_its_own_network():
    frames = np.stack([photo(), photo("coffee.png")])
    detector = controlnet("hed").HEDdetector(conditions.hed_network(CPU, torch.float32))
    made = np.floor(extract("hed", frames) * 255)
    for picture, mine in zip(frames, made, strict=True):
        theirs = detector(picture, detect_resolution=128, image_resolution=128, output_type="np")[..., 0]
        assert theirs.shape == mine.shape and np.abs(theirs - mine).max() <= 1 and theirs.max() > 200


def test_hed_has_learned_to_outline():
    for f, made in enumerate(extract("hed", disk_clip())):
        assert made[rim(f) < 1].min() > 0.7 and made[rim(f) > 10].mean() < 0.06


def test_hed_in_bfloat16_is_nearly_the_same():
    exact, half = (extract("hed", disk_clip(1), dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert 0 < np.abs(exact - half).mean() < 0.01


def test_hed_fast_has_its_lines_in_the_same_places():
    made = extract("hed-fast", disk_clip(1))[0]
    assert made[rim() < 1].mean() > 0.7 and made[rim() > 20].mean() < 0.1


def test_weights_that_are_kept_as_whole_numbers_are_multiplied_by_the_scale_of_their_output():
    kept = {"a.weight": torch.tensor([[[[-127]], [[2]]], [[[0]], [[5]]]], dtype=torch.int8), "a.bias": torch.tensor([1.5, 2.0]).half()}
    made = conditions.of_bytes(kept | {"a.weight.scale": torch.tensor([0.5, 2.0]).half()})
    assert made["a.weight"].flatten(1).tolist() == [[-63.5, 1.0], [0.0, 10.0]] and made["a.bias"].tolist() == [1.5, 2.0]
    assert made.keys() == {"a.weight", "a.bias"} and {value.dtype for value in made.values()} == {torch.float32}


def test_hed_weights_are_checked(tmp_path, monkeypatch):
    real = conditions.ASSETS / "hed" / conditions.HED_FILE
    monkeypatch.setattr(conditions, "ASSETS", tmp_path)
    assert code(extract, "hed", disk_clip()) == "E_MODEL_FILE"
    damaged(real, tmp_path / "hed" / conditions.HED_FILE)
    assert code(extract, "hed", disk_clip()) == "E_CHECKPOINT"


def test_lights_that_flicker_do_not_make_sketches_flicker():
    lights = np.array([1, 0.8, 1, 0.85, 1])[:, None, None, None]
    frames = (photo("chelsea.png", 96, 128) * lights).astype(np.uint8)
    made = extract("hed", frames)
    assert np.abs(made[1:] - made[:1]).mean() < 0.03 < made.mean()


# ---- other sketches


def test_canny_draws_the_outline_and_nothing_else():
    for f, made in enumerate(extract("canny", disk_clip())):
        assert set(np.unique(made)) == {0, 1} and made[rim(f) > 2].max() == 0
        thick = cv2.dilate(made, np.ones((3, 3)))
        assert thick[rim(f) < 0.7].min() == 1 and made.sum() < 2.5 * np.pi * 24


def pidinet_weights(folder):
    """Random weights in the layout of the real file; returns the network that they are of."""
    torch.manual_seed(0)
    net = controlnet("pidi.model").pidinet().eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    folder.mkdir()
    torch.save({"state_dict": {f"module.{name}": value for name, value in net.state_dict().items()}}, folder / conditions.PIDINET_FILE)
    return net


def test_pidinet_reads_the_real_layout_and_normalised_rgb(tmp_path, monkeypatch):
    from torchvision.transforms.functional import normalize, to_tensor

    net = pidinet_weights(tmp_path / "pidinet")
    monkeypatch.setattr(conditions, "ASSETS", tmp_path)
    frames = np.stack([photo(height=64, width=96)] * 2)
    made = extract("pidinet", frames, dtype=torch.bfloat16)
    with torch.no_grad():
        wanted = net(normalize(to_tensor(frames[0]), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])[None])[-1][0, 0]
    assert np.allclose(made[0], wanted, atol=1e-5) and np.array_equal(made[0], made[1]) and np.ptp(made) > 0.01
    assert "pidinet" in known("sketch")


def test_pidinet_says_what_it_lacks_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setattr(conditions, "ASSETS", tmp_path)
    with pytest.raises(AppError, match="table5_pidinet.pth of lllyasviel/Annotators. Put them into assets/pidinet") as error:
        extract("pidinet", disk_clip())
    assert error.value.code == "E_WEIGHTS" and "pidinet" not in known("sketch")


@pytest.mark.parametrize("content", ["nonsense", "code", "other"])
def test_pidinet_refuses_other_files(tmp_path, monkeypatch, content):
    saved = io.BytesIO()
    torch.save({"nonsense": {}, "code": {"state_dict": print}, "other": {"state_dict": {"a": torch.zeros(1)}}}[content], saved)
    (tmp_path / "pidinet").mkdir()
    (tmp_path / "pidinet" / conditions.PIDINET_FILE).write_bytes(saved.getvalue())
    monkeypatch.setattr(conditions, "ASSETS", tmp_path)
    assert code(extract, "pidinet", disk_clip()) == "E_MODEL_FILE"


# ---- depth


def test_a_clip_has_one_scale():
    near, far = np.float32([[2, 10]]), np.float32([[2, 6]])
    assert np.allclose(per_clip(np.stack([near, far])), [[[0, 1]], [[0, 0.5]]])  # by frame both would be [0, 1]
    assert not per_clip(np.full((2, 4, 4), 7.0)).any()


def test_the_built_in_network_sees_the_whole_clip_at_once(tmp_path, monkeypatch):
    torch.manual_seed(0)
    net = DepthNet()
    with torch.no_grad():
        net.leave.weight.normal_()
        net.clip.weight.normal_()
    entry = write_network(tmp_path / "depth.safetensors", net)
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {"depth": entry}}))
    real = depth.depth_network.__wrapped__
    monkeypatch.setattr(depth, "depth_network", lambda device, dtype: real(device, dtype, tmp_path))
    frames = np.stack([photo("astronaut.png", 80, 112), photo("coffee.png", 80, 112)])
    both, alone = extract("builtin-depth", frames), extract("builtin-depth", frames[:1])
    assert both.shape == (2, 80, 112) and both.min() == 0 and both.max() == 1
    assert alone.shape == (1, 80, 112) and np.abs(both[0] - alone[0]).max() > 0.01
    large = extract("builtin-depth", np.stack([photo(height=320, width=512)]), dtype=torch.bfloat16)
    assert large.shape == (1, 320, 512) and np.isfinite(large).all()


def test_the_built_in_network_may_be_missing(tmp_path, monkeypatch):
    real = depth.depth_network.__wrapped__
    monkeypatch.setattr(depth, "depth_network", lambda device, dtype: real(device, dtype, tmp_path))
    assert code(extract, "builtin-depth", disk_clip()) == "E_MODEL_FILE"


# ---- answers are kept


def test_asking_again_does_not_compute_again(monkeypatch):
    calls = []

    def count(frames, device, dtype):
        calls.append(len(frames))
        return as_is(frames)

    monkeypatch.setitem(EXTRACTORS, "canny", EXTRACTORS["canny"]._replace(function=count))
    frames = disk_clip()
    first = extract("canny", frames)
    assert extract("canny", frames.copy()) is first and extract("canny", frames, "cpu", torch.float32) is first and len(calls) == 1
    other = frames.copy()
    other[2, 5, 5] ^= 1
    assert extract("canny", other) is not first and extract("as-is", frames) is not first
    extract("canny", frames.reshape(3, 48, 192, 3))
    extract("canny", frames, dtype=torch.bfloat16)
    assert len(calls) == 4
    with pytest.raises(ValueError):
        first[0] = 0
    for level in range(KEEP):
        extract("canny", np.full_like(frames, level))
    assert extract("canny", frames) is not first and len(conditions.MAPS.maps) == KEEP


def test_a_map_that_takes_long_says_how_far_it_is_and_can_be_left(monkeypatch):
    calls = []

    def count(frames, device, dtype):
        calls.append(len(frames))
        return as_is(frames)

    monkeypatch.setitem(EXTRACTORS, "hed", EXTRACTORS["hed"]._replace(function=count))
    frames = disk_clip(10)
    events = extracting("hed", frames)
    assert next(events) == 4 and calls == [4]
    events.close()
    *told, found = extracting("hed", frames)
    assert told == [4, 8, 10] and calls == [4, 4, 4, 2] and np.array_equal(found, as_is(frames))
    assert [*extracting("hed", frames)][0] is found and len(calls) == 4
    monkeypatch.setitem(EXTRACTORS, "builtin-depth", EXTRACTORS["builtin-depth"]._replace(function=count))
    extract("builtin-depth", frames)
    assert calls[-1] == 10  # which gives a clip one scale


# ---- uploaded maps


def through_mp4(grey, folder):
    """Maps (F, H, W) in [0, 1] as a video that somebody uploads."""
    write_mp4(folder / "map.mp4", np.repeat((grey * 255).astype(np.uint8)[..., None], 3, 3), 8, {})
    with av.open(str(folder / "map.mp4")) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


@pytest.fixture(scope="module")
def clip():
    return sample(3).render()


def test_uploaded_maps_are_known_and_used_as_they_are(clip, tmp_path):
    maps = {"depth": disparity(clip.depth)[:4], "sketch": clip.edges[:4] / 255}
    for kind, other in (("depth", "sketch"), ("sketch", "depth")):
        uploaded = through_mp4(maps[kind], tmp_path)
        assert looks_like_map(uploaded, kind) and not looks_like_map(uploaded, other)
        assert choose(kind, uploaded) == "as-is" and np.abs(extract("as-is", uploaded) - maps[kind]).mean() < 0.02
    assert not looks_like_map(clip.frames, "depth") and not looks_like_map(clip.frames, "sketch")


@pytest.mark.parametrize("name", ["hed", "canny"])
def test_our_own_sketches_are_known(clip, name, tmp_path):
    assert looks_like_map(through_mp4(extract(name, clip.frames[:1]), tmp_path), "sketch")


@pytest.mark.parametrize("name", ["astronaut.png", "coffee.png", "chelsea.png", "camera.png", "coins.png", "rocket.jpg", "text.png"])
def test_photographs_are_no_maps_in_colour_or_grey(name):
    picture = photo(name, 256, 256)
    grey = np.repeat(picture.mean(2, keepdims=True).astype(np.uint8), 3, 2)
    for frames in (picture[None], grey[None]):
        assert not looks_like_map(frames, "depth") and not looks_like_map(frames, "sketch")


def test_one_colour_is_no_map():
    assert not looks_like_map(np.zeros((2, 64, 64, 3), np.uint8), "sketch")


def test_what_is_chosen_for_a_film_can_be_done_here(monkeypatch):
    frames = np.stack([photo(height=64, width=64)])
    assert choose("sketch", frames) == "hed"
    monkeypatch.setattr(conditions, "midas_place", lambda name: None)
    assert choose("depth", frames) == "builtin-depth"


def test_a_broken_package_is_told(monkeypatch):
    def broken(name):
        raise AttributeError("module 'mediapipe' has no attribute 'solutions'")

    monkeypatch.setattr(conditions, "import_module", broken)
    assert code(extract, "hed", disk_clip()) == "E_PACKAGE"
