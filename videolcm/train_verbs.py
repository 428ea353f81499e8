"""The verbs of the command line that train: pretrain and distill. Their arguments, their progress lines, their JSON.

In: parsed arguments. Out: run folders, a student folder, a dict for the last line of stdout. What a stage does is pretrain.py's and
distill.py's; heavy imports wait inside.
"""

import logging
import math
import os
import signal
import threading
import time
from argparse import SUPPRESS, Namespace
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

from .arguments import Parser, between, number, positive, refuse, report
from .errors import AppError
from .jobs import Stopped, Worker, has_checkpoint, work
from .knobs import CONDITIONS, PRESETS, Knobs, conditions_of, config_of, preset_of
from .processes import after_the_first, device_of, rank, share_of, together, world

STAGES = ("data", "codec", "latents", "text", "backdrop", "teacher", "judge", "depth", "decoder", "ship")
REPORT_SECONDS = 10
CACHE = Path("runs/data")  # rendered clips, and in `own` what was made of other people's
SHOWN = 8  # skipped files that the page names


def pretrain_arguments(parser):
    parser.add_argument("stage", metavar="STAGE", help=f"{', '.join(STAGES)}: in this order")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/STAGE); the other stages' folders lie beside it")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, bit for bit")
    parser.add_argument("--warm", action="store_true", help="begin with the shipped weights: codec, teacher, judge and depth")
    parser.add_argument("--minutes", type=number, metavar="M", help="stop with a checkpoint after so long")
    parser.add_argument("--dtype", metavar="NAME", help="float32, bfloat16, float16 (default: what the processor computes fast)")
    parser.add_argument("--iterations", type=number, metavar="N", help="length of the whole plan (default: the stage's own)")
    parser.add_argument("--compile", action="store_true", help="use torch.compile: faster, needs a C++ compiler")
    parser.add_argument("--clips", type=number, default=3000, metavar="N", help="for data: clips to render (default: 3000)")
    parser.add_argument("--threads", type=number, metavar="N", help="processor threads (default: all; a run that goes on keeps its number)")


def run_pretrain(args):
    """One stage; returns what it reached."""
    if args.stage not in STAGES:
        raise AppError("E_STAGE", given=args.stage, known=", ".join(STAGES))
    set_threads(args.threads)
    import torch

    from . import models, pretrain
    from .video import make_folder

    out = args.out or Path("runs") / args.stage
    make_folder(out.parent)
    if args.stage == "data":
        return {"lines": report_lines(pretrain.render_clips(out.parent, positive(args.clips, "clips")))}
    if args.stage == "latents":
        return {"lines": report_lines(pretrain.encode_clips(out.parent))}
    if args.stage == "ship":
        return {"folder": str(pretrain.ship_all(out.parent))}
    settings = {} if args.iterations is None else {"iterations": positive(args.iterations, "iterations")}
    stage = pretrain.stage_of(args.stage, out.parent, args.warm, **settings)
    make_folder(out)
    return train_and_report(replace(stage, compiled=args.compile, dtype=models.pick_dtype(args.dtype, torch.device("cpu"))), out, args)


def distill_arguments(parser):
    knob = partial(parser.add_argument, default=SUPPRESS)  # what nobody gives, `settled` knows
    parser.add_argument("--teacher", default="toybox", metavar="REF", help="the model to distil (default: toybox)")
    parser.add_argument(
        "--data",
        default="toybox",
        metavar="NAME",
        help="toybox: rendered clips, made first where missing; or a folder of your own: videos and pictures with NAME.txt beside them, "
        ".tar shards (WebDataset), or cached latents",
    )
    knob("--images", type=number, metavar="RATIO", help="share of a batch of own clips that pictures have, 0 to 1 (default: 0.25)")
    parser.add_argument("--preset", metavar="NAME", help=f"{', '.join(PRESETS)}: what it changes of the defaults below, unless you do")
    knob("--iterations", type=number, metavar="N", help="updates (default: 1000; the paper: about 4000)")
    knob("--batch", type=number, metavar="N", help="clips of a process at once (default: 16)")
    knob("--accumulate", type=number, metavar="N", help="batches that a process gives an update (default: 1)")
    knob("--lr", type=number, metavar="RATE", help="learning rate (default: the teacher's own: toybox 1.5e-4, others the paper's 1e-5)")
    knob("--optimiser", metavar="NAME", help="adamw or muon (default: the teacher's own: toybox muon, others adamw)")
    knob("--ema", type=number, metavar="RATE", help="of the target network (default: 0.95, the paper's)")
    knob("--guidance", type=number, metavar="W", help="w of Eq. 5 (default: the teacher's own; the paper: 9)")
    knob(
        "--skip",
        metavar="K",
        help="train timesteps a solver step spans; a list like 100,20 for phases (default: the teacher's own: toybox 100, others the official 20)",
    )
    knob("--solver-steps", type=number, metavar="N", help="steps of the teacher in it, each twice as long as the last (default: 1, the paper's)")
    knob(
        "--huber",
        type=number,
        metavar="C",
        help="threshold of the pseudo-Huber loss (default: the teacher's own: toybox 0.03, others 1e-3)",
    )
    knob("--lora", type=number, metavar="RANK", help="train adapters of this rank in place of the weights (default: the weights)")
    knob("--guidance-range", metavar="LOW,HIGH", help="w as an input of the student, learned between these")
    knob("--two-time", action="store_true", help="learn to go from each timestep to any before it; sample it with tcd and gamma 0")
    knob(
        "--own",
        type=number,
        metavar="RATIO",
        help="with --two-time: share of a batch that begins where the student goes from noise (default: 0)",
    )
    knob(
        "--guided",
        metavar="LOW,HIGH",
        help="the teacher is guided at timesteps from LOW to below HIGH, of 0 to 1000; below, guidance flickers, above, all floors become alike "
        "(default: the teacher's own; the paper: 0,1000)",
    )
    knob("--as-shown", action="store_true", help="toybox: channels of latents count as much as pictures show of them, in place of all alike")
    knob("--object-weight", type=number, metavar="X", help="added to the loss where toys are, which rendered clips know (default: 0)")
    knob("--seam-weight", type=number, metavar="X", help="toybox: of what pictures change by where half seconds meet (default: 0)")
    knob(
        "--matching",
        type=number,
        metavar="X",
        help="weight of distribution matching in the loss, which wants clips as likely as the teacher's (default: 0)",
    )
    parser.add_argument("--begin", metavar="REF", help="a student of this teacher, to begin as it (default: as the teacher)")
    parser.add_argument("--since", metavar="REF", help="the teacher of --begin, if this one is it, trained on: what it has learned since is added")
    knob("--seed", type=number, metavar="N", help="of batches and noise (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/student"), metavar="DIR", help="student folder (default: runs/student)")
    knob("--conditions", metavar="LIST", help="what the student learns to follow (default: all)")
    knob(
        "--clips",
        type=number,
        metavar="N",
        help="clips of toybox to train on; with maps one in twelve more, of other cameras (default: 600)",
    )
    knob("--preview-every", type=number, metavar="SECONDS", help="write clips of 1, 2 and 4 steps into the folder so often")
    parser.add_argument("--save-every", type=number, default=240, metavar="SECONDS", help="between two checkpoints (default: 240)")
    parser.add_argument("--prepare", action="store_true", help="only render, read and encode the clips that it would be trained on")
    parser.add_argument("--job", action="store_true", help="as the page starts it: heed wishes in the folder, stop when stdin closes")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, bit for bit")
    knob("--minutes", type=number, metavar="M", help="stop with a checkpoint after so long")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: the best there is)")
    parser.add_argument("--dtype", metavar="NAME", help="float32, bfloat16, float16 (default: what suits the device)")
    parser.add_argument("--threads", type=number, metavar="N", help="processor threads (default: all; a run that goes on keeps its number)")
    parser.add_argument("--checkpointing", action="store_true", help="less memory, more time: blocks are computed twice")
    parser.add_argument("--shard", action="store_true", help="under torchrun: no process holds the whole network (FSDP)")


def run_distill(args):
    """Distil; returns iterations, loss and speed, None in all processes but the first. The folder can be loaded as a model."""
    args = settled(args)
    knobs_of(args)
    several = share_of(os.environ).world > 1
    refuse(
        (args.job and several, "--job is for one process"),
        (args.shard and not several, "--shard needs several processes, as torchrun starts them"),
        (args.own and not args.two_time, "--own is for --two-time"),
        (args.matching and args.shard, "--shard has no --matching"),
        (args.begin and args.lora is not None, "--begin has no --lora"),
        (args.since and not args.begin, "--since is for --begin"),
        (args.shard and args.optimiser == "muon", "--shard takes --optimiser adamw alone"),
        (args.shard and args.preview_every, "with --shard no process has a whole network for --preview-every"),
    )
    if args.job:
        return work(args.out, lambda worker: distil(args, worker))
    with suppress(Stopped):
        return distil(args, Worker(args.out))
    return {}


def settled(args):
    """The arguments with every knob: as it was given, else as the preset has it, else as Knobs do, but without previews."""
    preset = {} if args.preset is None else preset_of(args.preset)
    return Namespace(**{**asdict(Knobs(preview_every=None)), **preset, **vars(args)})


def knobs_of(args):
    """The arguments as Knobs, which check themselves."""
    return Knobs(**{field.name: getattr(settled(args), field.name) for field in fields(Knobs)})


def distill_namespace(arguments):
    """What `distill` would make of these words of a command line. AppError."""
    parser = Parser()
    distill_arguments(parser)
    return settled(parser.parse_args(arguments))


def distil(args, worker):
    """`run_distill` for a worker, who may be told to stop between two iterations: with the student if it is for good, without to go on later."""
    set_threads(args.threads)
    from . import models
    from .distill import finished_student, write_student
    from .sources import licence_of

    if licence_of(args.teacher):
        tell(licence_of(args.teacher))

    with together(), warnings_to(worker):
        teacher = models.load(args.teacher, role="teacher", device=device_of(args.device, os.environ), dtype=args.dtype)
        config, reached = config_of(knobs_of(args), teacher), {}
        config = replace(config, conditions=possible(config.conditions, teacher), begin=args.begin, since=args.since)
        config = replace(config, optimiser="adamw") if args.shard else config
        if is_own(args.data):
            from .own_clips import followed

            config = replace(config, conditions=followed(config.conditions, tell))
        if args.prepare:
            made = after_the_first(lambda: clips_of(args, teacher, worker, config.conditions))
            return None if rank() else {"clips": len(made)}
        if not worker.wish:
            reached = train_student(args, teacher, config, worker)
        elif not has_checkpoint(args.out):
            worker.heed()
        if rank():
            return None
        if worker.wish in (None, "cancel"):
            write_student(args.out, args.teacher, *finished_student(args.out, teacher, config), config)
        return reached | {"folder": str(args.out)}


@contextmanager
def warnings_to(worker):
    """What the package warns of in this block, as of a damaged checkpoint, is shown with the job too."""
    handler = logging.Handler()
    handler.emit = lambda record: worker.say(record.getMessage())
    log = logging.getLogger("videolcm")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def possible(conditions, teacher):
    """Those of `conditions` that the teacher follows itself. AppError E_CONDITIONS if none."""
    known = [kind for kind in CONDITIONS if {"masked": "inpaint"}.get(kind, kind) in teacher.info.tasks]
    if not set(known) & set(conditions):
        raise AppError("E_CONDITIONS", known=", ".join(known), given=",".join(conditions))
    for kind in conditions:
        if kind not in known:
            tell(f"{kind} is left out: the teacher does not follow it")
    return tuple(kind for kind in conditions if kind in known)


def tell(line):
    """A line for people, said by the first process."""
    if rank() == 0:
        report(line)


def train_student(args, teacher, config, worker):
    """The training itself, between clips that others make; returns what `train_and_report` does, {} if only the student was still missing."""
    from .distill import distill_stage, student_info, student_iteration, write_student
    from .lease import Lease
    from .previews import Previews
    from .students import jobs_folder
    from .video import make_folder

    make_folder(args.out)
    clips = after_the_first(lambda: clips_of(args, teacher, worker, config.conditions))
    begin = beginning(config, args.teacher) if config.begin and not args.resume else None
    stage, turn = distill_stage(teacher, clips, config, args.checkpointing, args.shard, begin), Lease(jobs_folder()).turn
    if args.preview_every:
        previews = Previews(teacher, student_info(teacher.info, config), turn)

        def validate(net, out, iteration):
            """What is learned so far is a model of the page too."""
            write_student(out, args.teacher, net, iteration, config)
            return previews(net, out, iteration)

        stage = replace(stage, validate=validate, validate_every=config.iterations, validate_seconds=args.preview_every)
    try:
        return train_and_report(stage, args.out, args, worker, turn=turn, save_seconds=between(args.save_every, "save-every", 0, 1e6))
    except AppError as error:
        asked_again = rank() == 0 and not args.job and student_iteration(args.out) == config.iterations
        if error.code != "E_DONE" or asked_again:  # a job whose last checkpoint was its end may have no more than a preview's student
            raise
        return {}


def beginning(config, teacher):
    """The weights, float32, of the student that the config begins as; `teacher` is a ref."""
    from . import models
    from .distill import carried

    def denoiser(ref, role):
        return models.load(ref, role, device="cpu", dtype="float32").denoiser

    student = denoiser(config.begin, "student")
    return carried(student, denoiser(config.since, "teacher"), denoiser(teacher, "teacher")) if config.since else student.state_dict()


def is_own(data):
    """Whether --data names a folder of somebody's files, which are read first; not Toybox, nor latents that lie there ready."""
    return data != "toybox" and not any(Path(data).glob("latents-plain-*.safetensors"))


def clips_of(args, teacher, worker, conditions):
    """The clips that --data names: rendered first where it says toybox and they are missing, read first where they are somebody's own."""
    from .data import MAPS
    from .distill import cached_clips, toybox_clips

    def heeding(line):
        tell(line)
        worker.heed()

    if args.data == "toybox":
        return toybox_clips(CACHE, teacher, heeding, args.clips, latents_of(teacher), free=any(name in MAPS for name in conditions))
    return clips_of_own(args, teacher, worker, heeding, conditions) if is_own(args.data) else cached_clips(args.data, teacher)


def latents_of(teacher):
    """Where the latents of Toybox's clips lie: those of Toybox's own codec beside the clips, another autoencoder's in a folder of its own."""
    from .models.toybox import Toybox
    from .own_clips import encoder_of

    return CACHE if isinstance(teacher, Toybox) else CACHE / f"latents-{encoder_of(teacher)[:16]}"


def clips_of_own(args, teacher, worker, heeding, conditions):
    """The clips in the folder --data; when a run goes on those that it began with. What could not be used is shown with the job."""
    from .own_clips import begun_with, own_clips

    clips = own_clips(args.data, teacher, CACHE / "own", heeding, conditions, args.images)
    without = [kind for kind in conditions_of(args.conditions) if kind not in conditions]
    told = [f"Left out, for no extractor of it is here: {', '.join(without)}."] if without else []
    if clips.skipped:
        told += [f"Skipped {len(clips.skipped)} of {len(clips.skipped) + len(clips)} files.", *clips.skipped[:SHOWN]]
    if told:
        worker.say(" ".join(told))
    return begun_with(clips, args.out, args.resume) if rank() == 0 or args.resume else clips


def train_and_report(stage, out, args, worker=None, **options):
    """Runs a stage with a line on stderr every ten seconds; returns {"iterations", "loss", "samples_per_second"} of the end.

    It ends between two iterations when the worker is told something; `options` are train's.
    """
    from .memory import free, ran_out
    from .training import train

    minutes, signals = None if args.minutes is None else between(args.minutes, "minutes", 0, 1e6), []

    def heard(number_of, _):
        """The iteration is finished first: half of an update on disk could not be gone on from. Who asks twice does not wait."""
        if signals and world() == 1:
            raise KeyboardInterrupt
        signals.append(number_of)

    ours = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number_of: signal.signal(number_of, heard) for number_of in ours}  # the background ignores Ctrl-C else
    short, wished = False, lambda: bool(signals or worker and worker.wish)
    try:
        first, last, began = trained(train(stage, out, resume=args.resume, minutes=minutes, stop=wished, **options))
    except Exception as error:
        short = ran_out(error)
        if not short:
            raise
    finally:
        for number_of, handler in before.items():
            signal.signal(number_of, handler)
    if short:
        free()
        raise AppError("E_TRAIN_MEMORY", given=stage.batch)
    if signals:
        raise KeyboardInterrupt
    if last is None:
        raise AppError("E_DONE", given=out.name)
    rate = (last.iteration - first + 1) * stage.samples / (time.monotonic() - began)
    return {"iterations": last.iteration, "loss": round(last.loss, 5) if math.isfinite(last.loss) else None, "samples_per_second": round(rate, 2)}


def trained(steps):
    """(first iteration, last TrainStep, when they began) of a run that is reported."""
    last, told, began, first = None, 0.0, time.monotonic(), None
    for last in steps:
        first = first or last.iteration
        if last.figures or time.monotonic() - told > REPORT_SECONDS:
            told = time.monotonic()
            figures = f" {last.figures}" if last.figures else ""
            line = f"{last.iteration}/{last.iterations} loss {last.loss:.4f} lr {last.lr:.2e} {last.samples_per_second:.1f} samples/s{figures}"
            tell(line)
    return first, last, began


def report_lines(lines):
    count = 0
    for count, line in enumerate(lines, 1):
        report(line)
    return count


def set_threads(count):
    import torch

    if count is not None:
        torch.set_num_threads(positive(count, "threads"))
