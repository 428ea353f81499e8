"""The verbs models and fetch of the command line: what can be run and what of it is here; and downloading it, asked first.

In: parsed arguments. Out: a table on stderr, files in the folder of models, a dict for the last line of stdout. What is fetched and how is
fetching.py's. It knows nothing about networks.
"""

import sys

from .arguments import report
from .errors import AppError
from .fetching import fetch, wanted
from .sources import SOURCES, about, amount, licence_of, place_of, split, state_of, still_to_choose


def models_arguments(parser):
    parser.add_argument("--device", metavar="NAME", help="whose free memory is meant (default: the best there is)")


def run_models(args):
    """List every model; returns {"models": {name: facts}}."""
    from . import memory, models

    free, told = memory.available(models.pick_device(args.device)), {}
    for name, source in SOURCES.items():
        state = state_of(name, free)
        report(f"{name}: {about(name)} {state or 'here'}.")
        parts = [{"repo": part.repo, "revision": part.revision, "bytes": part.size, "licence": part.licence} for part in source.parts]
        facts = {"kind": source.kind, "tasks": source.tasks, "steps": source.steps, "licence": source.licence, "official": source.official or None}
        told[name] = {**facts, "state": state or "here", "memory": source.memory or None, "parts": parts}
    return {"models": told, "free": free}


def fetch_arguments(parser):
    parser.add_argument("model", metavar="NAME", help="a name that `models` lists, OWNER/NAME@REVISION, or animatelcm:OWNER/NAME@REVISION")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run_fetch(args):
    """Download what is missing of a model; returns where it lies."""
    todo, (name, _) = wanted(args.model), split(args.model)
    folder = place_of(name)
    for one in todo:
        report(one)
    if licence_of(name):
        report(licence_of(name))
    if todo and not args.yes and not agreed(f"Download {amount(sum(one.size for one in todo))} into {folder}?"):
        raise AppError("E_DECLINED", given=name)
    for one in todo:
        report(f"fetching {one.part.repo} {', '.join(one.files)}")
        fetch(one)
    if still_to_choose(args.model):
        report(still_to_choose(args.model))
    return {"model": args.model, "folder": str(folder), "fetched": [one.part.repo for one in todo], "bytes": sum(one.size for one in todo)}


def agreed(question):
    """Whether a person at the terminal says yes; nobody there means no."""
    if not sys.stdin.isatty():
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
