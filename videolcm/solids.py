"""The primitives of Toybox: where rays meet a sphere, cube, cylinder or cone, with what normal, and which of its two tones is there.

In: a Solid with a pose for each frame, and rays. Out: distances, local normals, tones. It knows nothing about cameras, light or pictures.
Vectors are arrays (3, ...); a primitive in its own frame fills [-1, 1] along each axis, its axis is y.
"""

from dataclasses import dataclass

import numpy as np

SHAPES = ("sphere", "cube", "cylinder", "cone")


@dataclass(frozen=True)
class Solid:
    """One primitive. `scale` holds half extents (3,); `position` (F, 3) and `rotation` (F, 3, 3) its pose in each frame; `colour` linear RGB."""

    shape: str
    scale: np.ndarray
    position: np.ndarray
    rotation: np.ndarray
    colour: np.ndarray
    shiny: bool = False
    group: int = 0  # solids of one group count as one object


def intersect(solid, frame, origin, direction):
    """Nearest hits of rays with a solid: t (...), float32, inf where a ray misses.

    origin and direction are (3,) or (3, ...) and broadcast; t counts in lengths of `direction`.
    """
    shape = np.broadcast_shapes(np.shape(origin)[1:], np.shape(direction)[1:])
    o = local_points(solid, frame, origin)
    d = np.tensordot(inverse(solid, frame), direction, 1)
    return nearest(solid, padded(o, shape), padded(d, shape))


def blocked(solid, frame, points, directions):
    """(N,) which share of the rays from `points` (3, N) in `directions` (K, 3) a solid stops."""
    o = local_points(solid, frame, points)
    ways = (inverse(solid, frame) @ directions.T).T[:, :, None]  # (K, 3, 1)
    return sum(np.isfinite(nearest(solid, o, way)) for way in ways) / np.float32(len(directions))


def surface(solid, frame, points):
    """Local normals (3, N), of any length, and the second tone (N,) at world `points` (3, N) on a solid."""
    p = local_points(solid, frame, points)
    return NORMALS[solid.shape](p), PATTERNS[solid.shape](p)


def nearest(solid, o, d):
    """t of local rays, inf for what misses or lies behind."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = HITS[solid.shape](o, d)
        return np.where(np.isfinite(t) & (t > 1e-3), t, np.inf).astype(np.float32)


def inverse(solid, frame):
    """(3, 3) world -> local: R^T, then 1 / scale."""
    return (solid.rotation[frame] / solid.scale).T.astype(np.float32)


def local_points(solid, frame, points):
    return np.tensordot(inverse(solid, frame), points - column(solid.position[frame], points), 1)


def padded(x, shape):
    """(3, ...) with as many axes as (3, *shape), so that it broadcasts."""
    return x.reshape(3, *(1,) * (len(shape) - x.ndim + 1), *x.shape[1:])


def column(vector, like):
    return np.asarray(vector, np.float32).reshape(3, *(1,) * (np.ndim(like) - 1))


def hit_sphere(o, d):
    a, b, c = (d * d).sum(0), (o * d).sum(0), (o * o).sum(0) - 1
    return (-b - np.sqrt(b * b - a * c)) / a


def hit_cube(o, d):
    near, far = (-np.sign(d) - o) / d, (np.sign(d) - o) / d
    enter, leave = near.max(0), far.min(0)
    return np.where(enter < leave, enter, np.inf)


def hit_cylinder(o, d):
    a, b, c = d[0] ** 2 + d[2] ** 2, o[0] * d[0] + o[2] * d[2], o[0] ** 2 + o[2] ** 2 - 1
    side = (-b - np.sqrt(b * b - a * c)) / a
    side = np.where(np.abs(o[1] + side * d[1]) <= 1, side, np.inf)
    return np.fmin(side, hit_disc(o, d, -np.sign(d[1])))


def hit_cone(o, d):
    h, k = (1 - o[1]) / 2, -d[1] / 2  # radius at height y is (1 - y) / 2
    a, b, c = d[0] ** 2 + d[2] ** 2 - k * k, o[0] * d[0] + o[2] * d[2] - h * k, o[0] ** 2 + o[2] ** 2 - h * h
    root = np.sqrt(b * b - a * c)
    hits = []
    for t in ((-b - root) / a, (-b + root) / a):
        y = o[1] + t * d[1]
        hits.append(np.where((np.abs(y) <= 1) & (t > 1e-3), t, np.inf))
    return np.fmin(np.fmin(*hits), hit_disc(o, d, np.full_like(d[1], -1)))


def hit_disc(o, d, y):
    t = (y - o[1]) / d[1]
    return np.where((o[0] + t * d[0]) ** 2 + (o[2] + t * d[2]) ** 2 <= 1, t, np.inf)


def normal_cube(p):
    return np.where(np.abs(p) >= np.abs(p).max(0) - 1e-6, np.sign(p), 0)


def normal_cylinder(p):
    cap = np.abs(p[1]) > 0.999
    return np.stack([np.where(cap, 0, p[0]), np.where(cap, np.sign(p[1]), 0), np.where(cap, 0, p[2])])


def normal_cone(p):
    base = p[1] < -0.999
    return np.stack([np.where(base, 0, p[0]), np.where(base, -1, (1 - p[1]) / 4), np.where(base, 0, p[2])])


def sectors(p, count):
    return np.floor(np.arctan2(p[2], p[0]) / (2 * np.pi) * count) % 2


HITS = {"sphere": hit_sphere, "cube": hit_cube, "cylinder": hit_cylinder, "cone": hit_cone}
NORMALS = {"sphere": lambda p: p, "cube": normal_cube, "cylinder": normal_cylinder, "cone": normal_cone}
PATTERNS = {  # 1 where the darker second tone is, so that rolling and spinning can be seen
    "sphere": lambda p: (p[0] * p[1] * p[2] > 0).astype(np.float32),
    "cube": lambda p: (np.sort(np.abs(p), axis=0)[1] < 0.5).astype(np.float32),
    "cylinder": lambda p: sectors(p, 4),
    "cone": lambda p: sectors(p, 6),
}
