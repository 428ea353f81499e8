"""Components that several tabs use, and what their values become on the way to a handler: unchecked, for the Request checks them.

It knows nothing about tasks or events.
"""

from abc import ABCMeta
from functools import cache

import gradio as gr

from videolcm.ui.tabs import PARAMETERS

SIZES = ("256x256", "384x256", "256x384", "384x384", "448x256", "512x512")
FITS = (("cut out the middle", "crop"), ("add black bars", "pad"))
PIXELS = {"minimum": 0, "maximum": 64, "step": 1, "min_width": 120}
SHOW = """file => {
    if (!file) return "";
    const picture = /\\.(gif|png|jpe?g|webp)$/i.test(file.path);
    const seen = Object.assign(document.createElement(picture ? "img" : "video"), {src: file.url});
    if (!picture) for (const name of ["controls", "muted", "autoplay", "loop", "playsinline"]) seen.setAttribute(name, "");
    seen.setAttribute("onerror", "this.replaceWith('This browser cannot show the file; it is read all the same.')");
    return seen.outerHTML;
}"""
CONTROLS = {  # parameter: (kind of component, its options); the value is the parameter's default
    "seed": (gr.Number, {"label": "Seed", "minimum": 0, "maximum": 2**31 - 1, "precision": None, "step": 1, "min_width": 120}),
    "frames": (gr.Slider, {"minimum": 8, "maximum": 32, "step": 1, "label": "Frames", "min_width": 140}),
    "size": (gr.Dropdown, {"choices": SIZES, "label": "Size", "allow_custom_value": True, "min_width": 120}),
    "extractor": (gr.Dropdown, {"choices": [("the best for this video", "")], "label": "How the map is found"}),
    "strength": (gr.Slider, {"minimum": 0, "maximum": 2, "step": 0.1, "label": "Strength", "info": "How closely it is followed", "min_width": 160}),
    "also": (gr.Checkbox, {"label": "Follow the other map too", "min_width": 120}),
    "mask": (gr.File, {"label": "Mask, light is replaced", "file_types": ["image", "video"], "height": 110, "min_width": 200}),
    "box": (gr.Textbox, {"label": "Box", "info": "x0,y0,x1,y1 from 0 to 1", "placeholder": "0.2,0.3,0.6,0.9", "min_width": 180}),
    "moving": (gr.Checkbox, {"label": "Moves with the picture"}),
    "grow": (gr.Slider, {"label": "Grow", "info": "Pixels", **PIXELS}),
    "feather": (gr.Slider, {"label": "Feather", "info": "Pixels of soft rim", **PIXELS}),
    "start": (gr.Number, {"label": "Start", "info": "Second of the video", "minimum": 0, "step": 0.5, "min_width": 120}),
    "span": (gr.Number, {"label": "Span", "info": "Seconds of it, 0: as the clip", "minimum": 0, "maximum": 30, "step": 0.5, "min_width": 120}),
    "fit": (gr.Radio, {"choices": FITS, "label": "A video of another shape", "min_width": 160}),
}


def as_given(component, value):
    """In place of a component's own check, whose refusals have no code: whoever gets the value checks it."""
    return value


def path_of(component, payload):
    """In place of a component's own reading of a file: its name in gradio's cache, or None. Only footage.py opens it."""
    return getattr(payload, "path", None)


def paths_of(component, payload):
    """The same for a component that takes several files: a list of names, empty for nothing."""
    return [file.path for file in getattr(payload, "root", None) or ()]


@cache
def unchecked(kind, read=as_given, **methods):
    """gradio's component class `kind`, whose value reaches a handler as `read(component, value)` has it; other `methods` take the place of its own.

    A class and no method of one component: gradio makes a component anew by its class for every update, a gr.skip() too.
    """
    attributes = {"__module__": __name__, "is_template": True, "preprocess": read, **methods}
    # gradio's metaclass itself would write a stub file beside this one
    return ABCMeta.__new__(type(kind), f"Unchecked{kind.__name__}", (kind,), attributes)


def control(name, **options):
    """The component of a parameter, a row of CONTROLS with other `options` where they are given. What it holds goes on unchecked."""
    kind, own = CONTROLS[name]
    return unchecked(kind, path_of if name == "mask" else as_given)(value=PARAMETERS[name][0], **(own | options))


def video_upload():
    """Where a video, a GIF or a picture is dropped, and above it what the browser can show of it: gr.Video takes videos alone."""
    shown = gr.HTML("", elem_classes="upload")
    video = unchecked(gr.File, path_of)(label="Video, GIF or picture", file_types=["video", "image"], height=150)
    video.change(None, video, shown, js=SHOW, api_visibility="private", queue=False, show_progress="hidden")
    return video


def clip_player(label, height, **options):
    """A clip that loops, and can be downloaded."""
    return gr.Video(label=label, height=height, autoplay=True, loop=True, interactive=False, include_audio=True, buttons=["download"], **options)


def given(tab, controls):
    """The components of a tab's handler, in its order."""
    return [controls[name] for name in tab.parameters]
