"""What a clip follows besides its prompt: the depth, the lines or the surroundings of a hole in somebody's video.

In: a Request that holds the video at the clip's own size. Out: the maps of models.base.Conditions and pictures of them for people, by a generator
that says how far it is, and the finished clip put back around its hole. It knows nothing about networks, files or pages.
"""

from typing import NamedTuple

import numpy as np
import torch

from .conditions import EXTRACTORS, choose, extracting, per_clip, require_kind
from .masks import composite, masked_map, overlay

MAPS_OF = {"text": (), "depth": ("depth",), "sketch": ("sketch",), "inpaint": ("masked",)}  # what each task follows


class Guides(NamedTuple):
    """What a request follows."""

    maps: dict  # {name: float32 (C, F, H, W)} as Conditions has them
    shown: dict  # {name: uint8 (F, H, W, 3)} as people see them
    remarks: tuple  # sentences on how maps were found where nobody chose, and on those of another kind than the model learned


def guides_of(request, device, dtype, learned=None):
    """Yields (i, n), how many frames of all maps are looked at, then the Guides of a request; `learned` is VideoModel.learned.

    Closing it cancels. Extractors run on `device` in `dtype` and keep their last answers, so that another number of steps costs nothing.
    AppError as `extract`.
    """
    maps, shown, remarks = {}, {}, []
    names = tuple(dict.fromkeys((*MAPS_OF[request.task], *request.also)))
    for index, name in enumerate(names):
        if name == "masked":
            maps[name], shown[name] = masked_map(request.video, request.hole), overlay(request.video, request.hole)
            continue
        wanted = (learned or {}).get(name)
        chosen = extractor_of(name, request, wanted and wanted.extractor)
        scale = wanted.scale if wanted and chosen == wanted.extractor else None
        for found in extracting(chosen, request.video, device, dtype, scale):
            if isinstance(found, int):
                yield index * request.frames + found, len(names) * request.frames
        if chosen != request.extractor:
            remarks.append(f"How the {name} was found: {EXTRACTORS[chosen].what}.")
        maps[name], shown[name] = found[None], grey(per_clip(found) if scale else found)
        if wanted and not (wanted.exact and chosen == wanted.extractor):
            remarks.append(f"This model learned {name} from {wanted.what}; here it is {chosen}'s, and may be followed less well.")
    yield Guides(maps, shown, tuple(remarks))


def extractor_of(name, request, preferred=None):
    """The extractor that the request asks for where `name` is its task's own map, else `preferred` if it is here, else the best that is.
    AppError E_EXTRACTOR for one that makes no such map."""
    if not request.extractor or name != request.task:
        return choose(name, request.video, preferred)
    return require_kind(request.extractor, name)


def grey(values):
    """(F, H, W) in [0, 1] -> uint8 (F, H, W, 3)."""
    return np.repeat((values * 255 + 0.5).astype(np.uint8)[..., None], 3, -1)


def following(cond, maps, device):
    """`cond` of one clip with `maps` (C, F, H, W), on `device`."""
    return cond.with_maps({name: torch.from_numpy(np.array(value, order="C"))[None].to(device) for name, value in maps.items()})


def steered(denoise, strength):
    """`denoise` that follows its maps so strongly: 0 not at all, 1 as it was trained, 2 twice as far from what it would do without them.

    Guidance on the maps, as Eq. 5 is on the text: x0 = x0_free + strength (x0_maps - x0_free); a second call unless strength is 0 or 1.
    """

    def steer(x_t, t, cond):
        if strength == 0:
            return denoise(x_t, t, cond.with_maps({}))
        x0 = denoise(x_t, t, cond)
        if strength == 1:
            return x0
        free = denoise(x_t, t, cond.with_maps({}))
        return free + strength * (x0 - free)

    return steer


def put_back(request, frames):
    """The clip as it goes out: for inpainting the video outside the hole, bit for bit, and what was made inside it."""
    return composite(request.video, frames, request.hole) if request.task == "inpaint" else frames
