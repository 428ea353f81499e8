"""How well a model does what prompts say, over a file of prompts: a row of figures for each number of steps.

In: a student, its teacher, prompts with their seeds. Out: rows with the judge's text match per attribute and its bootstrap error, beside what
rendered clips reach. All rows share prompts and noise. It knows nothing about pages.
"""

import json
from pathlib import Path

import numpy as np
import torch

from .errors import AppError
from .metrics import judge, text_match
from .models.base import Conditions
from .pipeline import to_frames
from .sampling import SAMPLERS, Noise, guided
from .world import ATTRIBUTES, plot, sample

PROMPTS = Path(__file__).resolve().parents[1] / "assets" / "prompts.jsonl"
BATCH = 8


def read_prompts(path=None, count=None):
    """[{"prompt", "seed", "said"}] of a JSON-lines file, the first `count`; the held-out ones of Toybox by default. AppError E_INPUT."""
    try:
        lines = Path(path or PROMPTS).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        return [{"prompt": row["prompt"], "seed": int(row["seed"]), "said": row["said"]} for row in rows][:count]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AppError("E_INPUT", given=path or PROMPTS.name) from error


def held_out(count):
    """What assets/prompts.jsonl holds: the captions of the first `count` seeds, none of which is trained on."""
    return [{"prompt": told.caption, "seed": seed, "said": told.said} for seed in range(count) for told in [plot(seed)]]


@torch.no_grad()
def clips(model, prompts, seeds, steps, sampler, guidance=0.0, frames=16, size=(256, 256)):
    """A batch of clips, uint8 (B, F, H, W, 3). `size` is (height, width); the same prompt and seed give what `generate` gives."""
    context, empty = model.encode_text(list(prompts)), model.encode_text([""])
    noise = Noise(model.latent_shape(frames, *size), list(seeds), model.device)
    denoise = guided(model.denoise, empty, guidance)
    for step in SAMPLERS[sampler](denoise, model.schedule, noise, Conditions(context), steps):
        latents = step.x0
    return np.stack([to_frames(model.decode(one[None], frames)) for one in latents])


def matches(model, rows, steps, sampler, guidance=0.0):
    """Text match of each prompt: a list of {attribute: share}. Yields (done, list) as batches finish."""
    net, found = judge(), []
    for at in range(0, len(rows), BATCH):
        part = rows[at : at + BATCH]
        made = clips(model, [row["prompt"] for row in part], [row["seed"] for row in part], steps, sampler, guidance)
        found += [text_match(net, frames, row["said"]) for frames, row in zip(made, part, strict=True)]
        yield len(found), found


def rendered_matches(rows):
    """What the judge says of the rendered clips of the same seeds: the most that can be reached."""
    net, found = judge(), []
    for row in rows:
        found.append(text_match(net, sample(row["seed"]).render().frames, row["said"]))
        yield len(found), found


def summary(found):
    """{attribute: mean, "mean": mean, "error": standard error of the mean by 1000 bootstrap draws}."""
    means = np.array([row["mean"] for row in found])
    draws = np.random.default_rng(0).integers(0, len(means), (1000, len(means)))
    shares = {name: float(np.mean([row[name] for row in found if name in row])) for name in ATTRIBUTES if any(name in row for row in found)}
    return {**shares, "mean": float(means.mean()), "error": float(means[draws].mean(1).std())}


def evaluate(student, teacher, rows, steps=(1, 2, 4, 8), teacher_steps=(50,)):
    """Yields (line, None) of progress and (name, figures) of each finished row: rendered, teacher, the undistilled teacher, student."""
    plan = [("rendered clips", rendered_matches(rows))]
    plan += [(f"teacher, DDIM {n}", matches(teacher, rows, n, "ddim", teacher.info.guidance)) for n in teacher_steps]
    plan += [(f"teacher undistilled, LCM {n}", matches(teacher, rows, n, "lcm", teacher.info.guidance)) for n in steps]
    plan += [(f"student, LCM {n}", matches(student, rows, n, "lcm")) for n in steps]
    for name, work in plan:
        for done, found in work:
            yield f"{name}: {done}/{len(rows)}", None
        yield name, summary(found)


def table(rows):
    """{name: figures} as a markdown table."""
    names = [name for name in ATTRIBUTES if any(name in row for row in rows.values())]
    lines = ["| clips | " + " | ".join([*names, "mean"]) + " |", "|---" * (len(names) + 2) + "|"]
    for name, row in rows.items():
        cells = [f"{row[attribute]:.2f}" if attribute in row else "" for attribute in names]
        lines.append(f"| {name} | " + " | ".join([*cells, f"{row['mean']:.3f} ± {row['error']:.3f}"]) + " |")
    return "\n".join(lines)
