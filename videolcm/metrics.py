"""What can be measured on a clip: how it moves, how steady it is, how near it is to another one, and how well it obeys a control map.

In: frames uint8 (F, H, W, 3), flows (F-1, H, W, 2), maps (F, H, W), or features (N, D). Out: plain floats that JSON can hold, never NaN or
infinite; None where a figure has no meaning. It knows nothing about models, samplers, extractors or pages.
"""

import cv2
import numpy as np
import torch
from torch import nn

from .judge import look

IDENTICAL = 100.0  # dB: what psnr gives for equal clips, whose true value is infinite
STILL = 0.05  # pixels per frame: a reference that moves less has no motion to lose
LOST = 0.6  # of the reference's motion: below it people see that something is missing


# ---- one clip


def optical_flow(frames):
    """How far every pixel goes from one frame to the next: float32 (F-1, H, W, 2), x and y in pixels (OpenCV's DIS flow)."""
    greys = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # FAST is four times as quick and ten times less exact
    return np.stack([finder.calc(before, after, None) for before, after in zip(greys, greys[1:], strict=False)])


def motion(flow):
    """Mean length of a flow (F-1, H, W, 2): pixels per frame, 0 for a still clip. It counts the whole picture, ground and sky too."""
    return float(np.linalg.norm(flow, axis=-1).mean())


def flicker(frames, flow):
    """Temporal consistency: how much a pixel changes on its way to the next frame, in levels of 255; 0 is perfectly steady.

    The next frame is brought back along the flow and compared where it is not hidden (Lai et al., arXiv 1808.00449, Sec. 4.2). Read it beside
    `motion`: a clip in which nothing moves is steady too.
    """
    reverse = optical_flow(frames[::-1])[::-1]  # (F-1, H, W, 2), from each frame to the one before
    return float(np.mean([changed(*pair) for pair in zip(frames, frames[1:], flow, reverse, strict=False)]))


def changed(before, after, flow, reverse):
    """Mean |before - after brought back| over pixels whose way there and back agrees (Ruder et al., arXiv 1604.08610, Eq. 6)."""
    there_and_back = flow + warped(reverse, flow)
    length = (flow**2).sum(-1) + (reverse**2).sum(-1)
    seen = (there_and_back**2).sum(-1) <= 0.01 * length + 0.5  # (H, W)
    difference = np.abs(before.astype(np.float32) - warped(after.astype(np.float32), flow))
    return difference[seen].mean() if seen.any() else 0.0


def warped(picture, flow):
    """`picture` (H, W, C) read where the flow (H, W, 2) points."""
    y, x = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float32)
    return cv2.remap(picture, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


# ---- beside another clip


def motion_ratio(own, reference):
    """The share of the reference's motion that a clip has, both as `motion` has it; None where the reference hardly moves."""
    return own / reference if reference > STILL else None


def motion_warning(ratio):
    """A friendly sentence if a clip has lost motion to its reference, else None; `ratio` as `motion_ratio` has it."""
    if ratio is None or ratio >= LOST:
        return None
    return f"This step count loses motion: the clip moves {ratio:.0%} as much as the reference. More steps bring some of it back."


def psnr(frames, reference):
    """Peak signal-to-noise ratio in dB of two uint8 arrays of one shape; IDENTICAL where they are equal, or all but."""
    error = np.mean((frames.astype(np.float32) - reference.astype(np.float32)) ** 2, dtype=np.float64)
    return IDENTICAL if error == 0 else min(IDENTICAL, float(10 * np.log10(255**2 / error)))


def psnr_outside(frames, reference, mask):
    """`psnr` where mask (F, H, W) is False: what inpainting should have kept. None if it kept nothing."""
    kept = ~mask.astype(bool)
    return psnr(frames[kept], reference[kept]) if kept.any() else None


@torch.no_grad()
def feature_distance(net, frames, reference):
    """How differently a judge sees two clips, uint8 (F, H, W, 3): 0 for the same, at most 4.

    LPIPS (Zhang et al., arXiv 1801.03924, Eq. 1) on the judge's convolutions, without learned weights: features are normalised over channels,
    their squared differences summed over channels, then averaged over places, frames and layers.
    """
    layers = zip(convolved(net, frames), convolved(net, reference), strict=True)
    return float(np.mean([(unit(a) - unit(b)).square().sum(1).mean().item() for a, b in layers]))


def convolved(net, frames):
    """What every convolution of a judge makes of a clip: a list of (frames, C, h, w)."""
    found, hooks = [], []
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            hooks.append(layer.register_forward_hook(lambda layer, inputs, output: found.append(output.float())))
    try:
        net(look(frames[None]))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def unit(features):
    """Features (N, C, h, w) of length 1 over the channels."""
    return features / (features.norm(dim=1, keepdim=True) + 1e-10)


# ---- beside a control map


def depth_error(wanted, made):
    """Mean absolute difference of two depth maps (F, H, W), each brought to 0..1 over its clip, for extractors have no unit: 0..1."""
    return float(np.abs(spread(wanted) - spread(made)).mean())


def spread(values):
    """Maps (F, H, W) as float64 from 0 to 1; zeros where they are constant."""
    values = np.asarray(values, np.float64)
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def map_correlation(wanted, made):
    """Pearson's correlation of two maps (F, H, W): -1..1, None if one of them is constant."""
    a, b = (np.asarray(values, np.float64).ravel() - np.mean(values, dtype=np.float64) for values in (wanted, made))
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.clip(a @ b / size, -1, 1)) if size > 1e-9 else None


def edge_f1(wanted, made, tolerance=3, threshold=0.5):
    """How well the lines of two maps (F, H, W) in 0..1 agree: the F1 score, 0..1; 1 if neither has a line.

    A line is what is above `threshold`; it is found again if the other map has one within `tolerance` pixels, as BSDS scores contours (Martin
    et al., 2004), but without matching one to one.
    """
    wanted, made = (np.asarray(lines) > threshold for lines in (wanted, made))
    if not wanted.any() or not made.any():
        return float(wanted.any() == made.any())
    precision, recall = found_again(made, wanted, tolerance), found_again(wanted, made, tolerance)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def found_again(lines, others, tolerance):
    """The share of `lines`, bool (F, H, W), with one of `others` within `tolerance` pixels of the same frame."""
    far = np.stack([cv2.distanceTransform((~other).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for other in others])
    return float((far[lines] <= tolerance).mean())


# ---- many clips


def frechet_distance(a, b):
    """The Frechet distance of two sets of features (N, D) and (M, D), each as a Gaussian (Heusel et al., arXiv 1706.08500, Eq. 6); 0 or more."""
    mean_a, mean_b = a.mean(0, dtype=np.float64), b.mean(0, dtype=np.float64)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False, dtype=np.float64)) for x in (a, b))
    root = square_root(cov_a)
    # |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2), and tr (C_a C_b)^1/2 = tr (C_a^1/2 C_b C_a^1/2)^1/2, which is symmetric
    cross = np.trace(square_root(root @ cov_b @ root))
    return max(0.0, float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def square_root(matrix):
    """The symmetric square root of a positive semidefinite matrix; rounding below 0 counts as 0."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
