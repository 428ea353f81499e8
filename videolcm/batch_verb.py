"""`generate --prompts FILE` of the command line: a clip a line. Its arguments, its progress lines, its JSON. What it does is batch.py's.

In: parsed arguments, which every line may overrule, and how they become a Request and a model. Out: a line on stderr for every clip, and a dict for
the last line of stdout. Heavy imports wait inside.
"""

import os
import time
from argparse import Namespace
from pathlib import Path

from .arguments import report
from .errors import AppError
from .processes import device_of, share_of

FILES = ("video", "mask")  # what a Request holds as `video` and `hole` is named by files here, and by how to use them
USES = ("start", "span", "fit", "box", "moving", "grow", "feather")
TEXTS = (*FILES, "box", "fit", "extractor")
BESIDE = ("said",)  # of assets/prompts.jsonl: what the judge looks for


def batch_arguments(parser):
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="instead of PROMPT: a prompt or a JSON object with prompt, seed ... a line")
    parser.add_argument("--out-dir", type=Path, metavar="DIR", help="where their clips go, 00001.mp4 ...; those that are there are kept")


def require_one_way(args):
    """AppError E_ARGUMENTS unless the arguments ask for one clip or for those of a file, and for nothing of the other."""
    missing = (args.prompts is None) != (args.out_dir is None)
    if missing or (args.prompt is None) == (args.prompts is None):
        raise AppError("E_ARGUMENTS", detail="give either a PROMPT, or --prompts FILE and --out-dir DIR")
    if args.prompts and (args.out or args.npy):
        raise AppError("E_ARGUMENTS", detail="--prompts takes --out-dir, not --out or --npy")


def run_batch(args, request_of, load_model):
    """Make this process's clips; returns the JSON object, whose `failed` names the lines without one. AppError for what concerns all lines."""
    from .batch import batch, read_lines
    from .video import make_folder

    start, share, lines = time.monotonic(), share_of(os.environ), read_lines(args.prompts)
    make_folder(args.out_dir)
    mine = share.of(lines)
    model = load_model(Namespace(**{**vars(args), "device": device_of(args.device, os.environ)}))
    told = tell(batch(model, mine, lambda line: request_of(line_arguments(args, line)), args.out_dir), len(mine))
    return {"out_dir": str(args.out_dir), "rank": share.rank, "world": share.world, "lines": len(mine), **told, "seconds": seconds_since(start)}


def line_arguments(args, line):
    """The arguments as a line has them. AppError E_LINE, E_SIZE."""
    from .batch import fields_of
    from .pipeline import Request, size_of

    known = {*Request.__dataclass_fields__, *FILES, *USES, *BESIDE} - {"hole", "material"}
    asked = fields_of(line, known)
    for name in asked.keys() & {*TEXTS, "also"}:
        require_text(name, asked[name])
    width, height = size_of(args.size)
    size = f"{asked.get('width', width)}x{asked.get('height', height)}"
    return Namespace(**{**vars(args), **asked, "size": size})


def require_text(name, value):
    """AppError E_LINE unless `value` is a text or nothing; `also` may be a list of texts."""
    values = value if name == "also" and isinstance(value, list) else [value]
    if not all(one is None or isinstance(one, str) for one in values):
        raise AppError("E_LINE", detail=f"{name} is no text")


def tell(events, count):
    """Report every line's end; returns how many clips were made and kept, and the lines that failed with their errors."""
    from .batch import LineFailed, LineProgress

    made, kept, failed, start = 0, 0, [], time.monotonic()
    for event in events:
        if isinstance(event, LineProgress):
            continue
        if isinstance(event, LineFailed):
            failed.append({"line": event.line.number, "error": str(event.error)})
            what = str(event.error)
        else:
            made, kept = made + (event.result is not None), kept + (event.result is None)
            what = " ".join([event.path.name, f"made in {seconds_since(start)} s" if event.result else "kept", *event.notices])
        report(f"line {event.line.number} ({made + kept + len(failed)} of {count}): {what}")
        start = time.monotonic()
    return {"made": made, "kept": kept, "failed": failed}


def end_batch(told):
    """When the JSON object is out: under torchrun wait for the other processes. AppError E_LINES if a line failed."""
    from .batch import wait_for_the_others

    wait_for_the_others()
    if told["failed"]:
        raise AppError("E_LINES", count=len(told["failed"]), lines=told["lines"])


def seconds_since(start):
    return round(time.monotonic() - start, 2)
