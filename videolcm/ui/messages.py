"""What the page says while a clip is made: status lines and the preview, as HTML.

In: the engine's events. Out: strings of HTML in which everything that a person wrote is escaped. It knows nothing about gradio.
"""

import base64
import html
import io
import re

from PIL import Image

from videolcm.sources import licence_of, slow_here
from videolcm.ui.engine import Loading, Waiting

SENTENCES = {
    "text": "Reading the prompt",
    "conditions": "Looking at the video: frame {i} of {n}",
    "denoise": "Step {i} of {n}",
    "decode": "Decoding the frames",
}

PARAGRAPH = re.compile("<p>(.*?)</p>", re.DOTALL)
SOON = 3  # seconds that nobody need be told of


def plain(text, done=None, notices=()):
    """A status line; `done` in 0..1 adds a bar, `notices` are lines below."""
    bar = "" if done is None else f'<progress value="{done:.3f}" max="1" aria-label="progress"></progress>'
    lines = "".join(f'<p class="notice">{html.escape(notice)}</p>' for notice in notices)
    return f'<div role="status">{bar}<p>{html.escape(text)}</p>{lines}</div>'


def status(event):
    """An event of Engine.run but the Result as a status line."""
    if isinstance(event, Loading):
        return plain(f"Loading the model {event.ref} ...", 0, notices=filter(None, [licence_of(event.ref), slow_here(event.ref)]))
    if isinstance(event, Waiting):
        return plain(f"Waiting for another clip: {event.seconds:.0f} s", 0)
    return plain(stage(event), part_done(event))


def stopped(said):
    """The status line after Stop, from the one before, which says where the clip was; None where none was made."""
    making = PARAGRAPH.search(said) if isinstance(said, str) and "<progress" in said else None
    return making and plain(f"Stopped. It was at: {html.unescape(making[1]).partition(', about ')[0]}")


def stage(progress):
    """What a Progress is at, in words."""
    if (progress.stage, progress.n) == ("conditions", 1):
        return "Looking at the video"
    left = f", about {told_seconds(progress.left)} left" if progress.left >= SOON else ""
    return SENTENCES[progress.stage].format(i=progress.i, n=progress.n) + left


def told_seconds(seconds):
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def part_done(event):
    """How much of a clip is done at a Progress, in 0..1: the steps are taken as three quarters."""
    before, share = {"text": (0, 0.02), "conditions": (0.02, 0.08), "denoise": (0.1, 0.75), "decode": (0.85, 0.15)}[event.stage]
    return before + share * event.i / event.n


def done(result):
    """A finished clip's status line: seconds per stage, evaluations, and the notices."""
    seconds, settings = result.seconds, result.settings
    stages = [f"{name} {seconds[key]:.2f}" for name, key in named_stages(settings["steps"]) if seconds[key]]
    text = f"Done in {seconds['total']:.2f} s: {', '.join(stages)} · {result.nfe} network evaluations · seed {settings['seed']}"
    return plain(text, notices=result.notices)


def named_stages(steps):
    """Stages as people read them, with their keys."""
    denoise = "1 step" if steps == 1 else f"{steps} steps"
    return (("text", "text"), ("conditions", "conditions"), (denoise, "denoise"), ("decoding", "decode"), ("writing", "write"))


def preview(event):
    """A frame of the event's preview as HTML, None if it has none: over the steps the frames pass by, so the motion shows too."""
    frames = getattr(event, "preview", None)
    if frames is None:
        return None
    frame = frames[(len(frames) - 1) * (event.i - 1) // max(event.n - 1, 1)]
    return f'<img alt="Preview of step {event.i} of {event.n}" decoding="sync" src="{data_url(frame)}">'


def data_url(frame):
    """uint8 (h, w, 3) as a JPEG inside a URL."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
