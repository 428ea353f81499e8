"""What the distilling tab says: a job's state, its curve and its clips, as HTML and as a table of numbers.

In: a jobs.Job and the lines of its log. Out: strings of HTML, and rows for a plot. It knows nothing about gradio or processes.
"""

import base64
import html
import math
import time

from videolcm.ui.messages import plain

POINTS = 200  # of the curve
HISTORY = 8  # previews in the strip
SILENCE = 20  # seconds without a heartbeat, of which there is one a second
TEACHER = "preview-teacher.mp4"  # as previews.py writes it
NOTHING = plain("No fine-tune chosen. Start one, or choose one of the list.")


def label(job):
    """A job in the list."""
    return f"{job.id[:8]} · {job.state} · {time.strftime('%d %b %H:%M', time.localtime(job.created))}"


def status(job, steps):
    """Where a job stands: iteration, loss, rate, speed, time left, and what it says."""
    notices = [job.message] if job.message else []
    if job.wish in WISHED:
        notices.append(WISHED[job.wish])
    if not steps:
        return plain(f"{job.state}: {WAITING.get(job.state, 'nothing was trained')}.", notices=notices)
    last = steps[-1]
    left = seconds_left(job, steps)
    loss = "not a number" if last["loss"] is None else f"{last['loss']:.4f}"
    text = (
        f"{job.state}: iteration {last['iteration']} of {last['iterations']} · loss {loss} · learning rate {last['lr']:.1e} · "
        f"{last['samples_per_second']:.1f} samples per second"
    )
    if job.state == "RUNNING":
        text += f" · about {duration(left)} left"
    if job.state == "RUNNING" and SILENCE < job.seconds < math.inf:
        notices.append(f"Its process has not shown itself for {duration(job.seconds)}.")
    if last["skipped"]:
        notices.append(f"Skipped {last['skipped']} iterations whose loss was not a number.")
    if job.state == "DONE" and last["iteration"] < last["iterations"]:
        notices.append("Its minutes were over before its iterations; its student is what it had learned by then.")
    return plain(text, 1.0 if job.state == "DONE" else part_done(job, last), notices)


WAITING = {"QUEUED": "waiting for its turn", "RUNNING": "reading the teacher and the clips; the first time clips are rendered, which takes minutes"}
WISHED = {
    "pause": "It pauses after what it is at: an iteration, or previews.",
    "cancel": "It ends after what it is at: an iteration, or previews. What it has learned becomes a student.",
}


def seconds_left(job, steps):
    """Until the iterations are done, or the minutes are over if that comes first."""
    last = steps[-1]
    by_iterations = (last["iterations"] - last["iteration"]) * seconds_each(steps)
    return max(0.0, min(by_iterations, minutes_of(job) * 60 - last.get("spent", 0.0)))


def part_done(job, last):
    """How much of its iterations or of its minutes is over, whichever is more, in 0..1."""
    return min(1.0, max(last["iteration"] / last["iterations"], last.get("spent", 0.0) / max(1.0, minutes_of(job) * 60)))


def minutes_of(job):
    asked = job.arguments
    return float(asked[asked.index("--minutes") + 1]) if "--minutes" in asked else math.inf


def seconds_each(steps):
    """How long an iteration takes, by the last ones, with what is between them: clips, previews. Logs of an earlier release do not say it."""
    recent = steps[-20:]
    inside = sum(step.get("seconds", 0.0) for step in recent) / len(recent)
    between = (recent[-1].get("spent", 0.0) - recent[0].get("spent", 0.0)) / max(1, len(recent) - 1)  # below 0 where the run was resumed
    return max(inside, between)


def duration(seconds):
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def curve(steps):
    """[(iteration, loss)], at most POINTS of them, each the mean of its neighbours."""
    good = [(step["iteration"], step["loss"]) for step in steps if step["loss"] is not None]
    size = -(-len(good) // POINTS) or 1
    parts = [good[i : i + size] for i in range(0, len(good), size)]
    return [(part[-1][0], sum(loss for _, loss in part) / len(part)) for part in parts]


def previews(job, steps):
    """The newest clips in 1, 2 and 4 steps beside the teacher's, and below them the 4-step clips of before, as HTML."""
    made = [(step["iteration"], step["figures"]["previews"]) for step in steps if (step["figures"] or {}).get("previews")]
    if not made:
        return ""
    iteration, names = made[-1]
    cells = [video(job.folder / name, f"{count} step{'s' if count != '1' else ''}") for count, name in names.items()]
    cells.append(video(job.folder / TEACHER, "teacher, 50 steps"))
    strip = [video(job.folder / names["4"], f"at {at}") for at, names in spread(made[:-1], HISTORY)]
    older = f'<div class="strip small">{"".join(strip)}</div>' if strip else ""
    return f'<p>After iteration {iteration}</p><div class="strip">{"".join(cells)}</div>{older}'


def spread(values, most):
    """At most so many of `values`, evenly from the first to the last."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def video(path, caption):
    """A clip inside the page: the files of a job are not served."""
    caption = html.escape(caption)
    try:
        source = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return f"<figure><figcaption>{caption}: file removed</figcaption></figure>"
    return f'<figure><video autoplay loop muted playsinline src="data:video/mp4;base64,{source}"></video><figcaption>{caption}</figcaption></figure>'
