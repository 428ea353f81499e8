"""The verbs of the command line that measure: evaluate and bench. Their arguments, their progress lines, their JSON.

In: parsed arguments. Out: a table on stderr and a dict for the last line of stdout. What is measured is evaluate.py's and bench.py's.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import fill

from .arguments import number, positive, refuse, report, timesteps_of
from .errors import AppError


def evaluate_arguments(parser):
    parser.add_argument("--model", default="toybox", metavar="REF", help="the student and its teacher (default: toybox)")
    parser.add_argument(
        "--student", metavar="LIST", help="folders or names of students that were distilled of it, with commas (default: its own), in one table"
    )
    parser.add_argument("--prompts", metavar="FILE", help="JSON lines with prompt, seed and said (default: the held-out ones)")
    parser.add_argument("--count", type=number, default=100, metavar="N", help="how many of them (default: 100)")
    parser.add_argument("--after", type=number, default=0, metavar="N", help="leave out the first N of them (default: 0)")
    parser.add_argument("--seeds", type=number, default=1, metavar="N", help="of noise for each prompt: as many clips of it, for text (default: 1)")
    parser.add_argument("--task", default="text", metavar="TASK", help="text, or depth, sketch, inpaint: how well clips are followed")
    parser.add_argument("--real", action="store_true", help="follow real clips, which installed packages bring along, in place of rendered ones")
    parser.add_argument("--steps", default="1,2,4,8", metavar="LIST", help="the student's steps (default: 1,2,4,8)")
    parser.add_argument("--teacher-steps", default="50,8,4", metavar="LIST", help="the teacher's DDIM steps, the reference first (default: 50,8,4)")
    parser.add_argument(
        "--ddpm-steps", default="", metavar="LIST", help="steps of the teacher by DDPM too, with fresh noise, for text (default: none)"
    )
    parser.add_argument("--guidance", type=number, metavar="W", help="the teacher's w (default: its own)")
    parser.add_argument("--guided", metavar="LOW,HIGH", help="the teacher is guided at timesteps from LOW to below HIGH (default: its own)")
    parser.add_argument("--sampler", metavar="NAME", help="of the students, for text: lcm or tcd (default: lcm; tcd, gamma 0 for a two-time map)")
    parser.add_argument("--gamma", type=number, metavar="G", help="randomness of tcd, 0 to 1 (default: the model's own: 0.3, of a two-time map 0)")
    parser.add_argument("--student-guidance", type=number, metavar="W", help="w of a student that takes it as an input (default: its own)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also write a plot of text match against steps, an SVG")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="keep what is seen of each clip there: what was stopped goes on, also with a larger --count"
    )
    parser.add_argument(
        "--worst", type=Path, metavar="FILE", help="also draw the three clips of the last student's last row that show least of their prompts, a PNG"
    )


def run_evaluate(args):
    """The tables on stderr; returns their rows."""
    from dataclasses import replace

    from . import models
    from .evaluate import evaluate, gains_table, over_teacher_table, plot_of, read_prompts, table, toys_tables, worst
    from .grid import write_sheet
    from .pipeline import one_of, within
    from .sources import licence_of
    from .video import require_files

    count, guidance = positive(args.count, "count"), within(args.guidance, 0, 30, "E_GUIDANCE")
    guided = timesteps_of(args.guided)
    goals = read_prompts(args.prompts, count, positive(args.seeds, "seeds", 100), positive(args.after, "after", least=0))
    if licence_of(args.model):
        report(licence_of(args.model))
    plan, found, text = (steps_of(args.steps, 8), steps_of(args.teacher_steps, 100)), {}, args.task == "text"
    refuse(
        (text and args.real, "--real is for the tasks that follow a video"),
        (args.real and args.after, "--after is for prompts, which --real has none of"),
        (
            not text and (args.seeds != 1 or args.plot or args.worst or args.keep or args.ddpm_steps),
            "--seeds, --plot, --worst, --keep and --ddpm-steps are for --task text",
        ),
        (args.worst and not plan[0], "--worst wants --steps"),
    )
    require_files({"--keep": args.keep, "--worst": args.worst, "--plot": args.plot})
    students, teacher = students_of(args), models.load(args.model, role="teacher")
    asked = {"guidance": guidance, "guided": guided}
    teacher.info = replace(teacher.info, **{name: value for name, value in asked.items() if value is not None})
    if text:
        how = sampler_of(args.sampler, args.gamma)
        events = evaluate(students, teacher, goals, *plan, **how, keep=args.keep, ddpm_steps=steps_of(args.ddpm_steps, 100))
    else:
        from .evaluate_guided import FIGURES, evaluate_guided, real_goals, rendered_goals
        from .evaluate_guided import guided_table as table

        one_of(args.task, FIGURES, "E_TASK")
        goals = real_goals()[:count] if args.real else rendered_goals(goals)
        events = evaluate_guided(students, teacher, goals, args.task, *plan)
    for name, figures in events:
        if figures is None:
            report(name)
        else:
            found[name] = figures
    tables = [table(found), *(toys_tables(found) if text else ()), *((gains_table(found), over_teacher_table(found)) if text and plan[0] else ())]
    report("\n\n".join(filter(None, tables)))
    if args.plot:
        write_text(args.plot, plot_of(found))
    if args.worst:
        name, student = [*students.items()][-1]
        clips = worst(student, goals, [*found.values()][-1]["each"], plan[0][-1], **how)
        tiles = [(fill(f"{row['prompt']} (seed {row['seed']})", 24), frames) for row, frames in clips]
        write_sheet(args.worst, tiles, {"student": name, "steps": plan[0][-1]})
    seeds = {"seeds": [row["seed"] for row in goals]} if text else {}
    return {"task": args.task, "real": args.real, "clips": len(goals), **seeds, "rows": found}


def students_of(args):
    """{name: VideoModel} of the students that the arguments name. AppError as `models.load`, E_W_RANGE."""
    from . import models

    refs = {"student": args.model} if args.student is None else {ref: ref for ref in args.student.split(",")}
    students = {name: models.load(ref) for name, ref in refs.items()}
    for student in students.values():
        student.info = told_w(student.info, args.student_guidance)
    return students


def told_w(info, w):
    """The ModelInfo of a student that is told w; as it is for None. AppError E_W_RANGE for what it has not learned."""
    from dataclasses import replace

    if w is None:
        return info
    low, high = info.w_range or (0, 0)
    if not isinstance(w, (int, float)) or not low <= w <= high:
        raise AppError("E_W_RANGE", low=low, high=high, given=w)
    return replace(info, guidance=float(w))


def sampler_of(name, gamma):
    """{"sampler": name, "gamma": gamma if there is one}; {} for None, each student's own. AppError E_SAMPLER, E_GAMMA."""
    from .pipeline import one_of, within

    gamma = within(gamma, 0, 1, "E_GAMMA")
    if name is None:
        return {}
    one_of(name, ("lcm", "tcd"), "E_SAMPLER")
    return {"sampler": name} | ({"gamma": gamma} if name == "tcd" and gamma is not None else {})


def bench_arguments(parser):
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--quick", action="store_true", help="one clip, eight clips, start and memory alone, without Table 1 and growth")
    kind.add_argument("--full", action="store_true", help="everything but training (the default)")
    kind.add_argument("--training", action="store_true", help="a step of distilling alone: its seconds over those of its parts, and its memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--count", type=number, metavar="N", help="prompts for the text match (default: 100, none with --quick: they take minutes)")


def run_bench(args):
    """Speed, size, and the text match of 4 steps beside the teacher's; returns the figures."""
    from . import models

    if args.training:
        return written(args.json, run_bench_training(models.load("toybox", role="teacher")))
    from .bench import beside_diffusers, growth, quick, table_1, table_of
    from .evaluate import evaluate, read_prompts, table
    from .judge import has_judge

    student, teacher = models.load("toybox"), models.load("toybox", role="teacher")
    figures = quick(student, teacher, report)
    if not args.quick:
        figures |= {"table_1": table_1(student, teacher, report), "growth": growth(student, report), "over_diffusers": beside_diffusers()}
        report(table_of(figures["table_1"]))
    count = (0 if args.quick else 100) if args.count is None else args.count and positive(args.count, "count")
    if count and not has_judge():
        report("Text match is left out: no judge is shipped yet.")
    elif count:
        rows = read_prompts(count=count)
        found = {name: row for name, row in evaluate({"student": student}, teacher, rows, (4,), (50,)) if row or report(name)}
        report(table(found))
        figures["text_match"] = {name: round(row["mean"], 3) for name, row in found.items()}
    return written(args.json, figures)


def run_bench_training(teacher):
    """The figures of a training step, on clips that are rendered for it."""
    from .bench import machine
    from .bench_training import training_step

    with TemporaryDirectory(prefix="videolcm-") as folder:
        return {"machine": machine(teacher), **training_step(teacher, folder, report)}


def written(path, figures):
    """The figures, which are in the file at `path` now too if there is one. AppError E_OUTPUT."""
    if path:
        write_text(path, json.dumps(figures, indent=1) + "\n")
    return figures


def write_text(path, text):
    """AppError E_OUTPUT where it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise AppError("E_OUTPUT", given=path) from error


def steps_of(text, limit):
    """ "1,2,4" as (1, 2, 4); "" as (). AppError E_STEPS."""
    values = [number(part) for part in str(text).split(",") if part]
    for value in values:
        if not isinstance(value, int) or not 1 <= value <= limit:
            raise AppError("E_STEPS", given=value, limit=limit)
    return tuple(dict.fromkeys(values))
