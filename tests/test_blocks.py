"""What is skipped costs nothing: no component is made for it, the files of clips are on gradio's list of what to remove, and no table of events."""

import json
from pathlib import Path

import httpx
import pytest
from conftest import FakeModel
from gradio import route_utils
from gradio.context import Context

from videolcm.ui import Engine, build_ui, launch

SMALL = ["a red ball", 4, 0, "lcm", 8, "128x128", "student", "toybox"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """(url, blocks) of a page of FakeModels."""
    engine = Engine(load=lambda ref, role: FakeModel(role))
    blocks = build_ui(engine, tmp_path_factory.mktemp("clips"))
    _, url, _ = launch(blocks, engine, server_name="127.0.0.1", quiet=True)
    yield url.rstrip("/"), blocks
    blocks.close()


def made(url):
    """The last message and all of a clip that is made as the page itself asks, in the session "a"."""
    index = next(event["id"] for event in httpx.get(f"{url}/config").json()["dependencies"] if event["api_name"] == "text")
    asked = {"data": SMALL, "fn_index": index, "session_hash": "a"}
    assert httpx.post(f"{url}/gradio_api/queue/join", json=asked).status_code == 200
    with httpx.stream("GET", f"{url}/gradio_api/queue/data", params={"session_hash": "a"}, timeout=60) as answer:
        told = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    return next(message for message in told if message["msg"] == "process_completed"), told


def test_a_clip_makes_no_component_and_is_removed_in_the_end(page):
    url, blocks = page
    made(url)
    before = Context.id
    last, told = made(url)
    clip = Path(last["output"]["data"][0]["path"])
    assert last["success"] and Context.id == before and clip.exists()
    begun = next(message for message in told if message["msg"] == "process_generating")
    assert begun["output"]["data"][:2] == [{"__type__": "update"}] * 2 and "<progress" in begun["output"]["data"][2]
    route_utils.delete_files_created_by_app(blocks, None)
    assert not clip.exists()


def test_events_are_not_counted(page):
    url, blocks = page
    made(url)
    made(url)
    assert len(blocks._queue.event_analytics) == 1 and blocks._queue.cached_event_analytics_summary == {"functions": {}}
