"""The verbs of the command line that train: pretrain and distill. Their arguments, their progress lines, their JSON.

In: parsed arguments. Out: run folders, a student folder, a dict for the last line of stdout. What a stage does is pretrain.py's and
distill.py's; heavy imports wait inside.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

from .arguments import number
from .errors import AppError

STAGES = ("data", "codec", "text", "teacher", "judge", "ship")
REPORT_SECONDS = 10


def pretrain_arguments(parser):
    parser.add_argument("stage", metavar="STAGE", help=f"{', '.join(STAGES)}: in this order, data once before and once after codec")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/STAGE); the other stages' folders lie beside it")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, bit for bit")
    parser.add_argument("--minutes", type=number, metavar="M", help="stop with a checkpoint after so long")
    parser.add_argument("--iterations", type=number, metavar="N", help="length of the whole plan (default: the stage's own)")
    parser.add_argument("--compile", action="store_true", help="use torch.compile: faster, needs a C++ compiler")
    parser.add_argument("--clips", type=number, default=3000, metavar="N", help="for data: clips to render and encode (default: 3000)")
    parser.add_argument("--threads", type=number, metavar="N", help="processor threads (default: all)")


def run_pretrain(args):
    """One stage; returns what it reached."""
    if args.stage not in STAGES:
        raise AppError("E_STAGE", given=args.stage, known=", ".join(STAGES))
    set_threads(args.threads)
    from . import pretrain

    out = args.out or Path("runs") / args.stage
    if args.stage == "data":
        return {"lines": report_lines(pretrain.prepare(out.parent, positive(args.clips, "clips")))}
    if args.stage == "ship":
        return {"folder": str(pretrain.ship_all(out.parent))}
    settings = {} if args.iterations is None else {"iterations": positive(args.iterations, "iterations")}
    stage = pretrain.stage_of(args.stage, out.parent, **settings)
    return train_and_report(replace(stage, compiled=args.compile), out, args)


def distill_arguments(parser):
    parser.add_argument("--teacher", default="toybox", metavar="REF", help="the model to distil (default: toybox)")
    parser.add_argument("--data", default="toybox", metavar="NAME", help="toybox: rendered clips, made first where they are missing")
    parser.add_argument("--iterations", type=number, default=1000, metavar="N", help="updates (default: 1000; the paper: about 4000)")
    parser.add_argument("--batch", type=number, default=16, metavar="N", help="clips an update (default: 16)")
    parser.add_argument("--lr", type=number, metavar="RATE", help="learning rate (default: the teacher's own, 4e-4; the paper: 1e-5)")
    parser.add_argument("--ema", type=number, default=0.95, metavar="RATE", help="of the target network (default: 0.95, the paper's)")
    parser.add_argument("--guidance", type=number, metavar="W", help="w of Eq. 5 (default: the teacher's own; the paper: 9)")
    parser.add_argument("--skip", default="20", metavar="K", help="train timesteps a solver step spans; a list like 100,20 for phases (default: 20)")
    parser.add_argument("--huber", type=number, default=1e-3, metavar="C", help="threshold of the pseudo-Huber loss (default: 1e-3)")
    parser.add_argument("--seed", type=number, default=0, metavar="N", help="of batches and noise (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/student"), metavar="DIR", help="student folder (default: runs/student)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, bit for bit")
    parser.add_argument("--minutes", type=number, metavar="M", help="stop with a checkpoint after so long")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: the best there is)")
    parser.add_argument("--dtype", metavar="NAME", help="float32, bfloat16, float16 (default: what suits the device)")
    parser.add_argument("--threads", type=number, metavar="N", help="processor threads (default: all)")


def run_distill(args):
    """Distil; returns iterations, loss and speed. The folder can be loaded as a model."""
    if args.data != "toybox":
        raise AppError("E_DATA", given=args.data)
    set_threads(args.threads)
    from . import models
    from .distill import DistillConfig, distill_stage, toybox_clips, write_student

    teacher = models.load(args.teacher, role="teacher", device=args.device, dtype=args.dtype)
    config = DistillConfig(
        iterations=positive(args.iterations, "iterations"),
        batch=positive(args.batch, "batch"),
        lr=4e-4 if args.lr is None else between(args.lr, "lr", 0, 1),
        guidance=teacher.info.guidance if args.guidance is None else between(args.guidance, "guidance", 0, 30),
        skips=skips_of(args.skip),
        huber=between(args.huber, "huber", 0, 10),
        ema=between(args.ema, "ema", 0, 1),
        seed=int(between(args.seed, "seed", 0, 2**31 - 1)),
    )
    clips = toybox_clips(Path("runs/data"), teacher, lambda line: print(line, file=sys.stderr, flush=True))
    reached = train_and_report(distill_stage(teacher, clips, config), args.out, args)
    write_student(args.out, args.teacher, teacher, config)
    return reached | {"folder": str(args.out)}


def train_and_report(stage, out, args):
    """Runs a stage with a line on stderr every ten seconds; returns {"iterations", "loss", "samples_per_second"} of the end."""
    from .training import train

    minutes = None if args.minutes is None else between(args.minutes, "minutes", 0, 1e6)
    last, told, began, first = None, 0.0, time.monotonic(), None
    for last in train(stage, out, resume=args.resume, minutes=minutes):
        first = first or last.iteration
        if last.figures or time.monotonic() - told > REPORT_SECONDS:
            told = time.monotonic()
            figures = f" {last.figures}" if last.figures else ""
            line = f"{last.iteration}/{last.iterations} loss {last.loss:.4f} lr {last.lr:.2e} {last.samples_per_second:.1f} samples/s{figures}"
            print(line, file=sys.stderr, flush=True)
    if last is None:
        raise AppError("E_DONE", given=out.name)
    rate = (last.iteration - first + 1) * stage.batch / (time.monotonic() - began)
    return {"iterations": last.iteration, "loss": round(last.loss, 5), "samples_per_second": round(rate, 2)}


def report_lines(lines):
    count = 0
    for count, line in enumerate(lines, 1):
        print(line, file=sys.stderr, flush=True)
    return count


def set_threads(count):
    import torch

    if count is not None:
        torch.set_num_threads(positive(count, "threads"))


def positive(value, name):
    """A whole number from 1. AppError E_NUMBER."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or not 1 <= value <= 10**9:
        raise AppError("E_NUMBER", name=name, range="a whole number from 1", given=value)
    return value


def between(value, name, low, high):
    """A number in low..high. AppError E_NUMBER."""
    if not isinstance(value, (int, float)) or not low <= value <= high:
        raise AppError("E_NUMBER", name=name, range=f"a number from {low} to {high}", given=value)
    return value


def skips_of(text):
    """ "100,20" as (100, 20). AppError E_NUMBER."""
    values = [number(part) for part in str(text).split(",")]
    for value in values:
        if not isinstance(value, int) or not 1 <= value <= 999:
            raise AppError("E_NUMBER", name="skip", range="a whole number from 1 to 999, or several with commas", given=text)
    return tuple(values)
