"""The tab with a visitor's last clips: a list, the clip that is chosen with its settings, and Delete.

In: a history.History. Out: components in the gr.Blocks that is open. Who a visitor is a cookie says, which gate.py gives to every browser; a
program that keeps none has no history. It knows nothing about how clips are made.
"""

import shutil
import time
from pathlib import Path

import gradio as gr

from videolcm.sources import amount
from videolcm.ui import messages
from videolcm.ui.gate import key_of
from videolcm.ui.handlers import passing, refused
from videolcm.ui.parts import clip_player, unchecked

QUIET = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
OWN = ("toybox", "student")  # what makes clips unless something else was asked for
NOTHING = "Nothing yet. Every clip that is finished is kept here, also when the tab is closed before."


def build_history(history, folder):
    """The tab's components and events. Clips pass through `folder`."""
    with gr.Tab("History", id="history") as pane, gr.Row():
        with gr.Column(scale=5, min_width=320):
            chosen = unchecked(gr.Radio)([], label="Your last clips", elem_classes="jobs")
            delete = gr.Button("Delete", size="sm", interactive=False)
            status = gr.HTML(messages.plain(NOTHING), elem_classes="status")
        with gr.Column(scale=6, min_width=320):
            clip = clip_player("Clip", 400)
            with gr.Accordion("Settings of this clip", open=True):
                settings = gr.JSON(show_label=False)
    look, show, remove = make_handlers(history, Path(folder))
    anew = {"fn": look, "inputs": None, "outputs": [chosen, status, delete, clip, settings], **QUIET}
    pane.select(**anew)
    chosen.input(show, chosen, [clip, settings, delete], api_visibility="private", show_progress="hidden")
    delete.click(remove, chosen, None, **QUIET).then(**anew)


def make_handlers(history, folder):
    """The handlers that list the visitor's clips, show one, and delete one."""

    def look(visitor: gr.Request = None):
        kept = history.list(key_of(visitor))
        choices = [(label(one), one.name) for one in kept]
        return gr.Radio(choices, value=None), messages.plain(said(history, kept)), gr.update(interactive=False), None, None

    def show(name, visitor: gr.Request = None):
        with refused(), passing(folder, 1) as (path,):
            kept = history.get(key_of(visitor), name)
            shutil.copyfile(kept.path, path)
            yield str(path), kept.settings, gr.update(interactive=True)

    def remove(name, visitor: gr.Request = None):
        with refused():
            if name:
                history.delete(key_of(visitor), name)

    return look, show, remove


def label(kept):
    """A clip as the list has it."""
    asked, made = kept.settings, time.strftime("%d %b %H:%M", time.localtime(kept.made))
    by = " ".join(str(asked[name]) for name in ("model", "role") if name in asked and asked[name] not in OWN)
    task = asked.get("task") if asked.get("task") != "text" else None
    steps = f"{asked.get('steps')} step{'s' * (asked.get('steps') != 1)}"
    return " · ".join(filter(None, [made, str(asked.get("prompt")), task, steps, f"seed {asked.get('seed')}", by]))


def said(history, kept):
    """The line below the list."""
    if not kept:
        return NOTHING
    lasting = "" if history.lasting else " The folder for them cannot be written to, so they are kept until the page ends."
    return f"All clips of this page take {amount(history.used())} of {amount(history.max_bytes)}; the oldest go first.{lasting}"
