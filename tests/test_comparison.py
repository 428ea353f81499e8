"""The comparison in a real browser: cells advance in step, one scrub bar moves them all, the difference map is what it says, a file comes back."""

import io

import pytest
from conftest import FakeModel, wait_for
from media import make
from PIL import Image
from test_browser import BRUSH_IS_THERE, PATIENCE, browser, stroke  # noqa: F401  browser is a fixture
from test_uploads import textured

from videolcm.ui import Engine, build_ui, launch

PIXELS = """canvas => {
    const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    let bright = 0, sum = 0, weight = 0;
    for (let i = 0; i < data.length; i += 4) {
        bright += data[i];
        const white = data[i] > 128;
        weight += white;
        sum += white * ((i / 4) % canvas.width);
    }
    return {frame: Number(canvas.dataset.frame), mean: bright / (data.length / 4), place: sum / weight};
}"""


class Softer(FakeModel):
    """The moving square; the student's ground is lighter by a tenth of the range, so that the difference is known."""

    def decode(self, latents, frames):
        pixels = super().decode(latents, frames)
        return pixels if self.info.role == "teacher" else pixels.clamp(min=-0.6)


@pytest.fixture(scope="module")
def tab(browser):  # noqa: F811
    """The Compare tab of a page that serves a model with known answers; every request stays here and no script fails."""
    engine = Engine(load=lambda ref, role: Softer(role, 0.02))
    blocks = build_ui(engine)
    _, url, _ = launch(blocks, engine, server_name="127.0.0.1", quiet=True)
    page, failed = browser.new_page(viewport={"width": 1280, "height": 800}), []
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("request", lambda request: failed.append(request.url) if not request.url.startswith((url, "data:", "blob:")) else None)
    page.goto(url)
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare").get_by_label("Advanced").or_(page.locator("#compare").get_by_text("Advanced")).first.click()
    yield page, engine
    assert not failed
    page.close()
    blocks.close()


@pytest.fixture(scope="module")
def compared(tab):
    """The tab after a comparison of 1, 2, 4 and 8 steps with 10 of the teacher."""
    page, engine = tab
    number, slider = (page.get_by_label(f"{kind} for Steps of the reference") for kind in ("number input", "range slider"))
    for _ in range(50):  # the page may not listen yet
        number.fill("10")
        number.press("Tab")
        if slider.input_value() == "10":
            break
        page.wait_for_timeout(100)
    page.locator("#compare").get_by_label("Prompt").fill("a red ball")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("Done: 5 clips").wait_for()
    page.wait_for_function("document.querySelectorAll('.tile[data-state=done]').length === 5")
    page.wait_for_function("!document.querySelector('.difference').disabled")
    return page


def look(page):
    """What is on every cell's canvas."""
    return [page.locator(".tile canvas").nth(i).evaluate(PIXELS) for i in range(page.locator(".tile").count())]


def scrub(page, frame):
    page.locator(".scrub").evaluate("(bar, frame) => { bar.value = frame; bar.dispatchEvent(new Event('input')); }", frame)


def test_cells_advance_in_step(compared):
    frames = "[...document.querySelectorAll('.tile canvas')].map(canvas => canvas.dataset.frame)"
    seen = set()
    for _ in range(8):
        now = compared.evaluate(frames)
        assert len(set(now)) == 1
        seen.add(now[0])
        compared.wait_for_function(f"document.querySelector('.tile canvas').dataset.frame !== '{now[0]}'")
    assert len(seen) > 2


def test_one_bar_sets_the_frame_of_all_and_keys_go_frame_by_frame(compared):
    scrub(compared, 5)
    first = look(compared)
    assert [cell["frame"] for cell in first] == [5] * 5 and compared.locator(".time").text_content() == "6 / 16"
    assert max(cell["place"] for cell in first) - min(cell["place"] for cell in first) < 2
    compared.locator(".player").press("ArrowRight")
    after = look(compared)
    assert [cell["frame"] for cell in after] == [6] * 5
    assert all(5 < b["place"] - a["place"] < 11 for a, b in zip(first, after, strict=True))  # the square moves 8 pixels a frame
    compared.get_by_role("button", name="Previous frame").click()
    assert [cell["frame"] for cell in look(compared)] == [5] * 5
    compared.locator(".player").press(" ")
    compared.wait_for_function("document.querySelector('.tile canvas').dataset.frame !== '5'")


def test_the_difference_map_is_four_times_the_difference(compared):
    scrub(compared, 3)
    before = look(compared)
    compared.get_by_role("button", name="Difference").click()
    compared.wait_for_function("document.querySelector('.difference').ariaPressed === 'true'")
    compared.evaluate("() => new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
    after = look(compared)
    assert after[4] == before[4]  # the reference stays a picture
    for a, b in zip(before[:4], after[:4], strict=True):
        assert b["mean"] == pytest.approx(4 * (a["mean"] - before[4]["mean"]), abs=6) and b["mean"] > 60
    compared.get_by_role("button", name="Difference").click()


def test_numbers_and_the_plot_are_there_and_all_fits_the_screen(compared):
    captions = compared.locator(".tile figcaption").all_text_contents()
    assert "1 step, lcm" in captions[0] and "1 evaluation, " in captions[0] and " dB" in captions[0]
    assert all(f"{stage}\N{NO-BREAK SPACE}" in caption for stage in ("text", "denoise", "decode", "write") for caption in captions)
    assert "teacher, 10 steps, ddim" in captions[4] and "20 evaluations, " in captions[4]
    assert compared.locator("svg.plot circle").count() == 1 + 4
    assert compared.locator(".player").bounding_box()["height"] < 600
    assert compared.evaluate("document.documentElement.scrollWidth") <= 1280


def test_the_sheet_can_be_taken_away_and_brings_its_settings_back(compared, tmp_path):
    button = compared.locator("#compare").get_by_role("button", name="Contact sheet")
    compared.wait_for_function(
        "[...document.querySelectorAll('#compare button, #compare a')].some(b => /Contact/.test(b.textContent) && !b.disabled)"
    )
    with compared.expect_download() as download:
        button.click()
    path = tmp_path / "sheet.png"
    download.value.save_as(path)
    assert Image.open(io.BytesIO(path.read_bytes())).size[0] > 500
    seed = compared.locator("#compare").get_by_label("Seed").first
    made = seed.input_value()
    seed.fill("1")
    compared.locator("#compare").get_by_label("Prompt").fill("something else")
    compared.locator("#compare input[type=file]").set_input_files(path)
    compared.get_by_text("These are the settings of the file").wait_for()
    assert compared.locator("#compare").get_by_label("Prompt").input_value() == "a red ball"
    assert seed.input_value() == made and not compared.locator("#compare").get_by_label("Randomise").is_checked()


def test_one_cell_is_stopped_by_its_button(compared, tab):
    model = tab[1].model("student")
    model.delay = 0.6
    try:
        compared.get_by_role("button", name="Compare", exact=True).click()
        compared.get_by_role("button", name="Stop 8 steps").click()
        compared.locator(".tile[data-state=making] canvas").first.wait_for()
        compared.get_by_text("Done: 4 clips").wait_for()
    finally:
        model.delay = 0.02
    states = [compared.locator(".tile").nth(i).get_attribute("data-state") for i in range(5)]
    assert states == ["done", "done", "done", "stopped", "done"]


def test_stop_all(compared, tab):
    model = tab[1].model("student")
    model.delay, model.calls = 0.6, []
    try:
        compared.get_by_role("button", name="Compare", exact=True).click()
        compared.locator(".tile[data-state=making]").first.wait_for()
        compared.get_by_role("button", name="Stop all").click()
        compared.wait_for_function("document.querySelectorAll('.tile[data-state=stopped]').length >= 3")
    finally:
        model.delay = 0.02
    wait_for(lambda: not tab[1].device.locked())
    assert len(model.calls) < 8


def test_a_hole_is_painted_for_all_cells(compared, tmp_path):
    pane = compared.locator("#compare")
    pane.get_by_label("Inpaint").check()
    pane.locator("input[type=file]").first.set_input_files(make(tmp_path / "grain.mp4", textured(16, 256, 256)))
    compared.wait_for_function(BRUSH_IS_THERE)
    canvas, figures = pane.locator(".painting canvas").first, pane.locator(".tile dt", has_text="PSNR outside")
    refused = compared.get_by_text("E_TASK_INPUT").first

    def figures_after_a_stroke():
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        stroke(compared, box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        compared.get_by_role("button", name="Compare", exact=True).click()
        refused.or_(figures).first.wait_for()
        if figures.count():
            return True
        refused.wait_for(state="hidden")
        return False

    assert any(figures_after_a_stroke() for _ in range(8))  # a stroke before the editor is ready is lost
    figures.nth(4).wait_for()
    assert figures.count() == 5
