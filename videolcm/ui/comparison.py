"""The comparison's tab: what to compare above, the player below it, then the plot, the files, and the way back from a file.

In: the engine and the folder for files. Out: components in the gr.Blocks that is open, and /compare in the API. It knows nothing about models
or clips; what is in range is the Request's to say.
"""

import gradio as gr

from videolcm.ui import messages
from videolcm.ui.comparison_handlers import FILES, OUTPUTS, Stops, make_compare, make_comparison, make_files
from videolcm.ui.handlers import refused
from videolcm.ui.parts import as_given
from videolcm.ui.player import build_player
from videolcm.ui.restore import restored
from videolcm.ui.tab import MAX_PROMPT, MAX_STEPS, ROLL, SIZES
from videolcm.ui.tabs import TABS

SAMPLERS = (("LCM", "lcm"), ("TCD", "tcd"), ("DDIM", "ddim"))
NAMES = (  # the handler's parameters after `stops`, in its order
    "prompt",
    "steps",
    "samplers",
    "roles",
    "seed",
    "with_reference",
    "reference_steps",
    "gamma",
    "guidance",
    "frames",
    "size",
)
LEGEND = """*Seconds*: prompt + steps + decoding; cells with one text encoder read the prompt once. *Distance*, *PSNR* and *motion kept* are
beside the reference; without one, *motion* is in pixels per frame. *Flicker*: how many of 255 levels a pixel changes on its way to the next frame."""
QUIET = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
DEVICE = {"concurrency_id": "device", "concurrency_limit": 1}


def build_comparison(engine, folder):
    """The tab's components and events."""
    with gr.Tab("Compare", id="compare", elem_id="compare"):
        stops = gr.State(Stops())
        controls = build_controls()
        status = gr.HTML(messages.plain("Ready when you are."), elem_classes="status")
        board = build_player()
        gr.Markdown(LEGEND, elem_classes="legend")
        with gr.Row():
            plot = gr.HTML("", elem_classes="quality", min_width=300)
            files = build_files()
        examples = gr.Dataset(components=[controls["prompt"]], samples=[list(row) for row in TABS["text"].examples], label="Examples, one click each")
        wire_api(make_compare(engine, folder))
    outputs = [{"board": board, "status": status, "plot": plot, **files}[name] for name in OUTPUTS]
    wire(controls, examples, stops, outputs, make_comparison(engine), make_files(folder))
    wire_file(files["origin"], controls, status)


def build_controls():
    """What to compare: {name: component}; those that make a request are named as NAMES."""
    with gr.Row(equal_height=True):
        prompt = gr.Textbox(label="Prompt", placeholder=TABS["text"].placeholder, max_lines=3, max_length=MAX_PROMPT, scale=6, min_width=260)
        with gr.Column(scale=1, min_width=150, elem_classes="go"):
            go = gr.Button("Compare", variant="primary", size="md")
            stop = gr.Button("Stop all", size="md")
    with gr.Row(equal_height=True, elem_classes="ways"):
        steps = gr.CheckboxGroup(list(range(1, MAX_STEPS + 1)), value=[1, 2, 4, 8], label="Steps", scale=20, min_width=260)
        samplers = gr.CheckboxGroup(SAMPLERS, value=["lcm"], label="Samplers", scale=11, min_width=180)
        roles = gr.CheckboxGroup(["student", "teacher"], value=["student"], label="Models", scale=9, min_width=180)
    with gr.Row(equal_height=True):
        info = "All cells are measured against it. It takes longer than all of them together."
        with gr.Column(scale=20, min_width=300):
            with_reference = gr.Checkbox(True, label="The teacher at 50 DDIM steps as the reference", info=info)
        with gr.Column(scale=11, min_width=120):
            seed = gr.Number(0, label="Seed", minimum=0, maximum=2**31 - 1, precision=None, step=1)
        with gr.Column(scale=9, min_width=120):
            randomise = gr.Checkbox(True, label="Randomise", info="A new seed each time")
    with gr.Accordion("Advanced", open=False), gr.Row():
        frames = gr.Slider(8, 32, 16, step=1, label="Frames", min_width=140)
        size = gr.Dropdown(SIZES, value="256x256", label="Size", allow_custom_value=True, min_width=120)
        gamma = gr.Slider(0, 1, 0.3, step=0.05, label="Gamma of TCD", min_width=140)
        guidance = gr.Textbox(label="Guidance", placeholder="the model's own", min_width=120)  # a gr.Number cannot be empty: it sends 0
        reference_steps = gr.Slider(1, 100, 50, step=1, label="Steps of the reference", min_width=140)
    made = (prompt, steps, samplers, roles, seed, with_reference, reference_steps, gamma, guidance, frames, size)
    for component in made:
        component.preprocess = as_given
    return {**dict(zip(NAMES, made, strict=True)), "go": go, "stop": stop, "randomise": randomise}


def build_files():
    """The files to take away, and the box for one to bring back."""
    with gr.Column(min_width=300):
        with gr.Row():
            labels = {"mp4": "Grid as mp4", "gif": "Grid as GIF", "sheet": "Contact sheet"}
            files = {name: gr.DownloadButton(label, interactive=False, size="md", min_width=100) for name, label in labels.items()}
        label = "Make it again: a file that was made here"
        origin = gr.File(label=label, file_types=[".mp4", ".gif", ".png"], type="filepath", height=170)
    return {**files, "origin": origin}


def wire(controls, examples, stops, outputs, handler, write):
    """Events: Compare, Enter and examples roll the seed in the browser, then run the handler; the stops are noted and end it in its own way."""
    prompt, seed, (board, status, *_) = controls["prompt"], controls["seed"], outputs
    roll = {"fn": None, "inputs": [controls["randomise"], seed], "outputs": seed, "js": ROLL, **QUIET}
    begin = {"fn": lambda stops: stops.begin(), "inputs": stops, "outputs": None, **QUIET}
    work = {"fn": handler, "inputs": [stops, *(controls[name] for name in NAMES)], "outputs": outputs, "api_visibility": "private"}
    work |= {"show_progress": "minimal", "show_progress_on": status, **DEVICE}
    files = {"fn": write, "inputs": stops, "outputs": outputs[-len(FILES) :], "api_visibility": "private", "show_progress": "hidden"}
    gr.on([controls["go"].click, prompt.submit], **roll).then(**begin).then(**work).then(**files)
    filled = examples.click(lambda sample: sample[0], examples, prompt, **QUIET)
    filled.then(**roll).then(**begin).then(**work).then(**files)
    controls["stop"].click(lambda stops: stops.stop_all(), stops, status, **QUIET)
    board.stop_cell(stop_cell, stops, None, **QUIET)


def stop_cell(stops, event: gr.EventData):
    """The player names the place of the cell."""
    stops.stop_cell(event.cell)


def wire_file(origin, controls, status):
    """A file that is dropped fills the controls; the seed is then kept."""
    names = [*NAMES, "randomise"]

    def fill(path):
        with refused():
            values = {**restored(path), "randomise": False}
        told = messages.plain("These are the settings of the file. Press Compare to make it again.")
        return [*(values.get(name, gr.skip()) for name in names), told]

    origin.upload(fill, origin, [*(controls[name] for name in names), status], api_visibility="private", show_progress="hidden")


def wire_api(handler):
    """/compare: its arguments are no components of the page, and these hidden ones only say what their types and defaults are."""
    prompt, steps, seed = gr.Textbox(visible=False), gr.JSON([1, 2, 4, 8], visible=False), gr.Number(0, visible=False)
    sampler, gamma, teacher_steps = gr.Textbox("lcm", visible=False), gr.Number(None, visible=False), gr.Number(50, visible=False)
    inputs = [prompt, steps, seed, sampler, gamma, teacher_steps, gr.Number(16, visible=False), gr.Textbox("256x256", visible=False)]
    for component in inputs:
        component.preprocess = as_given
    gr.Button(visible=False).click(handler, inputs, [gr.File(visible=False), gr.JSON(visible=False)], api_name="compare", **DEVICE)
