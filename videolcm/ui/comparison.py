"""The comparison's tab: what to compare above, the player below it, then the plot, the files, and the way back from a file.

In: the engine and the folder for files. Out: components in the gr.Blocks that is open, and /compare in the API. It knows nothing about models
or clips; what is in range is the Request's to say.
"""

import gradio as gr

from videolcm.students import students
from videolcm.ui import messages
from videolcm.ui.comparison_handlers import COMPARED, FILES, NAMES, OUTPUTS, Stops, make_compare, make_comparison, make_files
from videolcm.ui.gate import key_of
from videolcm.ui.handlers import extractor_menu, refused
from videolcm.ui.hole import build_hole, wire_painting
from videolcm.ui.parts import as_given, control, path_of, unchecked, video_upload
from videolcm.ui.player import build_player
from videolcm.ui.restore import restored
from videolcm.ui.tab import MAX_PROMPT, MAX_STEPS, rolling
from videolcm.ui.tabs import OWN, REQUIRED, TABS

Textbox, Slider, Radio, Checkbox, CheckboxGroup = map(unchecked, (gr.Textbox, gr.Slider, gr.Radio, gr.Checkbox, gr.CheckboxGroup))
SAMPLERS = (("Own", OWN), ("LCM", "lcm"), ("TCD", "tcd"), ("DDIM", "ddim"), ("DDPM", "ddpm"))
OWN_ROLES = ("student", "teacher")
LEGEND = """The seconds are what each clip takes by itself, from prompt to mp4; below, the plot leaves writing out. *Distance*, *PSNR* and *motion
kept* are beside the reference; without one, *motion* is in pixels per frame. *Flicker*: how many of 255 levels a pixel changes on its way to the
next frame. *Text match*: how much of the prompt the judge sees, who looks at the whole and may call a lump a ball. *Depth error*, *correlation*
and *edge F1*: what is read in the clip beside what is read in the video."""
NUMBERS = ("seed", "gamma", "teacher_steps", "frames", "strength", "grow", "feather", "start", "span")  # of the API's arguments
QUIET = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
DEVICE = {"concurrency_id": "device", "concurrency_limit": 1}


def build_comparison(engine, folder, history=None):
    """The tab's components and events; returns its controls by name."""
    with gr.Tab("Compare", id="compare", elem_id="compare") as pane:
        stops = gr.State(Stops())
        controls = build_controls()
        status = gr.HTML(messages.plain("Ready when you are."), elem_classes="status", elem_id="status-compare")
        board = build_player()
        gr.Markdown(LEGEND, elem_classes="legend")
        with gr.Row():
            plot = gr.HTML("", elem_classes="quality", min_width=300)
            files = build_files()
        examples = gr.Dataset(components=[controls["prompt"]], samples=[list(row) for row in TABS["text"].examples], label="Examples, one click each")
        wire_api(make_compare(engine, folder))
    outputs = [{"board": board, "status": status, "plot": plot, **files}[name] for name in OUTPUTS]
    wire(controls, examples, stops, outputs, make_comparison(engine, folder, history), make_files(folder))
    wire_file(files["origin"], controls, status)
    pane.select(lambda: gr.update(choices=[*OWN_ROLES, *students()]), None, controls["roles"], **QUIET)
    return controls


def build_controls():
    """What to compare: {name: component}; those that make a request are named as NAMES."""
    with gr.Row(equal_height=True):
        prompt = Textbox(label="Prompt", placeholder=TABS["text"].placeholder, max_lines=3, max_length=MAX_PROMPT, scale=6, min_width=260)
        with gr.Column(scale=1, min_width=150, elem_classes="go"):
            go = gr.Button("Compare", variant="primary", size="md")
            stop = gr.Button("Stop all", size="md")
    with gr.Row(equal_height=True, elem_classes="ways"):
        steps = CheckboxGroup(list(range(1, MAX_STEPS + 1)), value=[1, 2, 4, 8], label="Steps", scale=40, min_width=260)
        samplers = CheckboxGroup(SAMPLERS, value=[OWN], label="Samplers", scale=28, min_width=180)
        roles = CheckboxGroup(OWN_ROLES, value=["student"], label="Models", scale=18, min_width=180)
    with gr.Row(equal_height=True):
        info = "All cells are measured against it. It takes longer than all of them together."
        with gr.Column(scale=20, min_width=300):
            with_reference = Checkbox(True, label="The teacher at 50 DDIM steps as the reference", info=info)
        with gr.Column(scale=11, min_width=120):
            seed = control("seed")
        with gr.Column(scale=9, min_width=120):
            randomise = gr.Checkbox(True, label="Randomise", info="A new seed each time")
    followed = build_followed()
    with gr.Accordion("Advanced", open=False), gr.Row():
        frames, size = control("frames"), control("size")
        gamma = Slider(0, 1, 0.3, step=0.05, label="Gamma of TCD", min_width=140)
        guidance = Textbox(label="Guidance", placeholder="the model's own", min_width=120)  # a gr.Number cannot be empty: it sends 0
        reference_steps = Slider(1, 100, 50, step=1, label="Steps of the reference", min_width=140)
    made = (steps, samplers, roles, with_reference, reference_steps, prompt, seed, gamma, guidance, frames, size)
    controls = dict(zip(NAMES, made, strict=False)) | followed
    wire_painting(controls)
    return controls | {"go": go, "stop": stop, "randomise": randomise}


def build_followed():
    """What all cells follow besides the prompt: {name: component}; the rest of them is seen when a task needs it."""
    task = Radio([(tab.title, tab.task) for tab in TABS.values()], value="text", label="Task")
    with gr.Row(visible=False) as follows:
        with gr.Column(min_width=260):
            controls = {"task": task, "video": video_upload()}
            with gr.Row():
                controls |= {name: control(name) for name in ("start", "span")}
            controls["fit"] = control("fit")
        with gr.Column(min_width=260, visible=False) as maps:
            controls |= {name: control(name) for name in ("extractor", "strength", "also")}
        with gr.Column(min_width=520, visible=False) as holes:
            controls |= build_hole(look=False)
    extractor = controls["extractor"]

    def shown(task):
        follows_map, hole = task in ("depth", "sketch"), task == "inpaint"
        choices = extractor_menu(task) if follows_map else gr.skip()
        return gr.update(visible=task != "text"), gr.update(visible=follows_map), gr.update(visible=hole), choices

    task.change(shown, task, [follows, maps, holes, extractor], **QUIET)
    task.input(lambda: "", None, extractor, **QUIET)
    return controls


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
    roll, back = rolling("compare", controls["randomise"], seed)
    begin = {"fn": begun, "inputs": stops, "outputs": None, **QUIET}
    work = {"fn": handler, "inputs": [stops, *(controls[name] for name in NAMES)], "outputs": outputs, "api_visibility": "private"}
    work |= {"show_progress": "minimal", "show_progress_on": status, **DEVICE}
    files = {"fn": write, "inputs": stops, "outputs": outputs[-len(FILES) :], "api_visibility": "private", "show_progress": "hidden"}
    filled = examples.click(lambda sample: sample[0], examples, prompt, **QUIET)
    for rolled in (gr.on([controls["go"].click, prompt.submit], **roll), filled.then(**roll)):
        made = rolled.then(**begin).then(**work)
        made.failure(**back), made.then(**files)
    controls["stop"].click(lambda stops: stops.stop_all(), stops, status, **QUIET)
    board.stop_cell(stop_cell, stops, None, **QUIET)


def begun(stops, visitor: gr.Request):
    """The next comparison is this visitor's."""
    stops.begin(key_of(visitor))


def stop_cell(stops, event: gr.EventData):
    """The player names the place of the cell."""
    stops.stop_cell(event.cell)


def wire_file(origin, controls, status):
    """A file that is dropped fills the controls; the seed is then kept."""
    names = [*NAMES, "randomise"]

    def fill(path):
        with refused():
            values = {**restored(path), "randomise": False}
        mask = ", and the mask if it had one," if values["task"] == "inpaint" else ""
        first = "" if values["task"] == "text" else f"Upload the video that it followed{mask} once more. "
        told = messages.plain(f"These are the settings of the file. {first}Press Compare to make it again.")
        return [*(values.get(name, gr.skip()) for name in names), told]

    origin.upload(fill, origin, [*(controls[name] for name in names), status], api_visibility="private", show_progress="hidden")


def wire_api(handler):
    """/compare: its arguments are no components of the page, and these hidden ones only say what their types and defaults are."""
    kinds = {"steps": gr.JSON, "video": gr.File, "mask": gr.File, "also": gr.Checkbox, "moving": gr.Checkbox}
    inputs = []
    for name, (default, _) in COMPARED.items():
        kind = kinds.get(name) or (gr.Number if name in NUMBERS else gr.Textbox)
        read = path_of if name in ("video", "mask") else as_given
        inputs.append(unchecked(kind, read)(None if default is REQUIRED else default, visible=False))
    gr.Button(visible=False).click(handler, inputs, [gr.File(visible=False), gr.JSON(visible=False)], api_name="compare", **DEVICE)
