"""The command line, `python -m videolcm VERB`: progress on stderr, one JSON object as the last line of stdout.

In: arguments. Out: files, and exit code 0, or 2 with one line `[CODE] what is wrong. What to do.`, or 130 after Ctrl-C.
A verb is a row of VERBS: how its arguments are declared and what runs. Heavy imports wait inside the verbs. It knows nothing about
networks or pages.
"""

import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from .arguments import Parser, exit_code, number, report
from .batch_verb import batch_arguments, end_batch, require_one_way, run_batch
from .convert_verb import convert_arguments, run_convert
from .errors import AppError
from .fetch_verb import fetch_arguments, models_arguments, run_fetch, run_models
from .guide_arguments import guide_arguments, material_of
from .measure_verbs import bench_arguments, evaluate_arguments, run_bench, run_evaluate
from .train_verbs import distill_arguments, pretrain_arguments, run_distill, run_pretrain

DTYPES = ("float32", "bfloat16", "float16")


ONE_ROLE = "student (few steps, default) or teacher (many)"
ROLES = "student, teacher, or names of students that were distilled here, with commas (default: student)"
ONE_COUNT = "1 to 8 with lcm and tcd (default 4), 1 to 100 with ddim and ddpm (default 50)"


def request_arguments(parser, steps=ONE_COUNT, sampler="lcm, tcd, ddim or ddpm (default: what the model is made for)", role=ONE_ROLE, prompts=None):
    """What says which clip to make; shared by the verbs that make clips. Ranges are the Request's to check. prompts: "?" for one or none."""
    parser.add_argument("prompt", metavar="PROMPT", nargs=prompts, help="what to see, 1 to 512 characters")
    parser.add_argument("--model", default="toybox", metavar="REF", help="a model's name or folder (default: toybox)")
    parser.add_argument("--role", default="student", metavar="ROLE", help=role)
    parser.add_argument("--task", default="text", metavar="TASK", help="text, depth, sketch or inpaint (default: text)")
    parser.add_argument("--steps", type=number, metavar="N", help=steps)
    parser.add_argument("--seed", type=number, default=0, metavar="N", help="0 to 2147483647 (default: 0)")
    parser.add_argument("--sampler", metavar="NAME", help=sampler)
    parser.add_argument("--guidance", type=number, metavar="W", help="w of the paper's Eq. 5, 0 to 30 (default: the model's own)")
    parser.add_argument("--gamma", type=number, metavar="G", help="randomness of tcd, 0 to 1 (default: the model's own: 0.3, of a two-time map 0)")
    parser.add_argument("--frames", type=number, default=16, metavar="N", help="8 to 32 (default: 16)")
    parser.add_argument("--size", default="256x256", metavar="WxH", help="multiples of 32 from 128 to 512 (default: 256x256)")
    guide_arguments(parser)
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: the best there is)")
    parser.add_argument("--dtype", metavar="NAME", help=f"{', '.join(DTYPES)} (default: what suits the device)")
    parser.add_argument("--compile", action="store_true", help="use torch.compile: faster after minutes, needs a C++ compiler")


def generate_arguments(parser):
    request_arguments(parser, prompts="?")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the mp4 to write (default: clip.mp4)")
    parser.add_argument("--npy", type=Path, metavar="FILE", help="also write the frames, uint8 (F, H, W, 3)")
    batch_arguments(parser)


def run_generate(args):
    """Make one clip, or those of a file; returns the JSON object."""
    require_one_way(args)
    return run_batch(args, request_of, load_model) if args.prompts else run_one(args, args.out or Path("clip.mp4"))


def run_one(args, out):
    """Make one clip at `out`; returns the JSON object."""
    from .pipeline import generate, save, told
    from .video import require_files

    request, notices = request_of(args)
    require_files({"--out": out, "--npy": args.npy})
    result = watched(generate(load_model(args), request))
    result = replace(save(result, out), notices=(*notices, *result.notices))
    if args.npy:
        save_frames(args.npy, result.frames)
    for notice in result.notices:
        report(notice)
    return {"out": str(out), **told(result)}


def compare_arguments(parser):
    several = "one or several with commas (default: what the role is made for)"
    request_arguments(parser, "numbers of steps, with commas (default: 1,2,4,8)", several, ROLES)
    parser.set_defaults(steps="1,2,4,8")
    parser.add_argument("--teacher-steps", type=number, default=50, metavar="N", help="DDIM steps of the reference, 0 for none (default: 50)")
    parser.add_argument("--out", type=Path, default=Path("grid.mp4"), metavar="FILE", help="the labelled mp4 to write (default: grid.mp4)")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="also write a contact sheet, a PNG")
    parser.add_argument("--gif", type=Path, metavar="FILE", help="also write the grid as a GIF")


def run_compare(args):
    """Make one clip in several ways, beside the teacher's; returns the JSON object."""
    from .compare import CellDone, CellProgress, compare, model_of, requests_of, row
    from .video import require_files

    request, notices = request_of(Namespace(**{**vars(args), "steps": None, "sampler": None, "role": "student"}))
    cells, reference = cells_of(args)
    roles = {cell.role for cell in requests_of(request, cells, reference)}
    require_files({"--out": args.out, "--sheet": args.sheet, "--gif": args.gif})
    models, done, failed = {}, {}, {}
    for role in sorted(roles):
        ref, kind = model_of(role, args.model)
        models[role] = load_model(Namespace(**{**vars(args), "model": ref, "role": kind}))
    for event in compare(models, request, cells, reference):
        if isinstance(event, CellProgress):
            report(f"{event.cell}: {event.progress.stage} {event.progress.i}/{event.progress.n}")
        elif isinstance(event, CellDone):
            done[event.cell] = event  # the second time with the figures beside the reference
        else:
            failed[str(event.cell)] = str(event.error)
    done = list(done.values())
    write_comparison(args, done)
    for sentence in dict.fromkeys(
        [
            *notices,
            *done[0].result.notices,
            *(f"{one.cell}: {one.metrics['warning']}" for one in done if one.metrics["warning"]),
            *(f"{cell}: {error}" for cell, error in failed.items()),
        ]
    ):
        report(sentence)
    return {
        **{name: path and str(path) for name, path in (("out", args.out), ("sheet", args.sheet), ("gif", args.gif))},
        "cells": [row(one, reference) for one in done],
        "errors": failed,
    }


def write_comparison(args, done):
    """The files that the arguments name, each with the settings of every cell."""
    from .grid import write_gif, write_grid, write_sheet

    tiles, fps = [(one.label, one.result.frames) for one in done], done[0].result.settings["fps"]
    settings = {"cells": [one.result.settings for one in done]}
    write_grid(args.out, tiles, fps, settings)
    if args.sheet:
        write_sheet(args.sheet, tiles, settings)
    if args.gif:
        write_gif(args.gif, tiles, fps, settings)


def cells_of(args):
    """The cells that the arguments name, every sampler with every number of steps, and the reference or None."""
    from .compare import Cell

    cells = []
    for role in str(args.role).split(","):
        samplers = args.sampler.split(",") if args.sampler else [None]
        cells += [Cell(role, sampler, number(steps)) for sampler in samplers for steps in str(args.steps).split(",") if steps]
    return cells, None if args.teacher_steps == 0 else Cell("teacher", "ddim", args.teacher_steps)


VERBS = {  # verb: (what it does, declares its arguments, runs and returns the JSON object)
    "generate": ("make one clip from a prompt, or one for every line of a file", generate_arguments, run_generate),
    "compare": ("make one clip in several ways, side by side", compare_arguments, run_compare),
    "pretrain": ("make what assets/toybox holds, stage by stage", pretrain_arguments, run_pretrain),
    "evaluate": ("text match over many prompts, by the judge", evaluate_arguments, run_evaluate),
    "bench": ("speed and size on this machine", bench_arguments, run_bench),
    "distill": ("train a student of a teacher (Sec. 3.2)", distill_arguments, run_distill),
    "models": ("list what can be run, and what of it is here", models_arguments, run_models),
    "fetch": ("download a model, asked first", fetch_arguments, run_fetch),
    "convert": ("make a model folder of an official .pth", convert_arguments, run_convert),
}


def request_of(args):
    """(Request, sentences on the files it follows) of the arguments. AppError for the first one that is out of range."""
    from .pipeline import SAMPLER_OF, one_of, size_of
    from .uploads import request_with

    one_of(args.role, SAMPLER_OF, "E_ROLE")
    (width, height), also = size_of(args.size), args.also or ()
    return request_with(
        material_of(args),
        prompt=args.prompt,
        steps=args.steps,
        seed=args.seed,
        frames=args.frames,
        width=width,
        height=height,
        sampler=args.sampler or SAMPLER_OF[args.role],
        guidance=args.guidance,
        gamma=args.gamma,
        task=args.task,
        extractor=args.extractor,
        also=(also,) if isinstance(also, str) else also,
        strength=args.strength,
    )


def load_model(args):
    """The model that the arguments name."""
    from . import models, sources

    device = models.pick_device(args.device)
    if sources.licence_of(args.model):
        report(sources.licence_of(args.model))
    compiled = {"compiled": True} if args.compile else {}
    return models.load(args.model, role=args.role, device=device, dtype=models.pick_dtype(args.dtype, device), **compiled)


def watched(events):
    """The last of `events`; every other one is reported as a line."""
    last = next(events)
    for event in events:
        report(f"{last.stage} {last.i}/{last.n}")
        last = event
    return last


def save_frames(path, frames):
    """Frames as an npy file under exactly this name. AppError E_OUTPUT."""
    import numpy as np

    try:
        with path.open("wb") as file:
            np.save(file, frames)
    except OSError as error:
        raise AppError("E_OUTPUT", given=path) from error


def parser_of(verbs):
    """The Parser of all verbs."""
    parser = Parser(prog="python -m videolcm", description="Video in few steps. The last line of stdout is one JSON object.")
    choices = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (summary, add_arguments, _) in verbs.items():
        add_arguments(choices.add_parser(verb, help=summary, description=summary))
    return parser


def main(argv=None):
    """Run one command line; returns the exit code."""

    def run():
        args = parser_of(VERBS).parse_args(argv)
        result = VERBS[args.verb][2](args)
        if result is None:  # another process says it
            return
        print(json.dumps(result), flush=True)
        if "failed" in result:
            end_batch(result)

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
