"""What stands before the page: headers, limits, one sentence for what gradio leaves as an error of its own, health, and a browser's key."""

import json

import gradio as gr
import httpx
import pytest
from conftest import FakeModel, wait_for

from videolcm.errors import AppError
from videolcm.history import is_key
from videolcm.jobs import Jobs
from videolcm.ui import Engine, build_ui, gate, launch
from videolcm.ui.comparison_handlers import make_compare
from videolcm.ui.distil_handlers import Guard, make_action, make_start
from videolcm.ui.handlers import make_handler

SMALL = ["a red ball", 1, 0, "lcm", 8, "128x128", "student", "toybox"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """(url, engine, blocks) of a page of FakeModels with room for two in the queue."""
    engine = Engine(load=lambda ref, role: FakeModel(role))
    blocks = build_ui(engine).queue(max_size=2)
    _, url, _ = launch(blocks, engine, Jobs(tmp_path_factory.mktemp("jobs")), server_name="127.0.0.1", quiet=True)
    yield url.rstrip("/"), engine, blocks
    blocks.close()


def post(url, path, content):
    return httpx.post(url + path, content=content, headers={"content-type": "application/json"}, timeout=60)


@pytest.mark.parametrize("path", ["/", "/config", "/healthz", "/gradio_api/file=/etc/passwd"])
def test_headers(page, path):
    headers = httpx.get(page[0] + path, timeout=60).headers
    assert headers["x-content-type-options"] == "nosniff" and headers["content-security-policy"] == "frame-ancestors 'self'"


def test_a_space_may_be_framed():
    headers = dict(gate.headers_of({"SPACE_ID": "a/b"}))
    assert b"https://huggingface.co" in headers[b"content-security-policy"]


@pytest.mark.parametrize("name", ["nope", "text2", "%2e%2e"])
def test_an_unknown_name_is_not_found(page, name):
    answer = post(page[0], f"/gradio_api/call/{name}", '{"data": []}')
    assert answer.status_code == 404 and answer.json()["detail"].startswith("[E_API] ") and "text" in answer.json()["detail"]


def test_too_large_a_body_with_a_length_and_without(page, monkeypatch):
    monkeypatch.setattr(gate, "MAX_BODY", 1 << 20)
    large = json.dumps({"data": ["x" * (2 << 20), *SMALL[1:]]}).encode()
    for content in (large, iter([large])):
        answer = post(page[0], "/gradio_api/call/text", content)
        assert answer.status_code == 413 and answer.json()["error"].startswith("[E_BODY] The request has more than 1 MB.")
    assert post(page[0], "/gradio_api/call/text", json.dumps({"data": SMALL})).status_code == 200


def test_a_file_that_is_too_large_is_not_taken(page):
    """By gradio itself, while it comes in."""
    for size, status in ((1 << 20, 200), ((64 << 20) + 1, 413)):
        answer = httpx.post(f"{page[0]}/gradio_api/upload", files={"files": ("a.mp4", bytes(size))}, timeout=60)
        assert answer.status_code == status and answer.text


def test_what_makes_no_sense_is_the_requests_fault(page):
    answer = post(page[0], "/gradio_api/queue/join", '{"data": [], "fn_index": 99999, "session_hash": "a"}')
    assert answer.status_code == 400 and answer.json()["detail"].startswith("[E_REQUEST] ")


def test_gradios_own_exceptions_are_in_the_log_alone(page):
    given = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    asked = post(page[0], "/gradio_api/call/depth", json.dumps({"data": [SMALL[0], given, 1, 0, "as-is", 1.0, False, 0.0, "crop", *SMALL[3:]]}))
    answer = httpx.get(f"{page[0]}/gradio_api/call/depth/{asked.json()['event_id']}", timeout=60).text
    assert "event: error" in answer and "[E_REQUEST] " in answer and "passwd" not in answer


def test_a_full_queue_says_when_to_come_back_and_a_closed_one_that_it_is(page):
    url, engine, blocks = page
    engine.model("student").delay = 0.5
    try:
        answers = [post(url, "/gradio_api/call/text", json.dumps({"data": [SMALL[0], 8, *SMALL[2:]]})) for _ in range(6)]
        full = [answer for answer in answers if answer.status_code == 503]
        assert full and full[-1].json()["detail"].startswith("[E_QUEUE] ") and int(full[-1].headers["retry-after"]) >= 1
    finally:
        engine.model("student").delay = 0.0
    wait_for(lambda: not len(blocks._queue) and not engine.device.locked())
    blocks._queue.stopped = True
    try:
        assert "[E_CLOSING]" in post(url, "/gradio_api/call/text", json.dumps({"data": SMALL})).text
    finally:
        blocks._queue.stopped = False


def test_the_estimate_follows_the_pace():
    engine = Engine()
    engine.pace = 2.5
    assert engine.seconds_for(4) == 10 and engine.seconds_for(0) == 1


def test_readyz_says_what_goes_on(page):
    url, engine, _ = page
    engine.model("student")
    state = httpx.get(url + "/readyz").json()
    assert state == {"ready": True, "model": ["toybox/student"], "disk": state["disk"], "queue": 0, "lease": "free", "job": None}
    with engine.device:
        assert httpx.get(url + "/readyz").json()["lease"] == "taken"


def test_without_room_it_is_not_ready(page, monkeypatch):
    page[1].model("student")
    monkeypatch.setattr(gate, "RESERVE", 1 << 60)
    assert httpx.get(page[0] + "/readyz").status_code == 503


def test_without_room_nothing_begins(page, monkeypatch, tmp_path):
    jobs = Jobs(tmp_path / "not" / "there" / "yet")
    gate.require_room(jobs.folder)
    monkeypatch.setattr(gate, "RESERVE", 1 << 60)
    for begin in (
        lambda: list(make_handler("text", page[1], tmp_path)("a red ball", visitor=None)),
        lambda: list(make_compare(page[1], tmp_path)("a red ball")),
        make_start(jobs, Guard(), {"toybox": "toybox"}),
        lambda: make_action(jobs, Guard(), "resume")("x"),
    ):
        with pytest.raises(gr.Error, match=r"\[E_ROOM\] The disk has [\d,]+ MB left, .* Make room"):
            begin()
    assert not jobs.list()


def test_a_browser_gets_a_key_once(page):
    with httpx.Client(base_url=page[0]) as browser:
        browser.get("/")
        key = browser.cookies[gate.COOKIE]
        assert is_key(key) and "set-cookie" not in browser.get("/").headers
    answer = httpx.get(page[0] + "/", headers={"cookie": f"{gate.COOKIE}=../../etc"})
    assert is_key(answer.cookies[gate.COOKIE]) and "HttpOnly" in answer.headers["set-cookie"]


@pytest.mark.parametrize("cookies, key", [("videolcm=abc; x=y", "abc"), ("x=y", None), ("", None), ("\x00=;;", None)])
def test_a_key_is_read_from_cookies(cookies, key):
    assert gate.key_in(cookies) == key


def test_refusals_are_sentences():
    assert "[E_QUEUE] 32 clips are waiting already" in str(AppError("E_QUEUE", given=32, seconds=4))
