"""The tab that lists the models: what is here, what would be downloaded, what does not fit; and downloading one, asked first.

In: why downloads are off, or None. Out: components in the gr.Blocks that is open. What is downloaded is what was looked up before, and pressing Stop
ends it; what came stays. It knows nothing about networks.
"""

import html
from contextlib import closing
from functools import partial

import gradio as gr

from videolcm.errors import AppError
from videolcm.fetching import fetching, wanted
from videolcm.sources import SOURCES, about, amount, by_hand, licence_of, offline, state_of, still_to_choose
from videolcm.ui import messages
from videolcm.ui.handlers import guarded
from videolcm.ui.parts import unchecked

QUIET = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
NET = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 1}
INFO = "A name of the list, or OWNER/NAME@REVISION of the hub with all 40 digits; AnimateLCM with its base is animatelcm:OWNER/NAME@REVISION."
WAY = "Files placed by hand"
OFF = gr.update(value="Download", interactive=False)


def why_off(environ, open_to_all):
    """Why nothing is downloaded from a page with these environment variables, None where it may be; `open_to_all` without a password."""
    if "SPACE_ID" in environ:
        return "a Space is shared, and forgets what it downloads"
    return "a page for others needs --auth" if open_to_all else None


def build_weights(off=None):
    """The tab's components and events."""
    with gr.Tab("Models", id="models") as pane:
        rows = gr.HTML("<p>Looking at what is here ...</p>")
        if off:
            gr.Markdown(f"Downloading is off here: {off}.")
        else:
            with gr.Row(equal_height=True):
                names = [name for name, source in SOURCES.items() if source.parts]
                named = {"label": "Model", "info": INFO, "allow_custom_value": True}
                model = unchecked(gr.Dropdown)(names, value=names[0], **named, scale=6, min_width=260)
                ask = gr.Button("What would be downloaded?", min_width=220)
                go = gr.Button("Download", variant="primary", interactive=False, min_width=120)
                stop = gr.Button("Stop", min_width=80)
            status = gr.HTML(messages.plain("Nothing is downloaded before you have seen what it is and how much."), elem_classes="status")
            wire(model, ask, go, stop, status, rows)
    pane.select(table, None, rows, **QUIET)


def wire(model, ask, go, stop, status, rows):
    """Events: to look up, to download what was looked up, to stop."""
    asked = gr.State(None)
    model.change(lambda: (None, OFF), None, [asked, go], **QUIET)
    ask.click(look_up, model, [status, go, asked], **NET, concurrency_id="hub")
    run = go.click(download, [asked, model], status, **NET, concurrency_id="net")
    run.then(table, None, rows, **QUIET)
    stop.click(lambda: messages.plain("Stopped. What came is kept."), None, status, cancels=[run], **QUIET)


def table():
    """Every row of SOURCES as HTML, with its state and, for what is not here, where its files go."""
    from videolcm import memory, models

    free, offered = memory.available(models.pick_device(None)), []
    for name in SOURCES:
        state = state_of(name, free)
        ways = "".join(f"<li>{html.escape(line)}</li>" for line in by_hand(name)) if state else ""
        ways = f"<details><summary>{WAY}</summary><ul>{ways}</ul></details>" if ways else ""
        offered.append(f"<h4>{name}: {html.escape(state or 'here')}</h4><p>{html.escape(about(name))}</p>{ways}")
    return "".join([*offered, "<p><b>This machine is offline: nothing can be downloaded.</b></p>" if offline() else ""])


def look_up(ref):
    """Yields (status, the button, the ref to download): that the hub is asked, then what is missing."""
    yield from guarded(partial(looked_up, ref), lambda why: (messages.plain("Nothing was looked up.", notices=[why]), OFF, None))


def looked_up(ref):
    """The updates of one look. AppError as `wanted`."""
    yield messages.plain("Asking the hub ..."), OFF, None
    todo, choose = wanted(named(ref)), [*filter(None, [still_to_choose(ref)])]
    if not todo:
        yield messages.plain(f"{ref} is here.", notices=choose), OFF, None
        return
    size = amount(sum(one.size for one in todo))
    notices = [*map(str, todo), *filter(None, [licence_of(ref)]), *choose]
    yield messages.plain(f"{ref}: {size} would be downloaded.", notices=notices), gr.update(value=f"Download {size}", interactive=True), ref


def named(ref):
    """The ref that was typed. AppError E_REVISION."""
    if not isinstance(ref, str):
        raise AppError("E_REVISION", given=ref)
    return ref.strip()


def download(asked, ref):
    """Status lines as the bytes come, if the ref that is chosen is the one that was `asked` about; closing it ends the download."""
    yield from guarded(partial(progress, asked if asked == ref else None), lambda why: messages.plain("Nothing more is downloaded.", notices=[why]))


def progress(ref):
    """The updates of one download. AppError E_DECLINED for what was not looked up, and as `fetching`."""
    if not ref:
        raise AppError("E_DECLINED", given=ref)
    todo = wanted(ref)
    size = sum(one.size for one in todo)
    with closing(fetching(ref, [one.place for one in todo])) as counts:
        for done in counts:
            yield messages.plain(f"{ref}: {amount(done)} of {amount(size)}", min(done / max(size, 1), 1))
    yield messages.plain(f"{ref} is here. Choose it under Weights.", notices=filter(None, [still_to_choose(ref)]))
