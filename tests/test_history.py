"""The clips that were made last: each under its key, within the quota, and on the page again after the tab was closed."""

import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
from conftest import FakeModel, wait_for
from media import corners

from videolcm.errors import AppError
from videolcm.history import History, Kept, is_key
from videolcm.lease import Lease
from videolcm.ui import Engine, build_ui, launch
from videolcm.ui.comparison_handlers import NAMES, Stops, make_comparison
from videolcm.ui.handlers import keeper, make_handler
from videolcm.ui.history import label, make_handlers
from videolcm.video import write_mp4

KEY, OTHER = "a" * 32, "b" * 32
SMALL = {"size": "128x128", "frames": 8, "steps": 1}


def visitor(key=KEY):
    return SimpleNamespace(headers={"cookie": f"videolcm={key}"})


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "clips", max_clips=3)


def keep(history, i=0, key=KEY):
    return history.keep(key, lambda path: write_mp4(path, corners(8, 32, 32), 8, {"prompt": f"clip {i}"}))


def test_each_key_has_its_own(history):
    first, second = keep(history, 1), keep(history, 2)
    keep(history, 3, OTHER)
    assert [one.settings["prompt"] for one in history.list(KEY)] == ["clip 2", "clip 1"]
    assert history.get(KEY, first).settings["prompt"] == "clip 1" and history.used() > 0
    for key, name in ((OTHER, first), (KEY, "../" + first), (KEY, None), ("..", first), (None, first), (KEY, "*")):
        with pytest.raises(AppError, match="E_KEPT"):
            history.get(key, name)
    history.delete(KEY, second)
    assert [one.name for one in history.list(KEY)] == [first]


@pytest.mark.parametrize("key", [None, "", "..", "../" + "a" * 32, "A" * 32, 3, "*"])
def test_without_a_key_nothing_is_kept(history, key):
    assert not is_key(key) and keep(history, key=key) is None and history.list(key) == [] and not list(history.folder.iterdir())


def test_the_oldest_go_when_the_quota_is_used_up(tmp_path, history):
    names = [keep(history, i, KEY if i % 2 else OTHER) for i in range(5)]
    left = [path.stem for path in history.folder.glob("*/*.mp4")]
    assert sorted(left) == sorted(names[2:])
    small = History(tmp_path / "small", max_bytes=1)
    keep(small, 1), keep(small, 2)
    assert [one.settings["prompt"] for one in small.list(KEY)] == ["clip 2"]  # the newest stays


def test_a_clock_that_is_put_back_changes_nothing_of_the_quota(history, monkeypatch):
    for i in range(3):
        keep(history, i)
    monkeypatch.setattr("videolcm.history.time.time_ns", lambda: 10**18)
    name = keep(history, 3)
    left = [path.stem for path in history.folder.glob("*/*.mp4")]
    assert len(left) == 3 and name in left and history.get(KEY, name).settings["prompt"] == "clip 3"


def test_a_clip_that_somebody_removed_is_one_sentence_and_the_rest_goes_on(tmp_path, history):
    gone, left = keep(history, 1), keep(history, 2)
    look, show, remove = make_handlers(history, tmp_path)
    history.get(KEY, gone).path.unlink()
    with pytest.raises(gr.Error, match=r"\[E_KEPT\] This clip is not there any more"):
        next(show(gone, visitor()))
    assert [name for _, name in look(visitor())[0].choices] == [left]
    (history.folder / KEY / f"{left}.mp4").write_bytes(b"no clip")
    assert look(visitor())[0].choices == []


def test_the_tab_lists_shows_and_deletes(tmp_path, history):
    look, show, remove = make_handlers(history, tmp_path)
    assert "Nothing yet" in look(visitor())[1]
    name = keep(history, 7)
    listed, said, delete, *shown = look(visitor())
    assert delete["interactive"] is False and shown == [None, None]  # nothing is chosen
    assert [value for _, value in listed.choices] == [name] and "clip 7" in listed.choices[0][0] and " kB of 2.00 GB" in said
    assert look(visitor(OTHER))[0].choices == [] and look(None)[0].choices == []
    with pytest.raises(gr.Error):
        next(show(name, visitor(OTHER)))
    shown = show(name, visitor())
    clip, settings, delete = next(shown)
    assert delete["interactive"] is True
    assert settings["prompt"] == "clip 7" and clip.startswith(str(tmp_path)) and str(history.folder) not in clip
    shown.close()
    remove(name, visitor())
    assert history.list(KEY) == [] and remove(None, visitor()) is None


@pytest.mark.parametrize(
    ("model", "role", "end"), [("toybox", "student", ""), ("toybox", "teacher", " · teacher"), ("student-12345678", "student", " · student-12345678")]
)
def test_a_clip_of_another_model_says_so(model, role, end):
    settings = {"prompt": "a red ball", "steps": 4, "seed": 1, "model": model, "role": role}
    assert label(Kept("", Path(), 0.0, settings)).endswith(f" · a red ball · 4 steps · seed 1{end}")


def test_what_is_finished_is_kept_before_anybody_hears_of_it(tmp_path, history):
    engine = Engine(load=lambda ref, role: FakeModel(role))
    updates = make_handler("text", engine, tmp_path, history)("a red ball", seed=4, visitor=visitor(), **SMALL)
    for update in updates:
        if isinstance(update[0], str):
            break
    updates.close()
    assert [one.settings["seed"] for one in history.list(KEY)] == [4]
    list(make_handler("text", engine, tmp_path, history)("a red ball", seed=5, **SMALL))  # a program without a cookie
    assert len(list(history.folder.glob("*/*.mp4"))) == 1


def test_each_clip_of_a_comparison_is_kept_when_it_is_there(tmp_path, history):
    engine, stops = Engine(load=lambda ref, role: FakeModel(role)), Stops()
    stops.begin(KEY)
    values = ([1, 2], ["lcm"], ["student"], False, 50, "a red ball", 3, 0.3, "", 8, "128x128", "text", *[None] * (len(NAMES) - 12))
    running = make_comparison(engine, tmp_path, history)(stops, *values)
    while not history.list(KEY):
        next(running)
    running.close()  # the tab
    assert [one.settings["seed"] for one in history.list(KEY)] == [3]


def test_a_full_disk_loses_no_clip(history, monkeypatch):
    shutil.rmtree(history.folder)
    history.folder.touch()
    result = SimpleNamespace(frames=corners(8, 32, 32), settings={"fps": 8}, seconds={})
    assert "cannot be written to" in keeper(history, KEY)(result)[0]


def test_a_folder_that_cannot_be_written_to_is_replaced(tmp_path):
    (tmp_path / "file").touch()
    history = History(tmp_path / "file" / "clips")
    assert not history.lasting and keep(history) and "until the page ends" in make_handlers(history, tmp_path)[0](visitor())[1]


def test_a_folder_that_was_removed_is_made_again(history):
    keep(history)
    shutil.rmtree(history.folder)
    assert keep(history) and len(history.list(KEY)) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="folders have other rights here")
def test_a_folder_without_the_right_to_write(monkeypatch):
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        own = os.geteuid()
        locked, other = Path(place, "clips"), Path(place, "temporary")
        locked.mkdir(mode=0o555)
        other.mkdir()
        other.chmod(0o777)
        monkeypatch.setattr(tempfile, "tempdir", str(other))
        if own == 0:
            os.seteuid(65534)  # root may write everywhere
        try:
            history = History(locked)
            assert not history.lasting and history.folder.parent == other
            with pytest.raises(AppError, match="E_FOLDER"):
                Lease(locked)
        finally:
            os.seteuid(own)
        assert not any(locked.iterdir())


def test_a_browser_that_comes_back_finds_its_clips(tmp_path, history):
    """By HTTP, as the page asks: the first tab is closed, the second has the cookie."""
    engine = Engine(load=lambda ref, role: FakeModel(role))
    blocks = build_ui(engine, history=history)
    _, url, _ = launch(blocks, engine, server_name="127.0.0.1", quiet=True)
    try:
        with httpx.Client(base_url=url, timeout=60) as first:
            first.get("/")
            cookies = dict(first.cookies)
            first.post("gradio_api/call/text", json={"data": ["a red ball", 1, 9, "lcm", 8, "128x128", "student", "toybox"]})
        wait_for(lambda: history.list(cookies["videolcm"]))
        with httpx.Client(base_url=url, timeout=60, cookies=cookies) as second:
            index = {event["api_name"]: event["id"] for event in second.get("config").json()["dependencies"]}
            listed, said, *_ = second.post("gradio_api/run/predict", json={"data": [], "fn_index": index["look"], "session_hash": "a"}).json()["data"]
        assert "seed 9" in str(listed) and " of 2.00 GB" in said
    finally:
        blocks.close()
