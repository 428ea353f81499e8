"""A user's own clips -> what `data.Clips` is for the rendered ones: latents, condition maps and captions that distilling draws batches from.

In: a folder as own_files reads it, the teacher whose encoder makes the latents, and the conditions that are learned. Out: OwnClips. Each file is
decoded by footage.read_video alone, once: what is made of it is kept in a cache under the sha256 of its content. A bad file is named and skipped.
It knows nothing about losses, jobs or pages.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from . import depth
from .checkpoint import write_atomic, write_json
from .conditions import choose, extract, known
from .data import MAP_SIZE, shrunk, small
from .errors import AppError
from .footage import read_video
from .own_files import samples

FRAMES, SIZE = 16, (256, 256)
PICTURES = 0.25  # of a batch; Sec. 4.1: one GPU of four trains on images
ARRAYS = {"depth": "depth", "sketch": "edges"}  # condition: the array that its map lies in
SHAPES = {"depth": (FRAMES, MAP_SIZE, MAP_SIZE), "edges": (FRAMES, MAP_SIZE, MAP_SIZE), "ids": (FRAMES, MAP_SIZE, MAP_SIZE)}
SHAPES["rgb"] = (FRAMES, MAP_SIZE, MAP_SIZE, 3)
SKIPPED = ("E_INPUT", "E_VIDEO", "E_SHARD")  # how the codes begin that say something of one file; others stop everything
LISTED = "clips.json"  # in a run's folder: what it is trained on


@dataclass(frozen=True, eq=False)
class Row:
    """One clip: the sha256 of its file, its caption, whether nothing moves, and its arrays without the leading N of OwnClips."""

    content: str
    caption: str
    still: bool
    arrays: dict

    @property
    def key(self):
        return [self.content, self.caption]


class OwnClips:
    """Rows in memory, with the face of `data.Clips`. A picture is a clip in which nothing moves.

    arrays: latents (N, C, f, h, w) float16; depth, edges, ids (N, 16, 64, 64) and rgb (N, 16, 64, 64, 3) uint8, zeros for what is not there.
    `images` is the share of a batch that pictures have where there are both kinds; `skipped` are lines on files that could not be used.
    """

    def __init__(self, rows, images=None, skipped=()):
        self.rows, self.images, self.skipped = rows, PICTURES if images is None else images, skipped
        self.arrays = {name: torch.zeros(shape, dtype=torch.uint8).expand(len(rows), *shape) for name, shape in SHAPES.items()}
        self.arrays |= {name: torch.stack([row.arrays[name] for row in rows]) for name in rows[0].arrays}
        still = torch.tensor([row.still for row in rows])
        self.free = [False] * len(rows)
        self.kinds = [kind.nonzero()[:, 0] for kind in (still, ~still)]  # pictures, videos

    def __len__(self):
        return len(self.rows)

    def caption(self, index, rng):
        return self.rows[index].caption

    def draw(self, count, g, free=True):
        """Indices (count,) of a batch: pictures and videos in their shares, in any order. A fraction of a picture is drawn."""
        pictures, videos = self.kinds
        share = self.images if len(pictures) and len(videos) else float(len(pictures) > 0)
        first = int(count * share + torch.rand((), generator=g).item())
        parts = zip(self.kinds, (first, count - first), strict=True)
        chosen = torch.cat([kind[torch.randint(max(1, len(kind)), (n,), generator=g)] for kind, n in parts])
        return chosen[torch.randperm(count, generator=g)]  # the first of a batch are noised otherwise than the rest

    def only(self, keys):
        """The clips with these `keys` of theirs, in this order. AppError E_CLIPS_CHANGED if one is missing."""
        mine = {tuple(row.key): row for row in self.rows}
        if not all(tuple(key) in mine for key in keys):
            raise AppError("E_CLIPS_CHANGED")
        return OwnClips([mine[tuple(key)] for key in keys], self.images, self.skipped)


def own_clips(folder, teacher, cache_folder, report, conditions=("text",), images=None):
    """The clips that lie in `folder`, read or taken from the cache; `report(line)` hears of each file.

    AppError E_DATA where there is nothing, E_CLIPS where nothing can be used; E_DISK, E_TEMPORARY, E_FFMPEG, and as `extract`.
    """
    maker, rows, skipped = Maker(teacher, Path(cache_folder), conditions), [], []
    for sample in samples(folder):
        try:
            rows.append(maker.row(sample))
        except AppError as error:
            if not error.code.startswith(SKIPPED):
                raise
            skipped.append(f"{sample.name}: {error.message}")
            report(f"skipped {skipped[-1]}")
        else:
            report(f"read {sample.name}: {sample.caption}")
    if not rows:
        raise AppError("E_CLIPS", count=len(skipped), given=Path(folder).name) if skipped else AppError("E_DATA", given=Path(folder).name)
    return OwnClips(rows, images, tuple(skipped))


def begun_with(clips, out, resume):
    """`clips`, listed in the run folder `out` when it starts; when it goes on those of the list, whatever else lies in their folder by now.

    AppError E_CLIPS_CHANGED if one of them, or its caption, is no longer there.
    """
    path = Path(out) / LISTED
    if resume and path.exists():
        return clips.only(json.loads(path.read_text(encoding="utf-8")))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, [row.key for row in clips.rows])
    return clips


def followed(conditions, report):
    """Those of `conditions` that can be had of own clips; `report(line)` hears which maps no extractor here makes. AppError E_CONDITIONS if all."""
    missing = [kind for kind in conditions if kind in ARRAYS and best(kind) is None]
    if len(missing) == len(conditions):
        possible = [kind for kind in ("text", *ARRAYS, "masked") if kind not in missing]
        raise AppError("E_CONDITIONS", known=", ".join(possible), given=",".join(conditions))
    for kind in missing:
        report(f"{kind} is left out: no extractor that makes it of own clips is here")
    return tuple(kind for kind in conditions if kind not in missing)


def best(kind):
    """The extractor for clips that are no map themselves, None where there is none."""
    return next((name for name in known(kind) if name != "as-is"), None)


# ---- one clip


class Maker:
    """Makes Rows with the teacher's encoder and the extractors that `conditions` want; what is in the cache `folder` is not made again."""

    def __init__(self, teacher, folder, conditions):
        self.teacher, self.folder, self.masked = teacher, folder, "masked" in conditions
        self.fps = teacher.info.fps
        self.parts = {digest("latents", encoder_of(teacher), self.fps): self.encoded}
        for kind in ARRAYS:
            if kind in conditions:
                self.parts[digest(kind, extractor_of(kind), self.fps)] = partial(self.mapped, kind)

    def row(self, sample):
        """The Row of a Sample. AppError as its `load`, read_video and `extract`."""
        data = sample.load()
        content, frames, arrays = hashlib.sha256(data).hexdigest(), cache(lambda: self.frames(data)), {}
        for key, make in self.parts.items():
            arrays |= cached(self.folder / f"{content}-{key}.safetensors", make, frames)
        still = bool((arrays["rgb"] == arrays["rgb"][:1]).all())
        return Row(content, sample.caption, still, arrays if self.masked else {k: v for k, v in arrays.items() if k != "rgb"})

    def frames(self, data):
        """The bytes of a file -> frames uint8 (16, 256, 256, 3); a picture is repeated. AppError as read_video."""
        try:
            with TemporaryDirectory(prefix="videolcm-") as folder:
                path = Path(folder, "clip")
                path.write_bytes(data)
                return read_video(path, FRAMES, self.fps, SIZE).frames
        except OSError as error:
            raise AppError("E_TEMPORARY") from error

    def encoded(self, frames):
        """Latents (C, f, h, w) float16, and rgb (16, 64, 64, 3) uint8: what surrounds a hole."""
        pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1  # (1, 3, F, H, W)
        return {"latents": self.teacher.encode(pixels)[0].half().cpu().contiguous(), "rgb": torch.from_numpy(shrunk(frames, SIZE[0] // MAP_SIZE))}

    def mapped(self, kind, frames):
        """The map (16, 64, 64) uint8 of a kind; a clip that is such a map is taken as it is."""
        found = extract(choose(kind, frames), frames, self.teacher.device)  # (F, H, W) in [0, 1]
        return {ARRAYS[kind]: torch.from_numpy(np.ascontiguousarray(small(found)))}


def cached(path, make, frames):
    """The tensors in the file at `path`; where there are none to be read, what `make(frames())` gives is put there first. AppError E_DISK."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        made = make(frames())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda temporary: save_file(made, temporary))
        return made


def digest(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def encoder_of(teacher):
    """What tells the teacher's latents from another model's: a sha256 of the autoencoder's weights as they compute, 64 hex digits."""
    if teacher.autoencoder is None:
        return teacher.info.sha256
    found = hashlib.sha256()
    for name, value in sorted(teacher.autoencoder.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def extractor_of(kind):
    """The same for the maps of a kind: the extractor's name, and which weights the built-in one has."""
    name = best(kind)
    return name, (depth.entry() or {}).get("sha256") if name == "builtin-depth" else None
