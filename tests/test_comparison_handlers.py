"""The comparison without a browser: its handlers as functions, and /compare behind the page."""

from dataclasses import replace
from pathlib import Path

import cv2
import gradio as gr
import numpy as np
import pytest
import torch
from conftest import FakeModel, wait_for
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError as ClientError
from media import make
from test_history import KEY

from videolcm.history import History
from videolcm.ui import Engine, build_ui, comparison_handlers, launch
from videolcm.ui.comparison_handlers import FILES, FOLLOWING, NAMES, OUTPUTS, Stops, cells_of, make_compare, make_comparison, make_files
from videolcm.ui.restore import restored
from videolcm.video import read_settings

PROMPT = "a red ball rolls to the left over snow"
ASKED = {
    "prompt": PROMPT,
    "steps": [2, 1],
    "samplers": ["lcm"],
    "roles": ["student"],
    "seed": 5,
    "with_reference": True,
    "reference_steps": 9,
    "gamma": 0.3,
    "guidance": "",
    "frames": 8,
    "size": "128x128",
    "task": "text",
    **dict.fromkeys((*FOLLOWING, "painting")),
}


class Noisy(FakeModel):
    """The moving square, the less clean the fewer steps; a clip that depends on seed, sampler and steps."""

    def denoise(self, x_t, t, cond):
        return 0.9 * super().denoise(x_t, t, cond) + 0.1 * x_t.clamp(-1, 1)


class Named(Noisy):
    """A model that says under which name it was loaded."""

    def __init__(self, ref, role):
        super().__init__(role)
        self.info = replace(self.info, name=ref)


def engine_of(delay=0.0):
    return Engine(load=lambda ref, role: Noisy(role, delay))


def asked(engine, stops=None, folder=None, **values):
    """The updates of the page as dicts of what changes."""
    values = {**ASKED, **values}
    for update in make_comparison(engine, folder or Path.cwd())(Stops() if stops is None else stops, *(values[name] for name in NAMES)):
        yield {name: value for name, value in zip(OUTPUTS, update, strict=True) if value != gr.skip()}


def states(update):
    return [cell["state"] for cell in update["board"]["cells"]]


def last_board(updates):
    return [update for update in updates if "board" in update][-1]


def test_a_comparison_and_the_way_back_from_each_of_its_files(tmp_path):
    engine, stops = engine_of(), Stops()
    shown = last_board(asked(engine, stops))
    assert states(shown) == ["done"] * 3 and "Done: 3 clips" in shown["status"] and "seed 5" in shown["status"]
    assert shown["plot"].count("<circle") == 1 + 2
    told, controls = [], []
    for buttons in make_files(tmp_path)(stops):
        paths = [button["value"] for button in buttons]
        assert [Path(path).name for path in paths] == list(FILES.values())
        told, controls = [read_settings(path) for path in paths], [restored(path) for path in paths]
    assert [(cell["role"], cell["steps"]) for cell in told[0]["cells"]] == [("student", 1), ("student", 2), ("teacher", 9)]
    assert told[0] == told[1] == told[2] and controls[0] == controls[1] == controls[2]
    assert not list(tmp_path.iterdir()) and not stops.unwritten and not engine.device.locked()
    again = last_board(asked(engine, **{**dict.fromkeys(ASKED), **controls[0]}))
    assert [cell["strip"] for cell in again["board"]["cells"]] == [cell["strip"] for cell in shown["board"]["cells"]]


def test_a_comparison_follows_a_video_and_its_file_says_how(tmp_path):
    video = np.zeros((8, 128, 128, 3), np.uint8)
    video[:, 40:80, 40:80] = 200
    asks = {"task": "sketch", "video": str(make(tmp_path / "box.mp4", video)), "strength": 0.5, "extractor": "canny", "also": False}
    asks |= {"start": 0.0, "span": 0.0, "fit": "crop"}
    stops = Stops()
    shown = last_board(asked(engine_of(), stops, tmp_path, **asks, steps=[1], with_reference=False))
    assert states(shown) == ["done"] and "Edge F1" in dict(shown["board"]["cells"][0]["figures"])
    for buttons in make_files(tmp_path)(stops):
        controls = restored(buttons[0]["value"])
    assert {name: controls[name] for name in ("task", "strength", "extractor", "also")} == {
        "task": "sketch",
        "strength": 0.5,
        "extractor": "canny",
        "also": False,
    }


def test_a_painted_hole_is_compared_and_its_file_says_how_it_was_made(tmp_path):
    video = np.zeros((16, 128, 128, 3), np.uint8)
    video[:, 40:80, 40:80] = np.arange(0, 160, 10)[:, None, None, None]
    painted = np.zeros((128, 128, 4), np.uint8)
    painted[50:70, 50:70] = 255
    brush = cv2.imencode(".png", painted)[1].tobytes()
    asks = {"task": "inpaint", "video": str(make(tmp_path / "box.mp4", video)), "painting": [brush], "box": "0.1,0.1,0.3,0.25"}
    asks |= {"start": 0.5, "span": 1.25, "fit": "crop", "moving": False, "grow": 3, "feather": 2}
    strips = []
    for more in ({}, {"painting": None}):
        stops = Stops()
        shown = last_board(asked(engine_of(), stops, tmp_path, **{**asks, **more}, steps=[1], with_reference=False))
        assert states(shown) == ["done"] and "PSNR outside" in dict(shown["board"]["cells"][0]["figures"])
        strips.append(shown["board"]["cells"][0]["strip"])
    assert strips[0] != strips[1]  # what was painted counts
    for buttons in make_files(tmp_path)(stops):
        controls = restored(buttons[0]["value"])
    assert {name: controls[name] for name in (*asks,) if name in controls} == {
        name: value for name, value in asks.items() if name not in ("video", "painting")
    }
    again = {**dict.fromkeys(ASKED), **controls, "video": asks["video"]}
    assert last_board(asked(engine_of(), **again))["board"]["cells"][0]["strip"] == strips[1]


def test_a_student_that_was_distilled_here_is_compared_and_comes_back_from_the_file(tmp_path, monkeypatch):
    job = "0123456789abcdef" * 2
    (tmp_path / "jobs" / job).mkdir(parents=True)
    for name in ("job.json", "manifest.json"):
        (tmp_path / "jobs" / job / name).write_text("{}")
    monkeypatch.setenv("VIDEOLCM_JOBS", str(tmp_path / "jobs"))
    engine, stops = engine_of(), Stops()
    engine.load = Named
    shown = last_board(asked(engine, stops, roles=["student", "student-01234567"], steps=[1]))
    assert [cell["name"] for cell in shown["board"]["cells"]][:2] == ["1 step, lcm", "student-01234567, 1 step, lcm"]
    assert engine.models.keys() == {("toybox", "student"), ("student-01234567", "student"), ("toybox", "teacher")}
    for buttons in make_files(tmp_path)(stops):
        assert restored(buttons[0]["value"])["roles"] == ["student", "student-01234567"]
    before, own = engine.models["student-01234567", "student"], engine.models["toybox", "student"]
    (tmp_path / "jobs" / job / "manifest.json").write_text("{} ")  # it has learned more
    assert engine.model("student", "student-01234567") is not before and engine.model("student") is own


def test_files_of_a_comparison_that_is_over_do_not_replace_the_next_ones(tmp_path, monkeypatch):
    stops = Stops()
    list(asked(engine_of(), stops))
    stale = stops.unwritten

    def begin_another(done, place):
        assert done is stale and len(done) == 3
        next(asked(engine_of(), stops))
        return {}

    monkeypatch.setattr(comparison_handlers, "write_files", begin_another)
    assert list(make_files(tmp_path)(stops)) == [] and not list(tmp_path.iterdir())


def test_cells_fill_as_they_finish():
    seen = [states(update) for update in asked(engine_of()) if "board" in update]
    assert seen[0] == ["waiting"] * 3
    for stage in (["done", "waiting", "waiting"], ["done", "done", "waiting"], ["done"] * 3):
        assert stage in seen


def test_every_clip_is_kept_once(tmp_path):
    history, stops = History(tmp_path / "kept"), Stops()
    stops.begin(KEY)
    values = [ASKED[name] for name in NAMES]
    assert states(last_board(asked(engine_of()))) == ["done"] * 3
    for _ in make_comparison(engine_of(), tmp_path, history)(stops, *values):
        pass
    assert sorted((kept.settings["role"], kept.settings["steps"]) for kept in history.list(KEY)) == [("student", 1), ("student", 2), ("teacher", 9)]


def test_one_cell_is_stopped_and_the_rest_goes_on():
    engine, stops = engine_of(), Stops()
    for update in asked(engine, stops):
        if "board" in update:
            shown = update
            stops.stop_cell(1)
    assert states(shown) == ["done", "stopped", "done"] and "Done: 2 clips" in shown["status"] and "1 without a clip" in shown["status"]
    assert len(engine.models["toybox", "student"].calls) == 1


def last_board_after(engine, stops, happens):
    """The last update with a board of a comparison in which something happens when the first cell is done."""
    stops.begin()
    for update in asked(engine, stops):
        if "board" in update:
            shown = update
            if states(update)[0] == "done" and not stops.everything:
                happens()
    return shown


def test_stop_all_ends_at_the_next_step_and_leaves_what_is_done():
    engine, stops, told = engine_of(), Stops(), []
    shown = last_board_after(engine, stops, lambda: told.append(stops.stop_all()))
    assert len(told) == 1 and "Stopping" in told[0]
    assert states(shown) == ["done", "stopped", "stopped"] and [one.cell.steps for one in stops.unwritten] == [1]
    assert (
        len(engine.models["toybox", "student"].calls) == 1 and ("toybox", "teacher") in engine.models and not engine.models["toybox", "teacher"].calls
    )
    assert stops.stop_all() == gr.skip()  # nothing runs any more


def test_compare_pressed_once_more_undoes_no_stop():
    stops = Stops()
    shown = last_board_after(engine_of(), stops, lambda: (stops.stop_all(), stops.begin()))  # of the second nothing comes while this one runs
    assert states(shown) == ["done", "stopped", "stopped"] and not stops.everything and not stops.busy


def test_stop_all_ends_the_waiting_for_the_device():
    engine, stops = engine_of(), Stops()
    engine.device.acquire()
    stops.begin()
    updates = asked(engine, stops)
    next(updates), next(updates)
    stops.stop_all()
    shown = last_board(updates)
    assert states(shown) == ["stopped"] * 3 and "Stopped." in shown["status"] and engine.device.locked()


def test_closing_frees_the_device():
    engine = engine_of()
    updates = asked(engine, steps=[8])
    while not engine.models or not engine.models["toybox", "student"].calls:
        next(updates)
    assert engine.device.locked()
    updates.close()
    assert not engine.device.locked() and len(engine.models["toybox", "student"].calls) == 1


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("E_PROMPT_EMPTY", {"prompt": " "}),
        ("E_CELLS", {"steps": []}),
        ("E_CELLS", {"steps": [1, 2, 3], "samplers": ["lcm", "tcd", "ddim"]}),
        ("E_STEPS", {"steps": [9]}),
        ("E_STEPS", {"steps": [[1]]}),
        ("E_STEPS", {"steps": None}),
        ("E_STEPS", {"reference_steps": 101}),
        ("E_SAMPLER", {"samplers": [["lcm"]]}),
        ("E_CELL_ROLE", {"roles": [3]}),
        ("E_SIZE", {"size": None}),
        ("E_GUIDANCE", {"guidance": "2 or 3"}),
        ("E_GUIDANCE", {"guidance": "31"}),
        ("E_TASK", {"task": "dance"}),
    ],
)
def test_refusals_are_one_line(code, values):
    engine = engine_of()
    updates = asked(engine, **values)
    assert "Nothing was made" in next(updates)["status"]
    with pytest.raises(gr.Error) as error:
        next(updates)
    assert error.value.message.startswith(f"[{code}] ") and "\n" not in error.value.message and not engine.models


def test_an_error_halfway_leaves_what_is_done():
    engine = engine_of()
    engine.model("teacher").decode = lambda latents, frames: torch.full((1, 3, 8, 128, 128), float("nan"))
    stops = Stops()
    shown = last_board(list(asked(engine, stops)))
    assert states(shown) == ["done", "done", "stopped"] and not engine.device.locked()
    assert shown["board"]["cells"][2]["warning"].startswith("[E_NONFINITE]") and len(stops.unwritten) == 2


def test_the_same_comparison_gives_the_same_file(tmp_path):
    made = []
    for _ in range(2):
        stops = Stops()
        list(asked(engine_of(), stops, steps=[1, 2], with_reference=False))
        for buttons in make_files(tmp_path)(stops):
            made.append([Path(button["value"]).read_bytes() for button in buttons])
    assert made[0] == made[1]


@pytest.mark.parametrize("counts", ["4, 1", [4, 1, 1.0], (1, 4)])
def test_cells_are_sorted_and_counted_once(counts):
    assert [str(cell) for cell in cells_of("student", "lcm", counts)] == ["1 step, lcm", "4 steps, lcm"]


# ---- the API


@pytest.fixture(scope="module")
def page():
    """(client, engine) of a page that serves a model with known answers."""
    engine = engine_of()
    blocks = build_ui(engine)
    _, url, _ = launch(blocks, engine, server_name="127.0.0.1", quiet=True)
    yield Client(url, verbose=False), engine
    blocks.close()


SMALL = {"frames": 8, "size": "128x128", "api_name": "/compare"}


def test_api_compares(page):
    path, rows = page[0].predict(PROMPT, steps=[2, 1], seed=3, sampler="tcd", gamma=0.5, teacher_steps=10, **SMALL)
    assert Path(path).suffix == ".mp4" and read_settings(path)["cells"] == [row["settings"] for row in rows]
    assert [row["nfe"] for row in rows] == [1, 2, 20] and [row["reference"] for row in rows] == [False, False, True]
    assert rows[0]["settings"]["gamma"] == 0.5 and rows[0]["metrics"]["psnr"] < 100 == rows[2]["metrics"]["psnr"]
    assert len({row["sha256"] for row in rows}) == 3
    assert page[0].predict(PROMPT, steps="1,2", seed=3, sampler="tcd", gamma=0.5, teacher_steps=0, **SMALL)[1][1]["sha256"] == rows[1]["sha256"]


def test_api_compares_what_follows_a_video(page, tmp_path):
    video = np.zeros((8, 128, 128, 3), np.uint8)
    video[:, 40:80, 40:80] = 200
    path = handle_file(str(make(tmp_path / "box.mp4", video)))
    options = {"task": "inpaint", "video": path, "box": "0.2,0.2,0.8,0.8", "feather": 0, **SMALL}
    _, rows = page[0].predict(PROMPT, steps="1,2", teacher_steps=0, **options)
    assert [row["settings"]["task"] for row in rows] == ["inpaint"] * 2
    assert all(row["metrics"]["followed"]["PSNR outside"] == 100 for row in rows)


def test_api_is_described(page):
    described = page[0].view_api(return_format="dict", print_info=False)["named_endpoints"]["/compare"]
    names = ["prompt", "steps", "seed", "sampler", "gamma", "teacher_steps", "frames", "size", "task", *FOLLOWING]
    assert [p["parameter_name"] for p in described["parameters"]] == names and "side by side" in described["description"]
    assert [p["parameter_has_default"] for p in described["parameters"]] == [False] + (len(names) - 1) * [True]


@pytest.mark.parametrize(
    ("code", "values"),
    [("E_STEPS", {"steps": "1,x"}), ("E_STEPS", {"teacher_steps": 0.5}), ("E_CELLS", {"steps": []}), ("E_SAMPLER", {"sampler": {}})],
)
def test_api_refuses(page, code, values):
    with pytest.raises(ClientError, match=rf"\[{code}\]"):
        page[0].predict(PROMPT, **SMALL, **values)


def test_cancelling_a_comparison_of_the_api_frees_the_device(page):
    client, engine = page
    engine.model("student").delay = 0.3
    try:
        job = client.submit(PROMPT, steps=[8], **SMALL)
        wait_for(engine.device.locked)
        job.cancel()
        wait_for(lambda: not engine.device.locked())
    finally:
        engine.model("student").delay = 0.0


def test_the_api_says_what_is_done_so_far(tmp_path):
    compare = make_compare(engine_of(), tmp_path)
    counts = [len(rows) for _, rows in compare(PROMPT, steps="1,2", teacher_steps=9, frames=8, size="128x128")]
    assert sorted(counts) == counts and set(counts) == {0, 1, 2, 3} and not list(tmp_path.iterdir())
