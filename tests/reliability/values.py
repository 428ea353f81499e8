"""Values of every kind, by hypothesis: all that JSON can hold and more, and calls of the app's doors with some of their values wrong.

In: nothing. Out: strategies, and `drawn`, which takes so many values of one. It knows nothing about pages.
"""

import json
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

CHUNK = 1000  # values that are drawn before the first is used: hypothesis remembers all it drew
DRAWN = {"phases": [Phase.generate], "suppress_health_check": list(HealthCheck), "database": None, "deadline": None}
ODD = [None, True, False, 0, -1, 1, 4, 8, 9, 2.5, 4.0, 1e308, -1e308, float("nan"), float("inf"), 2**31 - 1, 2**31, 2**64, "", " ", "4"]
ODD += ["NaN", "\0", "\x1b[31m\n", "\ud800", "\u202ea", "../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "x" * 513, "x" * 100_000]
ODD += ["🎬" * 512, "256x256", "1e9x1", "lcm", "ddim", "student", "teacher", "toybox", "text", "depth", "text,depth", "1,2", "0,0,1,.5"]
ODD += [[], {}, [4], {"a": 1}, [[[[[]]]]], [None], ["lcm", 3], {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]
ODD += [{"__type__": "update", "value": 3}]

texts = st.text(st.characters(exclude_categories=()))  # halves of characters too
plain = st.sampled_from(ODD) | st.integers() | st.integers(-5, 600) | st.floats() | st.floats(-3, 40) | texts
plain |= st.builds(lambda: 10**5000)  # too long for Python to print, in a message of hypothesis too
values = plain | st.lists(plain, max_size=4) | st.dictionaries(texts, plain, max_size=3)


def drawn(strategy, n, random):
    """`n` values of a strategy: the same for the same `random`."""
    while n > 0:
        found = some(strategy, min(CHUNK, n), random.getrandbits(64))
        yield from found[:n]
        n -= len(found)


def some(strategy, n, number):
    """About `n` values, by the seed `number`."""
    found = []

    @seed(number)
    @settings(max_examples=n, **DRAWN)
    @given(strategy)
    def keep(value):
        found.append(value)

    keep()
    return found


def spoiled(good, names):
    """Keyword arguments: `good` ones, up to three of `names` replaced by anything."""
    return st.dictionaries(st.sampled_from(sorted(names)), values, max_size=3).map(lambda wrong: {**good, **wrong})


def fields_of(kind):
    """The names of a dataclass's fields."""
    return tuple(kind.__dataclass_fields__)


def doors():
    """[(function, good arguments, names of all)] of everything that takes values from the page, the API, a command line or a file."""
    from videolcm.batch import Line
    from videolcm.batch import fields_of as asked_in
    from videolcm.jobs import Jobs
    from videolcm.knobs import Knobs
    from videolcm.own_files import captioned
    from videolcm.pipeline import Request, size_of
    from videolcm.ui.comparison_handlers import cells_of, reference_of, typed
    from videolcm.ui.distil_handlers import preset_of, whole
    from videolcm.ui.restore import restored
    from videolcm.uploads import Material, box_of, outline_pixels, request_with

    prompt, names = {"prompt": "a red ball"}, fields_of(Request)
    told = {**Request("a red ball").settings(), "role": "student"}

    def following(task, prompt, **values):
        return request_with(Material(**values), task, prompt=prompt)

    def in_a_line(**values):
        return Request(**asked_in(Line(1, dumped(values)), names))

    def in_a_clip(**values):
        with patch("videolcm.video.read_settings", return_value=json.loads(dumped(values))):
            return restored("a.mp4")

    return [
        (Request, prompt, names),
        (in_a_line, prompt, names),
        (in_a_clip, told, (*told, "model", "cells")),
        (following, {"task": "text", **prompt}, ("task", "prompt", *fields_of(Material))),
        (Knobs, {}, fields_of(Knobs)),
        (lambda batch: Knobs(batch=whole(batch)), {"batch": 2}, ["batch"]),
        (preset_of, {"name": "paper"}, ["name"]),
        (size_of, {"text": "256x256"}, ["text"]),
        (box_of, {"text": "0,0,1,.5"}, ["text"]),
        (lambda grow: outline_pixels("grow", grow), {"grow": 3}, ["grow"]),
        (cells_of, {"roles": "student", "samplers": "lcm", "counts": [1, 2]}, ["roles", "samplers", "counts"]),
        (lambda steps: reference_of(typed(steps)), {"steps": 50}, ["steps"]),
        (lambda text: captioned([], text), {"text": ""}, ["text"]),
        (lambda id: Jobs("nowhere").get(id), {"id": "0" * 32}, ["id"]),
    ]


def calls():
    """(number of a door, its arguments)."""
    return st.one_of([spoiled(good, names).map(lambda found, i=i: (i, found)) for i, (_, good, names) in enumerate(doors())])


def dumped(value):
    """As JSON; half characters as escapes, numbers too long to print as ones that are not."""
    try:
        return json.dumps(value)
    except ValueError:
        return json.dumps(shortened(value))


def shortened(value):
    if isinstance(value, dict):
        return {key: shortened(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shortened(part) for part in value]
    return 10**400 if isinstance(value, int) and abs(value) > 10**400 else value
