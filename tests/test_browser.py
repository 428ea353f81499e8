"""The page in a real browser: a typed prompt becomes a video element that plays 16 frames that move, and nothing leaves this machine."""

import shutil
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import FakeModel, wait_for
from media import corners, make
from test_uploads import depth_video, textured

from videolcm.history import History
from videolcm.ui import Engine, build_ui, launch

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
PATIENCE = 120_000  # milliseconds: a busy machine is no failure
SEEK = """async (video, time) => {  // to a frame that is on show: on a busy machine it comes after the event, or was there before
    const shown = new Promise(resolve => { video.requestVideoFrameCallback(resolve); setTimeout(resolve, 1000); });
    const arrived = new Promise(resolve => video.addEventListener('seeked', resolve, {once: true}));
    video.currentTime = time;
    await Promise.all([arrived, shown]);
}"""
FRAMES = """async video => {
    const seek = SEEK;
    video.pause();
    const canvas = Object.assign(document.createElement('canvas'), {width: 64, height: 64});
    const pen = canvas.getContext('2d', {willReadFrequently: true});
    const seen = [];
    for (let i = 0; i < 16; i++) {
        await seek(video, (i + 0.5) / 8);
        pen.drawImage(video, 0, 0, 64, 64);
        const pixels = pen.getImageData(0, 0, 64, 64).data;
        let sum = 0, weight = 0;
        for (let p = 0; p < 64 * 64; p++) { sum += (p % 64) * (pixels[4 * p] > 128); weight += pixels[4 * p] > 128; }
        seen.push(sum / weight);
    }
    return seen;
}""".replace("SEEK", SEEK)
CHANGES = """async video => {
    const seek = SEEK;
    video.pause();
    const canvas = Object.assign(document.createElement('canvas'), {width: 128, height: 128});
    const pen = canvas.getContext('2d', {willReadFrequently: true});
    const moved = [];
    let last = null;
    for (let i = 0; i < 16; i++) {
        await seek(video, (i + 0.5) / 8);
        pen.drawImage(video, 0, 0, 128, 128);
        const pixels = pen.getImageData(0, 0, 128, 128).data;
        if (last) moved.push(pixels.reduce((sum, value, p) => sum + Math.abs(value - last[p]), 0) / pixels.length);
        last = pixels;
    }
    return moved;
}""".replace("SEEK", SEEK)
BRUSH_IS_THERE = """() => [...document.querySelectorAll('.painting button')].some(b => b.getAttribute('aria-label') === 'Brush Size')"""


@pytest.fixture(scope="module")
def browser():
    """Chromium, the system's or playwright's own; the tests are skipped where there is neither."""
    with sync_api.sync_playwright() as playwright:
        system = shutil.which("chromium") or shutil.which("google-chrome")
        if not system and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium here: run `playwright install chromium`")
        chromium = playwright.chromium.launch(executable_path=system, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def site():
    """(url, engine) of a page that serves a FakeModel."""
    engine = Engine(load=lambda ref, role: FakeModel(role, delay=0.05))
    blocks = build_ui(engine)
    _, url, _ = launch(blocks, engine, server_name="127.0.0.1", quiet=True)
    yield url, engine
    blocks.close()


@pytest.fixture
def page(browser, site):
    """A new tab on the page. That nothing but this machine was asked for anything, and no script failed, is checked after each test."""
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    tab.set_default_timeout(PATIENCE)
    asked, failed = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: failed.append(str(error)))
    tab.goto(site[0])
    tab.get_by_label("Prompt").wait_for()
    yield tab
    assert {urlsplit(url).hostname for url in asked if urlsplit(url).scheme not in ("data", "blob")} == {"127.0.0.1"}
    assert not failed
    tab.close()


def generate(page, prompt):
    """Type a prompt, press Generate."""
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Generate").click()


def opened(page, title):
    """Open a tab; what is in it."""
    page.get_by_role("tab", name=title).click()
    pane = page.get_by_role("tabpanel").filter(has=page.get_by_role("button", name="Generate")).filter(visible=True)
    pane.get_by_label("Prompt").wait_for()
    return pane


def finished(page):
    """Wait for the clip; its video element."""
    page.get_by_text("Done in").wait_for()
    video = page.locator(".clip video[src]")
    video.wait_for()
    return video


def test_a_prompt_becomes_a_clip_that_moves(page, tmp_path):
    generate(page, "a red ball rolls to the left over snow")
    video = finished(page)
    video.evaluate("v => v.readyState >= 2 || new Promise(resolve => v.addEventListener('loadeddata', resolve, {once: true}))")
    wait_for(lambda: video.evaluate("v => !v.paused && v.currentTime > 0"))
    assert video.evaluate("v => [v.loop, v.videoWidth, v.videoHeight, v.duration]") == [True, 256, 256, 2]
    places = video.evaluate(FRAMES)
    assert len(set(places)) == 16 and places == sorted(places)
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_previews_come_before_the_clip(page, site):
    site[1].model("student").delay = 0.5
    try:
        generate(page, "a red ball")
        page.locator('img[alt="Preview of step 2 of 4"]').wait_for()
        page.get_by_text("Step 3 of 4").wait_for()
    finally:
        site[1].model("student").delay = 0.05
    finished(page)
    assert page.locator(".stage img[alt^=Preview]").count() == 0


def test_enter_and_a_double_click_make_one_clip_each(page, site):
    prompts = site[1].model("student").prompts
    before = len(prompts)
    page.get_by_label("Prompt").fill("the big cube spins")
    page.get_by_label("Prompt").press("Enter")
    finished(page)
    assert len(prompts) == before + 1
    page.get_by_role("button", name="Generate").dblclick()
    wait_for(lambda: len(prompts) > before + 1 and not site[1].device.locked())
    time.sleep(1.5)
    assert len(prompts) == before + 2
    page.get_by_text(f"seed {page.get_by_label('Seed').first.input_value()}").wait_for()


def test_stop_stops_and_the_page_goes_on(page, site):
    model = site[1].model("student")
    model.delay, model.calls = 0.7, []
    try:
        generate(page, "a red ball")
        page.locator("img[alt^=Preview]").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("Stopped. It was at: Step").wait_for()
        wait_for(lambda: not site[1].device.locked())
        assert len(model.calls) < 4
    finally:
        model.delay = 0.05
    assert page.locator("img[alt^=Preview]").count() == 0
    generate(page, "a red ball")
    finished(page)
    page.get_by_role("button", name="Stop").click()
    page.wait_for_timeout(500)
    page.get_by_text("Done in").wait_for()


def test_an_example_runs_in_one_click(page, site):
    page.get_by_text("a small white cone jumps on the grass").click()
    finished(page)
    assert page.get_by_label("Prompt").input_value() == "a small white cone jumps on the grass"
    assert site[1].model("student").prompts[-1][0] == "a small white cone jumps on the grass"
    page.get_by_text("does not know: small, white, cone, jumps, grass").wait_for()


def test_the_seed_is_rolled_or_kept_and_a_bad_one_refused(page):
    seed, randomise = page.get_by_label("Seed").first, page.get_by_label("Randomise")
    generate(page, "a red ball")
    finished(page)
    rolled = seed.input_value()
    assert rolled != "0"
    page.get_by_text(f"seed {rolled}").wait_for()
    randomise.uncheck()
    seed.fill("-3")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("[E_SEED]").first.wait_for()
    seed.fill("77")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("seed 77").wait_for()
    assert seed.input_value() == "77"


def test_a_request_that_is_refused_changes_nothing_and_its_message_goes_with_the_next(page):
    seed, toast = page.get_by_label("Seed").first, page.locator(".toast-close")
    generate(page, "a red ball")
    finished(page)
    rolled, clip = seed.input_value(), page.locator(".clip video").get_attribute("src")
    generate(page, "")
    page.locator(".status").get_by_text("[E_PROMPT_EMPTY]").filter(visible=True).wait_for()
    toast.wait_for()
    wait_for(lambda: seed.input_value() == rolled)
    assert page.locator(".clip video").get_attribute("src") == clip
    generate(page, "the big cube spins")
    finished(page)
    assert toast.count() == 0 and seed.input_value() != rolled


@pytest.mark.parametrize("name", ["still.png", "moving.gif"])
def test_pictures_are_dropped_as_videos_are(page, site, tmp_path, name):
    pane = opened(page, "Depth")
    frames = corners(1 if name == "still.png" else 8)
    pane.locator("input[type=file]").set_input_files(make(tmp_path / name, frames))
    picture = pane.locator(".upload img")
    picture.wait_for()
    wait_for(lambda: picture.evaluate("i => i.naturalWidth") == 64)
    generate(pane, "a red ball")
    finished(pane)
    pane.get_by_text("How the depth was found: built-in depth").wait_for()
    pane.get_by_label("Clear").first.click()
    picture.wait_for(state="detached")


@pytest.mark.parametrize("title", ["Depth", "Sketch"])
def test_a_video_is_followed_and_its_map_shown(page, tmp_path, title):
    pane = opened(page, title)
    pane.locator("input[type=file]").set_input_files(make(tmp_path / "map.mp4", depth_video(16, 256, 256)))
    given = pane.locator(".upload video")
    given.wait_for()
    wait_for(lambda: given.evaluate("v => v.muted && v.loop && !v.paused && v.currentTime > 0"))  # and so a picture is seen
    if title == "Sketch":
        pane.get_by_label("How the sketch is found").click()
        page.get_by_text("Canny: every sharp edge").click()
    generate(pane, "a red ball")
    video, followed = finished(pane), pane.locator(".followed video[src]")
    followed.wait_for()
    assert followed.evaluate("v => [v.loop, v.videoWidth, v.videoHeight]") == [True, 256, 256]
    assert len(set(video.evaluate(FRAMES))) >= 12 if title == "Depth" else min(followed.evaluate(CHANGES)) > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def stroke(page, x, y):
    """Draws a line with the mouse, slowly enough for the editor, whose middle is (x, y)."""
    page.mouse.move(x - 40, y)
    page.mouse.down()
    for i in range(10):
        page.mouse.move(x - 40 + 8 * i, y)
        page.wait_for_timeout(60)
    page.mouse.up()
    page.wait_for_timeout(500)


def test_a_painted_hole_is_replaced(page, site, tmp_path):
    pane = opened(page, "Inpaint")
    pane.locator("input[type=file]").first.set_input_files(make(tmp_path / "grain.mp4", textured(16, 256, 256)))
    page.wait_for_function(BRUSH_IS_THERE)
    box = pane.locator(".painting canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def preview_of_a_stroke():
        stroke(page, x, y)
        pane.get_by_role("button", name="Preview mask").click()
        try:
            pane.get_by_text("What is red will be replaced.").wait_for(timeout=PATIENCE / 8)
        except sync_api.TimeoutError:
            return False
        return True

    assert any(preview_of_a_stroke() for _ in range(8))  # a stroke before the editor is ready is lost
    pane.locator(".followed video[src]").wait_for()
    made = site[1].model("student").prompts
    for _ in range(2):  # what was painted is there for the next clip too
        before = len(made)
        generate(pane, "a red ball")
        wait_for(lambda before=before: len(made) > before and not site[1].device.locked())
        finished(pane)
    pane.get_by_text("Settings of this clip").click()
    pane.get_by_text('"inpaint"').wait_for()
    page.screenshot(path=tmp_path / "inpaint.png", full_page=True)


def test_an_example_of_a_video_runs_in_one_click(page, site):
    pane = opened(page, "Inpaint")
    pane.get_by_text("a big blue ball rolls to the right on a checkerboard by day").click()
    finished(pane)
    assert site[1].model("student").prompts[-1][0] == "a big blue ball rolls to the right on a checkerboard by day"


def test_it_fits_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 844})
    generate(page, "a red ball")
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_shipped_model_makes_a_clip_that_moves(browser):
    engine = Engine()
    blocks = build_ui(engine)
    _, url, _ = launch(blocks, engine, server_name="127.0.0.1", quiet=True)
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    tab.set_default_timeout(PATIENCE)
    try:
        tab.goto(url)
        generate(tab, "a red ball rolls to the left over snow")
        video = finished(tab)
        video.evaluate("v => v.readyState >= 2 || new Promise(resolve => v.addEventListener('loadeddata', resolve, {once: true}))")
        moved = video.evaluate(CHANGES)
        assert len(moved) == 15 and min(moved) > 0 and sum(moved) / 15 > 0.2
    finally:
        tab.close()
        blocks.close()


@pytest.fixture
def keeping(tmp_path):
    """(url, history) of a page of a FakeModel that keeps clips."""
    engine, history = Engine(load=lambda ref, role: FakeModel(role)), History(tmp_path / "clips")
    blocks = build_ui(engine, history=history)
    _, url, _ = launch(blocks, engine, server_name="127.0.0.1", quiet=True)
    yield url, history
    blocks.close()


def test_a_clip_that_somebody_removed_is_one_sentence_and_the_page_goes_on(browser, keeping):
    url, history = keeping
    tab = browser.new_page()
    tab.set_default_timeout(PATIENCE)
    try:
        tab.goto(url)
        generate(tab, "the big cube spins")
        finished(tab)
        tab.get_by_role("tab", name="History").click()
        tab.get_by_text("· the big cube spins ·").wait_for()
        for path in history.folder.glob("*/*.mp4"):
            path.unlink()
        tab.get_by_text("· the big cube spins ·").click()
        tab.get_by_text("[E_KEPT]").first.wait_for()
        tab.get_by_role("tab", name="Text to video").click()
        generate(tab, "a red ball")
        finished(tab)
    finally:
        tab.close()


def test_a_closed_tab_loses_nothing_that_was_finished(browser, keeping):
    url, history = keeping
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)
    try:
        first = context.new_page()
        first.goto(url)
        generate(first, "the big cube spins")
        finished(first)
        first.close()
        second = context.new_page()
        second.goto(url)
        second.get_by_role("tab", name="History").click()
        second.get_by_text("· the big cube spins ·").click()
        second.get_by_role("tabpanel").filter(visible=True).locator("video[src]").wait_for()
        second.get_by_role("button", name="Delete").click()
        second.get_by_text("Nothing yet.").filter(visible=True).wait_for()
        assert not list(history.folder.glob("*/*.mp4"))
    finally:
        context.close()
