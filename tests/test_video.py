"""mp4 files: what goes in comes out, in colour, in time, with its settings; and nothing half-written under the final name."""

import hashlib
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image
from test_footage_hostile import bombs

from videolcm.errors import AppError
from videolcm.video import read_settings, require_writable, sha256_of, write_mp4

SETTINGS = {"prompt": 'a "red" ball; rolls=left\\ # über 日本 🎈\nnew line', "steps": 4, "guidance": None, "nested": {"a": [1, 2.5, True]}}


def read_frames(path):
    """uint8 (F, H, W, 3) of one of our own mp4s, by the tags that it carries."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def gradient(frames=16, height=128, width=160):
    """A smooth clip that drifts to the right, uint8 (F, H, W, 3)."""
    f, y, x = np.meshgrid(np.arange(frames), np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    channels = [x * 200 + 3 * f, y * 220 + 20, 128 + 100 * np.sin(3 * x + f / 4)]
    return np.stack(channels, -1).clip(0, 255).astype(np.uint8)


def test_frames_come_back(tmp_path):
    frames = gradient()
    back = read_frames(write_mp4(tmp_path / "a.mp4", frames, 8, SETTINGS))
    assert back.shape == frames.shape
    assert np.abs(back.astype(int) - frames).mean() < 2.5


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 150, 50)])
def test_colours_stay(tmp_path, colour):
    frames = np.full((8, 128, 128, 3), colour, np.uint8)
    back = read_frames(write_mp4(tmp_path / "a.mp4", frames, 8, {}))
    assert np.abs(back.astype(int) - frames).max() <= 4


def test_what_browsers_need(tmp_path):
    path = write_mp4(tmp_path / "a.mp4", gradient(), 8, SETTINGS)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, stream.average_rate, stream.frames) == ("h264", "yuv420p", 8, 16)
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        times = [float(frame.pts * stream.time_base) for frame in container.decode(video=0)]
    assert times == [i / 8 for i in range(16)]
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_settings_come_back(tmp_path):
    assert read_settings(write_mp4(tmp_path / "a.mp4", gradient(8), 8, SETTINGS)) == SETTINGS


def test_settings_survive_a_remux(tmp_path):
    path = write_mp4(tmp_path / "a.mp4", gradient(8), 8, SETTINGS)
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        target.metadata.update(source.metadata)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert read_settings(tmp_path / "b.mp4") == SETTINGS


@pytest.mark.parametrize("comment", [None, "hello", "[1]", '{"videolcm": 3}', '{"other": {}}', "[" * 100_000])
def test_settings_of_others(tmp_path, comment):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        if comment:
            container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=8)
        stream.height = stream.width = 64
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    with pytest.raises(AppError, match="E_NO_SETTINGS"):
        read_settings(path)


@pytest.mark.parametrize("kind", ["mp4", "GIF", "PNG"])
def test_settings_of_a_file_that_was_cut_anywhere(tmp_path, kind):
    path = tmp_path / "a"
    if kind == "mp4":
        write_mp4(path, gradient(8), 8, SETTINGS)
    else:
        Image.fromarray(gradient(1)[0]).save(path, kind)
    whole = path.read_bytes()
    for size in range(0, 200, 3):
        path.write_bytes(whole[:size])
        with pytest.raises(AppError, match="E_NO_SETTINGS"):
            read_settings(path)


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", b"ffconcat version 1.0\nfile other.mp4\n"],
)
def test_settings_of_no_video(tmp_path, data):
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(AppError, match="E_NO_SETTINGS"):
        read_settings(tmp_path / "a.mp4")


def test_settings_of_nothing(tmp_path):
    with pytest.raises(AppError, match="E_INPUT"):
        read_settings(tmp_path / "none.mp4")


def test_sha256_is_of_the_bytes():
    frames = gradient(8)
    assert sha256_of(frames) == hashlib.sha256(frames.tobytes()).hexdigest()
    assert sha256_of(frames[:, ::-1]) == hashlib.sha256(frames[:, ::-1].tobytes()).hexdigest()


def test_replaces_in_one_go(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    write_mp4(path, gradient(8), 8, {})
    assert read_frames(path).shape[0] == 8
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_mp4(path, gradient(8), 8, {"not json": object()})
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["none/a.mp4", ".", "", "a\0b.mp4", "x" * 300 + ".mp4"])
def test_unwritable(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AppError, match="E_OUTPUT"):
        require_writable(name)


def test_writing_into_a_missing_folder(tmp_path):
    with pytest.raises(AppError, match="E_OUTPUT"):
        write_mp4(tmp_path / "none" / "a.mp4", gradient(8), 8, {})


def test_writable_leaves_nothing(tmp_path):
    require_writable(tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


def test_needs_no_torch():
    code = "import sys, videolcm.video; assert not {'torch', 'gradio', 'diffusers'} & set(sys.modules), 'heavy import'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_settings_are_read_without_decoding_a_picture(tmp_path):
    bombs(tmp_path)
    code = "import resource, sys; from videolcm.errors import AppError; from videolcm.video import read_settings\n"
    code += "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nbefore = peak()\n"
    code += "try: read_settings(sys.argv[1])\nexcept AppError as error: print(error.code, peak() - before)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "bomb.mov")], capture_output=True, text=True, check=True)
    told, grown = done.stdout.split()
    assert told == "E_NO_SETTINGS" and int(grown) < 100_000  # kB; its picture would take 768,000
