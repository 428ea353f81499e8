"""Everything hostile, broken or too large becomes one sentence, opens nothing and leaves nothing behind."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import gradio
import imageio_ffmpeg
import numpy as np
import pytest
from media import SMALL, corners, difference, ffmpeg, make, refused
from PIL import Image

from videolcm import footage
from videolcm.errors import CATALOGUE, AppError
from videolcm.footage import read_video

VIDEOS = Path(gradio.__file__).parent / "media_assets" / "videos"
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits from outside and stubs in sh")
pytestmark = pytest.mark.usefixtures("tidy")


@pytest.fixture(scope="module")
def eight_k(tmp_path_factory):
    """Two frames of 7680x4320, the largest size that is read."""
    path = tmp_path_factory.mktemp("large") / "8k.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=7680x4320:r=8:d=0.25", "-c:v", "libx264", "-preset", "ultrafast", path)
    return path


def gif_bomb(side=16000):
    size = side.to_bytes(2, "little") * 2
    return b"GIF89a" + size + b"\x80\0\0\0\0\0\xff\xff\xff," + bytes(4) + size + b"\0\x02\x02\x4c\x01\0;"


def with_huge_png(data, side=16000):
    """A small PNG, or the first in a file, that says it is side x side; the file around it says what it said."""
    at = data.index(b"IHDR")
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + data[at + 12 : at + 17]
    return data[:at] + header + zlib.crc32(header).to_bytes(4, "big") + data[at + 21 :]


def bombs(folder):
    """Files of a few kilobytes whose frames would take gigabytes."""
    (folder / "bomb.gif").write_bytes(gif_bomb())
    (folder / "larger.gif").write_bytes(gif_bomb(65535))
    Image.fromarray(corners()[0]).save(folder / "small.png")
    (folder / "bomb.png").write_bytes(with_huge_png((folder / "small.png").read_bytes()))
    (folder / "bomb.mov").write_bytes(with_huge_png(make(folder / "small.mov", corners(1), "-c:v", "png").read_bytes()))
    return sorted(folder.glob("bomb.*")) + [folder / "larger.gif"]


def test_bombs(tmp_path):
    for path in bombs(tmp_path):
        side = 65535 if path.stem == "larger" else 16000
        assert f"The picture is {side}x{side}; the limit is 33,177,600 pixels" in refused(path, "E_VIDEO_SIZE")


@linux
def test_memory_of_bombs_and_of_8k(tmp_path, eight_k):
    """The largest child of a process that reads them all, by the system's own account."""
    code = """
import dataclasses, resource, sys
from videolcm import footage
footage.LIMITS = dataclasses.replace(footage.LIMITS, wall=600.0)
for path in sys.argv[1:]:
    try:
        print(footage.read_video(path).notices, file=sys.stderr)
    except ValueError as error:
        print(error, file=sys.stderr)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""
    root = Path(footage.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, *bombs(tmp_path), eight_k], cwd=root, capture_output=True, text=True, check=True)
    assert done.stderr.count("E_VIDEO_SIZE") == 4 and "7680x4320 has another shape" in done.stderr
    assert int(done.stdout) < 600


def playlists(canary, port):
    """Texts that players take for a list of other files, in many formats, and the same behind the first bytes of real formats."""
    address = f"http://127.0.0.1:{port}/a.ts"
    texts = [f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n" for target in (f"file://{canary}", canary.name, address)]
    texts += [f"ffconcat version 1.0\nfile '{target}'\n" for target in (canary, canary.name, address)]
    texts += [
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><BaseURL>{address}</BaseURL></Period></MPD>',
        f'<smil><body><video src="{address}"/></body></smil>',
        f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{address}"/></svg>',
        f"RTSPtext {address}",
    ]
    beginnings = [b"", b"GIF89a\n", b"\xff\xd8\xff\n", b"\0\0\0\x14ftypisom", b"RIFF\0\0\0\0AVI ", b"\x1a\x45\xdf\xa3", b"\x89PNG\r\n\x1a\n"]
    return [beginning + text.encode() for text in texts for beginning in (beginnings if text in texts[::3] else beginnings[:1])]


def test_playlists_open_nothing(tmp_path):
    canary = make(tmp_path / "canary.ts", corners(), "-c:v", "libx264")
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        for i, data in enumerate(playlists(canary, server.getsockname()[1])):
            path = tmp_path / f"list{i}{('.m3u8', '.mp4', '.gif', '.ffconcat')[i % 4]}"
            path.write_bytes(data)
            with pytest.raises(AppError, match="E_VIDEO_(FORMAT|BROKEN|SIZE)") as caught:
                read_video(path)
            assert "canary" not in str(caught.value)
        with pytest.raises(TimeoutError):
            heard.append(server.accept())
    assert not heard


@pytest.mark.parametrize("codec, name", [("jpeg2000", "a.mov"), ("jpeg2000", "a.mkv"), ("ffv1", "a.mkv"), ("rawvideo", "a.avi")])
def test_decoders_that_are_not_on_the_list(tmp_path, codec, name):
    assert f"kind {codec} is" in refused(make(tmp_path / name, corners(), "-c:v", codec), "E_VIDEO_CODEC")


def test_a_transport_stream_is_not_guessed(tmp_path):
    refused(make(tmp_path / "a.ts", corners(), "-c:v", "libx264"), "E_VIDEO_FORMAT")


def test_sound_only(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", tmp_path / "a.mp4")
    refused(tmp_path / "a.mp4", "E_VIDEO_AUDIO")
    Image.fromarray(corners()[0]).save(tmp_path / "cover.png")
    cover = ("-map", "0", "-map", "1", "-c:v", "png", "-disposition:v:0", "attached_pic")
    ffmpeg("-i", tmp_path / "a.mp4", "-i", tmp_path / "cover.png", *cover, tmp_path / "b.m4a")
    refused(tmp_path / "b.m4a", "E_VIDEO_AUDIO")


@pytest.mark.parametrize(
    "data, code",
    [
        (b"", "E_VIDEO_EMPTY"),
        (b"\0", "E_VIDEO_FORMAT"),
        (b"just text", "E_VIDEO_FORMAT"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(99), "E_VIDEO_FORMAT"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "E_VIDEO_FORMAT"),
        (b"PK\x03\x04" + bytes(99), "E_VIDEO_FORMAT"),
        (np.random.default_rng(0).bytes(9999), "E_VIDEO_FORMAT"),
        (b"\0\0\0\x14ftypisom" + np.random.default_rng(1).bytes(9999), "E_VIDEO_BROKEN"),
        (b"\x1a\x45\xdf\xa3" + np.random.default_rng(2).bytes(9999), "E_VIDEO_BROKEN"),
        (b"GIF89a" + bytes(99), "E_VIDEO_BROKEN"),
    ],
)
def test_what_is_no_video(tmp_path, data, code):
    (tmp_path / "a.mp4").write_bytes(data)
    refused(tmp_path / "a.mp4", code)


def test_cut_off(tmp_path):
    data = make(tmp_path / "a.mp4", corners()).read_bytes()
    (tmp_path / "b.mp4").write_bytes(data[: len(data) // 2])  # its index was at the end
    refused(tmp_path / "b.mp4", "E_VIDEO_BROKEN")


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.avi", "a.gif"])
def test_damage_ends_in_frames_or_in_a_sentence(tmp_path, name):
    data = np.frombuffer(make(tmp_path / name, corners()).read_bytes(), np.uint8)
    for seed in range(8):
        random = np.random.default_rng(seed)
        damaged = data.copy()
        damaged[random.integers(12, len(data), 2 + 4 * seed)] = random.integers(0, 256, 2 + 4 * seed)
        (tmp_path / "damaged").write_bytes(damaged.tobytes())
        try:
            assert read_video(tmp_path / "damaged", **SMALL).frames.shape == (8, 64, 64, 3)
        except AppError as error:
            assert error.code.startswith("E_VIDEO_")


def test_tags_cannot_pose_as_tracks(tmp_path):
    """Titles that imitate what ffmpeg prints change neither frames nor sentences."""
    title = "x\n  Stream #0:9: Video: jpeg2000, yuva420p10le(smpte2084), 9x9, 99 fps\nrotation of 90.00 degrees"
    path = make(tmp_path / "a.mp4", corners(), "-metadata", f"title={title}", "-metadata:s:v", f"title={title}")
    clip = read_video(path, **SMALL)
    assert difference(clip.frames, corners()) < 6 and clip.notices == ()


def test_no_file(tmp_path):
    for path in (tmp_path / "none.mp4", tmp_path, "a\0b.mp4"):
        refused(path, "E_INPUT")


@linux
def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    refused(tmp_path / "a.mp4", "E_INPUT")


def test_too_many_bytes(tmp_path):
    with open(tmp_path / "a.mp4", "wb") as file:
        file.truncate((64 << 20) + 1)
    assert "more than 64 MB" in refused(tmp_path / "a.mp4", "E_VIDEO_LARGE")


# The limits of the child


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Put a script of sh in the place of ffmpeg."""

    def put(script):
        program = tmp_path / "stub"
        program.write_text("#!/bin/sh\n" + script)
        program.chmod(0o755)
        monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(program))

    return put


def limit(monkeypatch, **limits):
    monkeypatch.setattr(footage, "LIMITS", replace(footage.LIMITS, **limits))


@linux
def test_time_runs_out_for_the_whole_group(tmp_path, stub, monkeypatch):
    stub(f"sleep 600 &\necho $! > {tmp_path}/pid\nwait\n")
    limit(monkeypatch, wall=1.0)
    refused(VIDEOS / "b.mp4", "E_VIDEO_SLOW")
    status = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"


@linux
def test_processor_time_runs_out(stub, monkeypatch):
    stub("while :; do :; done\n")
    limit(monkeypatch, cpu=1, wall=600.0)
    refused(VIDEOS / "b.mp4", "E_VIDEO_SLOW")


@linux
def test_memory_runs_out(eight_k, monkeypatch):
    limit(monkeypatch, memory=250 << 20)
    refused(eight_k, "E_VIDEO_SLOW")


@linux
@pytest.mark.parametrize("where", ["1", "2"])
def test_endless_words_are_cut(stub, where):
    stub(f"exec yes >&{where}\n")
    refused(VIDEOS / "b.mp4", "E_VIDEO_BROKEN")


@linux
def test_no_secret_goes_to_the_child(tmp_path, stub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary")
    stub(f"/usr/bin/env > {tmp_path}/environment\nls > {tmp_path}/folder\n")
    refused(VIDEOS / "b.mp4", "E_VIDEO_BROKEN")
    assert "canary" not in (tmp_path / "environment").read_text()
    assert (tmp_path / "folder").read_text().split() == ["log", "upload"]


@linux
def test_no_child_outlives_an_interruption(stub, monkeypatch):
    children = []

    def interrupt(child):
        children.append(child)
        raise KeyboardInterrupt

    stub("exec sleep 600\n")
    monkeypatch.setattr(footage, "restrain", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_video(VIDEOS / "b.mp4")
    assert children[0].returncode is not None
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer) and not thread.finished.is_set()]


@pytest.mark.parametrize("error", [RuntimeError("No ffmpeg exe could be found."), FileNotFoundError("/secret")])
def test_no_ffmpeg(monkeypatch, error):
    def missing():
        raise error

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    refused(VIDEOS / "b.mp4", "E_FFMPEG")


def test_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    refused(VIDEOS / "b.mp4", "E_TEMPORARY")


def test_every_code_has_its_test():
    text = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_footage*.py"))
    assert not [code for code in CATALOGUE if code.startswith("E_VIDEO_") and f'"{code}"' not in text]
