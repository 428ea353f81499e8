"""How well a model follows what it is given: depth, lines, or the surroundings of a hole, over rendered clips whose truth is known.

In: students, their teacher, held-out prompts with their seeds, a task. Out: a row of figures for each number of steps, beside the rendered
clips themselves, whose row says how much of a figure is the extractor's. It knows nothing about pages.
"""

import numpy as np

from .compare import READERS, obeyed
from .conditions import extract
from .data import disparity
from .judge import judge, text_match
from .masks import checked, feather, grow
from .metrics import psnr_outside
from .pipeline import Request, generate
from .world import sample

HOLE_GROW, HOLE_FEATHER = 12, 6  # pixels


def evaluate_guided(students, teacher, rows, task, steps=(1, 2, 4), teacher_steps=(50,)):
    """Yields (line, None) of progress and (name, figures) of each finished row: rendered clips, teacher, students ({name: VideoModel})."""
    truths = [sample(row["seed"]).render() for row in rows]
    plan = [("rendered clips", lambda row, truth: truth.frames)]
    plan += [(f"teacher, DDIM {n}", maker(teacher, task, n, "ddim")) for n in teacher_steps]
    plan += [(f"{name}, LCM {n}", maker(student, task, n, "lcm")) for name, student in students.items() for n in steps]
    for name, make in plan:
        found = []
        for row, truth in zip(rows, truths, strict=True):
            found.append(FIGURES[task](make(row, truth), truth, row["said"]))
            yield f"{name}: {len(found)}/{len(rows)}", None
        yield name, {key: mean_of([one[key] for one in found]) for key in found[0]}


def maker(model, task, steps, sampler):
    """`make(row, truth)`: the clip of a prompt that follows the rendered one."""

    def make(row, truth):
        hole = hole_of(truth) if task == "inpaint" else None
        request = Request(row["prompt"], steps=steps, seed=row["seed"], sampler=sampler, task=task, video=truth.frames, hole=hole)
        *_, result = generate(model, request)
        return result.frames

    return make


def hole_of(truth):
    """Where the toys of a rendered clip are, and some pixels around, float32 (F, H, W)."""
    return feather(grow(checked(truth.ids >= 0), HOLE_GROW), HOLE_FEATHER)


def depth_figures(frames, truth, said):
    """Read depth beside the exact one of the scene."""
    return obeyed("depth", disparity(truth.depth), extract(READERS["depth"], frames))


def sketch_figures(frames, truth, said):
    """Read lines beside those of the rendered clip."""
    return obeyed("sketch", *(extract(READERS["sketch"], clip) for clip in (truth.frames, frames)))


def inpaint_figures(frames, truth, said):
    """What is outside the hole beside the input, and what the judge sees inside it."""
    return {"PSNR outside": psnr_outside(frames, truth.frames, hole_of(truth) > 0), "text match": text_match(judge(), frames, said)["mean"]}


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
