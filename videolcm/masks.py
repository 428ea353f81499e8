"""Inpainting: which part of a clip is replaced, and how what was made is put back into it.

In: frames uint8 (F, H, W, 3) and a box, a mask or a painted layer. Out: `hole`, float32 (F, H, W) in [0, 1], 1 = replaced; the masked picture that
models read; the finished clip, equal to the input outside the hole. It knows nothing about models or pages.
"""

import cv2
import numpy as np

from .errors import AppError

PROPORTIONS = 1.05  # how much the sides' ratio of a mask may differ from the clip's
RIM = 12  # pixels around a hole from which its colours are matched
FAR = 0.01  # weight of the ring's mean against what is near
CORE = 4  # pixels inside an outline, where the flow is that of the inside
POINTS = 30, 2000  # of a hole that its motion is read from: at least, about at most
TINT = np.array((255, 60, 90), np.float32)


# ---- a hole


def from_box(box, shape):
    """A box of fractions (x0, y0, x1, y1) of the picture -> hole of `shape` (F, H, W). AppError E_BOX, E_MASK_EMPTY, E_MASK_FULL."""
    try:
        x0, y0, x1, y1 = (float(value) for value in box)
    except (TypeError, ValueError):
        raise AppError("E_BOX", given=box) from None
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise AppError("E_BOX", given=box)
    frames, h, w = shape
    hole = np.zeros((h, w), bool)
    hole[round(y0 * h) : round(y1 * h), round(x0 * w) : round(x1 * w)] = True
    return still(hole, frames)


def from_mask(mask, shape):
    """A mask -> hole of `shape` (F, H, W), 0 or 1; what is lighter than middle grey is replaced.

    mask: a picture (h, w) or a video (F, h, w), of bool, of integers to 255 or of floats to 1; with three colours more (..., 3), their mean
    counts; with four (..., 4), a painted layer, everything painted counts. Another size of about the same proportions is resized.
    Raises AppError E_MASK_SHAPE, E_MASK_EMPTY, E_MASK_FULL.
    """
    marked = marks(np.asarray(mask))
    frames, h, w = shape
    wrong = misfit(np.shape(mask), shape)
    if marked.ndim not in (2, 3) or not marked.size or (marked.ndim == 3 and len(marked) not in (1, frames)):
        raise wrong
    stretch = marked.shape[-1] / marked.shape[-2] * h / w
    if not 1 / PROPORTIONS < stretch < PROPORTIONS:
        raise wrong
    pictures = [cv2.resize(picture, (w, h), interpolation=cv2.INTER_NEAREST) for picture in marked.reshape(-1, *marked.shape[-2:])]
    return still(pictures[0] > 0, frames) if len(pictures) == 1 else checked(np.stack(pictures))


def marks(mask):
    """A mask of any kind -> what it marks, uint8 0 or 1, (h, w) or (F, h, w)."""
    painted = mask.ndim > 2 and mask.shape[-1] == 4
    if painted:
        return (mask[..., 3] > 0).astype(np.uint8)
    levels = mask.mean(-1) if mask.ndim > 2 and mask.shape[-1] == 3 else mask
    return (levels > (127 if mask.dtype.kind in "iu" else 0.5)).astype(np.uint8)


def still(picture, frames):
    """One picture (H, W) of what is replaced, for every frame."""
    return checked(np.repeat(picture[None], frames, 0))


def checked(hole):
    """A hole as float32. AppError E_MASK_EMPTY if nothing is in it, E_MASK_FULL if nothing is left out."""
    if not np.any(hole):
        raise AppError("E_MASK_EMPTY")
    if np.all(hole):
        raise AppError("E_MASK_FULL")
    return hole.astype(np.float32)


# ---- moving with the picture


def follow(hole0, frames):
    """The hole of the first frame (H, W), carried along with what it covers -> hole (F, H, W), 0 or 1. AppError E_MASK_EMPTY, E_MASK_FULL.

    From frame to frame the optical flow (DIS, arXiv 1603.03590) inside the hole tells how most of it shifts, turns and grows. The steps add
    up, and the first mask is warped by their sum: it keeps its shape, where warping pixel by pixel smears it over what it uncovers.
    """
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY) for picture in frames]
    first = (np.asarray(hole0) > 0.5).astype(np.float32)
    sum_of_steps, step, holes = np.eye(3), np.eye(3), [first]
    for now, then in zip(grey, grey[1:], strict=False):
        if 2 * holes[-1].sum() > first.sum() * np.linalg.det(sum_of_steps):  # else it is leaving the picture: it goes on as it went
            step = step_of(holes[-1], flow.calc(now, then, None), step)
        sum_of_steps = step @ sum_of_steps
        warped = cv2.warpAffine(first, sum_of_steps[:2], first.shape[::-1], flags=cv2.INTER_LINEAR)
        holes.append((warped > 0.5).astype(np.float32))
    return checked(np.stack(holes))


def step_of(hole, flow, before):
    """The similarity (3, 3) that most of a hole (H, W) moves by under a flow (H, W, 2); the step before where the hole is too small to tell."""
    inside = cv2.erode(hole, disk(CORE), borderValue=1)  # at an outline the flow mixes two motions
    y, x = np.nonzero(inside if inside.sum() >= POINTS[0] else hole)
    if len(x) < POINTS[0]:
        return before
    chosen = slice(None, None, len(x) // POINTS[1] + 1)
    here = np.stack([x[chosen], y[chosen]], 1).astype(np.float32)
    found, _ = cv2.estimateAffinePartial2D(here, here + flow[y[chosen], x[chosen]], method=cv2.RANSAC, ransacReprojThreshold=0.7)
    return before if found is None else np.concatenate([found, [[0, 0, 1]]])


def disk(radius):
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


# ---- its outline


def grow(hole, pixels):
    """The hole (F, H, W), larger by so many pixels on every side. AppError E_MASK_FULL if nothing is left out then."""
    return checked(np.stack([cv2.dilate(picture, disk(int(pixels))) for picture in hole]))


def feather(hole, pixels):
    """The hole (F, H, W) with a soft outline: 1 where it was, falling to 0 within so many pixels outside."""
    return np.stack([soft(picture, pixels) for picture in hole])


def soft(picture, pixels):
    """One picture of a hole (H, W) feathered: half a cosine of the distance."""
    if not picture.any():
        return picture
    distance = cv2.distanceTransform((picture < 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    return 0.5 + 0.5 * np.cos(np.pi * np.clip(distance / (pixels + 1), 0, 1))


# ---- with a clip


def overlay(frames, hole):
    """Frames with the hole tinted and outlined, uint8 (F, H, W, 3): what is going to be replaced. AppError E_MASK_SHAPE."""
    fitting(frames, hole)
    line = np.stack([cv2.morphologyEx((picture > 0.5).astype(np.float32), cv2.MORPH_GRADIENT, disk(1)) for picture in hole])
    share = np.maximum(0.5 * hole, line)[..., None]
    return (frames + share * (TINT - frames) + 0.5).astype(np.uint8)


def masked_map(frames, hole):
    """(4, F, H, W) float32: the picture in [-1, 1] with the hole at 0, then 1 where it is kept (VGen's layout). AppError E_MASK_SHAPE."""
    fitting(frames, hole)
    kept = 1 - hole.astype(np.float32)[None]
    pixels = frames.transpose(3, 0, 1, 2).astype(np.float32) / 127.5 - 1
    return np.concatenate([pixels * kept, kept])


def composite(frames, made, hole):
    """What was made, put into the clip: uint8 (F, H, W, 3). AppError E_MASK_SHAPE.

    Where hole is 0 it is `frames`, bit for bit; where it is 1, `made` with its colours shifted to meet those of `frames` around the
    hole; between, a blend. Where nothing was kept around the hole, nothing is shifted.
    """
    fitting(frames, hole), fitting(made, hole)
    return np.stack([put_in(*pictures) for pictures in zip(frames, made, hole, strict=True)])


def put_in(frame, made, hole):
    """One frame of `composite`: frame and made (H, W, 3), hole (H, W)."""
    matched = np.clip(made + colour_shift(frame, made, hole), 0, 255)
    blend = frame + hole[..., None] * (matched - frame)
    return np.where(hole[..., None] > 0, np.rint(blend), frame).astype(np.uint8)


def colour_shift(frame, made, hole):
    """(H, W, 3): what `made` lacks to `frame`, seen on a ring around the hole, spread smoothly over the picture; far from the ring, its mean."""
    distance = cv2.distanceTransform((hole < 0.5).astype(np.uint8), cv2.DIST_L2, 3)
    ring = ((distance > 0) & (distance <= RIM)).astype(np.float32)
    if not ring.any():
        return np.zeros((1, 1, 3), np.float32)
    lack = np.dstack([(frame.astype(np.float32) - made) * ring[..., None], ring])  # (H, W, 4): the sum and its weight
    mean = lack[..., :3].sum((0, 1)) / ring.sum()
    few = cv2.resize(lack, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)  # it is smooth: a quarter of the size will do
    few = cv2.GaussianBlur(few, (0, 0), RIM / 4)
    few = (few[..., :3] + FAR * mean) / (few[..., 3:] + FAR)
    return cv2.resize(few, hole.shape[::-1], interpolation=cv2.INTER_LINEAR)


def fitting(frames, hole):
    """AppError E_MASK_SHAPE unless a hole (F, H, W) has the frames' length and size."""
    if np.ndim(hole) != 3 or np.shape(frames) != (*np.shape(hole), 3):
        raise misfit(np.shape(hole), np.shape(frames)[:3])


def misfit(given, needs):
    return AppError("E_MASK_SHAPE", given=" x ".join(map(str, given)), needs=" x ".join(map(str, needs)))
