"""The page without a browser: handlers as functions, the engine's lease, the API behind the page, and what a start brings in."""

import itertools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import gradio as gr
import httpx
import pytest
from conftest import FakeModel, wait_for
from gradio_client import Client
from gradio_client.exceptions import AppError as ClientError

import app
from videolcm import pipeline, world
from videolcm.errors import AppError
from videolcm.pipeline import Progress, Request, Result
from videolcm.ui import Engine, build_ui, launch, messages, parts, tab, tabs
from videolcm.ui.engine import Loading, Waiting
from videolcm.ui.handlers import make_handler
from videolcm.video import read_settings

PROMPT = "a red ball rolls to the left over snow"
SMALL = {"size": "128x128", "frames": 8}


def engine_of(delay=0.0, **options):
    return Engine(load=lambda ref, role: FakeModel(role, delay), **options)


@pytest.fixture(scope="module")
def page():
    """(url, engine) of a page that serves FakeModels."""
    engine = engine_of()
    blocks = build_ui(engine)
    _, url, _ = launch(blocks, engine, server_name="127.0.0.1", quiet=True)
    yield url.rstrip("/"), engine
    blocks.close()


@pytest.fixture(scope="module")
def client(page):
    return Client(page[0], verbose=False)


def call_raw(url, body, name="text"):
    """POST a JSON body as it is, and the lines of the answer; for what no honest client sends."""
    answer = httpx.post(f"{url}/gradio_api/call/{name}", content=body, headers={"content-type": "application/json"}, timeout=60)
    if answer.status_code != 200:
        return answer.text
    return httpx.get(f"{url}/gradio_api/call/{name}/{answer.json()['event_id']}", timeout=120).text


def body_of(**values):
    """The handler's arguments as JSON, NaN and lone surrogates included."""
    defaults = {"prompt": PROMPT, "steps": 4, "seed": 0, "sampler": "lcm", "frames": 8, "size": "128x128", "role": "student", "model": "toybox"}
    return json.dumps({"data": list({**defaults, **values}.values())})


# ---- handlers as functions


def test_a_clip(tmp_path):
    updates, handler = [], make_handler("text", engine_of(), tmp_path)
    for clip, settings, status, preview in handler(PROMPT, steps=3, seed=5, **SMALL):
        updates.append((status, preview))
        if isinstance(clip, str):
            assert Path(clip).parent == tmp_path and read_settings(clip) == settings
    assert settings["seed"] == 5 and settings["steps"] == 3
    assert "Done in" in status and "3 steps" in status and preview == ""
    assert [f"Step {i} of 3" in "".join(s for s, _ in updates) for i in (1, 2, 3)] == [True] * 3
    assert sum(isinstance(p, str) and p.startswith("<img") for _, p in updates) == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("E_PROMPT_EMPTY", {"prompt": " "}),
        ("E_PROMPT_TEXT", {"prompt": None}),
        ("E_STEPS", {"steps": 0}),
        ("E_SEED", {"seed": None}),
        ("E_SIZE", {"size": None}),
        ("E_ROLE", {"role": ["student"]}),
        ("E_SAMPLER", {"sampler": "euler"}),
    ],
)
def test_errors_are_one_line_and_clear_the_page(tmp_path, code, values):
    updates = make_handler("text", engine_of(), tmp_path)(**{"prompt": PROMPT, **SMALL, **values})
    _, _, status, preview = next(updates)
    assert "Nothing was made" in status and preview == ""
    with pytest.raises(gr.Error) as error:
        next(updates)
    assert error.value.message.startswith(f"[{code}] ") and "\n" not in error.value.message


def test_the_unforeseen_is_not_shown(tmp_path, caplog):
    def load(ref, role):
        raise RuntimeError("secret /path")

    updates = make_handler("text", Engine(load=load), tmp_path)(PROMPT)
    with pytest.raises(gr.Error) as error:
        list(updates)
    assert error.value.message.startswith("[E_INTERNAL]") and "secret" not in error.value.message
    assert "secret" in caplog.text


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_what_is_for_many_steps_takes_fifty(tmp_path, sampler):
    *_, (_, settings, status, _) = make_handler("text", engine_of(), tmp_path)(PROMPT, steps=2, sampler=sampler, role="teacher", **SMALL)
    assert (settings["sampler"], settings["steps"], settings["role"]) == (sampler, 50, "teacher") and "100 network evaluations" in status


def test_stopping_frees_the_device_and_the_folder(tmp_path):
    engine = engine_of()
    updates = make_handler("text", engine, tmp_path)(PROMPT, steps=8, **SMALL)
    while "Step 2 of 8" not in next(updates)[2]:
        assert engine.device.locked()
    updates.close()
    assert not engine.device.locked() and len(engine.model("student").calls) == 2
    assert not list(tmp_path.iterdir())


def test_what_people_write_is_escaped():
    assert "<script>" not in messages.plain("<script>", notices=("<script>",))


@pytest.mark.parametrize("left, told", [(0, "Step 1 of 4<"), (2.9, "Step 1 of 4<"), (40, "4, about 40 s left<"), (400, "4, about 7 minutes left<")])
def test_long_work_says_how_long_it_will_take(left, told):
    assert told in messages.status(Progress("denoise", 1, 4, left=left))


def test_the_steps_to_come_are_taken_to_last_as_long(monkeypatch):
    seconds = itertools.count()
    monkeypatch.setattr("videolcm.stopwatch.time.perf_counter", lambda: next(seconds))  # every stage and every step takes one
    events = [event for event in engine_of().run(Request(PROMPT, steps=4), "student") if isinstance(event, Progress)]
    assert [event.left for event in events if event.stage == "denoise"] == [3, 2, 1, 0]


def test_the_previews_frames_pass_by():
    engine = engine_of()
    images = [messages.preview(e) for e in engine.run(Request(PROMPT, steps=4), "student") if not isinstance(e, Result)]
    assert len({image for image in images if image}) == 4


# ---- the engine


def test_a_model_that_failed_to_load_again_is_not_served_as_it_was(monkeypatch):
    answers = [FakeModel(), AppError("E_CHECKPOINT", given="student"), FakeModel()]

    def load(ref, role):
        answer = answers.pop(0)
        if isinstance(answer, AppError):
            raise answer
        return answer

    engine, written = Engine(load=load), iter([1, 2, 2])
    monkeypatch.setattr("videolcm.ui.engine.stamp", lambda ref: next(written))
    first = engine.model("student", "student-1")
    with pytest.raises(AppError, match="E_CHECKPOINT"):
        engine.model("student", "student-1")
    assert engine.model("student", "student-1") is not first and not answers


def test_models_are_loaded_once_and_shared():
    loaded = []

    def load(ref, role):
        time.sleep(0.2)
        loaded.append((ref, role))
        return FakeModel(role)

    engine = Engine(load=load)
    threads = [threading.Thread(target=engine.model, args=(role,)) for role in ("student", "student", "teacher")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(loaded) == [("toybox", "student"), ("toybox", "teacher")]


def test_a_model_that_failed_to_load_is_tried_again():
    answers = [AppError("E_MODEL_FILE", folder="x", given="y"), FakeModel()]

    def load(ref, role):
        answer = answers.pop(0)
        if isinstance(answer, AppError):
            raise answer
        return answer

    engine = Engine(load=load)
    engine.warm_in_background().join()
    assert not engine.device.locked() and not engine.models
    assert isinstance(list(engine.run(Request(PROMPT), "student"))[-1], Result)


def test_one_job_at_a_time():
    engine = engine_of(delay=0.05)
    engine.warm()
    first = engine.run(Request(PROMPT, steps=8), "student")
    next(first)
    second = engine.run(Request(PROMPT, steps=1), "student")
    assert isinstance(next(second), Waiting)
    first.close()
    kinds = [type(event) for event in second]
    assert kinds[-1] is Result and Loading not in kinds and not engine.device.locked()


def test_a_job_that_is_cancelled_while_it_waits():
    engine = engine_of()
    engine.device.acquire()
    waiting = engine.run(Request(PROMPT), "student")
    assert isinstance(next(waiting), Loading)
    waiting.close()
    assert engine.device.locked()


def test_patience_ends():
    engine = engine_of(patience=0.15)
    engine.device.acquire()
    with pytest.raises(AppError, match="E_BUSY"):
        list(engine.run(Request(PROMPT), "student"))


def test_steps_may_hop_threads():
    engine, got = engine_of(), []
    events = engine.run(Request(PROMPT, steps=1), "student")
    while not got or not isinstance(got[-1], Result):
        thread = threading.Thread(target=lambda: got.append(next(events)))
        thread.start()
        thread.join()
    closing = threading.Thread(target=events.close)
    closing.start()
    closing.join()
    assert not engine.device.locked()


# ---- the API behind the page


def test_api_makes_a_clip(client):
    clip, settings, status, preview = client.predict(PROMPT, steps=2, seed=3, **SMALL, api_name="/text")
    assert read_settings(clip) == settings and settings["seed"] == 3 and preview == "" and "Done in" in status


def test_api_is_described(client):
    described = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert list(described) == [*(f"/{task}" for task in tabs.TABS), "/compare"]
    for task, row in tabs.TABS.items():
        asked = described[f"/{task}"]["parameters"]
        assert [p["parameter_name"] for p in asked] == list(row.parameters) and row.summary in described[f"/{task}"]["description"]
        assert [p["parameter_name"] for p in asked if not p["parameter_has_default"]] == [n for n in ("prompt", "video") if n in row.parameters]


@pytest.mark.parametrize("steps", [0, 9, 2.5, True, "4", [4], -1])
def test_api_refuses_bad_steps(client, steps):
    with pytest.raises(ClientError, match=r"\[E_STEPS\] The number of steps must be a whole number from 1 to 8"):
        client.predict(PROMPT, steps=steps, **SMALL, api_name="/text")


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("E_STEPS", {"steps": float("nan")}),
        ("E_STEPS", {"steps": float("inf")}),
        ("E_SEED", {"seed": float("nan")}),
        ("E_FRAMES", {"frames": float("nan")}),
        ("E_PROMPT_TEXT", {"prompt": "a\ud800"}),
        ("E_PROMPT_EMPTY", {"prompt": "\x00\x1b"}),
        ("E_PROMPT_LONG", {"prompt": "x" * 100_000}),
        ("E_SIZE", {"size": "1x1"}),
        ("E_SAMPLER", {"sampler": "../../x"}),
        ("E_ROLE", {"role": "admin"}),
        ("E_MODEL", {"model": "../../etc"}),
    ],
)
def test_api_refuses_what_no_client_sends(page, client, code, values):
    answer = call_raw(page[0], body_of(**values))
    assert f"[{code}]" in answer and "Traceback" not in answer
    assert client.predict(PROMPT, steps=1, **SMALL, api_name="/text")[1]["steps"] == 1


def test_a_body_that_is_no_text_is_refused(page, client):
    answer = httpx.post(
        page[0] + "/gradio_api/call/text", content=b'{"data": ["\xff\xfe"]}', headers={"content-type": "application/json"}, timeout=60
    )
    assert 400 <= answer.status_code < 500 and "Traceback" not in answer.text
    assert client.predict(PROMPT, steps=1, **SMALL, api_name="/text")[1]["steps"] == 1


def test_health(page):
    assert httpx.get(page[0] + "/healthz").status_code == 200
    page[1].model("student")
    assert httpx.get(page[0] + "/readyz").json()["ready"] is True


def test_cancelling_a_job_of_the_api_frees_the_device(page):
    url, engine = page
    engine.model("student").delay = 0.3
    try:
        job = Client(url, verbose=False).submit(PROMPT, steps=8, **SMALL, api_name="/text")
        wait_for(engine.device.locked)
        job.cancel()
        wait_for(lambda: not engine.device.locked())
    finally:
        engine.model("student").delay = 0.0


# ---- the page as a whole


def test_the_page_agrees_with_the_pipeline():
    assert pipeline.MAX_STEPS["lcm"] == tab.MAX_STEPS and pipeline.MAX_PROMPT == tab.MAX_PROMPT
    first = {role: None if sampler == tabs.OWN else sampler for sampler, role in reversed(tab.ROLE_OF.items())}  # of each role
    assert first == pipeline.SAMPLER_OF and [name for _, name in tab.SAMPLERS] == [*tab.ROLE_OF]
    assert set(tab.ROLE_OF) - {tabs.OWN} == {name for name, steps in pipeline.MAX_STEPS.items() if steps > tab.MAX_STEPS}
    for size in parts.SIZES:
        width, height = pipeline.size_of(size)
        Request(PROMPT, width=width, height=height)


@pytest.mark.parametrize("text", [example[row.fills.index("prompt")] for row in tabs.TABS.values() for example in row.examples])
def test_examples_are_of_the_world(text):
    assert set(text.split()) <= set(world.vocabulary())


def test_a_start_brings_in_nothing_heavy():
    code = (
        "import sys, app; from videolcm.ui import Engine, build_ui; build_ui(Engine());"
        "heavy = {'torch', 'diffusers', 'transformers', 'controlnet_aux'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


# ---- app.py


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("E_NETWORK", ["--listen"]),
        ("E_NETWORK", ["--host", "0.0.0.0"]),
        ("E_NETWORK", ["--share"]),
        ("E_ARGUMENTS", ["--auth", "ann"]),
        ("E_ARGUMENTS", ["--auth", ":x"]),
        ("E_ARGUMENTS", ["--port", "x"]),
        ("E_ARGUMENTS", ["--what"]),
        ("E_ARGUMENTS", ["--teacher", "no/such/folder"]),
        ("E_ARGUMENTS", ["--port", "99999"]),
    ],
)
def test_bad_arguments(code, arguments):
    with pytest.raises(AppError) as error:
        app.read_arguments(arguments)
    assert error.value.code == code


def test_good_arguments():
    args = app.read_arguments(["--listen", "--auth", "ann:a:b"])
    assert (args.host, args.auth) == ("0.0.0.0", ("ann", "a:b"))
    assert app.read_arguments([]).host == "127.0.0.1" and app.read_arguments([]).teacher == []


def test_teachers_are_folders_with_a_model(tmp_path):
    folder = tmp_path / "tft2v"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    assert app.read_arguments(["--teacher", str(folder)]).teacher == [("tft2v", str(folder))]


def test_a_taken_port(page):
    port = int(page[0].rsplit(":", 1)[1])
    with pytest.raises(AppError, match="E_PORT"):
        app.require_free("127.0.0.1", port)
