"""The ray caster of Toybox: a scene of moving primitives over a textured floor under a sky -> frames, depth, edges and object ids.

In: a Scene (objects with one pose a frame, a camera, a floor, a sky). Out: a Clip with exact ground truth for every frame. Analytic
intersections in numpy, soft shadows from an area light, 2x2 supersampling inside the boxes that objects cover; the background is made
once a camera. It knows nothing about captions, sampling of scenes or networks. Vectors are arrays (3, ...), y is up, z is away.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .scenery import FLOOR_TINT, LIGHTS, floor_albedo, rgb, sky_colour, unit
from .solids import Solid, blocked, intersect, surface

FPS = 8
SUPERSAMPLE = 2
LIGHT_SAMPLES = 10  # of the area light, for the penumbra
FAR = 60.0  # beyond it the floor has become haze


@dataclass(frozen=True)
class Camera:
    """A pinhole at `height` above the floor; pitch in radians looks down, fov is the horizontal angle of view in radians."""

    height: float = 2.3
    pitch: float = 0.24
    yaw: float = 0.0
    fov: float = 0.87


@dataclass(frozen=True)
class Scene:
    """What `render` draws."""

    solids: tuple[Solid, ...]
    floor: str
    sky: str
    camera: Camera = Camera()


@dataclass(frozen=True)
class Clip:
    """frames (F, H, W, 3) uint8; depth (F, H, W) float32, along the optical axis, inf in the sky; ids (F, H, W) int8: group, -1 where there is
    none; edges (F, H, W) uint8: outlines and creases, line = 255."""

    frames: np.ndarray
    depth: np.ndarray
    ids: np.ndarray
    edges: np.ndarray


def render(scene, size=(256, 256)):
    """A Scene -> Clip; `size` is (height, width) in pixels. Deterministic."""
    height, width = size
    back = background(scene.camera, scene.floor, scene.sky, height, width)
    frames = range(len(scene.solids[0].position))
    drawn = [render_frame(scene, back, frame) for frame in frames]
    return Clip(*(np.stack(parts) for parts in zip(*drawn, strict=True)))


@dataclass(frozen=True)
class Background:
    """An empty scene at (H, W): what is seen, uint8 (H, W, 3), linear colour in full light and in full shadow (H, W, 3), depth (H, W), floor
    points (3, H, W), rays at 2x."""

    picture: np.ndarray
    lit: np.ndarray
    shaded: np.ndarray
    depth: np.ndarray
    points: np.ndarray
    rays: np.ndarray
    axis: np.ndarray
    origin: np.ndarray
    focal: float
    basis: np.ndarray


@lru_cache(maxsize=24)  # the twenty backgrounds of the fixed camera, and a few others
def background(camera, floor, sky, height, width):
    """The empty scene that every frame of a clip starts from."""
    basis = camera_basis(camera)
    focal = 0.5 * width / np.tan(camera.fov / 2)
    rays = camera_rays(basis, focal, height, width)  # (3, 2H, 2W)
    origin = np.array([0, camera.height, 0], np.float32)
    with np.errstate(divide="ignore"):
        distance = np.where(rays[1] < -1e-4, -camera.height / rays[1], np.inf).astype(np.float32)
    on_floor = distance < FAR * 4
    points = origin[:, None, None] + rays * np.where(on_floor, distance, 0)
    light = LIGHTS[sky]
    albedo = floor_albedo(floor, points[0], points[2], distance)
    direct = max(0.0, unit(light.direction)[1]) * rgb(light.sun)
    ambient = rgb(light.ambient)
    haze = np.exp(-((np.where(on_floor, distance, 1e3) / (FAR * 0.45)) ** 1.5))[..., None]
    behind = sky_colour(sky, rays)
    rim = sky_colour(sky, np.stack([rays[0], np.full_like(rays[1], 0.02), rays[2]]))
    ground = on_floor[..., None]
    lit = np.where(ground, haze * albedo * (direct + ambient) + (1 - haze) * rim, behind)
    shaded = np.where(ground, haze * albedo * ambient + (1 - haze) * rim, behind)
    depth = np.where(on_floor, distance * np.einsum("c,cij->ij", basis[2], rays), np.inf)
    half = slice(0, None, SUPERSAMPLE)
    lit, shaded, depth = shrink(lit), shrink(shaded), depth[half, half].astype(np.float32)
    return Background(exposed(lit), lit, shaded, depth, points[:, half, half], rays, basis[2], origin, focal, basis)


def camera_basis(camera):
    """(3, 3) rows right, up, forward."""
    cp, sp, cy, sy = np.cos(camera.pitch), np.sin(camera.pitch), np.cos(camera.yaw), np.sin(camera.yaw)
    return np.array([[cy, 0, -sy], [sp * sy, cp, sp * cy], [cp * sy, -sp, cp * cy]], np.float32)


def camera_rays(basis, focal, height, width):
    """Unit directions (3, 2H, 2W) through the middle of every subpixel."""
    s = SUPERSAMPLE
    x = ((np.arange(width * s) + 0.5) / s - width / 2) / focal
    y = (height / 2 - (np.arange(height * s) + 0.5) / s) / focal
    local = np.stack(np.broadcast_arrays(x[None, :], y[:, None], 1.0)).astype(np.float32)
    rays = np.einsum("rc,rij->cij", basis, local)
    return (rays / np.linalg.norm(rays, axis=0)).astype(np.float32)


# ---- frames


def render_frame(scene, back, frame):
    """One frame: (frame uint8 (H, W, 3), depth (H, W), ids (H, W), edges (H, W))."""
    height, width = back.depth.shape
    light = LIGHTS[scene.sky]
    picture, colour, depth = back.picture.copy(), back.lit.copy(), back.depth.copy()
    ids, edges = np.full((height, width), -1, np.int8), np.zeros((height, width), np.float32)
    boxes = [screen_box(back, solid, frame) for solid in scene.solids]
    whole = union(boxes)
    touched = union([whole, *shade_floor(scene, back, frame, light, colour)])
    if whole:
        draw(scene, back, frame, light, cast(scene, back, frame, boxes, whole), whole, colour, depth, ids, edges)
    if touched:
        y0, y1, x0, x1 = touched
        picture[y0:y1, x0:x1] = exposed(colour[y0:y1, x0:x1])
    return picture, depth, ids, (edges * 255).astype(np.uint8)


def exposed(colour):
    """Linear colour (..., 3) as a camera shows it, uint8: read from a table by its square root, which is fine where the eye is."""
    return film()[(np.sqrt(np.clip(colour, 0, 15)) * 8192).astype(np.uint16)]


@lru_cache(maxsize=1)
def film():
    """(32768,) uint8: highlights rolled off, then gamma."""
    colour = (np.arange(32768) / 8192) ** 2
    tone = colour / np.cbrt(1 + colour**3)
    return (tone ** (1 / 2.2) * 255 + 0.5).astype(np.uint8)


def screen_box(back, solid, frame, points=None):
    """(y0, y1, x0, x1) in pixels around a solid, or around world `points` (N, 3); None where that is outside the picture."""
    if points is None:
        corners = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T * solid.scale
        points = corners @ solid.rotation[frame].T + solid.position[frame]
    height, width = back.depth.shape
    seen = (points - back.origin) @ back.basis.T
    if (seen[:, 2] < 0.3).all():
        return None
    z = np.maximum(seen[:, 2], 0.3)
    x, y = width / 2 + back.focal * seen[:, 0] / z, height / 2 - back.focal * seen[:, 1] / z
    x0, x1 = int(np.clip(x.min() - 1, 0, width)), int(np.clip(x.max() + 2, 0, width))
    y0, y1 = int(np.clip(y.min() - 1, 0, height)), int(np.clip(y.max() + 2, 0, height))
    return (y0, y1, x0, x1) if y1 > y0 and x1 > x0 else None


def union(boxes):
    boxes = [box for box in boxes if box]
    return (min(b[0] for b in boxes), max(b[1] for b in boxes), min(b[2] for b in boxes), max(b[3] for b in boxes)) if boxes else None


def shade_floor(scene, back, frame, light, colour):
    """Soft shadows and contact darkening, drawn into `colour` (H, W, 3) where floor is seen; returns the boxes that they may reach."""
    boxes = [screen_box(back, solid, frame, shadow_ring(solid, frame, light)) for solid in scene.solids]
    for solid, box in zip(scene.solids, boxes, strict=True):
        if box:
            y0, y1, x0, x1 = box
            part, lit, dark = (picture[y0:y1, x0:x1] for picture in (colour, back.lit, back.shaded))
            at, seen, contact = shadow(solid, frame, light, back.points[:, y0:y1, x0:x1], np.isfinite(back.depth[y0:y1, x0:x1]))
            dark = dark[at] / np.maximum(lit[at], 1e-4)
            part[at] *= (dark + (1 - dark) * seen[:, None]) * (1 - contact[:, None])
    return boxes


def shadow_ring(solid, frame, light):
    """(24, 3) points of the floor that hold a solid's shadow and the ground below it between them."""
    to_light, centre, reach = unit(light.direction), solid.position[frame], float(np.linalg.norm(solid.scale))
    spread = (reach * 1.15 + centre[1] * light.size * 2) / to_light[1]
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = np.stack([np.cos(angle), 0 * angle, np.sin(angle)], 1)
    points = np.concatenate([centre - to_light * (centre[1] / to_light[1]) + ring * spread, centre + ring * reach * 2])
    points[:, 1] = 0
    return points


def shadow(solid, frame, light, points, floor):
    """Where among `points` (3, h, w), where `floor` (h, w) holds, a solid takes light: an index of N points, the share of the light that
    each of them sees (N,), and how dark the contact is there (N,)."""
    to_light, centre, reach = unit(light.direction), solid.position[frame], float(np.linalg.norm(solid.scale))
    apart = centre[:, None, None] - points
    along = np.tensordot(to_light, apart, 1)
    below = apart[0] ** 2 + apart[2] ** 2
    aside = below + apart[1] ** 2 - along**2  # squared distance of the centre from the ray to the middle of the light
    near = aside < (reach + light.size * np.abs(along)) ** 2
    at = np.nonzero(floor & (near | (below < (1.5 * reach) ** 2)))
    near = near[at]
    seen = np.ones(len(near), np.float32)
    seen[near] -= blocked(solid, frame, points[:, at[0][near], at[1][near]], light_directions(light))
    contact = 0.45 * np.clip(1 - np.sqrt(below[at]) / (1.5 * reach), 0, 1) ** 1.5 * np.clip(1.3 - (centre[1] - solid.scale[1]) / reach, 0, 1)
    return at, seen, contact.astype(np.float32)


def light_directions(light):
    """(K, 3) unit directions spread over the disc of the light by a sunflower pattern."""
    to_light = unit(light.direction)
    side = unit(np.cross(to_light, rgb((0, 0, 1))))
    other = np.cross(to_light, side)
    k = np.arange(LIGHT_SAMPLES)
    radius, angle = light.size * np.sqrt((k + 0.5) / LIGHT_SAMPLES), k * 2.39996
    disc = radius[:, None] * (np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * other)
    return (to_light + disc).astype(np.float32)


def cast(scene, back, frame, boxes, whole):
    """First hits inside the box `whole` at 2x: (t, index of the solid or -1), both (h, w)."""
    s = SUPERSAMPLE
    h, w = (whole[1] - whole[0]) * s, (whole[3] - whole[2]) * s
    best, which = np.full((h, w), np.inf, np.float32), np.full((h, w), -1, np.int16)
    for index, (solid, box) in enumerate(zip(scene.solids, boxes, strict=True)):
        if box:
            rays = back.rays[:, box[0] * s : box[1] * s, box[2] * s : box[3] * s]
            inner = (slice((box[0] - whole[0]) * s, (box[1] - whole[0]) * s), slice((box[2] - whole[2]) * s, (box[3] - whole[2]) * s))
            t = intersect(solid, frame, back.origin[:, None, None], rays)
            nearer = t < best[inner]
            best[inner][nearer], which[inner][nearer] = t[nearer], index
    return best, which


def draw(scene, back, frame, light, hits, whole, colour, depth, ids, edges):
    """Shades the hits and lays them over colour, depth, ids and edges (each (H, W), in place)."""
    best, which = hits
    s, (y0, y1, x0, x1) = SUPERSAMPLE, whole
    rays = back.rays[:, y0 * s : y1 * s, x0 * s : x1 * s]
    shaded = np.zeros((*best.shape, 3), np.float32)
    world = np.zeros((3, *best.shape), np.float32)
    for index, solid in enumerate(scene.solids):
        rows, columns = at = np.nonzero(which == index)
        if len(rows):
            ray = rays[:, rows, columns]
            point = back.origin[:, None] + ray * best[at]
            local, tone = surface(solid, frame, point)
            n = solid.rotation[frame] @ (local / solid.scale[:, None])
            n = n / np.sqrt((n * n).sum(0))
            world[:, rows, columns] = n
            sun = sunlight(scene, frame, light, index, point, n)
            shaded[at] = surface_colour(scene, light, solid, n, ray, point, sun, tone)
    cover = shrink((which >= 0).astype(np.float32)[..., None])
    part = colour[y0:y1, x0:x1]
    part *= 1 - cover
    part += shrink(shaded)
    first = which[::s, ::s]
    seen = first >= 0
    groups = np.array([solid.group for solid in scene.solids], np.int8)
    ids[y0:y1, x0:x1][seen] = groups[first[seen]]
    depth[y0:y1, x0:x1][seen] = (best[::s, ::s] * np.einsum("c,cij->ij", back.axis, rays[:, ::s, ::s]))[seen]
    edges[y0:y1, x0:x1] = shrink(outline(which, world)[..., None])[..., 0]


def sunlight(scene, frame, light, index, point, normal):
    """(N,) share of the sun that reaches surface points: Lambert, times what other solids leave of it."""
    to_light = unit(light.direction)
    sun = np.clip(to_light @ normal, 0, 1)
    for other, solid in enumerate(scene.solids):
        if other != index:
            sun = sun * np.isinf(intersect(solid, frame, point + 0.01 * normal, to_light))
    return sun


def surface_colour(scene, light, solid, normal, ray, point, sun, tone):
    """(N, 3) linear colour: direct and hemisphere light, floor bounce, contact; a shiny surface mirrors the sky and has a highlight."""
    albedo = rgb(solid.colour) * (1 - 0.5 * tone[:, None])
    ground = FLOOR_TINT[scene.floor] * (rgb(light.sun) * 0.35 + rgb(light.ambient))
    up = (0.5 + 0.5 * normal[1])[:, None]
    near_floor = (0.45 + 0.55 * np.clip(point[1] / (1.2 * solid.scale.max()), 0, 1))[:, None]
    fill = up * rgb(light.ambient) * 1.15 + (1 - up) * ground * near_floor
    colour = albedo * (sun[:, None] * rgb(light.sun) + fill)
    mirrored = ray - 2 * (ray * normal).sum(0) * normal
    to_light = unit(light.direction)
    spark = np.clip(to_light @ mirrored, 0, 1)[:, None]
    fresnel = np.square(np.square(1 - np.clip(-(ray * normal).sum(0), 0, 1)))[:, None]
    if not solid.shiny:
        return colour + 0.05 * fresnel * rgb(light.ambient)
    sky = sky_colour(scene.sky, np.stack([mirrored[0], np.abs(mirrored[1]), mirrored[2]]))
    seen = np.where(mirrored[1][:, None] > 0, sky, ground * 0.8)
    glare = spark**12
    lamp = rgb(light.sun) * ((2.2 * glare**7.5 + 0.35 * glare) * (sun[:, None] > 0))
    return colour * 0.78 + (0.12 + 0.5 * fresnel) * seen + lamp


def outline(which, normal):
    """(h, w) 1 where the solid changes or its surface folds."""
    line = np.zeros(which.shape, np.float32)
    for axis in (0, 1):
        a, b = [slice(None)] * 2, [slice(None)] * 2
        a[axis], b[axis] = slice(1, None), slice(None, -1)
        a, b = tuple(a), tuple(b)
        fold = (which[a] == which[b]) & (which[a] >= 0) & ((normal[(slice(None), *a)] * normal[(slice(None), *b)]).sum(0) < 0.7)
        changed = (which[a] != which[b]) | fold
        line[a] = np.maximum(line[a], changed)
        line[b] = np.maximum(line[b], changed)
    return line


def shrink(picture):
    """(2H, 2W, C) -> (H, W, C), the mean of each 2x2."""
    return 0.25 * (picture[::2, ::2] + picture[1::2, ::2] + picture[::2, 1::2] + picture[1::2, 1::2])
