"""What runs when somebody presses a button or calls the API: values of the page -> Request -> updates of the page.

In: what the components or an API client sent, unchecked. Out: a generator of (clip, settings, status, preview) and, where a video is
followed, a clip of what was followed; one per step. Closing it stops the work within one step. This is the one place where an AppError
becomes a gr.Error, and where anything unforeseen is logged and shown as E_INTERNAL. It knows nothing about layout.
"""

import logging
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import gradio as gr

from videolcm.arguments import number
from videolcm.errors import AppError
from videolcm.sources import SOURCES, require_here
from videolcm.students import students
from videolcm.ui import messages
from videolcm.ui.gate import key_of, require_room
from videolcm.ui.tabs import OWN, TABS, description, parameters_of, returns_of, signature

log = logging.getLogger(__name__)
AS_ASKED = ("prompt", "seed", "sampler", "frames", "strength", "gamma", "guidance")  # what a Request takes as the page has it


def make_handler(task, engine, folder, history=None):
    """The handler of a row of TABS. Clips are written to `folder` and removed when gradio has taken its copy; `history` keeps one too."""
    tab = TABS[task]

    def handler(*args, **options):
        given = handler.__signature__.bind(*args, **options)
        given.apply_defaults()
        keep = keeper(history, key_of(given.arguments.pop("visitor")))

        def cleared(why):
            return update(bool(tab.followed), messages.plain("Nothing was made.", notices=[why]), "")

        yield from guarded(lambda: clip_updates(tab, engine, Path(folder), given.arguments, keep), cleared)

    handler.__name__ = handler.__qualname__ = task
    parameters = parameters_of(tab)
    handler.__doc__, handler.__signature__ = description(tab.summary, parameters, returns_of(tab)), signature(parameters, gr.Request)
    handler.__annotations__ = {"visitor": gr.Request}
    return handler


def keeper(history, key):
    """A function that keeps a Result for the browser with this key, and returns what has to be said where it cannot: no clip is lost by that."""

    def keep(result):
        from videolcm.pipeline import save

        try:
            if history:
                history.keep(key, lambda path: save(result, path))
        except AppError as error:
            log.warning("a clip was not kept: %s", error)
            return ("This clip is not in the history: the folder for it cannot be written to.",)
        return ()

    return keep


def guarded(run, cleared):
    """The updates of `run()`. An error first clears the page by the update `cleared(why)`, then becomes a gr.Error of one line."""
    with refused():
        try:
            with closing(run()) as updates:
                yield from updates
        except Exception as error:
            yield cleared(why(error))
            raise


def why(error):
    """What people are told of an exception: one line."""
    return error.message if isinstance(error, gr.Error) else str(foreseen(error))


def foreseen(error):
    """The AppError of an exception: itself, or E_INTERNAL for whatever is none."""
    return error if isinstance(error, AppError) else AppError("E_INTERNAL")


@contextmanager
def refused():
    """Makes an AppError, and whatever is unforeseen, a gr.Error of one line. A gr.Error stays: a shared GPU says so that there is none free."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        if not isinstance(error, AppError):
            log.exception("a handler failed")
        raise gr.Error(str(foreseen(error)), print_exception=False) from None


def update(follows, status, preview=None):
    """What changes while a clip is made: the status line, and the preview unless it is None."""
    return (gr.skip(), gr.skip(), status, gr.skip() if preview is None else preview, *[gr.skip()] * follows)


def clip_updates(tab, engine, folder, values, keep=lambda result: ()):
    """The outputs for every event of one clip. AppError for whatever is out of range."""
    from videolcm.pipeline import SAMPLER_OF, one_of

    follows, role = bool(tab.followed), values["role"]
    one_of(role, SAMPLER_OF, "E_ROLE")
    one_of(values["model"], dict.fromkeys((engine.ref, *SOURCES, *students())), "E_MODEL")
    if values["model"] != engine.ref:
        require_here(values["model"])
    if follows:
        yield update(follows, messages.plain("Reading the video ...", 0))
    request, notices = request_of(tab.task, folder, values)
    with closing(engine.run(request, role, values["model"])) as events:
        for event in events:
            if hasattr(event, "frames"):
                yield from finished(replace(event, notices=(*notices, *event.notices, *keep(event))), folder)
                return
            yield update(follows, messages.status(event), messages.preview(event))


def request_of(task, folder, values):
    """(Request, notices) of what a tab's components hold. AppError E_ROOM, and as uploads.request_with."""
    from videolcm.pipeline import size_of
    from videolcm.uploads import request_with

    require_room(folder)
    width, height = size_of(values["size"])
    asked = {name: values[name] for name in AS_ASKED if name in values}
    asked["sampler"] = None if values.get("sampler", OWN) == OWN else values["sampler"]
    asked["steps"] = None if values.get("sampler", "ddim") in ("ddim", "ddpm") else values["steps"]
    asked["also"] = (TABS[task].other,) if values.get("also") else ()
    with material_of(values, folder, (height, width)) as material:
        return request_with(material, task, values.get("extractor") or None, width=width, height=height, **asked)


def typed(text):
    """What stands in a box for a number that may be empty, which gradio's own for numbers cannot: None if it is, else a number, or what is none for
    others to refuse."""
    return (number(text) if text.strip() else None) if isinstance(text, str) else text


@contextmanager
def material_of(values, folder, size):
    """The uploads.Material of what a tab's components hold; what was painted is a file in `folder` as long as the block lasts."""
    from videolcm.uploads import Material, box_of, marks_nothing

    painted = [folder / f"{uuid4().hex}.png" for _ in values.get("painting") or ()]
    try:
        for path, picture in zip(painted, values.get("painting") or (), strict=True):
            path.write_bytes(picture)
        masks = [values["mask"]] if values.get("mask") else []
        masks += [str(path) for path in painted if not marks_nothing(str(path), size)]
        names = ("video", "start", "span", "fit", "moving", "grow", "feather")
        yield Material(masks=tuple(masks), box=box_of(values.get("box")), **{name: values[name] for name in names if name in values})
    finally:
        for path in painted:
            path.unlink(missing_ok=True)


def finished(result, folder):
    """The last update. The files live as long as gradio needs to copy them."""
    from videolcm.pipeline import save

    with passing(folder, 2) as (clip, followed):
        result = save(result, clip)
        maps = [map_clip(result.maps, result.settings["fps"], followed)] if result.maps else []
        yield (str(clip), result.settings, messages.done(result), "", *maps)


@contextmanager
def passing(folder, count):
    """Names of mp4 files in `folder` that are removed in the end."""
    paths = [folder / f"{uuid4().hex}.mp4" for _ in range(count)]
    try:
        yield paths
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def map_clip(maps, fps, path):
    """Write what was followed, side by side, as an mp4 at `path`; returns its name."""
    import numpy as np

    from videolcm.video import write_mp4

    return str(write_mp4(path, np.concatenate(list(maps.values()), 2), fps, {"maps": list(maps)}))


# ---- what else the tabs that follow a video need


def extractor_choices(kind):
    """(what people read, name) of the extractors for a kind of map that are ready here."""
    from videolcm.conditions import known

    return [("the best for this video", ""), *((what, name) for name, what in known(kind).items())]


def extractor_menu(kind):
    """An update of the menu of extractors for a kind of map: those that are ready here, and below it what the others lack."""
    from videolcm.conditions import EXTRACTORS

    lacking = [(name, row) for name, row in EXTRACTORS.items() if kind in row.kinds and not row.ready()]
    told = [f"{row.what.partition(':')[0]} needs {row.needs} in assets/{name}" for name, row in lacking]
    return gr.update(choices=extractor_choices(kind), info=f"Not here: {'; '.join(told)}" if told else "")


def make_first_frame():
    """A handler that shows the first frame of a video as the clip will have it, uint8 (H, W, 3); None where there is no video."""

    def first_frame(video, frames, size, start, fit):
        from videolcm.pipeline import Request, size_of
        from videolcm.uploads import Material, read_frames

        if not video:
            return None
        with refused():
            width, height = size_of(size)
            request = Request("first frame", frames=frames, width=width, height=height)
            return read_frames(Material(video, start=start, fit=fit), "inpaint", request)[0][0]

    return first_frame


def make_mask_preview(folder):
    """A handler that shows what is going to be replaced in every frame: a generator of one (clip, status)."""

    def mask_preview(*args):
        values = dict(zip(TABS["inpaint"].parameters, args, strict=True))
        with refused():
            yield from mask_updates(values, Path(folder))

    return mask_preview


def mask_updates(values, folder):
    from videolcm.masks import overlay

    request, notices = request_of("inpaint", folder, {**values, "prompt": values["prompt"] or "mask"})
    with passing(folder, 1) as (path,):
        clip = map_clip({"mask": overlay(request.video, request.hole)}, 8, path)
        yield clip, messages.plain("What is red will be replaced.", notices=notices)
