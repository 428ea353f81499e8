"""Components that several tabs use, and what their values become on the way to a handler: unchecked, for the Request checks them.

It knows nothing about tasks or events.
"""

import gradio as gr


def as_given(value):
    """In place of a component's own check, whose refusals have no code: the Request checks every value."""
    return value


def path_of(payload):
    """In place of a component's own reading of a file: its name in gradio's cache, or None. Only footage.py opens it."""
    return getattr(payload, "path", None)


def paths_of(payload):
    """The same for a component that takes several files: a list of names, empty for nothing."""
    return [file.path for file in getattr(payload, "root", None) or ()]


def video_upload():
    """Where a video is dropped."""
    video = gr.Video(label="Video", sources=["upload"], height=230, include_audio=True, elem_classes="upload")
    video.preprocess = path_of
    return video


def clip_player(label, height, **options):
    """A clip that loops, and can be downloaded."""
    return gr.Video(label=label, height=height, autoplay=True, loop=True, interactive=False, include_audio=True, buttons=["download"], **options)


def given(tab, controls):
    """The components of a tab's handler, in its order."""
    return [controls[name] for name in tab.parameters]
