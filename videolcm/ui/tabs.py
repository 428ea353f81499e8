"""What tells one tab from another: the table TABS, and the parameters that their handlers and the API take.

In: nothing. Out: data. It knows nothing about components, models or clips.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path

from gradio.media import MEDIA_ROOT

EXAMPLES = Path(__file__).resolve().parents[2] / "assets" / "examples"  # made by videolcm/gallery.py
EARTH = MEDIA_ROOT / "videos" / "b.mp4"  # a real video that gradio brings along: the earth turns at night
REQUIRED = inspect.Parameter.empty
OWN = "own"  # the sampler that a model is made for
PARAMETERS = {  # name: (default, what it is)
    "prompt": (REQUIRED, "what to see, 1 to 512 characters."),
    "video": (REQUIRED, "the file to follow: MP4, MOV, WebM, MKV, AVI, GIF, or a picture; at most 64 MB."),
    "mask": (None, "what is replaced, a picture or a video of the same shape as the video: what is light."),
    "steps": (4, "a whole number from 1 to 8; the samplers ddim and ddpm always take 50."),
    "seed": (0, "a whole number from 0 to 2147483647; the same seed gives the same clip."),
    "extractor": ("", "what makes the map of the video, by name; empty for the best that is here."),
    "strength": (1.0, "how strongly the map is followed, 0 to 2; 1 is as the model was trained."),
    "also": (False, "true to follow the {other} of the video as well."),
    "box": (None, "what is replaced as a box x0,y0,x1,y1, in fractions of the picture from the top left, like 0.2,0.3,0.6,0.9."),
    "moving": (True, "true if what is marked in the first frame moves with the picture, false if it stays where it is."),
    "grow": (0, "a whole number from 0 to 64: how many pixels larger the marked part is made."),
    "feather": (4, "a whole number from 0 to 64: over how many pixels its outline fades."),
    "start": (0.0, "the second of the video that comes first."),
    "span": (0.0, "how many seconds of the video become the clip, 0.5 to 30, which is then faster or slower; 0 for as many as the clip has."),
    "fit": ("crop", "crop or pad a video of another shape."),
    "sampler": (OWN, f"{OWN}, the few-step one that the model is made for, or lcm, tcd, ddim, the slow reference, or ddpm."),
    "frames": (16, "a whole number from 8 to 32; 16 is two seconds."),
    "size": ("256x256", "width x height, multiples of 32 from 128 to 512, like 256x256."),
    "role": ("student", "student or teacher, the model to use."),
    "model": ("toybox", "toybox, the name of another model that is here, or of a student that was distilled here, like student-1a2b3c4d."),
    "painting": (None, "what is replaced as the page's brush painted it; elsewhere give a mask."),
}
CLIP = ("sampler", "frames", "size", "role", "model")
MAP = ("prompt", "video", "steps", "seed", "extractor", "strength", "also", "start", "span", "fit", *CLIP)
HOLE = ("prompt", "video", "mask", "steps", "seed", "box", "moving", "grow", "feather", "start", "span", "fit", *CLIP, "painting")


@dataclass(frozen=True)
class Tab:
    """A row of TABS. An example fills the parameters `fills`, in that order, and runs."""

    task: str  # of models.base.TASKS; also the name in the API
    title: str
    summary: str  # what the API says it does
    placeholder: str
    parameters: tuple[str, ...]  # of the handler, in its order: keys of PARAMETERS
    fills: tuple[str, ...]
    examples: tuple[tuple, ...]
    other: str = ""  # the map that may be followed too
    followed: str = ""  # the label of what was followed; "" for a tab that follows no video


TABS = {
    tab.task: tab
    for tab in (
        Tab(
            task="text",
            title="Text to video",
            summary="Make a short video clip from a sentence.",
            placeholder="a red ball rolls to the left over snow",
            parameters=("prompt", "steps", "seed", *CLIP),
            fills=("prompt",),
            examples=(
                ("a red ball rolls to the left over snow",),
                ("a big shiny green cube spins on a wooden floor at sunset",),
                ("a small white cone jumps on the grass",),
                ("a blue cylinder comes closer on a checkerboard at night",),
                ("a yellow ball bounces on the sand by day",),
                ("a shiny purple drum moves in a circle in a studio",),
                ("a red cube spins and a small blue ball bounces on the grass",),
            ),
        ),
        Tab(
            task="depth",
            title="Depth",
            summary="Make a short video clip from a sentence that has the depth of another video.",
            placeholder="a blue ball rolls to the right over snow",
            parameters=MAP,
            fills=("video", "prompt"),
            examples=(
                (EXAMPLES / "roll.mp4", "a shiny blue ball rolls to the right over snow at sunset"),
                (EXAMPLES / "pair.mp4", "a big red cube and a small white ball bounces on the grass by day"),
                (EARTH, "a big orange ball spins at night"),
            ),
            other="sketch",
            followed="Depth, near is light",
        ),
        Tab(
            task="sketch",
            title="Sketch",
            summary="Make a short video clip from a sentence that has the lines of another video.",
            placeholder="a purple cone jumps on the sand",
            parameters=MAP,
            fills=("video", "prompt"),
            examples=(
                (EXAMPLES / "jump.mp4", "a big purple cone jumps on the sand at sunset"),
                (EXAMPLES / "roll.mp4", "a big green ball rolls to the right over the grass by day"),
                (EARTH, "a big blue ball spins at night"),
            ),
            other="depth",
            followed="Sketch",
        ),
        Tab(
            task="inpaint",
            title="Inpaint",
            summary="Replace a part of a video by what a sentence says; the rest of it stays as it is.",
            placeholder="a green ball rolls to the right",
            parameters=HOLE,
            fills=("video", "mask", "box", "prompt"),
            examples=(
                (EXAMPLES / "roll.mp4", EXAMPLES / "roll-mask.png", "", "a big blue ball rolls to the right on a checkerboard by day"),
                (EXAMPLES / "pair.mp4", None, "0,0.35,0.48,0.9", "a big red cube on the sand at sunset"),
                (EARTH, None, "0.03,0.03,0.97,0.97", "a big white ball spins at night"),
            ),
            followed="Mask, red is replaced",
        ),
    )
}


def signature(parameters, visitor=None):
    """The inspect.Signature of a handler that takes `parameters`, {name: (default, what it is)}, and a `visitor` of that type, if any."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    named = [inspect.Parameter(name, kind, default=default) for name, (default, _) in parameters.items()]
    return inspect.Signature(named + ([inspect.Parameter("visitor", kind, default=None, annotation=visitor)] if visitor else []))


def description(summary, parameters, returns):
    """The docstring of such a handler, which the API shows."""
    rows = "\n".join(f"    {name}: {what}" for name, (_, what) in parameters.items())
    return f"{summary}\n\nArgs:\n{rows}\n\nReturns:\n    {returns}"


def parameters_of(tab):
    """{name: (default, what it is)} of a tab's handler, in its order."""
    return {name: (PARAMETERS[name][0], PARAMETERS[name][1].format(other=tab.other)) for name in tab.parameters}


def returns_of(tab):
    """What a tab's handler returns, as a sentence."""
    shown = "; then what was followed as an mp4" if tab.followed else ""
    return f"The clip as an mp4, its settings, a status line as HTML, and a preview as HTML that is empty in the end{shown}."


def example_rows(tab):
    """The tab's examples whose files are here, as the components take them."""
    there = (row for row in tab.examples if all(value.is_file() for value in row if isinstance(value, Path)))
    return [[str(value) if isinstance(value, Path) else value for value in row] for row in there]
