"""Toybox: an endless, captioned world of toys that move over a floor; every attribute is known.

In: a seed. Out: a Sample: the Scene to render, its caption and its attributes. The vocabulary, the templates and the motions live
here; how a scene becomes pixels is render.py's. It knows nothing about networks.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from .render import FPS, Camera, Clip, Scene, render
from .scenery import FLOORS, SKIES
from .solids import SHAPES, Solid

COLOURS = {  # linear RGB
    "red": (0.72, 0.03, 0.03),
    "orange": (0.88, 0.26, 0.02),
    "yellow": (0.90, 0.66, 0.04),
    "green": (0.05, 0.45, 0.07),
    "blue": (0.03, 0.12, 0.72),
    "purple": (0.25, 0.04, 0.48),
    "pink": (0.92, 0.27, 0.48),
    "white": (0.88, 0.88, 0.88),
}
MATERIALS = ("matte", "shiny")
SIZES = {"small": 0.55, "big": 0.95}  # half the height, in metres
MOTIONS = ("left", "right", "bounce", "spin", "closer", "away", "jump", "circle", "still")
ATTRIBUTES = {  # of one object, then of the scene; the order is that of every table of labels
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "material": MATERIALS,
    "size": tuple(SIZES),
    "motion": MOTIONS,
    "floor": FLOORS,
    "sky": SKIES,
}
OBJECT_ATTRIBUTES, SCENE_ATTRIBUTES = ("shape", "colour", "material", "size", "motion"), ("floor", "sky")
DISTANCE = 5.7  # metres from the camera to where an object stands


@dataclass(frozen=True)
class Toy:
    """One object by its attributes; each a value of ATTRIBUTES."""

    shape: str
    colour: str
    material: str
    size: str
    motion: str


@dataclass(frozen=True)
class Sample:
    """A scene with its words. `said` holds for each toy (and, last, for the scene) the attributes that the caption names."""

    seed: int
    toys: tuple[Toy, ...]
    floor: str
    sky: str
    caption: str
    said: tuple[dict, ...]
    scene: Scene

    def render(self, size=(256, 256)) -> Clip:
        """The Clip at `size` (height, width)."""
        return render(self.scene, size)


@dataclass(frozen=True)
class Plot:
    """What happens in a clip, before anything is placed: cheap to draw."""

    toys: tuple[Toy, ...]
    floor: str
    sky: str
    caption: str
    said: tuple[dict, ...]


def plot(seed, objects=None):
    """The Plot number `seed`: one object (70 %) or two, or as many as `objects` says."""
    rng = np.random.default_rng((seed, 1))
    count = objects or (1 if rng.random() < 0.7 else 2)
    toys = tuple(random_toy(rng) for _ in range(count))
    floor, sky = str(rng.choice(FLOORS)), str(rng.choice(SKIES))
    return Plot(toys, floor, sky, *describe(rng, toys, floor, sky))


def random_toy(rng):
    return Toy(*(str(rng.choice(ATTRIBUTES[name])) for name in OBJECT_ATTRIBUTES))


def sample(seed, objects=None, frames=16):
    """The Sample number `seed`: its plot, and its scene of `frames` at 8 a second."""
    told = plot(seed, objects)
    scene = place(np.random.default_rng((seed, 2)), told.toys, told.floor, told.sky, frames)
    return Sample(seed, told.toys, told.floor, told.sky, told.caption, told.said, scene)


def stage(toys, floor="grass", sky="day", frames=16, seed=0):
    """The Scene of chosen toys, for pictures, tests and examples."""
    return place(np.random.default_rng((seed, 2)), tuple(toys), floor, sky, frames)


# ---- scenes


def place(rng, toys, floor, sky, frames):
    """Puts toys on their places: one in the middle, two on lanes of their own, the first on the left; tried again until they never touch."""
    gap, solids = -np.inf, None
    for _ in range(200):
        lanes = (-0.9, 1.6) if rng.random() < 0.5 else (1.6, -0.9)
        tried = tuple(solid_of(rng, toy, index, len(toys), lanes[index % 2], frames) for index, toy in enumerate(toys))
        room = clearance(*tried[:2]) if len(tried) > 1 else np.inf
        if room > gap:
            gap, solids = room, tried
        if gap > 0.1:
            break
    return Scene(solids, floor, sky)


def clearance(a, b):
    """The smallest distance in metres between two solids over the clip, as their bounding cylinders have it."""
    apart = np.linalg.norm((a.position - b.position)[:, [0, 2]], axis=1).min()
    return apart - sum(solid.scale[0] * (2**0.5 if solid.shape == "cube" else 1) for solid in (a, b))


def solid_of(rng, toy, index, count, lane, frames):
    half = SIZES[toy.size] * rng.uniform(0.93, 1.07) * (0.85 if count > 1 else 1)
    shape = {"cylinder": (0.78, 1, 0.78), "cone": (0.95, 1.1, 0.95), "cube": (0.88, 0.88, 0.88)}.get(toy.shape, (1, 1, 1))
    scale = np.array(shape) * half
    if count == 1:
        start = np.array([rng.uniform(-0.7, 0.7), 0, DISTANCE + rng.uniform(-0.5, 0.5)])
    else:
        start = np.array([(-1, 1)[index] * rng.uniform(0.9, 1.7), 0, DISTANCE + lane])
    offset, turn = motion(rng, toy, scale, frames, start)
    position = (start + offset + (0, scale[1], 0)).astype(np.float32)
    return Solid(toy.shape, scale.astype(np.float32), position, turn, np.array(COLOURS[toy.colour]), toy.material == "shiny", index)


def motion(rng, toy, scale, frames, start):
    """(offset (F, 3) in metres, rotation (F, 3, 3)) of a toy over its clip."""
    time = np.arange(frames) / FPS  # seconds
    u = time / (16 / FPS)  # 0 to 1 in two seconds, whatever the clip's length
    pace, phase = rng.uniform(0.88, 1.15), rng.uniform(0, 2 * np.pi)
    zero = np.zeros(frames)
    x, y, z, yaw, roll = zero, zero, zero, zero + phase, zero
    if toy.motion in ("left", "right"):
        sign = -1 if toy.motion == "left" else 1
        x = sign * 3.1 * pace * (u - 0.5) - start[0] * 0.6
        roll = -(x - x[0]) / scale[0] if toy.shape == "sphere" else zero
    elif toy.motion == "bounce":
        y = 0.85 * pace * np.abs(np.sin(3 * np.pi * u + phase / 2))
    elif toy.motion == "jump":
        y = 1.45 * pace * np.clip(1 - ((u - 0.45) / 0.28) ** 2, 0, None)
    elif toy.motion == "spin":
        yaw = phase + 2 * np.pi * 1.1 * pace * u
    elif toy.motion in ("closer", "away"):
        sign = -1 if toy.motion == "closer" else 1
        z = sign * 3.2 * pace * (u - 0.5) + 0.2
        roll = zero
    elif toy.motion == "circle":
        angle = phase + 2 * np.pi * pace * u
        x, z = 1.0 * np.cos(angle) - start[0] * 0.5, 1.0 * np.sin(angle)
    return np.stack([x, y, z], 1), turns(yaw, roll, -(z - z[0]) / scale[0] if toy.shape == "sphere" else zero)


def turns(yaw, roll, pitch):
    """(F, 3, 3): yaw about y first, then the rolling about z and x."""
    return (axis_turn(0, -pitch) @ axis_turn(2, roll) @ axis_turn(1, yaw)).astype(np.float32)


def axis_turn(axis, angle):
    c, s = np.cos(angle), np.sin(angle)
    turn = np.zeros((len(angle), 3, 3))
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    turn[:, axis, axis] = 1
    turn[:, i, i], turn[:, j, j], turn[:, i, j], turn[:, j, i] = c, c, -s, s
    return turn


# ---- free scenes: other cameras and shapes, for the maps of real clips


def free_sample(seed, frames=16):
    """A Sample with a camera of its own and two to five objects of free form: figures, walls, pillars, blobs. Its maps are what counts."""
    rng = np.random.default_rng((seed, 3))
    count = int(rng.integers(2, 6))
    toys = tuple(random_toy(rng) for _ in range(count))
    floor, sky = str(rng.choice(FLOORS)), str(rng.choice(SKIES))
    solids, kinds = [], []
    for index, toy in enumerate(toys):
        kind = str(rng.choice(("figure", "wall", "pillar", "blob", "toy")))
        kinds.append(kind)
        base = replace(solid_of(rng, toy, 0, 1, 0.0, frames), group=index)
        shift = np.array([rng.uniform(-3, 3), 0, rng.uniform(-2.5, 4)], np.float32)
        solids += [replace(part, position=part.position + shift) for part in assemble(rng, kind, base)]
    height = rng.uniform(0.8, 4.5)
    pitch = float(np.arctan2(height - rng.uniform(0.3, 1.5), DISTANCE + 1) + rng.uniform(-0.06, 0.06))
    camera = Camera(height, pitch, rng.uniform(-0.12, 0.12), rng.uniform(0.7, 1.15))
    names = [toy.colour + " " + (kind if kind != "toy" else toy.shape) for toy, kind in zip(toys, kinds, strict=True)]
    caption = " and ".join("a " + name for name in names[:3]) + f" {rng.choice(FLOOR_WORDS[floor])} {rng.choice(SKY_WORDS[sky])}"
    said = tuple({"colour": toy.colour} for toy in toys) + ({"floor": floor, "sky": sky},)
    return Sample(seed, toys, floor, sky, caption, said, Scene(tuple(solids), floor, sky, camera))


def assemble(rng, kind, base):
    """The solids of one free-form object that moves like `base`."""
    half = float(base.scale[1])
    if kind == "toy":
        return [base]
    if kind == "wall":
        return [part(base, "cube", (half * rng.uniform(1.2, 3), half * rng.uniform(0.7, 2.2), 0.15), (0, 0, 0), half)]
    if kind == "pillar":
        return [part(base, str(rng.choice(("cube", "cylinder"))), (half * 0.35, half * rng.uniform(1.5, 3), half * 0.35), (0, 0, 0), half)]
    if kind == "blob":
        spots = rng.normal(0, 0.45 * half, (int(rng.integers(3, 7)), 3)) * (1.3, 0.8, 1)
        return [part(base, "sphere", half * rng.uniform(0.35, 0.75, 3), spot, None) for spot in spots]
    tall, lean = half * rng.uniform(0.8, 1.3), rng.uniform(-0.25, 0.25)
    limbs = [((0.30, 0.55, 0.22), (0, 0.35, 0)), ((0.21, 0.24, 0.21), (lean * 0.4, 1.12, 0))]
    limbs += [((0.11, 0.5, 0.12), (side * 0.16, -0.55, side * lean)) for side in (-1, 1)]
    limbs += [((0.30, 0.09, 0.09), (side * 0.5, 0.6 + side * lean, 0)) for side in (-1, 1)]
    return [part(base, "sphere", np.array(scale) * tall, np.array(spot) * tall, None) for scale, spot in limbs]


def part(base, shape, scale, spot, stand):
    """A solid fixed to `base` at `spot` (3,) in its own frame; `stand` puts its foot where the base has its own."""
    scale, spot = np.asarray(scale, np.float32), np.asarray(spot, np.float32)
    lift = np.array([0, scale[1] - stand if stand is not None else 0, 0], np.float32)
    return replace(base, shape=shape, scale=scale, position=base.position + base.rotation @ spot + lift)


# ---- words

SHAPE_WORDS = {"sphere": ("ball", "sphere", "ball"), "cube": ("cube", "box", "block"), "cylinder": ("cylinder", "drum"), "cone": ("cone",)}
COLOUR_WORDS = {name: (name,) for name in COLOURS} | {"red": ("red", "red", "crimson"), "purple": ("purple", "violet"), "white": ("white",)}
MATERIAL_WORDS = {"matte": ("matte", "dull", "rubber"), "shiny": ("shiny", "glossy", "polished")}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
MOTION_WORDS = {
    "left": ("moves to the left", "slides left", "goes left", "travels to the left", "glides to the left"),
    "right": ("moves to the right", "slides right", "goes right", "travels to the right", "glides to the right"),
    "bounce": ("bounces", "bounces up and down", "keeps bouncing"),
    "spin": ("spins", "rotates", "turns around", "is spinning"),
    "closer": ("comes closer", "approaches", "moves towards the camera", "comes towards us"),
    "away": ("goes away", "moves away", "recedes", "moves away from the camera"),
    "jump": ("jumps", "jumps up once", "leaps into the air", "hops"),
    "circle": ("moves in a circle", "circles", "goes round in a circle", "runs in circles"),
    "still": ("stands still", "rests", "does not move", "sits"),
}
ROLL_WORDS = {  # of a ball
    "left": ("rolls to the left", "rolls left"),
    "right": ("rolls to the right", "rolls right"),
    "closer": ("rolls closer",),
    "away": ("rolls away",),
}
FLOOR_WORDS = {
    "checkerboard": ("on a checkerboard", "over a checkerboard floor", "on a tiled floor", "on checkered tiles"),
    "grass": ("on grass", "on the grass", "over a meadow", "on a green lawn", "across the grass"),
    "sand": ("on sand", "on the beach", "over the sand", "in the desert"),
    "snow": ("on snow", "over snow", "in the snow", "on a snowy field"),
    "wood": ("on a wooden floor", "on wood", "over wooden planks", "on a table"),
}
SKY_WORDS = {
    "day": ("by day", "on a sunny day", "in daylight", "under a blue sky"),
    "sunset": ("at sunset", "in the evening", "in the evening light", "at dusk"),
    "night": ("at night", "in the night", "under the stars", "in the moonlight"),
    "studio": ("in a studio", "against a grey backdrop", "in a studio with soft light"),
}
ARTICLES = ("a", "an", "the", "one", "and", "while")  # what a new toy may begin with


def describe(rng, toys, floor, sky):
    """(caption, said): words for toys and scene. An attribute is left out now and then, and `said` holds only what was named."""
    phrases, said = [], []
    for toy in toys:
        phrase, named = describe_toy(rng, toy)
        phrases.append(phrase)
        said.append(named)
    joined = str(rng.choice((" and ", " while ", ", "))).join(phrases)
    scene, places = {}, []
    if rng.random() < 0.92:
        scene["floor"] = floor
        places.append(str(rng.choice(FLOOR_WORDS[floor])))
    if rng.random() < 0.88:
        scene["sky"] = sky
        places.append(str(rng.choice(SKY_WORDS[sky])))
    if rng.random() < 0.15:
        places.reverse()
    front = places and rng.random() < 0.15
    words = [places.pop() + ","] + [joined] + places if front else [joined] + places
    return " ".join(words), (*said, scene)


def describe_toy(rng, toy):
    named = {"shape": toy.shape}
    words = []
    for name, table, chance in (("size", SIZE_WORDS, 0.75), ("material", MATERIAL_WORDS, 0.65), ("colour", COLOUR_WORDS, 0.97)):
        if rng.random() < chance:
            value = getattr(toy, name)
            named[name] = value
            words.append(str(rng.choice(table[value])))
    if len(words) > 1 and rng.random() < 0.15:
        words[0], words[1] = words[1], words[0]
    words.append(str(rng.choice(SHAPE_WORDS[toy.shape])))
    choices = MOTION_WORDS[toy.motion] + (ROLL_WORDS.get(toy.motion, ()) * 2 if toy.shape == "sphere" else ())
    if rng.random() < 0.96:
        named["motion"] = toy.motion
        words.append(str(rng.choice(choices)))
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([str(rng.choice((article, article, "the", "one"))), *words]), named


def read_prompt(prompt):
    """What a prompt says, as `said` of a Plot: a dict for each toy it names, in its order, then the scene's.

    Phrases are those of the tables above, the longest first; a floor or a sky is also known by its own name. Adjectives go to the shape that
    follows them before the next article, a motion to the last shape before it; other words say nothing. Where a thing is said twice the first counts.
    """
    toys, scene, coming = [], {}, {}
    for name, value in phrases_in(re.findall("[a-z]+", prompt.lower())):
        if name in SCENE_ATTRIBUTES:
            scene.setdefault(name, value)
        elif name == "shape":
            toys.append({"shape": value, **coming})
            coming = {}
        elif name == "article":
            coming = {}
        elif name != "motion":
            coming.setdefault(name, value)
        elif toys:
            toys[-1].setdefault(name, value)
    return (*toys, scene)


def phrases_in(words):
    """(attribute, value) of every phrase in a list of words, from left to right; no word counts twice."""
    at, known = 0, known_phrases()
    longest = max(map(len, known))
    while at < len(words):
        sizes = (size for size in range(min(longest, len(words) - at), 0, -1) if tuple(words[at : at + size]) in known)
        size = next(sizes, None)
        if size:
            yield known[tuple(words[at : at + size])]
        at += size or 1


@lru_cache(maxsize=1)
def known_phrases():
    """{words of a phrase: (attribute, value)} of every table, and of the articles."""
    names = {name: {value: (value,) for value in ATTRIBUTES[name]} for name in SCENE_ATTRIBUTES}
    tables = {"shape": SHAPE_WORDS, "colour": COLOUR_WORDS, "material": MATERIAL_WORDS, "size": SIZE_WORDS}
    pairs = [*tables.items(), ("motion", MOTION_WORDS), ("motion", ROLL_WORDS), ("floor", FLOOR_WORDS), ("sky", SKY_WORDS), *names.items()]
    known = {tuple(phrase.split()): (name, value) for name, table in pairs for value, phrases in table.items() for phrase in phrases}
    return known | {(word,): ("article", word) for word in ARTICLES}


def vocabulary():
    """Every word that a caption can hold, sorted: what the text encoder knows."""
    tables = (SHAPE_WORDS, COLOUR_WORDS, MATERIAL_WORDS, SIZE_WORDS, MOTION_WORDS, ROLL_WORDS, FLOOR_WORDS, SKY_WORDS)
    phrases = [phrase for table in tables for choices in table.values() for phrase in choices]
    extra = "a an the one and while two with its of figure wall pillar blob sphere cube cylinder cone"
    return sorted({word for phrase in [*phrases, extra] for word in phrase.split()})
