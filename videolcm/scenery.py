"""What floors and skies of Toybox look like: their light, their colour at a point of the ground or in a direction.

In: the name of a floor or sky, world points or ray directions. Out: linear RGB. It knows nothing about cameras, objects or pictures.
Vectors are arrays (3, ...), y is up.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

FLOORS = ("checkerboard", "grass", "sand", "snow", "wood")
SKIES = ("day", "sunset", "night", "studio")


@dataclass(frozen=True)
class Light:
    """A sky: colours in linear RGB; `direction` points to the sun, lamp or moon; `size` is the radius of its disc in radians."""

    direction: tuple
    sun: tuple
    ambient: tuple
    top: tuple
    horizon: tuple
    size: float
    glow: float


LIGHTS = {
    "day": Light((0.8, 0.95, -0.42), (1.05, 1.0, 0.88), (0.36, 0.42, 0.52), (0.13, 0.34, 0.82), (0.62, 0.80, 0.96), 0.05, 0.5),
    "sunset": Light((-0.85, 0.55, -0.22), (1.25, 0.70, 0.36), (0.34, 0.27, 0.36), (0.16, 0.10, 0.32), (1.00, 0.42, 0.17), 0.08, 1.0),
    "night": Light((-0.7, 0.85, -0.4), (0.48, 0.56, 0.78), (0.17, 0.19, 0.30), (0.004, 0.008, 0.035), (0.035, 0.05, 0.13), 0.06, 0.2),
    "studio": Light((0.62, 1.0, -0.42), (0.82, 0.81, 0.80), (0.42, 0.42, 0.43), (0.30, 0.31, 0.33), (0.70, 0.70, 0.71), 0.16, 0.0),
}


def unit(vector):
    vector = np.asarray(vector, np.float32)
    return vector / np.linalg.norm(vector)


def rgb(colour):
    return np.asarray(colour, np.float32)


def mix(a, b, amount):
    """Colours a to b (3,) by amount (...) -> (..., 3)."""
    amount = np.clip(amount, 0, 1).astype(np.float32)[..., None]
    return rgb(a) * (1 - amount) + rgb(b) * amount


FLOOR_TINT = {
    "checkerboard": rgb([0.42, 0.41, 0.40]),
    "grass": rgb([0.11, 0.26, 0.05]),
    "sand": rgb([0.59, 0.42, 0.22]),
    "snow": rgb([0.78, 0.82, 0.90]),
    "wood": rgb([0.30, 0.15, 0.07]),
}


@lru_cache(maxsize=1)
def noise_tiles():
    """Four periodic noise tiles (512, 512) in about [-1, 1], from fine to coarse."""
    rng = np.random.default_rng(7)
    f = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.fftfreq(512)[None, :]) * 512
    tiles = []
    for middle in (110, 45, 16, 6):
        band = np.exp(-((np.log(np.maximum(f, 0.5) / middle)) ** 2) / 0.5)
        tile = np.fft.ifft2(np.fft.fft2(rng.standard_normal((512, 512))) * band).real
        tiles.append((tile / tile.std() * 0.5).clip(-1.5, 1.5).astype(np.float32))
    return tiles


def noise(level, x, z, scale):
    """Tile `level` at world points, `scale` tiles a metre."""
    tile = noise_tiles()[level]
    return tile[(z * scale * 512).astype(np.int64) & 511, (x * scale * 512).astype(np.int64) & 511]


def floor_albedo(floor, x, z, distance):
    """Linear RGB (..., 3) of a floor at world points; texture fades with distance so that it does not shimmer."""
    fade = (1 / (1 + (distance / 14) ** 2)).astype(np.float32)
    fine, coarse = noise(0, x, z, 0.12) * fade, noise(2, x, z, 0.05)
    if floor == "checkerboard":
        tile = ((np.floor(x / 1.3) + np.floor(z / 1.3)) % 2) * fade**0.5 + 0.5 * (1 - fade**0.5)
        return mix((0.09, 0.10, 0.14), (0.80, 0.76, 0.68), tile) * (1 + np.float32(0.05) * coarse[..., None])
    if floor == "grass":
        return mix((0.055, 0.17, 0.025), (0.17, 0.36, 0.06), 0.5 + 0.45 * fine + 0.30 * coarse)
    if floor == "sand":
        ripple = np.sin(z * 7 + x * 1.5 + 2.5 * noise(3, x, z, 0.04)) * fade
        return mix((0.46, 0.31, 0.15), (0.72, 0.53, 0.30), 0.5 + 0.22 * ripple + 0.16 * fine + 0.12 * coarse)
    if floor == "snow":
        return mix((0.62, 0.68, 0.80), (0.90, 0.92, 0.96), 0.62 + 0.25 * coarse + 0.12 * fine)
    plank = np.floor(x / 0.9)
    tone = noise(1, plank * 3.7, np.floor((z + plank * 1.7) / 4), 0.11) * 0.5
    grain = noise(0, x * 2.0, z * 0.12 + plank, 0.1) * fade
    seam = (np.abs(x / 0.9 - plank - 0.5) > 0.47) * fade
    return mix((0.17, 0.075, 0.03), (0.42, 0.22, 0.10), (0.55 + 0.6 * tone + 0.22 * grain) * (1 - 0.75 * seam))


def sky_colour(sky, rays):
    """Linear RGB (..., 3) of the sky in directions `rays` (3, ...): gradient, glow and disc of the sun or moon, clouds, stars."""
    light = LIGHTS[sky]
    up = np.clip(rays[1], 0, 1)
    colour = mix(light.horizon, light.top, 1 - (1 - up) ** 3.5)
    toward = np.clip(np.einsum("c,c...->...", unit(light.direction) * rgb((1, 1, -1)), rays), 0, 1)[..., None]  # the glow is in view
    colour = colour + light.glow * rgb(light.sun) * (0.35 * toward**8 + 0.4 * toward**60)
    if sky in ("day", "sunset"):
        plane = 1 / np.maximum(rays[1], 0.03)
        cloud = noise(3, rays[0] * plane + 3, rays[2] * plane, 0.045) + 0.5 * noise(2, rays[0] * plane, rays[2] * plane, 0.05)
        amount = (np.clip(cloud - 0.15, 0, 1) * np.clip((rays[1] - 0.05) * 9, 0, 1))[..., None]
        colour = colour + amount * (rgb(light.sun) * 0.9 - 0.6 * colour)
    if sky == "night":
        side = 1 / np.maximum(1 + rays[2], 0.1)
        stars = noise(0, rays[0] * side, rays[1] * 1.3, 0.9) * noise(0, rays[0] + 0.31, rays[1] * side, 0.8)
        moon = np.hypot(rays[0] - 0.24, rays[1] - 0.115)
        colour = colour + np.clip(stars - 0.95, 0, 1)[..., None] * 2 * np.clip(rays[1] * 8, 0, 1)[..., None]
        disc = np.clip((0.034 - moon) / 0.004, 0, 1)[..., None]
        colour = colour + np.exp(-(moon[..., None] ** 2) / 0.02) * rgb((0.06, 0.07, 0.12)) + disc * rgb((0.85, 0.86, 0.80))
    return colour.astype(np.float32)
