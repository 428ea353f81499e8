"""What runs when somebody presses Compare or calls /compare: values of the page -> Request and Cells -> updates of the page.

In: what the components or an API client sent, unchecked. Out: generators, one update per event, that stop the work within one step when they
are closed. It knows nothing about layout.
"""

import tempfile
import time
from contextlib import closing
from pathlib import Path

import gradio as gr

from videolcm.arguments import number
from videolcm.plot import scatter
from videolcm.ui import messages
from videolcm.ui.engine import Loading, Waiting
from videolcm.ui.handlers import guarded, keeper, refused, request_of, typed
from videolcm.ui.player import Board, made_in
from videolcm.ui.tabs import OWN, PARAMETERS, TABS, description, signature

FOLLOWING = ("video", "mask", "box", "extractor", "strength", "also", "moving", "grow", "feather", "start", "span", "fit")  # also of the API
NAMES = (  # the page's handler's parameters after `stops`, in its order: what to compare, then what all cells share
    *("steps", "samplers", "roles", "with_reference", "reference_steps"),
    *("prompt", "seed", "gamma", "guidance", "frames", "size", "task"),
    *FOLLOWING,
    "painting",
)
OUTPUTS = ("board", "status", "plot", "mp4", "gif", "sheet")  # of the page's handler, in its order
FILES = {"mp4": "comparison.mp4", "gif": "comparison.gif", "sheet": "comparison.png"}
PACE = 0.15  # seconds between two looks at cells that are being made: a browser has every clip to keep, not only the one that changed


class Stops(set):
    """The cells that a visitor has stopped, one set for all comparisons of a page; with `everything` it holds every cell there is.

    It also carries what is done from the event that made it to the one that writes it: `unwritten`, a list of CellDone.
    """

    cells, unwritten, everything, busy, running, key = (), [], False, False, False, None

    def __contains__(self, cell):
        return self.everything or super().__contains__(cell)

    def begin(self, key=None):
        """A comparison was asked for, by the browser with this key; it may have to wait. While one runs nothing comes of it, and what was stopped
        of that one stays so."""
        self.key, self.busy = key, True
        if not self.running:
            self.forget()

    def forget(self):
        self.clear()
        self.everything = False

    def end(self):
        """The comparison is over."""
        self.forget()
        self.busy = self.running = False

    def stop_all(self):
        """The status line; nothing where nothing runs."""
        self.everything = True
        return messages.plain("Stopping at the next step ...") if self.busy else gr.skip()

    def stop_cell(self, index):
        """Stop the cell at this place of the player."""
        if isinstance(index, int) and 0 <= index < len(self.cells):
            self.add(self.cells[index])


# ---- what is asked for


def cells_of(roles, samplers, counts):
    """Every role with every sampler, of which OWN is the one it is made for, and number of steps, each a list or a text with commas. AppError
    E_CELL_ROLE, E_SAMPLER, E_STEPS."""
    from videolcm.compare import Cell, known_roles
    from videolcm.pipeline import SAMPLERS, checked_steps, one_of

    cells = []
    for role in listed(roles):
        one_of(role, known_roles(), "E_CELL_ROLE")
        for sampler in listed(samplers):
            one_of(sampler, (OWN, *SAMPLERS), "E_SAMPLER")
            sampler = None if sampler == OWN else sampler
            steps = {checked_steps(count if count is not None else "none", sampler) for count in listed(counts)}
            cells += [Cell(role, sampler, count) for count in sorted(steps)]
    return cells


def listed(value):
    """The items of a list, or of a text with commas; a list of one for anything else."""
    if isinstance(value, str):
        return [number(part.strip()) for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def reference_of(steps):
    """The teacher with so many DDIM steps; None for 0. AppError E_STEPS."""
    from videolcm.compare import Cell
    from videolcm.pipeline import checked_steps

    return None if steps == 0 else Cell("teacher", "ddim", checked_steps(steps, "ddim"))


def shared_request(folder, values):
    """(Request, notices) that all cells share: of `values` what the tab of their task takes. AppError for whatever is out of range."""
    from videolcm.pipeline import one_of

    one_of(values["task"], TABS, "E_TASK")
    taken = {name: value for name, value in values.items() if name in (*TABS[values["task"]].parameters, "gamma", "guidance")}
    return request_of(values["task"], Path(folder), {**taken, "guidance": typed(values.get("guidance"))})


# ---- the page


def make_comparison(engine, folder, history=None):
    """The page's handler: `stops`, then the values of NAMES. What it made is left in `stops.unwritten`, so that nobody has to wait for files
    before the next comparison; `history` keeps every clip as soon as it is there."""

    def comparison(stops, *args):
        values, keep, stops.running = dict(zip(NAMES, args, strict=True)), keeper(history, stops.key), True

        def run():
            reference = reference_of(values["reference_steps"] if values["with_reference"] else 0)
            cells = cells_of(values["roles"], values["samplers"], values["steps"])
            if values["task"] in TABS and TABS[values["task"]].followed:
                yield updates(status=messages.plain("Reading the video ...", 0))
            request, notices = shared_request(folder, {name: values[name] for name in NAMES if name != "steps"})
            yield from comparison_updates(engine, request, cells, reference, stops, notices, keep)

        try:
            yield from guarded(run, lambda why: updates(status=messages.plain("Nothing was made.", notices=[why])))
        finally:
            stops.end()

    return comparison


def updates(**changed):
    """One update of the page: what is named, the rest as it is."""
    return tuple(changed.get(name, gr.skip()) for name in OUTPUTS)


def comparison_updates(engine, request, cells, reference, stops, notices=(), keep=lambda result: ()):
    """An update for every event, then the plot; `notices` are said in the end. AppError as `compare.compare`."""
    from videolcm.compare import requests_of

    stops.cells, stops.unwritten = tuple(requests_of(request, cells, reference)), []
    board = Board(stops.cells, reference, request.frames, request.width, request.height)
    none = dict.fromkeys(FILES, gr.update(interactive=False))
    yield updates(board=board.value(), status=messages.plain("Waiting for the device ...", 0), plot="", **none)
    try:
        yield from progress_updates(engine.compare(request, cells, reference, stops), board, stops, keep)
    except Exception:
        yield updates(board=board.ended())
        raise
    yield updates(board=board.ended(), status=summary(board, notices), plot=quality(board, reference))
    stops.unwritten = list(board.done.values())


def progress_updates(events, board, stops, keep=lambda result: ()):
    """Board and status as events come; ends early when everything was stopped before the device was free."""
    seen = 0.0
    with closing(events):
        for event in events:
            if isinstance(event, (Waiting, Loading)):
                if stops.everything:
                    return
                yield updates(status=messages.status(event))
                continue
            if hasattr(event, "result") and event.cell not in board.done:  # it comes again with figures beside the reference
                keep(event.result)
            board.take(event)
            if hasattr(event, "progress") and time.monotonic() - seen < PACE:
                yield updates()  # the page may close the generator here
            else:
                yield updates(board=board.value(), status=board.status())
                seen = time.monotonic()


def summary(board, notices=()):
    """The last status line: how many clips, how long, and what has to be said about them, `notices` first."""
    done = list(board.done.values())
    if not done:
        return messages.plain("Stopped.")
    total = sum(one.result.seconds["total"] for one in done)
    left = len(board.tiles) - len(done)
    text = f"Done: {len(done)} clip{'s' * (len(done) != 1)} in {total:.2f} s from the same noise · seed {done[0].result.settings['seed']}"
    text += f" · {left} without a clip" if left else ""
    sentences = [*notices, *done[0].result.notices, done[0].metrics["unmatched"]]
    return messages.plain(text, notices=[sentence for sentence in sentences if sentence])


def quality(board, reference):
    """Distance to the reference (PSNR where there is no judge) against seconds, of all other cells, as SVG; "" without a reference."""
    others = [one for cell, one in board.done.items() if cell != reference and reference in board.done]
    if not others:
        return ""
    judged = others[0].metrics["feature_distance"] is not None
    name, key = ("Distance to the reference: low is near", "feature_distance") if judged else ("PSNR in dB: high is near the reference", "psnr")
    series = {}
    for one in others:
        line = f"{one.cell.role}, {one.result.settings['sampler']}"
        series.setdefault(line, []).append((made_in(one.result), one.metrics[key], f"{one.cell.steps}"))
    return scatter(series, f"Seconds to frames; the reference took {made_in(board.done[reference].result):.2f}", name)


def make_files(folder):
    """The handler that writes what a comparison left, for the buttons of FILES. The files live as long as gradio needs to copy them."""

    def files(stops):
        done = stops.unwritten
        if not done:
            return
        with refused(), tempfile.TemporaryDirectory(dir=folder) as place:
            paths = write_files(done, Path(place))
            if stops.unwritten is done:  # else a new comparison has begun
                stops.unwritten = []
                yield [gr.update(value=str(paths[name]), interactive=True) for name in FILES]

    return files


def write_files(done, place):
    """{name: path} of the grid as mp4 and GIF and of the contact sheet, each with the settings of every cell."""
    from videolcm.grid import write_gif, write_grid, write_sheet

    tiles, fps = [(one.label, one.result.frames) for one in done], done[0].result.settings["fps"]
    settings = {"cells": [one.result.settings for one in done]}
    paths = {name: place / file for name, file in FILES.items()}
    write_grid(paths["mp4"], tiles, fps, settings)
    write_gif(paths["gif"], tiles, fps, settings)
    write_sheet(paths["sheet"], tiles, settings)
    return paths


# ---- the API


COMPARED = {  # the parameters of /compare: (default, what it is)
    "prompt": PARAMETERS["prompt"],
    "steps": ([1, 2, 4, 8], 'numbers of steps of the student, a list like [1, 2, 4, 8] or a text like "1,2,4,8"; up to eight cells.'),
    "seed": (0, "a whole number from 0 to 2147483647; the same seed gives the same clips."),
    "sampler": (OWN, f"{OWN}, the one that the student is made for, or lcm, tcd, ddim or ddpm, or several with commas."),
    "gamma": (None, "randomness of tcd from 0 to 1, nothing for the student's own."),
    "teacher_steps": (50, "DDIM steps of the teacher's clip, the reference, from 1 to 100; 0 for none."),
    "frames": PARAMETERS["frames"],
    "size": PARAMETERS["size"],
    "task": ("text", "text, or depth, sketch, inpaint, which follow a video."),
    **{name: (PARAMETERS[name][0], PARAMETERS[name][1].format(other="other map")) for name in FOLLOWING},
    "video": (None, PARAMETERS["video"][1]),
}
SUMMARY = "Make one clip in several ways from the same noise, side by side, and measure what few steps lose."
RETURNS = "The labelled grid as an mp4, and the cells as JSON: label, reference, nfe, seconds, sha256, settings, notices, metrics."


def make_compare(engine, folder):
    """The handler of /compare."""

    def compare(*args, **options):
        given = compare.__signature__.bind(*args, **options)
        given.apply_defaults()
        values = given.arguments

        def run():
            cells, reference = cells_of("student", values["sampler"], values["steps"]), reference_of(values["teacher_steps"])
            request, notices = shared_request(folder, {name: value for name, value in values.items() if name not in ("steps", "sampler")})
            yield from api_updates(engine, folder, request, cells, reference, notices)

        yield from guarded(run, lambda why: (gr.skip(), gr.skip()))

    compare.__doc__, compare.__signature__ = description(SUMMARY, COMPARED, RETURNS), signature(COMPARED)
    return compare


def api_updates(engine, folder, request, cells, reference, notices=()):
    """(None, the cells so far) at every event, then (mp4, all cells); `notices` are said of each."""
    from videolcm.compare import CellDone, CellStopped, row
    from videolcm.grid import write_grid

    done, rows = {}, []
    with closing(engine.compare(request, cells, reference, frozenset())) as events:
        for event in events:
            if isinstance(event, CellStopped):
                notices = [*notices, f"{event.cell}: {event.error}"]
            elif isinstance(event, CellDone):
                done[event.cell] = event
            rows = [row(one, reference) for one in done.values()]
            yield None, [one | {"notices": [*notices, *one["notices"]]} for one in rows]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / FILES["mp4"]
        rows = [one | {"notices": [*notices, *one["notices"]]} for one in rows]
        tiles, settings = [(one.label, one.result.frames) for one in done.values()], {"cells": [row["settings"] for row in rows]}
        yield str(write_grid(path, tiles, settings["cells"][0]["fps"], settings)), rows
