"""What runs when somebody presses a button of the distilling tab or calls /distill: values of the page -> Knobs -> Jobs.

In: what the components or an API client sent, unchecked. Out: a dict of the job, or updates of the page. Everything asks the Guard first,
for a private event can be called too. It knows nothing about layout.
"""

import hmac
import logging
from dataclasses import dataclass
from functools import partial

import gradio as gr

from videolcm.errors import AppError
from videolcm.jobs import ALLOWED
from videolcm.knobs import Knobs, preset_of
from videolcm.own_files import captioned, suggest
from videolcm.students import name_of, students
from videolcm.ui import distil_messages as say
from videolcm.ui.gate import require_room
from videolcm.ui.handlers import typed
from videolcm.ui.space import on_zero_gpu
from videolcm.ui.tabs import OWN, TABS

log = logging.getLogger(__name__)

PROMPT = TABS["text"].placeholder
BUTTONS = (*ALLOWED, "compare")


@dataclass(frozen=True)
class Guard:
    """Who may distil: nobody where `off` says why, whoever knows `password` where there is one, else everybody."""

    off: str | None = None
    password: str | None = None

    def admit(self, password):
        """AppError E_DISTIL_OFF, E_PASSWORD."""
        if self.off:
            raise AppError("E_DISTIL_OFF", detail=self.off)
        if self.password and not hmac.compare_digest(str(password).encode("utf-8", "replace"), self.password.encode()):
            raise AppError("E_PASSWORD")


def guard_of(environ, public):
    """The Guard of a page with these environment variables; `public` if it is seen beyond this machine."""
    password = environ.get("VIDEOLCM_DISTIL_PASSWORD")
    space = on_zero_gpu(environ) or "SPACE_ID" in environ
    if space and environ.get("VIDEOLCM_DISTIL") != "1":
        return Guard("its GPU is lent for seconds at a time" if on_zero_gpu(environ) else "a Space is shared, and training would take it for hours")
    if (public or space) and not password:
        return Guard("a page for others needs VIDEOLCM_DISTIL_PASSWORD")
    return Guard(None, password if public or space else None)


def refusing(run):
    """`run()`; what goes wrong becomes a gr.Error of one line."""
    try:
        return run()
    except AppError as error:
        refusal = error
    except Exception:
        log.exception("a handler failed")
        refusal = AppError("E_INTERNAL")
    raise gr.Error(str(refusal), print_exception=False)


def make_start(jobs, guard, teachers):
    """The handler that starts a fine-tune; `teachers` is {name: ref}."""

    def distill(
        teacher="toybox",
        preset="",
        iterations=1000,
        batch=16,
        lr=None,
        guidance=None,
        ema=0.95,
        skip=None,
        huber=None,
        seed=0,
        minutes=None,
        conditions=("text", "depth", "sketch", "masked"),
        password="",
        clips=None,
        captions="",
        lora=None,
        guidance_range=None,
        two_time=False,
        optimiser=None,
        images=None,
    ):
        """Start a distillation: a student of the teacher is trained in a process of its own, and becomes a model of the page.

        Args:
            teacher: the model to distil, toybox.
            preset: "one minute look", "ten minutes" or "paper", which then decides all but the seed, the conditions and the clips; empty for none.
            iterations: updates, a whole number from 1; the paper: about 4000.
            batch: clips an update, a whole number from 1.
            lr: learning rate from 0 to 1, null for the teacher's own; the paper: 1e-5.
            guidance: w of Eq. 5 from 0 to 30, null for the teacher's own; the paper: 9.
            ema: rate of the target network from 0 to 1; the paper: 0.95.
            skip: train timesteps a solver step spans, 1 to 999, null for the teacher's own; the paper: 20.
            huber: threshold of the pseudo-Huber loss from 0 to 10, null for the teacher's own; the paper: 1e-3.
            seed: of batches and noise, a whole number from 0 to 2147483647.
            minutes: stop after so long, null for no limit.
            conditions: a list of what the student learns to follow, of text, depth, sketch and masked.
            password: for distilling, where the page asks for one.
            clips: videos and pictures to train on in place of rendered ones, a list of files, at most 64 MB each; bad ones are skipped.
            captions: what they show, a line for each; an empty line takes the file's name.
            lora: rank of adapters that learn in place of the weights, 1 to 1024, null for the weights; the paper: the weights.
            guidance_range: two numbers from 0 to 30 with a comma, between which the student learns w as an input; empty for a fixed w, the paper's.
            two_time: whether the student learns to go from each timestep to any before it, which is sampled by tcd with gamma 0; the paper: no.
            optimiser: adamw or muon, null for the teacher's own; the paper: adamw.
            images: share of pictures in a batch of `clips`, 0 to 1, null for a quarter, the paper's.

        Returns:
            The job: its id, its state and its command line.
        """

        def run():
            guard.admit(password)
            require_room(jobs.folder)
            if not isinstance(teacher, str) or teacher not in teachers:
                raise AppError("E_MODEL", given=teacher, known=", ".join(teachers))
            learned = ",".join(map(str, conditions)) if isinstance(conditions, (list, tuple)) else conditions
            own = {"seed": whole(seed), "images": typed(images), "conditions": learned}
            knobs = dict(iterations=whole(iterations), batch=whole(batch), lr=typed(lr), guidance=typed(guidance), ema=ema, huber=typed(huber))
            knobs |= dict(minutes=typed(minutes), lora=whole(typed(lora)), two_time=two_time)
            knobs |= dict(skip=skip or None, guidance_range=guidance_range or None, optimiser=optimiser or None)
            files = captioned(clips or [], captions)
            id = jobs.start(Knobs(**own, **(preset_of(preset) if preset else knobs)), teachers[teacher], files)
            return told(jobs.get(id))

        return refusing(run)

    return distill


def suggested(clips, captions, asked):
    """(captions, clips) after clips came or went: what was typed for those that stay, for others what their names say; a line each.

    `asked` are the clips that the lines of `captions` belong to.
    """
    typed = dict(zip(asked, str(captions or "").splitlines(), strict=False))
    return "\n".join(typed.get(clip, suggest(clip)) for clip in clips), clips


def whole(value):
    """4 for 4.0, as pages send it; anything else as it is, for Knobs to refuse."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def told(job):
    return {"id": job.id, "state": job.state, "command": " ".join(("distill", *job.arguments))}


def make_action(jobs, guard, action):
    """The handler of Pause, Resume, Cancel or Delete; without an id, as when somebody thinks better of it, nothing happens."""

    def act(id, password=""):
        def run():
            guard.admit(password)
            if action == "resume":
                require_room(jobs.folder)
            if id is not None:
                getattr(jobs, action)(id)

        return refusing(run)

    act.__name__ = act.__qualname__ = f"{action}_distillation"
    return act


def make_compare_now(jobs, guard):
    """The handler that opens the comparison with the shipped student, the chosen fine-tune's and the teacher: updates of the tabs and of its
    controls roles, samplers, steps, with_reference, prompt. AppError E_JOB, E_NO_STUDENT."""

    def compare_now(id, prompt):
        def run():
            name, here = name_of(jobs.get(id).id), students(jobs.folder)
            if guard.off or name not in here:
                raise AppError("E_NO_STUDENT", given=name)
            roles = gr.update(choices=["student", "teacher", *here], value=["student", name])
            return gr.update(selected="compare"), roles, [OWN], [1, 2, 4], True, prompt or PROMPT

        return refusing(run)

    return compare_now


def make_refresh(jobs, guard):
    """The handler of the clock: (list, status, curve, previews, *BUTTONS, what was shown); what did not change since then is left alone."""

    def refresh(chosen, shown):
        return refusing(lambda: updates(jobs, chosen, shown or {})) if not guard.off else [gr.skip()] * (5 + len(BUTTONS))

    return refresh


def updates(jobs, chosen, shown):
    known = jobs.list()
    job = next((job for job in known if job.id == chosen), known[0] if known else None)
    steps = job.steps() if job else []
    now = {
        "list": [[say.label(job), job.id] for job in known] + [job and job.id],
        "status": say.status(job, steps) if job else say.NOTHING,
        "curve": [job and job.id, len(steps)],
        "previews": [job and job.id, sum(bool(step["figures"]) for step in steps)],
        **possible(jobs, job),
    }
    make = {
        "list": lambda: gr.update(choices=[tuple(pair) for pair in now["list"][:-1]], value=now["list"][-1]),
        "status": lambda: now["status"],
        "curve": lambda: drawn(say.curve(steps)),
        "previews": lambda: say.previews(job, steps) if job else "",
        **{button: partial(gr.update, interactive=now[button]) for button in BUTTONS},
    }
    return [*(make[name]() if now[name] != shown.get(name) else gr.skip() for name in now), now]


def possible(jobs, job):
    """{button: whether it can do anything for this job, or for None}."""
    told = {action: bool(job) and job.state in states for action, states in ALLOWED.items()}
    return told | {"compare": bool(job) and name_of(job.id) in students(jobs.folder)}


def drawn(points):
    """The update of a gr.LinePlot, which comes with the first points: made of an empty table it would keep axes of words, and too little room."""
    import pandas

    table = pandas.DataFrame(points, columns=["iteration", "loss"], dtype=float)
    return gr.update(value=table, visible=True) if points else gr.update(value=table)
