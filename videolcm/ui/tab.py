"""One tab of the page: the controls of a task on the left, the clip on the right, examples below, and the events between them.

In: a row of tabs.TABS, and the handlers. Out: components in the gr.Blocks that is open, and the task's name in the API. It knows nothing
about models or clips; what is in range is the Request's to say.
"""

import gradio as gr

from videolcm.sources import SOURCES, about, licence_of, menu
from videolcm.students import students
from videolcm.ui import messages
from videolcm.ui.handlers import extractor_menu, make_handler
from videolcm.ui.hole import build_hole, wire_hole
from videolcm.ui.parts import clip_player, control, given, unchecked, video_upload
from videolcm.ui.tabs import OWN, example_rows

MAX_STEPS, MAX_PROMPT = 8, 512  # as in pipeline.py, which this page is up before
SAMPLERS = (
    ("The model's own: 1 to 8 steps", OWN),
    ("DDIM: 50 steps, slow, the reference", "ddim"),
    ("DDPM: 50 steps, slow, with fresh noise at each", "ddpm"),
)
ROLE_OF = {OWN: "student", "ddim": "teacher", "ddpm": "teacher"}
STEPS_INFO = "One is fastest. More are not always better: the tab Compare shows it for your prompt."
ROLL = """(randomise, seed) => {
    document.querySelectorAll(".toast-close").forEach(button => button.click());
    const now = performance.now(), pressed = (window.pressed ??= {}).%(name)s ?? -1e9;
    window.pressed.%(name)s = now;
    if (now - pressed < 300 || document.querySelector("#status-%(name)s progress")) return seed;  // what is being made has this one
    (window.seeds ??= {}).%(name)s = seed;
    return randomise ? Math.floor(Math.random() * 2147483648) : seed;
}"""
BACK = "() => { delete window.pressed.%(name)s; return window.seeds.%(name)s; }"
QUIET = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}


def build_tab(tab, engine, folder, history=None):
    """The tab's components and events. Clips pass through `folder`, and are kept in `history`."""
    with gr.Tab(tab.title, id=tab.task) as pane:
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                controls = build_controls(tab)
            with gr.Column(scale=6, min_width=320):
                controls |= build_hole() if "mask" in tab.parameters else {}
                outputs = build_stage(tab)
        fills = [gr.Video(label="Video", render=False) if name == "video" else controls[name] for name in tab.fills]  # a file has no thumbnail
        examples = gr.Dataset(components=fills, samples=example_rows(tab), label="Examples, one click each")
    wire(tab, controls, examples, outputs, make_handler(tab.task, engine, folder, history))
    if "extractor" in controls:
        pane.select(lambda: extractor_menu(tab.task), None, controls["extractor"], **QUIET)
    if "mask" in controls:
        wire_hole(controls, tab, outputs, folder)


def build_controls(tab):
    """The left column: {name: component}; those that make a request are named as the handler's parameters."""
    controls = {"video": video_upload()} if tab.followed else {}
    written = {"placeholder": tab.placeholder, "max_lines": 4, "max_length": MAX_PROMPT, "autofocus": not tab.followed}
    controls["prompt"] = unchecked(gr.Textbox)(label="Prompt", **written)
    with gr.Row():
        controls["go"] = gr.Button("Generate", variant="primary", scale=2, min_width=120)
        controls["stop"] = gr.Button("Stop", scale=1, min_width=80)
    controls["steps"] = unchecked(gr.Slider)(1, MAX_STEPS, 4, step=1, label="Steps", info=STEPS_INFO)
    with gr.Row(equal_height=True):
        controls["seed"] = control("seed")
        controls["randomise"] = gr.Checkbox(True, label="Randomise", info="A new seed for every clip", min_width=120)
    controls |= build_following(tab) if "extractor" in tab.parameters else {}
    with gr.Accordion("Advanced", open=False):
        controls |= build_advanced(tab)
    return controls


def build_following(tab):
    """What a map is made by and how strongly it is followed."""
    extractor = control("extractor", label=f"How the {tab.task} is found")
    with gr.Row(equal_height=True):
        return {"extractor": extractor, "strength": control("strength"), "also": control("also", label=f"Follow the {tab.other} too")}


def build_advanced(tab):
    """Which part of the video, and how the clip is made."""
    controls = {}
    if tab.followed:
        with gr.Row():
            controls |= {name: control(name) for name in ("start", "span")}
        controls["fit"] = control("fit")
    controls["sampler"] = unchecked(gr.Radio)(SAMPLERS, value=OWN, label="Sampler")
    info = "The student learned the teacher's result in few steps."
    controls["role"] = unchecked(gr.Radio)(("student", "teacher"), value="student", label="Model", info=info)
    info = "Students that were distilled here join the list; what is not here can be downloaded in the tab Models."
    controls["model"] = unchecked(gr.Dropdown)(model_names(), value="toybox", label="Weights", info=info)
    controls["model"].focus(lambda: gr.update(choices=model_names(with_memory=True)), None, controls["model"], **QUIET)
    chosen = gr.Markdown(visible=False)
    controls["model"].change(lambda name: gr.update(value=told(name), visible=bool(told(name))), controls["model"], chosen, **QUIET)
    with gr.Row():
        controls |= {name: control(name) for name in ("frames", "size")}
    return controls


def model_names(with_memory=False):
    """(what people read, name) of what has a name: what is here, what would have to be fetched first, and, if asked, what does not fit the memory.

    Memory is asked of torch, which the page is up before.
    """
    if not with_memory:
        return menu()
    from videolcm import memory, models

    return menu(memory.available(models.pick_device(None)))


def told(name):
    """What has to be known of the weights that were chosen before they are loaded: their row of SOURCES, or their licence; "" for toybox."""
    if name in list(SOURCES):
        return "" if name == "toybox" else about(name)
    return licence_of(name) or "" if name in list(students()) else ""


def build_stage(tab):
    """The right column: clip, settings, status, preview (which lies over the clip while there is one), and what was followed if anything is."""
    height, followed = 270 if tab.followed else 400, []
    with gr.Row():
        with gr.Column(elem_classes="stage", min_width=240):
            clip = clip_player("Clip", height, elem_classes="clip")
            preview = gr.HTML("", elem_classes="preview")
        if tab.followed:
            with gr.Column(min_width=240):
                followed = [clip_player(tab.followed, height, elem_classes="followed")]
    status = gr.HTML(messages.plain("Ready when you are."), elem_classes="status", elem_id=f"status-{tab.task}")
    with gr.Accordion("Settings of this clip", open=False):
        settings = gr.JSON(show_label=False)
    return (clip, settings, status, preview, *followed)


def rolling(name, randomise, seed):
    """Two events of the browser alone, for the tab of this name: before a request the seed is rolled, and what was said of the one before goes;
    after a request that was refused the seed is what it was."""
    quiet, where = {"fn": None, "outputs": seed, **QUIET}, {"name": name}
    return {"inputs": [randomise, seed], "js": ROLL % where, **quiet}, {"inputs": None, "js": BACK % where, **quiet}


def wire(tab, controls, examples, outputs, handler):
    """Events: generate, Enter and examples roll the seed in the browser, then run the handler; Stop cancels it."""
    prompt, seed, role, (_, _, status, preview, *_) = controls["prompt"], controls["seed"], controls["role"], outputs
    roll, back = rolling(tab.task, controls["randomise"], seed)
    work = {"fn": handler, "inputs": given(tab, controls), "outputs": list(outputs)}
    shared = {"show_progress": "minimal", "show_progress_on": status, "concurrency_id": "device", "concurrency_limit": 1}
    run = gr.on([controls["go"].click, prompt.submit], **roll).then(**work, **shared, api_name=tab.task)
    fills = [controls[name] for name in tab.fills]
    filled = examples.click(lambda sample: tuple(sample) if len(sample) > 1 else sample[0], examples, fills, **QUIET)
    run_example = filled.then(**roll).then(**work, **shared, api_visibility="private")
    run.failure(**back), run_example.failure(**back)
    controls["stop"].click(lambda said: (messages.stopped(said) or gr.skip(), ""), status, [status, preview], cancels=[run, run_example], **QUIET)
    controls["sampler"].input(ROLE_OF.get, controls["sampler"], role, **QUIET)
