"""Clips of one's own through the page and its API: names, captions, uploads."""

from pathlib import Path

import gradio as gr
import pytest
from conftest import FakeModel, wait_for
from gradio_client import Client, handle_file
from test_browser import PATIENCE, browser  # noqa: F401  the fixture
from test_own_clips import refused

from videolcm.jobs import Job, Jobs
from videolcm.knobs import Knobs
from videolcm.own_files import captioned, lay_out, samples
from videolcm.ui import Engine, build_ui, launch
from videolcm.ui.distil_handlers import Guard, make_start, suggested


def test_captions_and_names_of_uploads(tmp_path, made):
    assert captioned(["x/red-ball.mp4", "b.png"], "") == [("x/red-ball.mp4", "red ball"), ("b.png", "b")]
    assert captioned(["x/red-ball.mp4", "b.png"], "\n a  cube \n\n") == [("x/red-ball.mp4", "red ball"), ("b.png", "a cube")]
    assert captioned(["x/red-ball.mp4"], 10**5000) == captioned(["x/red-ball.mp4"], ["a"]) == [("x/red-ball.mp4", "red ball")]
    assert "2 captions for 1 clips" in refused("E_CAPTIONS", captioned, ["a.mp4"], "a\nb")
    upload = tmp_path / "..;rm -rf $HOME.png"
    upload.write_bytes(made["png"])
    lay_out(tmp_path / "clips", [(upload, "a cube")])
    assert {path.name for path in (tmp_path / "clips").iterdir()} == {"0001", "0001.txt"}
    (sample,) = samples(tmp_path / "clips")
    assert sample.caption == "a cube" and sample.load() == made["png"]
    jobs = Jobs(tmp_path / "jobs")
    refused("E_INPUT", jobs.start, Knobs(), "toybox", [(tmp_path / "gone.mp4", "")])
    assert jobs.list() == [] and not list((tmp_path / "jobs").iterdir())


def test_what_was_typed_stays_while_clips_come_and_go():
    captions, asked = suggested(["a/red-ball.mp4", "b.png"], "", [])
    assert captions == "red ball\nb"
    captions, asked = suggested(["b.png", "c-d.gif"], "red ball\na blue cube", asked)
    assert captions == "a blue cube\nc d" and suggested([], captions, asked) == ("", [])


class Kept:
    """Stands for Jobs: keeps what a job would train on."""

    folder = Path("nowhere")

    def list(self):
        return []

    def start(self, knobs, teacher, clips):
        self.clips = [(Path(path).read_bytes(), caption) for path, caption in clips]
        return "0" * 32

    def get(self, id):
        return Job(id, Path("nowhere"), "QUEUED", "", 0.0, ())


@pytest.fixture(scope="module")
def site():
    """(url, what stands for its jobs) of a page."""
    jobs = Kept()
    page = build_ui(Engine(load=lambda ref, role: FakeModel(role)), distilling=(jobs, Guard(), {"toybox": "toybox"}))
    _, url, _ = launch(page, None, server_name="127.0.0.1", quiet=True)
    yield url, jobs
    page.close()


@pytest.fixture
def uploads(tmp_path, made):
    """The video and the picture, both called after a blue cube."""
    for kind, data in made.items():
        (tmp_path / f"blue-cube.{kind}").write_bytes(data)
    return [str(tmp_path / f"blue-cube.{kind}") for kind in made]


def test_clips_through_the_api(site, uploads, made):
    url, jobs = site
    with pytest.raises(gr.Error, match="E_CAPTIONS"):
        make_start(jobs, Guard(), {"toybox": "toybox"})(captions="a caption of nothing")
    client = Client(url, verbose=False)
    started = client.predict(clips=[handle_file(path) for path in uploads], captions="a red ball", api_name="/distill")
    assert started["state"] == "QUEUED" and jobs.clips == [(made["mp4"], "a red ball"), (made["png"], "blue cube")]
    client.predict(preset="paper", api_name="/distill")
    assert jobs.clips == []


def test_clips_dropped_in_a_browser_get_captions(browser, site, uploads, made):  # noqa: F811
    url, jobs = site
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    page.get_by_role("tab", name="Distil").click()
    page.get_by_text("Clips of your own").click()
    page.locator("#own-clips input[type=file]").set_input_files(uploads)
    captions = page.get_by_label("Captions")
    wait_for(lambda: captions.input_value() == "blue cube\nblue cube")
    captions.fill("a red ball\n")
    jobs.clips = None
    page.get_by_role("button", name="Start").click()
    wait_for(lambda: jobs.clips)
    assert jobs.clips == [(made["mp4"], "a red ball"), (made["png"], "blue cube")]
    page.close()
