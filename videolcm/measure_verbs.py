"""The verbs of the command line that measure: evaluate and bench. Their arguments, their progress lines, their JSON.

In: parsed arguments. Out: a table on stderr and a dict for the last line of stdout. What is measured is evaluate.py's and bench.py's.
"""

import json
from pathlib import Path

from .arguments import number, report
from .errors import AppError


def evaluate_arguments(parser):
    parser.add_argument("--model", default="toybox", metavar="REF", help="the student and its teacher (default: toybox)")
    parser.add_argument("--prompts", metavar="FILE", help="JSON lines with prompt, seed and said (default: the held-out ones)")
    parser.add_argument("--count", type=number, default=100, metavar="N", help="how many of them (default: 100)")
    parser.add_argument("--task", default="text", metavar="TASK", help="text, or depth, sketch, inpaint: how well rendered clips are followed")
    parser.add_argument("--steps", default="1,2,4,8", metavar="LIST", help="the student's steps (default: 1,2,4,8)")
    parser.add_argument("--teacher-steps", default="50", metavar="LIST", help="the teacher's DDIM steps (default: 50)")
    parser.add_argument("--guidance", type=number, metavar="W", help="the teacher's w (default: its own)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also write a plot of text match against steps, an SVG")


def run_evaluate(args):
    """The table on stderr; returns its rows."""
    from dataclasses import replace

    from . import models
    from .evaluate import evaluate, plot_of, read_prompts, table

    rows, count = read_prompts(args.prompts), args.count
    student, teacher = models.load(args.model), models.load(args.model, role="teacher")
    if args.guidance is not None:
        teacher.info = replace(teacher.info, guidance=float(args.guidance))
    plan, found = (steps_of(args.steps, 8), steps_of(args.teacher_steps, 100)), {}
    if args.task == "text":
        events = evaluate(student, teacher, rows[:count], *plan)
    else:
        from .evaluate_guided import FIGURES, evaluate_guided
        from .evaluate_guided import guided_table as table
        from .pipeline import one_of

        one_of(args.task, FIGURES, "E_TASK")
        events = evaluate_guided(student, teacher, rows[:count], args.task, *plan)
    for name, figures in events:
        if figures is None:
            report(name)
        else:
            found[name] = figures
    report(table(found))
    if args.plot and args.task == "text":
        write_text(args.plot, plot_of(found))
    return {"task": args.task, "prompts": len(rows[:count]), "rows": found}


def bench_arguments(parser):
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--quick", action="store_true", help="one clip, eight clips, start and memory alone, without Table 1 and growth")
    kind.add_argument("--full", action="store_true", help="everything (the default)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--count", type=number, default=100, metavar="N", help="prompts for the text match, 0 for none (default: 100)")


def run_bench(args):
    """Speed, size, and the text match of 4 steps beside the teacher's; returns the figures."""
    from . import models
    from .bench import growth, quick, table_1, table_of
    from .evaluate import evaluate, read_prompts, table
    from .judge import has_judge

    student, teacher = models.load("toybox"), models.load("toybox", role="teacher")
    figures = quick(student, teacher, report)
    if not args.quick:
        figures |= {"table_1": table_1(student, teacher, report), "growth": growth(student, report)}
        report(table_of(figures["table_1"]))
    if args.count and not has_judge():
        report("Text match is left out: no judge is shipped yet.")
    elif args.count:
        rows = read_prompts(count=args.count)
        found = {name: row for name, row in evaluate(student, teacher, rows, (4,), (50,)) if row or report(name)}
        report(table(found))
        figures["text_match"] = {name: round(row["mean"], 3) for name, row in found.items()}
    if args.json:
        write_text(args.json, json.dumps(figures, indent=1) + "\n")
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
    return tuple(values)
