"""How well a model does what prompts say, over a file of prompts: a row of figures for each number of steps.

In: students, their teacher, prompts with their seeds. Out: rows with the judge's text match per attribute and its bootstrap error, the motion
beside the teacher's, flicker, how near the teacher's clips are, and a Frechet distance from rendered ones; tables and a plot of them. All rows
share prompts and noise, so what distilling gained is a difference clip by clip. It knows nothing about pages.
"""

import json
from pathlib import Path

import numpy as np
import torch

from .errors import AppError
from .judge import judge, look, text_match
from .lines import add_lines, read_lines
from .metrics import LOST, feature_distance, flicker, frechet_distance, motion, motion_ratio, optical_flow, psnr
from .models.base import Conditions
from .pipeline import to_frames, way
from .plot import scatter
from .sampling import SAMPLERS, Noise, guided
from .world import ATTRIBUTES, SCENE_ATTRIBUTES, plot, sample

PROMPTS = Path(__file__).resolve().parents[1] / "assets" / "prompts.jsonl"
BATCH = 8
FURTHER = 400_000  # from one seed of noise of a prompt to its next


def read_prompts(path=None, count=None, seeds=1, after=0):
    """[{"prompt", "seed", "said", "number", "scene"}] of a JSON-lines file, `count` of them after the first `after`, each with as many `seeds` of
    noise: its own, and FURTHER on. `number` is its place in the file, `scene` the seed that is rendered. The held-out ones of Toybox by default.

    AppError E_INPUT, E_PROMPTS.
    """
    try:
        lines = Path(path or PROMPTS).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()][after:][:count]
        rows = [
            {"prompt": row["prompt"], "seed": seed + more * FURTHER, "said": row["said"], "number": number, "scene": seed}
            for more in range(seeds)
            for number, row in enumerate(rows, after)
            for seed in [int(row["seed"])]
        ]
        known = all(can_be_seen(row["said"]) for row in rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AppError("E_INPUT", given=path or PROMPTS.name) from error
    if not rows or not known:
        raise AppError("E_PROMPTS", given=path or PROMPTS.name)
    return rows


def can_be_seen(said):
    """Whether the judge can look for all that a prompt says, as a Plot has it: one toy or two, then the scene."""
    values = [pair for part in said for pair in part.items()]
    ours = all(value in ATTRIBUTES[name] for name, value in values)
    return 1 <= len(said) - 1 <= 2 and bool(values) and ours and {*said[-1]} <= {*SCENE_ATTRIBUTES}


def held_out(count):
    """What assets/prompts.jsonl holds: the captions of the first `count` seeds, none of which is trained on."""
    return [{"prompt": told.caption, "seed": seed, "said": told.said} for seed in range(count) for told in [plot(seed)]]


@torch.no_grad()
def clips(model, prompts, seeds, steps, sampler, guidance=0.0, frames=16, size=(256, 256), **knobs):
    """A batch of clips, uint8 (B, F, H, W, 3). `size` is (height, width), `knobs` are the sampler's own; the same prompt and seed give what
    `generate` gives."""
    context, empty = model.encode_text(list(prompts)), model.encode_text([""])
    noise = Noise(model.latent_shape(frames, *size), list(seeds), model.device)
    denoise = guided(model.denoise, empty, guidance, model.info.guided)
    for step in SAMPLERS[sampler](denoise, model.schedule, noise, Conditions(context), steps, **knobs):
        latents = step.x0
    return np.stack([to_frames(model.decode(one[None], frames)) for one in latents])


def made_clips(model, rows, steps, sampler, guidance=0.0, **knobs):
    """Yields what `clips` makes of each row of prompts, in turn."""
    for at in range(0, len(rows), BATCH):
        part = rows[at : at + BATCH]
        yield from clips(model, [row["prompt"] for row in part], [row["seed"] for row in part], steps, sampler, guidance, **knobs)


def rendered_clips(rows):
    """Yields the rendered clips of the same seeds: the most that can be reached."""
    for row in rows:
        yield sample(row["scene"]).render().frames


def seen(frames, said):
    """What is kept of one clip: {"match": as `text_match`, "toys": how many are said to be there, "motion": pixels per frame, "flicker": levels of
    255, "features": the judge's (D,)}."""
    net, flow = judge(), optical_flow(frames)
    with torch.no_grad():
        features = net.features(look(frames[None]))[0].mean(0)
    steady = {"motion": motion(flow), "flicker": flicker(frames, flow)}
    return {"match": text_match(net, frames, said), "toys": len(said) - 1, **steady, "features": features.numpy()}


def nearness(frames, goal):
    """How near a clip is to the reference's of the same noise: {"distance": in the judge's features, "psnr": dB}."""
    return {"distance": feature_distance(judge(), frames, goal), "psnr": psnr(frames, goal)}


NEAR = ("flicker", "distance", "psnr")


def summary(found, rendered, reference):
    """A row of figures from what was `seen` of its clips, of the rendered ones and of the reference, the many-step teacher.

    {attribute: share that is right, "mean": mean, "error": its standard error by 1000 bootstrap draws of prompts, "toys": the same of clips with
    one and with two toys, {"one toy": {...}, "two toys": {...}}, with their "count", "each": text match of every clip, "frechet": distance of the
    judge's features from those of rendered clips, "motion_ratio": mean motion over the reference's, "lost": clips with under 60 % of the reference's,
    "flicker", "distance", "psnr": means, the last two None where there is no reference to be near to, "count": clips}.
    """
    alike = {name: [row for row in found if row["toys"] == toys] for toys, name in enumerate(("one toy", "two toys"), 1)}
    ratios = [motion_ratio(row["motion"], goal["motion"]) for row, goal in zip(found, reference, strict=True)]
    return {
        **shares(found),
        "toys": {toys: shares(some) | {"count": len(some)} for toys, some in alike.items() if some},
        "each": [round(row["match"]["mean"], 3) for row in found],
        "frechet": frechet_distance(*(np.stack([row["features"] for row in rows]) for rows in (found, rendered))) if len(found) > 1 else None,
        "motion_ratio": float(np.mean([row["motion"] for row in found]) / np.mean([row["motion"] for row in reference])),
        "lost": sum(ratio is not None and ratio < LOST for ratio in ratios),
        **{key: float(np.mean([row[key] for row in found])) if key in found[0] else None for key in NEAR},
        "count": len(found),
    }


def shares(found):
    """Of what was `seen` of clips: {attribute: share that is right, "mean", "error"}."""
    matches = [row["match"] for row in found]
    mean, error = mean_and_error([row["mean"] for row in matches], numbers(found))
    return {name: float(np.mean([row[name] for row in matches if name in row])) for name in named(matches)} | {"mean": mean, "error": error}


def numbers(found):
    return [row["number"] for row in found]


def named(rows):
    """The attributes that one of `rows` has at least."""
    return [name for name in ATTRIBUTES if any(name in row for row in rows)]


TEACHER, ANCESTRAL = "teacher, DDIM", "teacher, DDPM"
BEFORE = "teacher undistilled, LCM"  # what a student is before it has learned anything


def evaluate(students, teacher, rows, steps=(1, 2, 4, 8), teacher_steps=(50,), sampler=None, keep=None, ddpm_steps=(), **knobs):
    """Yields (line, None) of progress, then (name, figures) of each row: rendered, teacher, the undistilled teacher, students.

    The first of `teacher_steps` is the reference of motion; without it the rendered clips are. `ddpm_steps` are the teacher's with fresh noise.
    `students` are {name: VideoModel}, each sampled by its own `way` unless there is a `sampler` with its `knobs`; their rows say too what they
    gained on the undistilled teacher, as `gain`. In the file `keep` is what was seen of each clip, so what was stopped goes on there, with more
    of `rows` too. AppError E_MEASURED, E_DISK, E_INPUT.
    """
    plan = ways_of(students, teacher, steps, teacher_steps, ddpm_steps, sampler, knobs)
    known = read_kept(keep, plan) if keep else {}
    reference = [*plan][1 if teacher_steps else 0]
    missing = [row for row in rows if clip_of(row) not in known]
    for at in range(0, len(missing), BATCH):
        part, found, goals = missing[at : at + BATCH], {}, []
        for name, (make, _) in plan.items():
            found[name] = []
            for frames, row in zip(make(part), part, strict=True):
                near = nearness(frames, goals[len(found[name])]) if len(goals) == len(part) else {}
                found[name].append(seen(frames, row["said"]) | near)
                if teacher_steps and name == reference:
                    goals.append(frames)
                yield f"clip {at + len(found[name])} of {len(missing)}: {name}", None
        new = {clip_of(row): {name: found[name][i] for name in plan} for i, row in enumerate(part)}
        known |= new
        if keep:
            add_kept(keep, plan, new)
    kept = {name: [known[clip_of(row)][name] | {"number": row["number"]} for row in rows] for name in plan}
    rendered = kept[next(iter(plan))]
    for name, found in kept.items():
        figures = summary(found, rendered, kept[reference])
        yield name, figures | (gain(found, kept[before_of(name)]) if name.startswith(tuple(f"{one}, " for one in students)) else {})


def ways_of(students, teacher, steps, teacher_steps, ddpm_steps, sampler, knobs):
    """{name of a row: (what makes clips of `rows`, what tells its networks and settings from others)}."""

    def made(model, n, how, guidance=0.0, **own):
        settings = [model.info.sha256, n, how, guidance, model.info.guidance, *model.info.guided, own]
        return lambda rows: made_clips(model, rows, n, how, guidance, **own), settings

    w, plan = teacher.info.guidance, {"rendered clips": (rendered_clips, [])}
    plan |= {f"{TEACHER} {n}": made(teacher, n, "ddim", w) for n in teacher_steps}
    plan |= {f"{ANCESTRAL} {n}": made(teacher, n, "ddpm", w) for n in ddpm_steps}
    plan |= {f"{BEFORE} {n}": made(teacher, n, "lcm", w) for n in steps}
    for name, student in students.items():
        how, own = way_of(student, sampler, knobs)
        plan |= {f"{name}, {how.upper()} {n}": made(student, n, how, **own) for n in steps}
    return plan


def clip_of(row):
    """What tells the clips of a row of prompts from those of others, a text."""
    return json.dumps([row["prompt"], row["seed"], row["said"]])


def read_kept(path, plan):
    """{clip_of: {name of a row: what was `seen`}} of the file at `path`, whose first line tells of which rows: {} where there is no file yet. What
    a process that was killed wrote half is made again. AppError E_MEASURED if it is of other rows than `plan`, or no such file."""
    lines = read_lines(path)
    if is_begun(path) and lines[:1] != [settings_of(plan)]:
        raise AppError("E_MEASURED", given=path)
    known = {}
    for clip, found in lines[1:]:
        known[clip] = {name: row | {"features": np.array(row["features"], np.float32)} for name, row in found.items()}
    return known


def is_begun(path):
    return path.exists() and path.stat().st_size > 0


def settings_of(plan):
    """The first line of a file of what was seen."""
    return {name: settings for name, (_, settings) in plan.items()}


def add_kept(path, plan, new):
    """Writes `new`, as `read_kept` gives it, at the end of the file. AppError E_DISK."""
    rows = [[clip, {name: row | {"features": row["features"].tolist()} for name, row in found.items()}] for clip, found in new.items()]
    add_lines(path, *rows if is_begun(path) else [settings_of(plan), *rows])


def worst(model, rows, each, steps, sampler=None, count=3, **knobs):
    """[(row, frames)] of the clips that show least of their prompts, as `each` of their figures says, made again as `evaluate` made them."""
    how, own = way_of(model, sampler, knobs)
    chosen = [rows[i] for i in np.argsort(each, kind="stable")[:count]]
    return [*zip(chosen, made_clips(model, chosen, steps, how, **own), strict=True)]


def way_of(model, sampler, knobs):
    """(sampler, its knobs) that were asked for; what nobody asked for is the model's own."""
    own, known = way(model.info)
    return (sampler or own, (known if sampler in (None, own) else {}) | knobs)


def before_of(name):
    """The undistilled teacher's row with as many steps as this row."""
    return f"{BEFORE} {name.rpartition(' ')[2]}"


def gain(found, before):
    """{"gain": how much more of what the prompts say is seen than before, "gain_error": its standard error by 1000 bootstrap draws}, clip by clip."""
    more, error = mean_and_error([one["match"]["mean"] - other["match"]["mean"] for one, other in zip(found, before, strict=True)], numbers(found))
    return {"gain": more, "gain_error": error}


def mean_and_error(values, numbers):
    """The mean, and its standard error by 1000 bootstrap draws of prompts, whose `numbers` say which clips are of the same one."""
    _, which, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    of_prompts = np.bincount(which, values) / counts
    draws = np.random.default_rng(0).integers(0, len(of_prompts), (1000, len(of_prompts)))
    return float(np.mean(values)), float(of_prompts[draws].mean(1).std())


def gains_table(rows):
    """{name: figures} of `evaluate` as a markdown table of before and after: text match by steps, of each student with what it gained."""
    found = {}
    for name, row in rows.items():
        who, _, steps = name.rpartition(" ")
        if who == BEFORE or "gain" in row:
            more = f" ({row['gain']:+.3f} ± {row['gain_error']:.3f})" if "gain" in row else ""
            found.setdefault(who, {})[steps] = f"{row['mean']:.3f}{more}"
    counts = list(found[BEFORE])
    heads = ["text match (gain)", *(f"{n} step{'s' * (n != '1')}" for n in counts)]
    return markdown(heads, [[who, *(cells[n] for n in counts)] for who, cells in found.items()])


def table(rows):
    """{name: figures} as a markdown table."""
    names = named(rows.values())
    heads = [f"{next(iter(rows.values()))['count']} clips each", *names, "mean", "motion kept", "lost", "Frechet", "flicker", "distance", "PSNR"]
    more = {"frechet": ".2f", "flicker": ".2f", "distance": ".3f", "psnr": ".1f"}
    lines = []
    for name, row in rows.items():
        cells = [*match_cells(row, names), f"{row['motion_ratio']:.2f}", str(row["lost"])]
        lines.append([name, *cells, *("" if row[key] is None else format(row[key], pattern) for key, pattern in more.items())])
    return markdown(heads, lines)


def markdown(heads, rows):
    """A markdown table of texts."""
    first, *rest = ("| " + " | ".join(row) + " |" for row in (heads, *rows))
    return "\n".join([first, "|---" * len(heads) + "|", *rest])


def match_cells(row, names):
    """The text match of a row of figures: a cell for each attribute of `names`, and one for their mean."""
    return [f"{row[name]:.2f}" if name in row else "" for name in names] + [f"{row['mean']:.3f} ± {row['error']:.3f}"]


def toys_tables(rows):
    """{name: figures} as markdown tables of text match, one of clips with one toy and one of clips with two."""
    tables = []
    for toys in next(iter(rows.values()))["toys"]:
        some = {name: row["toys"][toys] for name, row in rows.items()}
        names = named(some.values())
        heads = [f"{next(iter(some.values()))['count']} clips with {toys}", *names, "mean"]
        tables.append(markdown(heads, [[name, *match_cells(row, names)] for name, row in some.items()]))
    return tables


def over_teacher_table(rows):
    """{name: figures} as a markdown table of each student beside the teacher's first row: what is over the teacher's, and how many clips lost
    their motion; "" without a teacher."""
    name, teacher = next(((name, row) for name, row in rows.items() if name.startswith(TEACHER)), (None, None))
    if teacher is None:
        return ""
    lines = []
    for student, row in rows.items():
        if "gain" in row:
            match, frechet = (over(row[key], teacher[key], digits) for key, digits in (("mean", 3), ("frechet", 2)))
            lines.append([student, match, f"{row['motion_ratio']:.2f}", f"{row['lost']} of {row['count']}", frechet])
    return markdown([f"over {name}", "text match", "motion", "lost", "Frechet"], lines)


def over(value, reference, digits):
    return f"{value / reference:.{digits}f}" if value is not None and reference else ""


def plot_of(rows):
    """{name: figures} of `evaluate` as an SVG: text match against steps, what takes more than eight and rendered clips as flat lines."""
    series = {}
    for name, row in rows.items():
        way, _, steps = name.rpartition(" ")
        if steps.isdigit() and int(steps) <= 8:
            series.setdefault(way, []).append((int(steps), row["mean"], steps))
        else:
            series[name] = [(1, row["mean"], ""), (8, row["mean"], "")]
    return scatter(series, "steps", "text match")
