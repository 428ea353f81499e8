"""Clips for training: rendered once into shards on disk, read back as arrays, and as cached latents with their condition maps.

In: seeds of Toybox. Out: safetensors shards of frames and maps, and the latents and Conditions of a batch. The caption and the attributes
of a clip are not stored: its seed gives them again. It knows nothing about networks (it is given callables) or losses.
"""

from concurrent.futures import ProcessPoolExecutor
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from .checkpoint import write_atomic
from .models.base import Conditions
from .world import describe, free_sample, plot, sample

CLIPS_PER_SHARD = 50
MAP_SIZE = 64  # condition maps are kept at a quarter of the clip's size
TRAIN_SEEDS = {"plain": 1_000_000, "free": 2_000_000}  # first seed of each kind; below them lie the held-out ones
KINDS = {"plain": sample, "free": free_sample}
FREE_SHARE = 0.25  # of a batch: more of them made nothing better (training log)
TWO_SHARE = 0.5  # of its plain scenes have two toys, which are harder: more than the world has of them
TEACHING = ("latents", "depth", "edges", "ids", "rgb")  # what denoisers are taught from


def shard_path(folder, kind, index):
    return Path(folder) / f"{kind}-{index:05d}.safetensors"


def render_shards(folder, shards, workers=2):
    """Renders the missing ones of `shards`, pairs (kind, index), into `folder`; yields each pair as it is done."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    missing = [shard for shard in shards if not shard_path(folder, *shard).exists()]
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(render_shard, [folder] * len(missing), *zip(*missing, strict=True)) if missing else ()


def render_shard(folder, kind, index):
    """One shard: frames (N, 16, 256, 256, 3), depth, edges and ids (N, 16, 64, 64), all uint8; the clip's seed is first + its number.

    AppError E_DISK.
    """
    first = TRAIN_SEEDS[kind] + index * CLIPS_PER_SHARD
    rows = [stored(KINDS[kind](seed).render()) for seed in range(first, first + CLIPS_PER_SHARD)]
    path = shard_path(folder, kind, index)
    write_atomic(path, partial(save_file, {name: np.stack([row[name] for row in rows]) for name in rows[0]}))
    return kind, index


def stored(clip):
    """A Clip -> the arrays that a shard keeps of it."""
    return {
        "frames": clip.frames,
        "depth": small(disparity(clip.depth)),
        "edges": small(clip.edges / 255),
        "ids": small((clip.ids >= 0).astype(np.float32)),
    }


def disparity(depth):
    """Depth in metres (F, H, W), inf in the sky -> inverse depth over the whole clip in [0, 1], near = 1 (what MiDaS predicts, normalised)."""
    inverse = 1 / depth
    low, high = inverse.min(), inverse.max()
    return (inverse - low) / max(high - low, 1e-6)


def small(maps):
    """(F, H, W) in [0, 1] -> (F, 64, 64) uint8 by the mean of each cell."""
    f, h, w = maps.shape
    cells = maps.reshape(f, MAP_SIZE, h // MAP_SIZE, MAP_SIZE, w // MAP_SIZE)
    return (cells.mean((2, 4)) * 255 + 0.5).astype(np.uint8)


def frames_of(folder, **shards):
    """Frames (N, 16, 256, 256, 3) and ids (N, 16, 64, 64) of the first so many shards of each kind."""
    rows = [load_file(shard_path(folder, kind, index)) for kind, count in shards.items() for index in range(count)]
    return np.concatenate([row["frames"] for row in rows]), np.concatenate([row["ids"] for row in rows])


# ---- latents: what the denoiser and the judge are trained on


def latent_path(folder, kind, index):
    return Path(folder) / f"latents-{kind}-{index:05d}.safetensors"


def cache_latents(folder, encode, into=None):
    """Encodes every rendered shard in `folder` that has no latents yet in `into` (the same folder, if None); yields the path of each.

    `encode`: pixels (1, 3, F, H, W) -> latents.
    """
    into = Path(into or folder)
    into.mkdir(parents=True, exist_ok=True)
    for path in sorted(Path(folder).glob("*-[0-9][0-9][0-9][0-9][0-9].safetensors")):
        if path.name.startswith("latents-"):
            continue
        kind, index = path.stem.rsplit("-", 1)
        if not latent_path(into, kind, int(index)).exists():
            cache_shard(path, latent_path(into, kind, int(index)), encode)
            yield path


def cache_shard(path, target, encode):
    """The latents of the shard at `path`, and what else of it training wants. AppError E_DISK."""
    rows, kept = load_file(path), {}
    pixels = torch.from_numpy(rows["frames"]).permute(0, 4, 1, 2, 3)  # (N, 3, F, H, W) uint8
    latents = torch.cat([encode(clip[None].float() / 127.5 - 1).cpu() for clip in pixels])  # (N, 48, 4, 16, 16)
    kept["latents"] = latents.half().contiguous().numpy()  # safetensors writes memory as it lies
    kept["rgb"] = shrunk(rows["frames"], 4)  # (N, 16, 64, 64, 3): what surrounds a hole
    kept["look"] = shrunk(rows["frames"][:, ::2], 2)  # (N, 8, 128, 128, 3): what the judge sees
    kept |= {name: rows[name] for name in ("depth", "edges", "ids")}
    write_atomic(target, partial(save_file, kept))


def shrunk(frames, factor):
    """(..., H, W, 3) uint8 at a fraction of the size, by the mean of each cell."""
    *lead, h, w, c = frames.shape
    cells = frames.reshape(*lead, h // factor, factor, w // factor, factor, c)
    total = sum(cells[..., i, :, j, :].astype(np.uint16) for i in range(factor) for j in range(factor))
    return ((total + factor**2 // 2) // factor**2).astype(np.uint8)


class Clips:
    """The cached shards of `kinds` in memory: one tensor (N, ...) a name, and what each clip shows. {kind: count} takes the first so many alone."""

    def __init__(self, folder, kinds, names):
        counts = kinds if isinstance(kinds, dict) else dict.fromkeys(kinds)
        paths = [path for kind, count in counts.items() for path in sorted(Path(folder).glob(f"latents-{kind}-*.safetensors"))[:count]]
        parts = [read_only(path, names) for path in paths]
        self.arrays = {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in names}
        self.plots = []
        for path, rows in zip(paths, parts, strict=True):
            kind, index = path.stem.removeprefix("latents-").rsplit("-", 1)
            first = TRAIN_SEEDS[kind] + int(index) * CLIPS_PER_SHARD
            tell = plot if kind == "plain" else free_sample
            self.plots += [tell(first + i) for i in range(len(rows[names[0]]))]

    def __len__(self):
        return len(self.plots)

    @cached_property
    def free(self):
        """[bool] * N: clips that are only shown together with a map, which says where their camera is."""
        return [hasattr(told, "scene") for told in self.plots]

    @cached_property
    def kinds(self):
        """int64 (N,): 0 for a plain scene with one toy, 1 with two, 2 for a free one."""
        return torch.tensor([2 if free else len(told.toys) - 1 for told, free in zip(self.plots, self.free, strict=True)])

    def draw(self, count, g, free=True):
        """Indices (count,) of a batch, in any order: scenes of every kind in its share, of those that are there; free ones where they are wanted."""
        shares = torch.tensor([(1 - FREE_SHARE) * (1 - TWO_SHARE), (1 - FREE_SHARE) * TWO_SHARE, FREE_SHARE if free else 0.0])
        chances = (shares / (self.kinds[:, None] == torch.arange(3)).sum(0))[self.kinds]
        return torch.multinomial(chances, count, replacement=True, generator=g)

    def caption(self, index, rng):
        """New words for clip `index`; `rng` is numpy's."""
        told = self.plots[index]
        return describe(rng, told.toys, told.floor, told.sky)[0] if not hasattr(told, "scene") else told.caption


def read_only(path, names):
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in names}


# ---- conditions of a training batch


MAPS = ("depth", "sketch", "masked")
ALL = slice(None)


def conditions(clips, chosen, encode_text, g, rng, drop_text=0.1, drop_maps=0.4, kept=MAPS, part=ALL):
    """The Conditions of a batch, text dropped in `drop_text` of it, all maps in `drop_maps`, else each with a chance of half; none but `kept`.

    encode_text: prompts -> context. A free scene has a map always. `part` is the slice of the batch that is made; what is drawn depends neither
    on it nor on what is kept.
    """
    count, free = len(chosen), torch.tensor(clips.free, dtype=torch.bool)[chosen]
    captions = [clips.caption(int(i), rng) if rng.random() >= drop_text else "" for i in chosen]
    any_map = torch.rand(count, 1, generator=g) > drop_maps
    keep = (torch.rand(count, 3, generator=g) < 0.5) & (any_map | free[:, None])
    shown = {name: keep[:, i] for i, name in enumerate(MAPS) if name in kept}
    for name in shown:
        shown[name] = shown[name] | (free & (sum(shown.values()) == 0))
    maps = {
        "depth": bent(clips.arrays["depth"][chosen], g, 0.8, 1.25, part),
        "sketch": drawn(bent(clips.arrays["edges"][chosen], g, 0.6, 1.6, part), g, count, part),
        "masked": masked_picture(clips.arrays["rgb"][chosen], clips.arrays["ids"][chosen], rng, part),
    }
    for name in maps:
        maps[name] = torch.where(shown[name][part, None, None, None, None], maps[name], -1.0) if name in kept else None
    with torch.no_grad():
        return Conditions(encode_text(captions[part]), **maps)


def bent(maps, g, low, high, part=ALL):
    """uint8 maps (B, F, h, w) -> (B, 1, F, h, w) in [0, 1], each bent by a power of its own: no map of a real clip is exact."""
    power = low + (high - low) * torch.rand(len(maps), 1, 1, 1, 1, generator=g)
    return (maps[part, None].float() / 255) ** power[part]


def drawn(edges, g, count=None, part=ALL):
    """Exact outlines (B, 1, F, h, w) as extractors draw them: some thicker, some thick and soft. They are `part` of a batch of `count`."""
    thick = F.max_pool3d(edges, (1, 3, 3), 1, (0, 1, 1))
    soft = F.avg_pool3d(thick, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    kind = torch.randint(3, (count or len(edges), 1, 1, 1, 1), generator=g)[part]
    return torch.where(kind == 0, edges, torch.where(kind == 1, thick, soft))


def masked_picture(rgb, ids, rng, part=ALL):
    """(B, 4, F, h, w): the picture in [-1, 1] with a hole at 0, and 1 where it is kept. Holes: around the objects, or one or two boxes."""
    pixels = rgb[part].permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    kept = torch.ones(len(rgb), 1, *rgb.shape[1:4])
    for i, clip in enumerate(ids):
        boxes = [object_box(clip, rng)] if rng.random() < 0.6 and clip.any() else [random_box(rng, clip.shape[-1]) for _ in range(rng.integers(1, 3))]
        for y0, y1, x0, x1 in boxes:
            kept[i, :, :, y0:y1, x0:x1] = 0
    return torch.cat([pixels * kept[part], kept[part]], 1)


def object_weight(ids, size, more):
    """ids uint8 (B, F, H, W) -> weights (B, 1, *size) of the places of latents: 1, and `more` in and around objects, then all of them divided by
    their mean over the batch, so that this is 1. `size` is (f, h, w)."""
    seen = F.adaptive_max_pool3d(ids[:, None].float() / 255, tuple(size))
    weight = 1 + more * F.max_pool3d(seen, (1, 3, 3), 1, (0, 1, 1))
    return weight / weight.mean()


def object_box(ids, rng):
    """The box (y0, y1, x0, x1) that holds every object in every frame, with a random margin."""
    seen = ids.amax(0)
    rows, columns = seen.amax(1).nonzero()[:, 0], seen.amax(0).nonzero()[:, 0]
    m = rng.integers(0, 9, 4)
    size = seen.shape[0]
    return max(0, int(rows[0]) - m[0]), min(size, int(rows[-1]) + 1 + m[1]), max(0, int(columns[0]) - m[2]), min(size, int(columns[-1]) + 1 + m[3])


def random_box(rng, size):
    h, w = rng.integers(size // 6, size * 3 // 4, 2)
    y, x = rng.integers(0, size - h), rng.integers(0, size - w)
    return y, y + h, x, x + w
