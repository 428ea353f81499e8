"""Which models have a name: where their files come from, how large they are, under which licence, what they do; and which of them are here.

In: nothing but the table SOURCES, the environment and what is on disk. Out: folders, states and sentences for people; nothing is fetched. Facts are
those that the hub's own pages show for the pinned revision; what could not be looked up is None. It knows nothing about networks, and is torch-free
for the page.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from .errors import AppError
from .students import students

ASSETS = Path(__file__).resolve().parents[1] / "assets"
GB = 1e9  # as the hub counts
HUB = re.compile(r"(?P<repo>\w[\w.-]{0,95}/\w[\w.-]{0,95})@(?P<revision>[0-9a-f]{40})")
LAYOUT = tuple(f"{part}/*{end}" for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler") for end in (".json", ".txt", ".safetensors"))
WHOLE = ("model_index.json", "unet/*.safetensors", "vae/*.safetensors", "text_encoder/*.safetensors", "tokenizer/*.json", "scheduler/*.json")
BESIDE = ("text_encoder", "tokenizer", "vae")  # of an official network
BASE = ("base", "any Stable Diffusion 1.5 in diffusers' layout, as OWNER/NAME@REVISION of your choice")
RESEARCH = "research and non-commercial use only"


@dataclass(frozen=True)
class Part:
    """One folder of a model, as it comes from the hub."""

    name: str  # of the folder inside the model's; "" for the model's own
    repo: str
    revision: str
    files: tuple[str, ...]  # patterns
    size: float | None  # bytes of the weights
    licence: str
    half: bool = True  # whether the weights are float16
    needed: bool = True  # False for what only some tasks need


@dataclass(frozen=True)
class Source:
    """A row of SOURCES."""

    kind: str  # toybox, vgen, diffusers, animatediff
    what: str
    tasks: tuple[str, ...]
    steps: str  # what it was made for
    licence: str
    parts: tuple[Part, ...] = ()
    official: str = ""  # the file that convert makes it of
    parameters: int = 0  # of the network in that file
    research: bool = False

    @property
    def size(self):
        """Bytes to download for everything it can do, as far as known."""
        return sum(part.size or 0 for part in self.parts)

    @property
    def memory(self):
        """Bytes that its weights take in float16, at the least: what the table knows of. 0 where nothing is known."""
        return 2 * self.parameters + sum((part.size or 0) / (1 if part.half else 2) for part in self.parts)


def control(name, repo, revision):
    """A ControlNet 1.1 of Stable Diffusion 1.5."""
    files = ("config.json", "diffusion_pytorch_model.fp16.safetensors")
    return Part(name, f"lllyasviel/{repo}", revision, files, 0.723 * GB, "openrail", needed=False)


ADAPTER = "76d7e23ed24c70fa890de55200a6072aeb189f29"
SOURCES = {
    "toybox": Source(
        kind="toybox",
        what="the embedded model: toys that move over a floor, offline, Apache-2.0",
        tasks=("text", "depth", "sketch", "inpaint"),
        steps="student 1 to 8, teacher 50",
        licence="Apache-2.0",
    ),
    "animatelcm": Source(
        kind="animatediff",
        what="AnimateLCM around any Stable Diffusion 1.5: open scenes in few steps",
        tasks=("text", "depth", "sketch", "inpaint"),
        steps="4 to 8",
        licence="none stated for motion adapter and LoRA; ControlNets openrail; the base's own",
        parts=(
            Part(
                "motion_adapter",
                "wangfuyun/AnimateLCM",
                ADAPTER,
                ("config.json", "diffusion_pytorch_model.fp16.safetensors"),
                0.908 * GB,
                "none stated",
            ),
            Part("lora", "wangfuyun/AnimateLCM", ADAPTER, ("AnimateLCM_sd15_t2v_lora.safetensors",), 0.135 * GB, "none stated"),
            control("controlnet_depth", "control_v11f1p_sd15_depth", "7c693a1fe066e89184a9e04489e0d3a3519a1aa3"),
            control("controlnet_softedge", "control_v11p_sd15_softedge", "b5bcad0c48e9b12f091968cf5eadbb89402d6bc9"),
            control("controlnet_inpaint", "control_v11p_sd15_inpaint", "893329db63d4c48457f055301a75ed267280adbe"),
        ),
    ),
    "modelscope": Source(
        kind="diffusers",
        what="ModelScope text to video, 1.7 billion parameters: the teacher's kind",
        tasks=("text",),
        steps="50",
        licence=f"CC-BY-NC-4.0: {RESEARCH}",
        parts=(
            Part(
                "",
                "ali-vilab/text-to-video-ms-1.7b",
                "8227dddca75a8561bf858d604cc5dae52b954d01",
                ("model_index.json", *(pattern.replace(".safetensors", ".fp16.safetensors") for pattern in LAYOUT)),
                2.82 * GB,  # unet/ alone
                "cc-by-nc-4.0",
            ),
        ),
        research=True,
    ),
    "videolcm-t2v": Source(
        kind="vgen",
        what="the paper's student, text to video",
        tasks=("text",),
        steps="4 to 6",
        licence=f"{RESEARCH} (ali-vilab/VGen)",
        official="videolcm_t2v_non_ema_544000.pth of ModelScope's iic/tf-t2v",
        parameters=1_411_256_900,
        research=True,
    ),
    "videolcm-compose": Source(
        kind="vgen",
        what="the paper's compositional student: depth, sketch, inpainting",
        tasks=("text", "depth", "sketch", "inpaint"),
        steps="2 to 6",
        licence=f"{RESEARCH} (ali-vilab/VGen)",
        official="videolcm_vcomposer_non_ema_914000.pth of ModelScope's iic/tf-t2v",
        parameters=1_416_584_436,
        research=True,
    ),
}


# ---- where a model lies


def models_folder():
    """VIDEOLCM_MODELS of the environment, models without it: where models from elsewhere lie, each in a folder of its name."""
    return Path(os.environ.get("VIDEOLCM_MODELS", "models"))


def place_of(ref):
    """The folder of a name in SOURCES or of OWNER/NAME@REVISION; None for anything else. Names of the hub become folders of safe characters."""
    if ref == "toybox":
        return ASSETS / "toybox"
    found = HUB.fullmatch(str(ref))
    if found:
        return models_folder() / f"{found['repo'].replace('/', '--')}@{found['revision'][:12]}"
    return models_folder() / ref if ref in SOURCES else None


def split(ref):
    """(model, base): "animatelcm:OWNER/NAME@REVISION" as its two halves; the base is None where there is none."""
    name, colon, base = str(ref).partition(":")
    return (name, base) if colon and name in SOURCES and SOURCES[name].kind == "animatediff" else (str(ref), None)


def missing(name):
    """The Parts of a name in SOURCES that are not here, those first that it cannot do without."""
    folder = place_of(name)
    return sorted((part for part in SOURCES[name].parts if lacks(part, folder / part.name)), key=lambda part: not part.needed)


def lacks(part, folder):
    """Whether a Part is not whole in its folder: it may have come half, and in another number format."""
    wanted = [re.sub("[^/]*[.]safetensors$", "*.safetensors", pattern) for pattern in part.files] if part.name else WHOLE
    return not all(any(folder.glob(pattern)) for pattern in wanted)


def is_here(name):
    """Whether a name in SOURCES can be loaded as it lies; a base for AnimateLCM may still be chosen."""
    source, folder = SOURCES[name], place_of(name)
    if source.kind in ("toybox", "vgen"):
        return (folder / "manifest.json").is_file()
    if source.kind == "animatediff" and not (folder / BASE[0]).is_dir():
        return False
    return not any(part.needed for part in missing(name))


def require_here(ref):
    """AppError for a name in SOURCES or on the hub that is not here: E_BY_HAND, E_OFFLINE, or E_NOT_HERE with what there is to download."""
    name, base = split(ref)
    for one in filter(None, (base, name)):
        folder = place_of(one)
        if folder is None:
            continue
        if one in SOURCES and SOURCES[one].official and not is_here(one):
            raise AppError("E_BY_HAND", given=one, file=SOURCES[one].official)
        lacking = one in SOURCES and any(part.needed for part in missing(one))
        baseless = one == name and still_to_choose(ref)
        if lacking or baseless or not folder.is_dir():
            if offline():
                raise AppError("E_OFFLINE", given=one, folder=f"models/{folder.name}")
            if baseless and not lacking:
                raise AppError("E_BASE", given=one)
            raise AppError("E_NOT_HERE", given=one, size=size_of(one), name=one if one in SOURCES else "OWNER/NAME@REVISION")


def offline():
    """Whether the environment says that nothing is to be fetched, as huggingface_hub reads it."""
    return any(os.environ.get(name, "0").upper() in ("1", "ON", "YES", "TRUE") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


# ---- what people are told


def amount(count):
    """So many bytes for people, in the largest unit of which there is one: 0 bytes, 812 kB, 34.2 MB, 2.15 GB."""
    for unit, name in ((GB, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.{2 - (count >= 10 * unit) - (count >= 100 * unit)}f} {name}"
    return f"{count:.0f} bytes"


def size_of(name):
    """What of a model is still to be downloaded, for people."""
    if name not in SOURCES:
        return "some gigabytes"
    unknown = any(part.size is None or not part.name for part in missing(name)) or SOURCES[name].kind == "animatediff"
    return f"{sum(part.size or 0 for part in missing(name)) / GB:.1f} GB{' and more' if unknown else ''}"


def licence_of(ref):
    """What has to be known before weights for research only are loaded, as a sentence; None for others. A student has that of its base."""
    seen = set()
    while isinstance(ref, (str, Path)) and ref not in seen:
        seen.add(ref)
        name = source_of(ref)
        if name:
            return f"Licence of the weights: {SOURCES[name].licence}." if SOURCES[name].research else None
        try:
            found = json.loads(((students().get(ref) or Path(ref)) / "manifest.json").read_text(encoding="utf-8"))
            if "licence" in found:
                return f"Licence of the weights: {found['licence']}."
            ref = found["base"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
    return None


def slow_here(ref):
    """What has to be known of the time that a clip takes before one of these models is loaded without a GPU, as a sentence; None for others."""
    if source_of(ref) in (None, "toybox"):
        return None
    import torch

    return None if torch.cuda.is_available() else "There is no GPU here: a clip takes minutes; after the first step you see how many."


def source_of(ref):
    """The name in SOURCES of what a ref means: that name itself, its folder, or a repository of the hub that it is made of."""
    which, _ = split(ref)
    for name, source in SOURCES.items():
        if (
            which == name
            or which.partition("@")[0] in [part.repo for part in source.parts]
            or os.path.abspath(which) == os.path.abspath(place_of(name))
        ):
            return name
    return None


def about(name):
    """A row of SOURCES in words."""
    source = SOURCES[name]
    return f"{source.what}. Tasks: {', '.join(source.tasks)}. Steps: {source.steps}. Licence: {source.licence}."


def by_hand(name):
    """Where the files of a name in SOURCES go on a machine without a network, a line each."""
    source = SOURCES[name]
    if source.official:
        return [f"{source.official}, then: python -m videolcm convert FILE --out models/{name}"]
    lines = [f"models/{name}/{part.name or '.'}: {', '.join(part.files)} of {part.repo}" for part in source.parts]
    return [f"models/{name}/{BASE[0]}: {BASE[1]}", *lines] if source.kind == "animatediff" else lines


def still_to_choose(ref):
    """What is left to say of AnimateLCM without a base, else None."""
    name, base = split(ref)
    if base or name not in SOURCES or SOURCES[name].kind != "animatediff" or (place_of(name) / BASE[0]).is_dir():
        return None
    return f"Still to choose is its base: {BASE[1]}. Use it as {name}:OWNER/NAME@REVISION, or put it into models/{name}/{BASE[0]}."


def state_of(name, free=None):
    """What a menu says of a name in SOURCES: "" where it can be used, what is to be downloaded, or that it does not fit `free` bytes."""
    source = SOURCES[name]
    if free is not None and source.memory > free:
        return f"does not fit: needs {source.memory / GB:.1f} GB at least, {free / GB:.1f} GB are free"
    if is_here(name):
        beside = [part for part in BESIDE if source.official and not (place_of(name) / part).is_dir()]
        return f"still without {', '.join(beside)} of Stable Diffusion 2.1" if beside else ""
    return "to be converted first" if source.official else f"{size_of(name)} to download"


def menu(free=None):
    """(what people read, name) of every model that a menu shows: those that have a name, then the students that were distilled here."""
    states = {name: state_of(name, free) for name in SOURCES}
    return [(f"{name} ({state})" if state else name, name) for name, state in states.items()] + [(name, name) for name in students()]
