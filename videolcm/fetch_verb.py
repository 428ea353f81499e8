"""The verbs models and fetch of the command line: what can be run and what of it is here; and downloading it, asked first.

In: parsed arguments. Out: a table on stderr, files in the folder of models, a dict for the last line of stdout. Only pinned revisions are fetched,
and only safetensors, configs and tokenizers. It knows nothing about networks.
"""

import sys

from .arguments import report
from .errors import AppError
from .sources import BASE, HUB, LAYOUT, SOURCES, Part, licence_of, missing, offline, place_of, size_of, split, state_of


def models_arguments(parser):
    parser.add_argument("--device", metavar="NAME", help="whose free memory is meant (default: the best there is)")


def run_models(args):
    """List every model; returns {"models": {name: facts}}."""
    from . import memory, models

    free, told = memory.available(models.pick_device(args.device)), {}
    for name, source in SOURCES.items():
        state = state_of(name, free)
        report(f"{name}: {source.what}. Tasks: {', '.join(source.tasks)}. Steps: {source.steps}. Licence: {source.licence}. {state or 'here'}.")
        parts = [{"repo": part.repo, "revision": part.revision, "bytes": part.size, "licence": part.licence} for part in source.parts]
        facts = {"kind": source.kind, "tasks": source.tasks, "steps": source.steps, "licence": source.licence, "official": source.official or None}
        told[name] = {**facts, "state": state or "here", "memory": source.memory or None, "parts": parts}
    return {"models": told, "free": free}


def fetch_arguments(parser):
    parser.add_argument("model", metavar="NAME", help="a name that `models` lists, OWNER/NAME@REVISION, or animatelcm:OWNER/NAME@REVISION")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run_fetch(args):
    """Download what is missing of a model; returns where it lies."""
    name, base = split(args.model)
    wanted = [one for half in (base, name) if half for one in parts_of(half)]
    folder = place_of(name)
    if offline() and wanted:
        raise AppError("E_OFFLINE", given=name, folder=f"models/{folder.name}")
    for part, _ in wanted:
        report(f"{part.repo} at {part.revision[:12]}, licence: {part.licence}")
    if licence_of(name):
        report(licence_of(name))
    if wanted and not args.yes and not agreed(f"Download {size_of(name)} into {folder}?"):
        raise AppError("E_DECLINED", given=name)
    for part, place in wanted:
        report(f"fetching {part.repo} {', '.join(part.files) if part.name else ''}")
        fetch(part, place)
    if name in SOURCES and SOURCES[name].kind == "animatediff" and not base and not (folder / BASE[0]).is_dir():
        report(f"Still to choose is its base: {BASE[1]}. Use it as {name}:OWNER/NAME@REVISION, or put it into {folder / BASE[0]}.")
    return {"model": args.model, "folder": str(folder), "fetched": [part.repo for part, _ in wanted]}


def parts_of(ref):
    """[(Part, its folder)] of what is missing. AppError E_BY_HAND, E_REVISION."""
    found = HUB.fullmatch(ref)
    if found:
        whole = Part("", found["repo"], found["revision"], ("model_index.json", *LAYOUT), None, "its own: see its page")
        return [] if (place_of(ref) / "unet").is_dir() else [(whole, place_of(ref))]
    if ref not in SOURCES:
        raise AppError("E_REVISION", given=ref)
    if SOURCES[ref].official:
        raise AppError("E_BY_HAND", given=ref, file=SOURCES[ref].official)
    return [(part, place_of(ref) / part.name) for part in missing(ref)]


def agreed(question):
    """Whether a person at the terminal says yes; nobody there means no."""
    if not sys.stdin.isatty():
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def fetch(part, place):
    """Download a Part into its folder; what is there already stays. AppError E_FETCH."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        place.mkdir(parents=True, exist_ok=True)
        snapshot_download(part.repo, revision=part.revision, allow_patterns=list(part.files), local_dir=place)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise AppError("E_FETCH", given=part.repo, detail=type(error).__name__) from error
    if not any(place.rglob("*.safetensors")):
        raise AppError("E_FETCH", given=part.repo, detail="it has no safetensors")
