"""The tab that distils: the method's knobs on the left, how it goes on the right, and the events between them.

In: a jobs.Jobs, a Guard, and {name: ref} of the teachers. Out: components in the gr.Blocks that is open, and /distill in the API. What a
closed page misses is on disk: the list is read anew every two seconds. It knows nothing about networks or processes.
"""

import gradio as gr

from videolcm.jobs import ALLOWED
from videolcm.knobs import CONDITIONS, OPTIMISERS, PRESETS, Knobs
from videolcm.sources import licence_of
from videolcm.ui import distil_messages as say
from videolcm.ui.distil_handlers import make_action, make_compare_now, make_refresh, make_start, suggested
from videolcm.ui.parts import paths_of, unchecked

Textbox, Number, Radio, Dropdown = map(unchecked, (gr.Textbox, gr.Number, gr.Radio, gr.Dropdown))
Checkbox, CheckboxGroup, Files = unchecked(gr.Checkbox), unchecked(gr.CheckboxGroup), unchecked(gr.File, paths_of)
QUIET = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
SECONDS = 2  # between two looks at the jobs
SURE = "(id, password) => [confirm('Delete this fine-tune, its checkpoints and its student?') ? id : null, password]"
WHAT = """Start trains a student: a copy of the teacher that learns to do in 1 to 8 steps what takes the teacher 50.
It runs beside the page, shows clips as it learns, and can be paused; what it has learned can be compared at once.
A one minute look shows how it goes, not how good it gets."""
OWN, OWN_OF_TEACHER = "No preset", "the teacher's own"
STYLE = """
.strip { display: flex; flex-wrap: wrap; gap: .5rem; }
.strip figure { flex: 1 1 6rem; max-width: 16rem; margin: 0; }
.strip.small figure { flex: 0 1 5rem; }
.strip video { display: block; width: 100%; border-radius: var(--block-radius); }
.strip figcaption { font-size: var(--text-sm); color: var(--body-text-color-subdued); }
"""


def build_distil(jobs, guard, teachers, tabs, compared):
    """The tab's components and events; where the guard is off, one sentence why. `compared`: the comparison's controls, in one of `tabs`."""
    with gr.Tab("Distil", id="distill"):
        if guard.off:
            gr.Markdown(f"Distilling is off here: {guard.off}. It runs on a machine of your own: `python app.py`.")
            return
        gr.Markdown(WHAT)
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                knobs, start, password = build_knobs(guard, teachers)
            with gr.Column(scale=6, min_width=320):
                outputs, buttons = build_progress()
        wire(jobs, guard, teachers, (knobs, start, password), outputs, buttons)
        filled = [compared[name] for name in ("roles", "samplers", "steps", "with_reference", "prompt")]
        buttons["compare"].click(make_compare_now(jobs, guard), [outputs[0], compared["prompt"]], [tabs, *filled], **QUIET)


def build_knobs(guard, teachers):
    """The left column: the components in the order of the handler's parameters, Start, and the password."""
    default = Knobs()
    with gr.Row():
        licences = " ".join(f"{name}: {licence_of(ref)}" for name, ref in teachers.items() if licence_of(ref))
        teacher = Dropdown(list(teachers), value=next(iter(teachers)), label="Teacher", info=licences or None, min_width=120)
        preset = Dropdown([(OWN, ""), *((name, name) for name in PRESETS)], value="one minute look", label="Preset", min_width=120)
    start = gr.Button("Start", variant="primary")
    with gr.Accordion("Knobs, used without a preset", open=False):
        with gr.Row():
            iterations = Number(default.iterations, label="Iterations", info="Paper: about 4000", min_width=120)
            batch = Number(default.batch, label="Batch", info="Paper: not said", min_width=120)
        with gr.Row():
            lr = Textbox("", label="Learning rate", placeholder=OWN_OF_TEACHER, info="Paper: 1e-5", min_width=120)
            guidance = Textbox("", label="Guidance w", placeholder=OWN_OF_TEACHER, info="Paper: 9", min_width=120)
        with gr.Row():
            ema = Number(default.ema, label="EMA", info="Paper: 0.95", min_width=120)
            skip = Textbox("", label="Skip k", placeholder=OWN_OF_TEACHER, info="Paper: 20", min_width=120)
        with gr.Row():
            huber = Textbox("", label="Huber c", placeholder=OWN_OF_TEACHER, info="Paper: 1e-3", min_width=120)
            optimiser = Dropdown([(OWN_OF_TEACHER, ""), *OPTIMISERS], value="", label="Optimiser", info="Paper: AdamW", min_width=120)
        with gr.Row():
            minutes = Textbox("", label="Minutes", placeholder="no limit", info="Paper: no limit", min_width=100)
            lora = Textbox("", label="LoRA rank", placeholder="all weights", info="Paper: all weights", min_width=100)
            w_range = Textbox("", label="Range of w", placeholder="like 0,3", info="Paper: none", min_width=100)
        two_time = Checkbox(False, label="Two-time map", info="Paper: no; to any earlier timestep, sampled by tcd with gamma 0")
    conditions = CheckboxGroup(
        CONDITIONS, value=list(CONDITIONS), label="Conditions", info="What the student learns to follow; paper: text, then depth, sketch and others"
    )
    seed = Number(default.seed, label="Training seed")
    password = Textbox("", label="Password for distilling", type="password", visible=bool(guard.password))
    clips, captions, images = build_clips()
    knobs = [teacher, preset, iterations, batch, lr, guidance, ema, skip, huber, seed, minutes, conditions, password, clips, captions]
    knobs += [lora, w_range, two_time, optimiser, images]
    return knobs, start, password


def build_clips():
    """Own clips in place of rendered ones: where they are dropped, a caption a line, and how often pictures are taken."""
    with gr.Accordion("Clips of your own, in place of rendered ones", open=False):
        clips = Files(label="Videos and pictures", file_count="multiple", file_types=["video", "image"], height=140, elem_id="own-clips")
        captions = Textbox("", label="Captions", info="One a line, in the order of the clips", lines=3, max_lines=12)
        images = Textbox("", label="Share of pictures", placeholder="the paper's", info="Paper: 0.25, a GPU of four")
    asked = gr.State([])  # the clips that the lines belong to
    clips.change(suggested, [clips, captions, asked], [captions, asked], **QUIET)
    return clips, captions, images


def build_progress():
    """The right column: (list, status, curve, previews), and the buttons by name, off until there is something that they can do."""
    chosen = Radio([], label="Fine-tunes", elem_classes="jobs")
    with gr.Row():
        buttons = {action: gr.Button(action.capitalize(), min_width=70, size="sm", interactive=False) for action in ALLOWED}
    status = gr.HTML(say.NOTHING, elem_classes="status")
    curve = gr.LinePlot(x="iteration", y="loss", height=220, label="Loss", visible=False)
    previews = gr.HTML("")
    buttons["compare"] = gr.Button("Compare now: before, this student, the teacher", size="sm", interactive=False)
    return [chosen, status, curve, previews], buttons


def wire(jobs, guard, teachers, asked, outputs, buttons):
    """Events: the clock and every button end in a new look at the jobs. `asked` is what `build_knobs` gave."""
    (knobs, start, password), chosen, shown = asked, outputs[0], gr.State({})
    look = {"fn": make_refresh(jobs, guard), "inputs": [chosen, shown], "outputs": [*outputs, *buttons.values(), shown], **QUIET}
    made = gr.JSON(visible=False)
    begun = start.click(make_start(jobs, guard, teachers), knobs, made, api_name="distill", concurrency_id="jobs", show_progress="hidden")
    begun.success(lambda job: gr.update(choices=[job["id"]], value=job["id"]), made, chosen, **QUIET).then(**look)
    for action in ALLOWED:
        sure = SURE if action == "delete" else None
        buttons[action].click(make_action(jobs, guard, action), [chosen, password], None, js=sure, **QUIET).then(**look)
    chosen.input(**look)
    gr.Timer(SECONDS).tick(**look)
