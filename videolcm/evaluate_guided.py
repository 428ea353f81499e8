"""How well a model follows what it is given: depth, lines, or the surroundings of a hole. Rendered clips are followed, whose truth is known, or
real ones, which are no clips of the embedded world.

In: students, their teacher, a task, and Goals. Out: a row of figures for each number of steps, beside the clips themselves, whose row says how
much of a figure is the extractor's, and beside clips of the prompt alone. It knows nothing about pages.
"""

from dataclasses import dataclass

import numpy as np

from .compare import READERS, Prepared, obeyed
from .conditions import KEEP, MAPS, extract
from .data import disparity
from .judge import judge, text_match
from .masks import checked, feather, from_box, grow
from .metrics import psnr_outside
from .pipeline import Request, generate, way
from .real_clips import real_clips
from .world import SCENE_ATTRIBUTES, read_prompt, sample

HOLE_GROW, HOLE_FEATHER = 12, 6  # pixels
REAL_HOLE = (0.3, 0.3, 0.7, 0.7)  # of a real clip, whose things nobody has marked


@dataclass(frozen=True, eq=False)
class Goal:
    """A clip to follow and what it shall become."""

    prompt: str
    seed: int
    said: tuple  # as a Plot has it
    frames: np.ndarray  # uint8 (F, H, W, 3)
    hole: np.ndarray  # float32 (F, H, W)
    depth: np.ndarray | None = None  # (F, H, W) the exact one, if it is known


def rendered_goals(rows):
    """The rendered clips of the seeds of `rows`, as `evaluate.read_prompts` gives them; a hole is where the toys are."""
    clips = ((row, sample(row["scene"]).render()) for row in rows)
    return [Goal(row["prompt"], row["seed"], row["said"], clip.frames, hole_of(clip), disparity(clip.depth)) for row, clip in clips]


def real_goals():
    """Real clips; a hole is their middle, whose surroundings stay: of the prompt the toy alone counts there."""
    return [
        Goal(prompt, seed, read_prompt(prompt), frames, feather(from_box(REAL_HOLE, frames.shape[:3]), HOLE_FEATHER))
        for seed, (frames, prompt) in enumerate(real_clips())
    ]


def evaluate_guided(students, teacher, goals, task, steps=(1, 2, 4), teacher_steps=(50,)):
    """Yields (line, None) of progress and (name, figures) of each finished row: the clips themselves, teacher, students ({name: VideoModel}), and
    these by the prompt alone where a map is what they are told. What was followed is looked at once."""
    MAPS.limit = max(MAPS.limit, 3 * len(goals) + KEEP)  # of each goal what is told, what is read of it, and another's range of it
    known = {goal: Prepared() for goal in goals}
    plan = [("the clips themselves", lambda goal: goal.frames)]
    plan += [(f"teacher, DDIM {n}", maker(teacher, task, n, "ddim", known)) for n in teacher_steps]
    for name, student in students.items():
        how = way(student.info)[0].upper()
        plan += [(f"{name}, {how} {n}", maker(student, task, n, known=known)) for n in steps]
        if steps and task != "inpaint":
            plan.append((f"{name}, {how} {steps[-1]}, prompt alone", maker(student, "text", steps[-1])))
    for name, make in plan:
        found = []
        for goal in goals:
            found.append(FIGURES[task](make(goal), goal))
            yield f"{name}: {len(found)}/{len(goals)}", None
        yield name, {key: mean_of([one.get(key) for one in found]) for key in found[0]}


def maker(model, task, steps, sampler=None, known=None):
    """`make(goal)`: the clip of its prompt that follows it, by the model's own sampler if None; `known`: {goal: Prepared}."""

    def make(goal):
        follows = {"video": goal.frames} if task != "text" else {}
        follows |= {"hole": goal.hole} if task == "inpaint" else {}
        request = Request(goal.prompt, steps=steps, seed=goal.seed, sampler=sampler, task=task, **follows)
        *_, result = generate(model, request, known and known[goal])
        return result.frames

    return make


def hole_of(clip):
    """Where the toys of a rendered clip are, and some pixels around, float32 (F, H, W)."""
    return feather(grow(checked(clip.ids >= 0), HOLE_GROW), HOLE_FEATHER)


def depth_figures(frames, goal):
    """Read depth beside the exact one of the scene, or beside the one that was followed where there is none."""
    wanted = extract(READERS["depth"], goal.frames) if goal.depth is None else goal.depth
    return obeyed("depth", wanted, extract(READERS["depth"], frames)) | matched(frames, goal.said)


def sketch_figures(frames, goal):
    """Read lines beside those of the clip."""
    return obeyed("sketch", extract(READERS["sketch"], goal.frames), extract(READERS["sketch"], frames)) | matched(frames, goal.said)


def inpaint_figures(frames, goal):
    """What is outside the hole beside the input, and what the judge sees inside it: of a real clip, what is said of toys."""
    said = goal.said if goal.depth is not None else (*goal.said[:-1], {})
    return {"PSNR outside": psnr_outside(frames, goal.frames, goal.hole > 0), "text match": text_match(judge(), frames, said)["mean"]}


def matched(frames, said):
    """What a map leaves to the prompt, as the judge sees it: the toys' colours, and the place, floor and sky; None of what is not said."""
    share = text_match(judge(), frames, said)
    return {"colour": share.get("colour"), "place": mean_of([share.get(name) for name in SCENE_ATTRIBUTES])}


FIGURES = {"depth": depth_figures, "sketch": sketch_figures, "inpaint": inpaint_figures}


def mean_of(values):
    """The mean of those that are there, or None."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def guided_table(rows):
    """{name: figures} as a markdown table."""
    heads = ["clips", *next(iter(rows.values()))]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, row in rows.items():
        lines.append("| " + " | ".join([name, *("" if value is None else f"{value:.3f}" for value in row.values())]) + " |")
    return "\n".join(lines)
