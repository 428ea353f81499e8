"""Uploads of every kind become the frames that were put into them, in time, upright and in shape."""

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import gradio
import numpy as np
import pytest
import skimage
from media import BLUE, GREEN, RED, SMALL, WHITE, corners, difference, ffmpeg, make, refused
from PIL import Image, ImageOps, ImageSequence

from videolcm import footage
from videolcm.footage import read_video
from videolcm.video import sha256_of, write_mp4

VIDEOS = Path(gradio.__file__).parent / "media_assets" / "videos"
PICTURES = Path(skimage.__file__).parent / "data"
pytestmark = pytest.mark.usefixtures("tidy")


def said(clip):
    return " ".join(clip.notices)


# What was put in comes out


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.mp4", ("-c:v", "libx264", "-pix_fmt", "yuv420p")),
        ("a.mov", ("-c:v", "prores_ks")),
        ("b.mov", ("-c:v", "png")),
        ("a.mkv", ("-c:v", "libx265", "-x265-params", "log-level=none")),
        ("a.webm", ("-c:v", "libvpx", "-b:v", "1M")),
        ("b.webm", ("-c:v", "libvpx-vp9", "-b:v", "1M")),
        ("c.mp4", ("-c:v", "libaom-av1", "-cpu-used", "8", "-crf", "20")),
        ("a.avi", ("-c:v", "mpeg4", "-q:v", "2")),
        ("b.avi", ("-c:v", "mjpeg", "-q:v", "2")),
        ("odd.mp4", ("-c:v", "libx264", "-pix_fmt", "yuv444p", "-vf", "crop=63:63:0:0:exact=1")),
        ("no-index.webm", ("-c:v", "libvpx", "-b:v", "1M", "-live", "1")),
    ],
)
def test_kinds_of_files(tmp_path, name, options):
    clip = read_video(make(tmp_path / name, corners(), *options), **SMALL)
    assert clip.frames.dtype == np.uint8 and clip.frames.flags.c_contiguous and clip.fps == 8
    assert difference(clip.frames, corners()) < 6
    assert "8 bits" not in said(clip) or name == "a.mov"


def test_gif(tmp_path):
    first, *rest = map(Image.fromarray, corners())
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=100)
    assert difference(read_video(tmp_path / "a.gif", fps=10, **SMALL).frames, corners()) < 6


def test_our_own_clips_come_back(tmp_path):
    path = write_mp4(tmp_path / "a.mp4", corners(), 8, {})
    clip = read_video(path, **SMALL)
    assert difference(clip.frames, corners()) < 3
    assert clip.notices == ()
    assert clip.sha256 == sha256_of(clip.frames)


def shown_at(path, times):
    """RGB pictures of a trusted file that are on the screen at these seconds, by another reader: the last that began by then."""
    with av.open(str(path)) as container:
        pictures = []
        for frame in container.decode(video=0):
            pictures.append(frame)
            if frame.time > max(times):
                break
    return [[picture for picture in pictures if picture.time <= time + 1e-6][-1].to_image() for time in times]


@pytest.mark.parametrize("name, start, fps", [("b.mp4", 0, 8), ("b.mp4", 1.3, 8), ("b.avi", 0, 8), ("world.mp4", 4.5, 12), ("muted_b.mp4", 2, 7.5)])
def test_real_videos_as_another_reader_sees_them(name, start, fps):
    clip = read_video(VIDEOS / name, frames=8, fps=fps, size=(96, 96), start=start)
    pictures = shown_at(VIDEOS / name, [start + i / fps for i in range(8)])
    others = np.stack([ImageOps.fit(picture, (96, 96), Image.Resampling.BICUBIC) for picture in pictures])
    assert max(difference(one, other) for one, other in zip(clip.frames, others, strict=True)) < 2.5
    assert "Resampled from 30 to" in said(clip)


def test_a_real_1080p_video_in_full():
    clip = read_video(VIDEOS / "a.mp4")
    assert clip.frames.shape == (16, 256, 256, 3)
    assert clip.notices == (
        "Resampled from 30 to 8 frames per second.",
        "Used the first 2.0 seconds of the video.",
        "Cut out the middle: 1920x1080 has another shape than 256x256.",
    )


@pytest.mark.parametrize("name", ["chelsea.png", "coins.png", "text.png", "rocket.jpg", "logo.png"])
def test_real_pictures(name):
    clip = read_video(PICTURES / name, size=(128, 96), start=5)
    with Image.open(PICTURES / name) as picture:
        rgba = picture.convert("RGBA")
        black = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("RGB")
    assert (clip.frames == clip.frames[0]).all()
    assert difference(clip.frames[0], np.asarray(ImageOps.fit(black, (96, 128), Image.Resampling.BICUBIC))) < 3
    assert clip.notices[0] == "The picture became a still video of 2.0 seconds."


def test_a_real_gif():
    path = PICTURES / "no_time_for_that_tiny.gif"
    clip = read_video(path, frames=8, size=(25, 14))
    with Image.open(path) as gif:
        pictures = [(picture.info["duration"] / 1000, picture.convert("RGB")) for picture in ImageSequence.Iterator(gif)]
    begins = np.cumsum([0] + [seconds for seconds, _ in pictures[:-1]])
    chosen = [pictures[np.flatnonzero(begins <= i / 8 + 1e-6)[-1]][1] for i in range(8)]
    assert chosen[0].size == (14, 25)
    assert difference(clip.frames, np.stack(chosen)) < 2


def test_a_webp_picture(tmp_path):
    Image.fromarray(corners()[0]).save(tmp_path / "a.webp", quality=95)
    assert difference(read_video(tmp_path / "a.webp", **SMALL).frames, np.repeat(corners()[:1], 8, 0)) < 6


# Time


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif"])
@pytest.mark.parametrize("start", [0, 0.75, 2])
def test_variable_rate_is_read_by_time(tmp_path, name, start):
    begins, colours = (0, 1, 1.52, 4), (RED, GREEN, BLUE, WHITE)
    lines = ["ffconcat version 1.0"]
    for i, (seconds, colour) in enumerate(zip((1, 0.52, 2.48, 1), colours, strict=True)):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{i}.png")
        lines += [f"file {i}.png", f"duration {seconds}"]
    (tmp_path / "list").write_text("\n".join(lines))
    ffmpeg("-f", "concat", "-i", tmp_path / "list", "-fps_mode", "vfr", tmp_path / name)
    clip = read_video(tmp_path / name, start=start, size=(64, 64))
    shown = [sum(begin <= start + i / 8 for begin in begins) - 1 for i in range(16)]
    found = [int(np.abs(np.array(colours) - frame[32, 32].astype(int)).sum(1).argmin()) for frame in clip.frames]
    assert found == shown
    assert ("Used seconds" if start else "Used the first 2.0 seconds") in said(clip)


def test_a_size_that_changes_midway(tmp_path):
    """As a turned phone records: the second half is larger. Time goes on, but for one frame, and the frames keep their size."""
    halves = [make(tmp_path / f"{i}.ivf", corners()[:, :side, :side], "-c:v", "libvpx", "-b:v", "1M") for i, side in enumerate((32, 64))]
    with av.open(str(tmp_path / "a.webm"), "w") as target:
        stream = None
        for i, half in enumerate(halves):
            with av.open(str(half)) as source:
                stream = stream or target.add_stream_from_template(source.streams.video[0])
                for n, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
                    packet.stream, packet.time_base = stream, Fraction(1, 8)
                    packet.pts = packet.dts = 8 * i + n
                    target.mux(packet)
    clip = read_video(tmp_path / "a.webm", size=(64, 64))
    assert difference(clip.frames[:7], np.repeat(np.repeat(corners()[:7, :32, :32], 2, 1), 2, 2)) < 6
    assert min(difference(clip.frames[begin : begin + 8], corners()) for begin in (7, 8)) < 6


def test_too_short_stays_on_its_last_frame(tmp_path):
    clip = read_video(make(tmp_path / "a.mp4", corners(3)), size=(64, 64))
    assert (clip.frames[3:] == clip.frames[2]).all() and difference(clip.frames[:3], corners(3)) < 6
    assert clip.notices == ("The video ends before 2.0 seconds are full, so its last frame is repeated.",)


def test_one_frame_is_enough(tmp_path):
    assert difference(read_video(make(tmp_path / "a.mp4", corners(1)), **SMALL).frames, np.repeat(corners(1), 8, 0)) < 6


def test_start_after_the_end(tmp_path):
    path = make(tmp_path / "a.mp4", corners())
    assert "second 100." in refused(path, "E_VIDEO_START", start=100)
    assert "second 99." in refused(VIDEOS / "world.mp4", "E_VIDEO_START", start=99)  # of which ffmpeg says more than nothing


@pytest.mark.parametrize("start", [-1, float("nan"), float("inf"), "2", None, True])
def test_start_that_is_no_time(tmp_path, start):
    refused(VIDEOS / "b.mp4", "E_NUMBER", start=start)


# Shape, turn, alpha, depth


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotation_is_applied(tmp_path, turns):
    make(tmp_path / "a.mp4", corners(height=48), "-pix_fmt", "yuv420p")
    ffmpeg("-display_rotation", 90 * turns, "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "b.mp4")
    upright = np.rot90(corners(height=48), turns, (1, 2))
    clip = read_video(tmp_path / "b.mp4", frames=8, size=upright.shape[1:3])
    assert difference(clip.frames, upright) < 6
    assert clip.notices == ("Turned upright, as the file asks for.",)


def test_a_turned_photo(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned clockwise
    Image.fromarray(corners()[0]).save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    assert difference(read_video(tmp_path / "a.jpg", **SMALL).frames[0], np.rot90(corners()[0], -1)) < 6


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (128, 64), (32, 96)])
@pytest.mark.parametrize("shape", [(64, 64), (48, 96), (97, 33), (2, 64), (64, 2)])
def test_fits(tmp_path, size, shape):
    """Grey fills a crop; with bars, all of the picture is there between black."""
    clip = np.full((1, *shape, 3), 200, np.uint8)
    path = make(tmp_path / "a.mp4", clip, "-pix_fmt", "yuv444p")
    crop = read_video(path, frames=1, size=size).frames[0]
    assert crop.shape == (*size, 3) and np.abs(crop.astype(int) - 200).max() < 6
    pad = read_video(path, frames=1, size=size, fit="pad").frames[0]
    scale = min(size[0] / shape[0], size[1] / shape[1])
    rows, columns = (pad.max(axis=(1 - axis, 2)) > 100 for axis in (0, 1))
    assert abs(rows.sum() - max(1, shape[0] * scale)) <= 2 and abs(columns.sum() - max(1, shape[1] * scale)) <= 2
    assert abs(int(rows[::-1].argmax()) - int(rows.argmax())) <= 2 and abs(int(columns[::-1].argmax()) - int(columns.argmax())) <= 2


def test_crop_takes_the_middle_and_pad_keeps_all(tmp_path):
    wide = np.concatenate([np.full_like(corners(), RED), corners(), np.full_like(corners(), BLUE)], 2)
    path = make(tmp_path / "a.mp4", wide, "-pix_fmt", "yuv444p")
    crop, pad = read_video(path, **SMALL), read_video(path, frames=8, size=(192, 192), fit="pad")
    assert difference(crop.frames, corners()) < 6
    assert difference(pad.frames[:, 64:128], wide) < 6 and pad.frames[:, :63].max() < 6 and pad.frames[:, 129:].max() < 6
    assert crop.notices == ("Cut out the middle: 192x64 has another shape than 64x64.",)
    assert pad.notices == ("Added black bars: 192x64 has another shape than 192x192.",)


@pytest.mark.parametrize("fit", footage.FITS)
def test_pixels_that_are_not_square(tmp_path, fit):
    path = make(tmp_path / "a.mp4", corners(width=32), "-pix_fmt", "yuv444p", "-vf", "setsar=2")
    clip = read_video(path, fit=fit, **SMALL)
    assert difference(clip.frames, corners()) < 8 and clip.notices == ()


def test_fit_that_is_none():
    refused(VIDEOS / "b.mp4", "E_FIT", fit="stretch")


@pytest.mark.parametrize("name, options", [("a.mov", ("-c:v", "png")), ("a.webm", ("-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p", "-b:v", "1M"))])
def test_alpha_is_laid_over_black(tmp_path, name, options):
    alpha = np.full((8, 64, 64, 1), 255, np.uint8)
    alpha[:, :, :32], alpha[:, :, 16:32] = 0, 128
    clip = read_video(make(tmp_path / name, np.concatenate([np.full((8, 64, 64, 3), 200, np.uint8), alpha], 3), *options), **SMALL)
    assert [round(float(clip.frames[..., x, :].mean()) / 10) for x in (6, 24, 50)] == [0, 10, 20]
    assert "transparent" in said(clip)


def test_transparent_edges_stay_clean(tmp_path):
    """Grey on transparent white, made smaller: no light may leak in from where nothing is to be seen."""
    picture = np.full((96, 96, 4), (255, 255, 255, 0), np.uint8)
    picture[:45] = (100, 100, 100, 255)
    Image.fromarray(picture).save(tmp_path / "a.png")
    column = read_video(tmp_path / "a.png", frames=1, size=(16, 16)).frames[0, 6:, 8, 0].astype(int)
    assert (np.diff(column) <= 3).all() and column.max() <= 112  # bicubic overshoots a little


def test_deep_and_bright_colours(tmp_path):
    ten = make(tmp_path / "a.mp4", corners(), "-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=none")
    clip = read_video(ten, **SMALL)
    assert difference(clip.frames, corners()) < 6 and clip.notices == ("Colours were reduced to 8 bits a channel.",)
    pq = "log-level=none:transfer=smpte2084:colorprim=bt2020:colormatrix=bt2020nc"
    hdr = make(tmp_path / "b.mp4", corners(), "-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", pq)
    assert "HDR" in said(read_video(hdr, **SMALL))


# Names, callers, cost


@pytest.mark.parametrize("name", ["-y.mp4", "$(touch x);a.gif", "a\nb.mp4", "http:a.mp4", "%d.png", "no extension", "über 🎈.mp4"])
def test_names_mean_nothing(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(make(tmp_path / "clip.mp4", corners()).read_bytes())
    assert difference(read_video(path, **SMALL).frames, corners()) < 6


def test_many_at_once():
    with ThreadPoolExecutor(4) as pool:
        clips = pool.map(lambda name: read_video(VIDEOS / name, **SMALL).sha256, ["b.mp4", "b.avi"] * 3)
    assert len(set(clips)) == 2


def test_a_long_video_costs_no_more(tmp_path):
    second = make(tmp_path / "second.mp4", corners(30), fps=30)
    ffmpeg("-stream_loop", 399, "-i", second, "-c", "copy", tmp_path / "a.mp4")
    assert "Used the first 2.0 seconds of the video." in read_video(tmp_path / "a.mp4", size=(64, 64)).notices
    assert "Used seconds 300.0 to 302.0 of the video." in read_video(tmp_path / "a.mp4", size=(64, 64), start=300).notices
