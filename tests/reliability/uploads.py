"""Lines on files that somebody gives: a corpus of hostile and odd ones through every tab (R1), and damaged ones by function (R2)."""

import contextlib
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .shared import late, site
from .site import MEMORY
from .visitor import SMALL, Visitor

SECONDS = 10  # what one file may take
REFUSED, ACCEPTED = 23, 11  # files, at least
FOLLOW = ("depth", "sketch", "inpaint", "compare")


def hostile(place, port):
    """{path: the code that refuses it}, "" for any of E_VIDEO_*."""
    import numpy as np
    import test_footage_hostile as bad
    from media import corners, ffmpeg, make
    from PIL import Image

    canary = make(place / "canary.ts", corners(), "-c:v", "libx264")
    files = dict.fromkeys(bad.bombs(place), "E_VIDEO_SIZE")
    for i, data in enumerate(bad.playlists(canary, port)):
        path = place / f"list{i}{('.m3u8', '.mp4', '.gif', '.ffconcat', '.mov')[i % 5]}"
        path.write_bytes(data)
        files[path] = ""
    for name, codec in (("a.mov", "jpeg2000"), ("a.mkv", "ffv1"), ("raw.avi", "rawvideo")):
        files[make(place / name, corners(), "-c:v", codec)] = "E_VIDEO_CODEC"
    files[make(place / "stream.ts", corners(), "-c:v", "libx264")] = "E_VIDEO_FORMAT"
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", place / "sound.mp4")
    Image.fromarray(corners()[0]).save(place / "cover.png")
    ffmpeg(
        "-i",
        place / "sound.mp4",
        "-i",
        place / "cover.png",
        "-map",
        "0",
        "-map",
        "1",
        "-c:v",
        "png",
        "-disposition:v:0",
        "attached_pic",
        place / "c.m4a",
    )
    files |= {place / "sound.mp4": "E_VIDEO_AUDIO", place / "c.m4a": "E_VIDEO_AUDIO"}
    cut = make(place / "whole.mp4", corners()).read_bytes()
    random = np.random.default_rng(0).bytes(9999)
    for name, data, code in (
        ("empty.mp4", b"", "E_VIDEO_EMPTY"),
        ("text.mp4", b"just text", "E_VIDEO_FORMAT"),
        ("random.mp4", random, "E_VIDEO_FORMAT"),
        ("header.mp4", b"\0\0\0\x14ftypisom" + random, "E_VIDEO_BROKEN"),
        ("header.webm", b"\x1a\x45\xdf\xa3" + random, "E_VIDEO_BROKEN"),
        ("cut.mp4", cut[: len(cut) // 2], "E_VIDEO_BROKEN"),
        ("sound.wav", b"RIFF\x24\0\0\0WAVEfmt ", "E_VIDEO_FORMAT"),
        ("archive.mp4", b"PK\x03\x04" + bytes(99), "E_VIDEO_FORMAT"),
    ):
        (place / name).write_bytes(data)
        files[place / name] = code
    return files


def odd(place):
    """Files that are unusual, and fine."""
    import numpy as np
    from media import corners, ffmpeg, make

    alpha = np.concatenate([corners(), np.full((8, 64, 64, 1), 120, np.uint8)], 3)
    ten = ("-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=none")
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=7680x4320:r=8:d=0.25", "-c:v", "libx264", "-preset", "ultrafast", place / "8k.mp4")
    second = make(place / "second.mp4", corners(30, 32, 32), fps=30)
    ffmpeg("-stream_loop", 399, "-i", second, "-c", "copy", place / "frames12k.mp4")
    ffmpeg("-display_rotation", 90, "-i", make(place / "flat.mp4", corners(height=48)), "-c", "copy", place / "rot90.mp4")
    return [
        place / "8k.mp4",
        place / "frames12k.mp4",
        place / "rot90.mp4",
        make(place / "odd.mp4", corners(), "-pix_fmt", "yuv444p", "-vf", "crop=63:63:0:0:exact=1"),
        make(place / "alpha.webm", alpha, "-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p"),
        make(place / "ten.mp4", corners(), *ten),
        make(place / "hdr10.mp4", corners(), *ten, "-color_trc", "smpte2084", "-color_primaries", "bt2020", "-colorspace", "bt2020nc"),
        make(place / "av1.mp4", corners(), "-c:v", "libaom-av1", "-cpu-used", "8", "-crf", "40"),
        make(place / "one.mp4", corners(1)),
        make(place / "a.gif", corners()),
        make(place / "prores.mov", corners(), "-c:v", "prores_ks"),
    ]


def r1(n, random, figures):
    """Each file through `n` of the tabs that follow a video, in turn; after each the page still answers."""
    page, slowest = site(), 0.0
    heard, port = [], socket.create_server(("127.0.0.1", 0))
    port.settimeout(0.01)
    with tempfile.TemporaryDirectory() as folder, Visitor(page.url) as visitor:
        place = Path(folder)
        files = hostile(place, port.getsockname()[1]) | dict.fromkeys(odd(place), None)
        refused = len([code for code in files.values() if code is not None])
        yield "" if refused >= REFUSED and len(files) - refused >= ACCEPTED else f"a corpus of {len(files)}, {refused} to be refused"
        for i, (path, code) in enumerate(files.items()):
            for tab in [FOLLOW[(i + k) % len(FOLLOW)] for k in range(n)]:
                began = time.monotonic()
                answer = asked(visitor, tab, path)
                taken = time.monotonic() - began
                slowest = max(slowest, taken)
                with contextlib.suppress(TimeoutError):
                    heard.append(port.accept())
                alive = visitor.http.get("/healthz").status_code == 200
                yield wrong(path.name, tab, code, answer) or ("" if alive and not heard else f"{path.name}: dead, or it knocked")
        figures |= {"files": len(files), "slowest": round(slowest, 2), "MB that a child may have": MEMORY >> 20}
    port.close()
    yield late(slowest, SECONDS, "one was answered")


def asked(visitor, tab, path):
    """(event, data) of a clip that follows the file."""
    values = {**SMALL, "video": visitor.upload(path), "fit": "crop"}
    if tab == "inpaint":
        values |= {"box": "0.2,0.2,0.6,0.6", "moving": False}
    else:
        values |= {"extractor": "as-is"}
    if tab == "compare":
        values = {**values, "task": "sketch", "steps": [1], "teacher_steps": 0}
    return visitor.call(tab, **values)


def wrong(name, tab, code, answer):
    event, data = answer
    if code is None:
        return "" if event == "complete" else f"{name} in {tab} was refused: {str(data)[:150]}"
    said = str(data)
    return (
        ""
        if event == "error" and (f"[{code}]" if code else "[E_VIDEO_") in said and "canary" not in said
        else f"{name} in {tab}: {event} {said[:150]}"
    )


def r2(n, random, figures):
    """Bytes of files of every kind are changed: the reader gives frames of the size asked for, or a sentence."""
    from media import SMALL as EIGHT
    from media import corners, make

    from videolcm.errors import AppError
    from videolcm.footage import read_video

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        kinds = {"a.mp4": (), "a.webm": ("-c:v", "libvpx", "-b:v", "1M"), "a.avi": ("-c:v", "mpeg4"), "a.gif": (), "b.mov": ("-c:v", "prores_ks")}
        data = [make(place / name, corners(), *options).read_bytes() for name, options in kinds.items()]
        cases = [(i, mutated(random.choice(data), random)) for i in range(n)]
        codes = {}

        def read(case):
            path = place / f"case{case[0]}"
            path.write_bytes(case[1])
            try:
                shape = read_video(path, **EIGHT).frames.shape
                return "frames", "" if shape == (8, 64, 64, 3) else f"frames of {shape}"
            except AppError as error:
                return error.code, "" if error.code.startswith("E_VIDEO_") and len(str(error)) < 200 else str(error)
            except Exception as error:
                return type(error).__name__, repr(error)
            finally:
                path.unlink()

        with ThreadPoolExecutor(2) as pool:
            for kind, problem in pool.map(read, cases):
                codes[kind] = codes.get(kind, 0) + 1
                yield problem
    figures["outcomes"] = codes
    yield "" if len(codes) > 1 and "frames" in codes else f"damage made no difference: {codes}"


def mutated(data, random):
    """`data` with some bytes changed, or a piece moved, cut out or doubled; its first twelve bytes stay, mostly."""
    made = bytearray(data)
    for _ in range(int(2 ** random.uniform(0, 7))):
        made[random.randrange(0 if random.random() < 0.02 else 12, len(made))] = random.randrange(256)
    a, b = sorted(random.sample(range(12, len(made)), 2))
    kind = random.random()
    if kind < 0.1:
        del made[a:b]
    elif kind < 0.2:
        made[a:a] = made[a:b]
    return bytes(made)
