"""A clip -> the map of it that a model follows: depth or sketch, by an extractor of the table EXTRACTORS.

In: frames uint8 (F, H, W, 3) RGB, an extractor's name, device and dtype. Out: float32 (F, H, W) in [0, 1], near = 1, line = 1, on one scale
for the whole clip, so that nothing flickers; or a generator that says on its way how far it is. The last few answers are kept. It knows nothing
about models, pages or inpainting.
"""

import hashlib
import os
import warnings
from collections import OrderedDict
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from threading import Lock
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from . import depth
from .checkpoint import read_weights
from .errors import AppError

ASSETS = Path(__file__).resolve().parents[1] / "assets"
KINDS = ("depth", "sketch")
HED_FILE, HED_SHA256 = "hed_bsds500.safetensors", "7121a055f9d396382a9d70a86f047eec55003685b3dd9f0690c1acef821fd448"
SCALE = ".scale"
PIDINET_FILE, PIDINET_REPO = "table5_pidinet.pth", "lllyasviel/Annotators"
MIDAS_UNUSED = "neck.fusion_stage.layers.0.residual_layer1."  # of the first fusion, which has nothing to fuse with: no file holds it
MIDAS = {  # extractor: (repository, its files, the variable that may name their folder)
    "midas": ("Intel/dpt-hybrid-midas", "config.json and pytorch_model.bin", "VIDEOLCM_MIDAS"),
    "dpt-large": ("Intel/dpt-large", "config.json and model.safetensors", "VIDEOLCM_DPT_LARGE"),
}
CANNY = 100, 200  # thresholds, fixed so that a clip's frames are treated alike
KEEP = 8  # maps
PART = 4  # frames at a time: between two parts a generator says how far it is, and may be closed


class Extractor(NamedTuple):
    """A row of EXTRACTORS. `ready()`: whether its weights are here; `function(frames, device, dtype)` gives the map, which `scale` then brings
    to [0, 1] where it is in units of its own."""

    kinds: tuple[str, ...]  # what its map can serve as
    what: str  # for people
    needs: str
    ready: callable
    function: callable
    scale: callable = np.asarray
    together: bool = False  # whether `function` must see the whole clip at once; else it gives each frame what it gives it alone


# ---- asking


def extract(name, frames, device=None, dtype=None, scale=None):
    """frames uint8 (F, H, W, 3) -> float32 (F, H, W) in [0, 1], read only, by EXTRACTORS[name].

    device: the processor if left out; dtype: float32 if left out; canny and as-is need neither, and pidinet and MiDaS stay in float32.
    scale: a function in place of the row's own, for networks that were trained on an extractor's values in another range.
    Asking again for the same pixels gives the same array without computing. Raises AppError E_EXTRACTOR, E_CLIP, E_WEIGHTS, E_PACKAGE,
    E_MODEL_FILE, E_CHECKPOINT.
    """
    *_, found = extracting(name, frames, device, dtype, scale)
    return found


def extracting(name, frames, device=None, dtype=None, scale=None):
    """`extract`, which may take many seconds, as a generator: yields the number of frames that are done, several times, then the map. Closing it
    cancels. AppError as there."""
    if name not in EXTRACTORS:
        raise AppError("E_EXTRACTOR", given=name, known=", ".join(EXTRACTORS))
    check_clip(frames)
    device, dtype = torch.device(device or "cpu"), dtype or torch.float32
    row, digest = EXTRACTORS[name], hashlib.sha256(np.ascontiguousarray(frames)).hexdigest()
    scale, size, parts = scale or row.scale, len(frames) if row.together else PART, []
    key = (digest, frames.shape, name, device.type, dtype, scale)
    found = MAPS.get(key)
    if found is None:
        for at in range(0, len(frames), size):
            parts.append(row.function(frames[at : at + size], device, dtype))
            yield min(at + size, len(frames))
        found = MAPS.keep(key, scale(np.concatenate(parts)))
    yield found


def known(kind):
    """{name: what it is} of the extractors that can make a map of `kind` without fetching anything, the best first."""
    return {name: row.what for name, row in EXTRACTORS.items() if kind in row.kinds and row.ready()}


def require_kind(name, kind):
    """`name`, if it is an extractor that makes maps of `kind`. AppError E_EXTRACTOR."""
    makers = [maker for maker, row in EXTRACTORS.items() if kind in row.kinds]
    if name not in makers:
        raise AppError("E_EXTRACTOR", given=name, known=", ".join(makers))
    return name


def choose(kind, frames, preferred=None):
    """The name of the extractor to use for `frames` when nobody chose: as-is for a clip that is such a map, else `preferred` if it is here,
    else the best that is."""
    check_clip(frames)
    if looks_like_map(frames, kind):
        return "as-is"
    here = [name for name in known(kind) if name != "as-is"]
    return preferred if preferred in here else next(iter(here), "builtin-depth")  # a sketch can always be made


def check_clip(frames):
    """AppError E_CLIP unless frames are uint8 (F, H, W, 3), one or more of at least 16x16."""
    shape = np.shape(frames)
    if getattr(frames, "dtype", None) != np.uint8 or len(shape) != 4 or shape[3] != 3 or not shape[0] or min(shape[1:3]) < 16:
        raise AppError("E_CLIP", given=f"{getattr(frames, 'dtype', type(frames).__name__)} {shape}")


class Maps:
    """The last KEEP answers. Two threads that ask for the same at once may both compute it."""

    def __init__(self, limit=KEEP):
        self.limit, self.lock, self.maps = limit, Lock(), OrderedDict()

    def get(self, key):
        """The map, or None."""
        with self.lock:
            if key in self.maps:
                self.maps.move_to_end(key)
            return self.maps.get(key)

    def keep(self, key, made):
        """The map as it is kept: float32, read only."""
        made = np.ascontiguousarray(made, np.float32)
        made.setflags(write=False)
        with self.lock:
            self.maps[key] = made
            while len(self.maps) > self.limit:
                self.maps.popitem(last=False)
        return made


MAPS = Maps()


def looks_like_map(frames, kind):
    """Whether a clip is a depth or sketch video already: grey all over, and for a sketch thin light lines on a dark ground.

    Film in black and white is grey too, so a depth map must also be smooth: hardly any fine detail beside its outlines.
    """
    grey = as_is(frames)  # (F, H, W)
    spread = np.ptp(frames.astype(np.int16), axis=3)  # chroma; compressed grey stays below 8
    if np.quantile(spread, 0.99) > 12 or np.ptp(grey) < 0.2:
        return False
    stroke = np.ones((min(grey.shape[1:]) // 20 + 1,) * 2)  # what is thicker is no line
    thick = np.stack([cv2.morphologyEx(picture, cv2.MORPH_OPEN, stroke) for picture in grey])
    if kind == "sketch":
        light = np.mean(grey > 0.5)
        return bool(np.median(grey) < 0.12 and np.mean(grey < 0.25) > 0.6 and light < 0.3 and np.mean(thick > 0.5) < 0.4 * light)
    detail = np.abs(grey - np.stack([cv2.medianBlur(picture, 5) for picture in grey]))
    return bool(np.quantile(detail, 0.9) < 0.012 and np.mean(thick > 0.25) > 0.05)


def per_clip(values):
    """(F, H, W) of any range -> [0, 1] by the least and the greatest value of the clip; all zeros if nothing varies."""
    values = values.astype(np.float32)
    low, span = values.min(), np.ptp(values)
    return (values - low) / span if span > 1e-6 else np.zeros_like(values)


def batches(frames, device, dtype, size):
    """float pixels 0..255 (N, 3, H, W), channels last, N <= size, on `device`."""
    for at in range(0, len(frames), size):
        pixels = torch.from_numpy(np.ascontiguousarray(frames[at : at + size])).to(device)
        yield pixels.permute(0, 3, 1, 2).to(dtype, memory_format=torch.channels_last)


def mapped(network, frames, device, dtype):
    """`network` on pixels 0..255 (N, 3, H, W) -> (N, H, W), over all frames; on a processor one by one, which suits its caches."""
    with torch.inference_mode():
        parts = [network(pixels).float().cpu() for pixels in batches(frames, device, dtype, 1 if device.type == "cpu" else PART)]
    return torch.cat(parts).numpy()


def resized(maps, size):
    """(N, h, w) -> (N, H, W), bilinear."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def no_weights(name, file, source):
    return AppError("E_WEIGHTS", given=name, file=file, source=source, folder=f"assets/{name}")


def controlnet(part):
    """The module controlnet_aux.`part`, imported late, for it is slow, and without its many warnings. AppError E_PACKAGE."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return import_module(f"controlnet_aux.{part}")
        except (ImportError, AttributeError) as error:  # AttributeError: it breaks on a mediapipe that it does not know
            raise AppError("E_PACKAGE", given="controlnet_aux") from error


# ---- sketch


@lru_cache(maxsize=2)
def hed_network(device, dtype):
    net = controlnet("hed").ControlNetHED_Apache2()
    net.load_state_dict(of_bytes(read_weights(ASSETS / "hed" / HED_FILE, HED_SHA256)))
    return net.to(device, dtype, memory_format=torch.channels_last).eval().requires_grad_(False)


def of_bytes(weights):
    """{name: tensor} with whole numbers as they are kept, and under NAME.scale what each of their outputs is multiplied by -> float32, multiplied."""
    scales = {name: weights[name + SCALE].float()[:, None, None, None] for name in weights if name + SCALE in weights}
    return {name: value.float() * scales.get(name, 1) for name, value in weights.items() if not name.endswith(SCALE)}


def hed(frames, device, dtype):
    """Holistically-nested edges (arXiv 1504.06375) as ControlNet uses them: sigmoid of the mean of five sides at the picture's size."""
    net = hed_network(device, dtype)

    def network(pixels):
        sides = [resized(side[:, 0].float(), pixels.shape[2:]) for side in net(pixels)]
        return torch.stack(sides).mean(0).sigmoid()

    return mapped(network, frames, device, dtype)


def hed_fast(frames, device, dtype):
    """The same on pictures of half the size: about a quarter of the time, fewer and thicker lines."""
    f, h, w, _ = frames.shape
    half = np.stack([cv2.resize(picture, (w // 2, h // 2), interpolation=cv2.INTER_AREA) for picture in frames])
    return resized(torch.from_numpy(hed(half, device, dtype)), (h, w)).numpy() if min(h, w) >= 32 else hed(frames, device, dtype)


@lru_cache(maxsize=2)
def pidinet_network(folder, device):
    net = controlnet("pidi.model").pidinet()
    try:
        weights = torch.load(folder / PIDINET_FILE, map_location="cpu", weights_only=True)["state_dict"]
        net.load_state_dict({name.removeprefix("module."): value for name, value in weights.items()})
    except (OSError, RuntimeError, LookupError, TypeError, AttributeError, UnpicklingError) as error:
        raise AppError("E_MODEL_FILE", folder=folder.name, given=PIDINET_FILE) from error
    return net.to(device).eval().requires_grad_(False)


def pidinet(frames, device, dtype):
    """Pixel difference edges (arXiv 2108.07009), the sketches that VideoComposer was trained on, before its simplifying network.

    Pictures are normalised as in PiDiNet's own training and VGen, which controlnet_aux leaves out. It computes in float32: its code must.
    """
    if not pidinet_ready():
        raise no_weights("pidinet", PIDINET_FILE, PIDINET_REPO)
    net = pidinet_network(ASSETS / "pidinet", device)
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return mapped(lambda pixels: net((pixels / 255 - mean) / std)[-1][:, 0], frames, device, torch.float32)


def pidinet_ready():
    return (ASSETS / "pidinet" / PIDINET_FILE).is_file()


def canny(frames, device, dtype):
    return np.stack([cv2.Canny(np.ascontiguousarray(picture), *CANNY) for picture in frames]) / np.float32(255)


# ---- depth


def midas_place(name):
    """The folder that holds the weights of a row of MIDAS: what its variable names, else the one in assets; else None."""
    folder = Path(os.environ.get(MIDAS[name][2]) or ASSETS / name)
    return folder if (folder / "config.json").is_file() else None


def midas_ready(name):
    return midas_place(name) is not None


@lru_cache(maxsize=2)
def midas_network(name, place, device):
    """transformers' DPT with the weights in the folder `place`. AppError E_WEIGHTS if they are not whole."""
    from transformers import DPTForDepthEstimation

    repo, files, _ = MIDAS[name]
    try:
        net, told = DPTForDepthEstimation.from_pretrained(place, output_loading_info=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise no_weights(name, files, repo) from error
    if any(not key.startswith(MIDAS_UNUSED) for key in told["missing_keys"]):
        raise no_weights(name, files, repo)
    return net.to(device).eval().requires_grad_(False)


def midas(frames, device, dtype, name="midas"):
    """MiDaS v3 (DPT, arXiv 2103.13413): inverse depth, in no unit, of pictures in [-1, 1], which this network reads as squares."""
    repo, files, _ = MIDAS[name]
    place = midas_place(name)
    if place is None:  # nothing is fetched for whoever asks
        raise no_weights(name, files, repo)
    net = midas_network(name, place, device)
    side = net.config.image_size

    def network(pixels):
        square = F.interpolate(pixels / 127.5 - 1, (side, side), mode="bicubic", align_corners=False, antialias=True)
        made = net(square.clamp(-1, 1)).predicted_depth[:, None]
        return F.interpolate(made, pixels.shape[2:], mode="bicubic", align_corners=False)[:, 0]

    return mapped(network, frames, device, torch.float32)


def needs(name):
    """What the row of MIDAS wants, for people."""
    return "{1} of {0}".format(*MIDAS[name])


def builtin_ready():
    return depth.entry() is not None


def builtin_depth(frames, device, dtype):
    """depth.DepthNet on the whole clip, its shorter side 256 at most; it sees all frames at once to give them one scale."""
    net = depth.depth_network(device, dtype)
    h, w = frames.shape[1:3]
    scale = min(1, 256 / min(h, w))
    size = [max(1, round(side * scale / depth.GRAIN)) * depth.GRAIN for side in (h, w)]
    with torch.inference_mode():
        pixels = torch.cat([F.interpolate(p / 127.5 - 1, size, mode="area") for p in batches(frames, device, torch.float32, 8)])
        made = net(pixels.to(dtype).transpose(0, 1)[None])[0].float()  # (F, h / 4, w / 4)
        return per_clip(resized(made, (h, w)).cpu().numpy())


# ---- either


def as_is(frames, device=None, dtype=None):
    """The mean of red, green and blue."""
    return frames.mean(3, dtype=np.float32) / 255


def always():
    return True


EXTRACTORS = {  # name: Extractor; of each kind the best first
    "midas": Extractor(("depth",), "MiDaS: depth of any scene, slow without a GPU", needs("midas"), partial(midas_ready, "midas"), midas, per_clip),
    "dpt-large": Extractor(
        ("depth",),
        "MiDaS, the large one: what VideoLCM's own depth was trained on, slower",
        needs("dpt-large"),
        partial(midas_ready, "dpt-large"),
        partial(midas, name="dpt-large"),
        per_clip,
    ),
    "builtin-depth": Extractor(
        ("depth",), "built-in depth: made for simple scenes, fast", "nothing more", builtin_ready, builtin_depth, together=True
    ),
    "hed": Extractor(("sketch",), "HED: soft outlines, as an artist would draw them", "nothing more", always, hed),
    "hed-fast": Extractor(("sketch",), "HED at half the size: fewer lines, four times as fast", "nothing more", always, hed_fast),
    "pidinet": Extractor(("sketch",), "PiDiNet: crisp outlines, as VideoComposer's", f"{PIDINET_FILE} of {PIDINET_REPO}", pidinet_ready, pidinet),
    "canny": Extractor(("sketch",), "Canny: every sharp edge, one pixel wide", "nothing more", always, canny),
    "as-is": Extractor(KINDS, "the video is a map already: use it as it is", "nothing more", always, as_is),
}
