"""One tab of the page: the controls of a task on the left, the clip on the right, examples below, and the events between them.

In: a Tab, which is a row of TABS, and the handler of its task. Out: components in the gr.Blocks that is open, and the task's name in
the API. It knows nothing about models or clips; what is in range is the Request's to say.
"""

from dataclasses import dataclass

import gradio as gr

from videolcm.ui import messages

MAX_STEPS, MAX_PROMPT = 8, 512  # as in pipeline.py, which this page is up before
SIZES = ("256x256", "384x256", "256x384", "384x384", "448x256", "512x512")
SAMPLERS = (("LCM: 1 to 8 steps", "lcm"), ("DDIM: 50 steps, slow, the reference", "ddim"))
ROLE_OF = {"lcm": "student", "ddim": "teacher"}
ROLL = "(randomise, seed) => randomise ? Math.floor(Math.random() * 2147483648) : seed"
REQUEST = ("prompt", "steps", "seed", "sampler", "frames", "size", "role")  # the handler's parameters, in its order


@dataclass(frozen=True)
class Tab:
    """What tells one tab from another."""

    task: str  # of models.base.TASKS; also the name in the API
    title: str
    placeholder: str
    examples: tuple[str, ...]


TABS = (
    Tab(
        "text",
        "Text to video",
        "a red ball rolls to the left over snow",
        (
            "a red ball rolls to the left over snow",
            "a big shiny green cube spins on a wooden floor at sunset",
            "a small white cone jumps on the grass",
            "a blue cylinder comes closer on a checkerboard at night",
            "a yellow ball bounces on the sand by day",
            "a shiny purple drum moves in a circle in a studio",
            "a red cube spins and a small blue ball bounces on the grass",
        ),
    ),
)


def build_tab(tab, handler):
    """The tab's components and events; `handler` is what handlers.make_handler gave for its task."""
    with gr.Tab(tab.title, id=tab.task):
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                controls = build_controls(tab)
            with gr.Column(scale=6, min_width=320):
                clip, preview, status, settings = build_stage()
        examples = gr.Dataset(components=[controls["prompt"]], samples=[[text] for text in tab.examples], label="Examples, one click each")
    wire(tab, controls, examples, (clip, settings, status, preview), handler)


def build_controls(tab):
    """The left column: {name: component}; those that make a request are named as the handler's parameters."""
    prompt = gr.Textbox(label="Prompt", placeholder=tab.placeholder, max_lines=4, max_length=MAX_PROMPT, autofocus=True)
    with gr.Row():
        go = gr.Button("Generate", variant="primary", scale=2, min_width=120)
        stop = gr.Button("Stop", scale=1, min_width=80)
    steps = gr.Slider(1, MAX_STEPS, 4, step=1, label="Steps", info="One is fastest, eight is finest.")
    with gr.Row(equal_height=True):
        seed = gr.Number(0, label="Seed", minimum=0, maximum=2**31 - 1, precision=None, step=1, min_width=120)
        randomise = gr.Checkbox(True, label="Randomise", info="A new seed for every clip", min_width=120)
    with gr.Accordion("Advanced", open=False):
        sampler = gr.Radio(SAMPLERS, value="lcm", label="Sampler")
        role = gr.Radio(("student", "teacher"), value="student", label="Model", info="The student learned the teacher's result in few steps.")
        with gr.Row():
            frames = gr.Slider(8, 32, 16, step=1, label="Frames", min_width=140)
            size = gr.Dropdown(SIZES, value="256x256", label="Size", min_width=120)
    request = dict(zip(REQUEST, (prompt, steps, seed, sampler, frames, size, role), strict=True))
    for component in request.values():
        component.preprocess = as_given
    return {**request, "go": go, "stop": stop, "randomise": randomise}


def as_given(value):
    """In place of a component's own check, whose refusals have no code: the Request checks every value."""
    return value


def build_stage():
    """The right column: clip, preview (which lies over the clip while there is one), status, settings."""
    with gr.Column(elem_classes="stage"):
        clip = gr.Video(
            label="Clip", height=400, autoplay=True, loop=True, interactive=False, include_audio=True, buttons=["download"], elem_classes="clip"
        )
        preview = gr.HTML("", elem_classes="preview")
    status = gr.HTML(messages.plain("Ready when you are."), elem_classes="status")
    with gr.Accordion("Settings of this clip", open=False):
        settings = gr.JSON(show_label=False)
    return clip, preview, status, settings


def wire(tab, controls, examples, outputs, handler):
    """Events: generate, Enter and examples roll the seed in the browser, then run the handler; Stop cancels it."""
    quiet = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    prompt, seed, role, (_, _, status, preview) = controls["prompt"], controls["seed"], controls["role"], outputs
    roll = {"fn": None, "inputs": [controls["randomise"], seed], "outputs": seed, "js": ROLL, **quiet}
    work = {"fn": handler, "inputs": [controls[name] for name in REQUEST], "outputs": list(outputs)}
    shared = {"show_progress": "minimal", "show_progress_on": status, "concurrency_id": "device", "concurrency_limit": 1}
    run = gr.on([controls["go"].click, prompt.submit], **roll).then(**work, **shared, api_name=tab.task)
    filled = examples.click(lambda sample: sample[0], examples, prompt, **quiet)
    run_example = filled.then(**roll).then(**work, **shared, api_visibility="private")
    controls["stop"].click(lambda: (messages.plain("Stopped."), ""), None, [status, preview], cancels=[run, run_example], **quiet)
    controls["sampler"].input(ROLE_OF.get, controls["sampler"], role, **quiet)
