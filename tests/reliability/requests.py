"""Lines on what is asked: values of every kind by function (R3) and over the wire (R4), and what errors say (R18)."""

import json
import re
import string
from pathlib import Path

import httpx

from . import ROOT
from .shared import site
from .visitor import API, SMALL, Visitor

SPECIAL = [None, True, False, 0, -1, 1, 4, 8, 9, 2.5, 4.0, 1e308, -1e308, float("nan"), float("inf"), 2**31 - 1, 2**31, 2**64, 10**5000, "", " ", "4"]
SPECIAL += [
    "NaN",
    "\0",
    "\x1b[31m\n",
    "\ud800",
    "\u202ea",
    "../../etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "x" * 513,
    "x" * 100_000,
    "🎬" * 512,
]
SPECIAL += [
    "256x256",
    "1e9x1",
    "lcm",
    "ddim",
    "student",
    "teacher",
    "toybox",
    "text",
    "depth",
    "text,depth",
    "1,2",
    "0,0,1,.5",
    [],
    {},
    [4],
    {"a": 1},
]
SPECIAL += [[[[[[]]]]], [None], ["lcm", 3], {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, {"__type__": "update", "value": 3}]
LEAKS = re.compile(r"Traceback|\b0x[0-9a-f]{6}|/(?:usr|tmp|home|work|etc|root|opt|var)/|site-packages|line \d+, in")
SENTENCE = re.compile(r"\[(E_[A-Z_]+)\] \S.* [A-Z].*[.)>]", re.DOTALL)


def value(random, depth=0):
    """Anything that JSON can hold, and numbers that it should not."""
    kind = random.random()
    if kind < 0.5 or depth > 3:
        return random.choice(SPECIAL)
    if kind < 0.65:
        return random.choice((random.randint(-(2**70), 2**70), random.randint(-5, 40), random.uniform(-3, 40), random.gauss(0, 1e9)))
    if kind < 0.85:
        letters = random.choice((string.printable, "\0\x1b\u200d\u202e\ud800é漢🎬e\u0301 ", "0123456789x,.-e"))
        return "".join(random.choices(letters, k=int(2 ** random.uniform(0, 10))))
    if kind < 0.95:
        return [value(random, depth + 1) for _ in range(random.randint(0, 4))]
    names = [name for name in SPECIAL if isinstance(name, str)]
    return {random.choice(names)[:20]: value(random, depth + 1) for _ in range(random.randint(0, 3))}


def doors():
    """(name, function, names of its arguments) of everything that takes values from the page, the API or a command line."""
    from videolcm.jobs import Knobs
    from videolcm.pipeline import Request, size_of
    from videolcm.ui.comparison_handlers import cells_of, reference_of, typed
    from videolcm.ui.distil_handlers import preset_of, whole
    from videolcm.uploads import Material, box_of, outline_pixels, request_with

    asked = ("prompt", "steps", "seed", "frames", "height", "width", "sampler", "guidance", "gamma", "task", "extractor", "also", "strength", "video")
    knobs = ("iterations", "batch", "lr", "guidance", "ema", "skip", "huber", "seed", "minutes", "conditions", "images")
    follow = ("video", "masks", "box", "start", "span", "fit", "moving", "grow", "feather")

    def following(task, prompt, **values):
        return request_with(Material(**values), task, prompt=prompt)

    return [
        (Request, asked),
        (Knobs, knobs),
        (size_of, ("text",)),
        (box_of, ("text",)),
        (cells_of, ("roles", "samplers", "counts")),
        (lambda steps: reference_of(typed(steps)), ("steps",)),
        (preset_of, ("name",)),
        (lambda batch: Knobs(batch=whole(batch)), ("batch",)),
        (lambda grow: outline_pixels("grow", grow), ("grow",)),
        (following, ("task", "prompt", *follow)),
    ]


def r3(n, random, figures):
    from videolcm.errors import AppError

    good = dict(SMALL, height=128, width=128, task="text", iterations=3, batch=2, text="256x256", roles="student", samplers="lcm", counts=[1, 2])
    refused, places = {}, doors()
    needed = ("prompt", "text", "steps", "name", "batch", "grow", "task", "roles", "samplers", "counts")
    for _ in range(n):
        function, names = random.choice(places)
        kept = random.random()  # some calls are wrong in one place alone
        values = {name: good[name] if name in good and random.random() < kept else value(random) for name in names}
        values = {name: part for name, part in values.items() if name in needed or random.random() > 0.2}
        try:
            function(**values)
            refused["accepted"] = refused.get("accepted", 0) + 1
            yield ""
        except AppError as error:
            refused[error.code] = refused.get(error.code, 0) + 1
            yield wrong_words(str(error), dumped(list(values.values())))
        except Exception as error:
            yield f"{type(error).__name__} of {function}: {error} for {dumped(values)[:200]}"
    figures["by code"] = dict(sorted(refused.items()))


def wrong_words(text, given=""):
    """What is wrong with an error's text, "" if nothing; it may repeat what was given."""
    if not SENTENCE.fullmatch(text):
        return f"no sentence: {text!r}"
    leaks = [found[0] for found in LEAKS.finditer(text) if found[0] not in given]
    return f"{len(text)} characters: {text!r}" if len(text) >= 200 else f"leaks: {text!r}" if leaks else ""


# ---- over the wire


def r4(n, random, figures):
    page = site()
    codes = {}
    with Visitor(page.url) as visitor:
        names = [*visitor.parameters, *(f"/{name}" for name in visitor.index)]
        for i in range(n):
            told, text = sent(visitor, random, names)
            codes[told] = codes.get(told, 0) + 1
            if told.startswith("5") and not (told == "503" and "[E_QUEUE]" in text):
                yield f"{told}: {text[:200]}"
            elif told == "error" and "[E_" not in text:
                yield f"an error without a code: {text[:200]!r}"
            else:
                yield f"leaks: {text[:300]}" if LEAKS.search(text) and not text.startswith("{") else ""
            if i % 50 == 49:
                yield "" if visitor.call("text", **{**SMALL, "seed": i})[0] == "complete" else "a good request failed afterwards"
    figures["answers"] = dict(sorted(codes.items()))


def sent(visitor, random, names):
    """(status or event, text) of one request of some kind."""
    kind, name = random.random(), random.choice(names)
    if kind < 0.35 and name in visitor.parameters:  # one endpoint, all arguments there, some of them nonsense
        values = {row["parameter_name"]: value(random) for row in visitor.parameters[name]["parameters"] if random.random() < 0.5}
        asked = visitor.post(f"{API}/call{name}", dumped({"data": visitor.data(name[1:], **{**SMALL, **values})}))
        if asked.status_code == 200:
            event, data = visitor.result(name[1:], asked.json()["event_id"])
            return event, dumped(data)
        return str(asked.status_code), asked.text
    body = {"data": value(random), "fn_index": value(random), "session_hash": value(random), "event_id": value(random)}
    body = {key: part for key, part in body.items() if random.random() < 0.8}
    content = dumped(body) if random.random() < 0.8 else bytes(random.choices(range(256), k=random.randint(0, 300)))
    path = random.choice(
        (f"/call{name}", "/queue/join", "/run/predict", f"/run{name}", "/cancel", "/reset", "/upload", "/component_server", f"/api{name}")
    )
    path += random.choice(("", "", "/", "/x", "%00", "/../..", "?__theme=" + "x" * 50))
    try:
        method = random.choice(("POST", "POST", "POST", "POST", "GET", "PUT", "DELETE"))
        headers = {"content-type": random.choice(("application/json", "application/json", "text/plain", "multipart/form-data; boundary=x"))}
        with visitor.http.stream(method, f"{API}{path}", content=content, headers=headers, timeout=20) as answer:
            endless = "event-stream" in answer.headers.get("content-type", "")
            return str(answer.status_code), "" if endless else answer.read().decode(errors="replace")[:4000]
    except (ValueError, httpx.InvalidURL) as error:  # httpx itself refuses the address
        return "unsent", str(type(error))


def dumped(value):
    """As JSON; half characters as escapes, numbers too long to print as text."""
    try:
        return json.dumps(value)
    except ValueError:
        return json.dumps(json.loads(json.dumps(shortened(value))))


def shortened(value):
    if isinstance(value, dict):
        return {key: shortened(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shortened(part) for part in value]
    return 10**400 if isinstance(value, int) and abs(value) > 10**400 else value


# ---- what errors say


def r18(n, random, figures):
    """Each code of the catalogue: raised by the app, produced in a test, and fit to be read whatever it is given."""
    from videolcm.errors import CATALOGUE, AppError

    app = "".join(path.read_text(encoding="utf-8") for path in [ROOT / "app.py", *(ROOT / "videolcm").rglob("*.py")])
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    app = app.replace((ROOT / "videolcm" / "errors.py").read_text(encoding="utf-8"), "")
    for code, (message, hint) in CATALOGUE.items():
        names = {name: spec for _, name, spec, _ in string.Formatter().parse(f"{message} {hint}") if name}
        text = str(AppError(code, **{name: 33_177_600 if spec else value_for(name) for name, spec in names.items()}))
        if not re.search(rf"\b{code}\b", app):
            yield f"{code} is never raised"
        elif not re.search(rf"\b{code}\b", tests):
            yield f"{code} is produced by no test"
        else:
            yield wrong_words(text) or ("" if hint.strip() else f"{code} does not say what to do")
    figures["codes"] = len(CATALOGUE)


def value_for(name):
    """Something long that a person may have given, or a file that lies deep."""
    short = {"limit": 100, "count": 12, "lines": 30, "seconds": 99, "role": "teacher", "state": "CANCELLED", "more": " and 11 more"}
    short |= {"name": "Learning rate", "range": "a whole number of pixels from 0 to 64", "problem": "has another shape", "folder": "assets/pidinet"}
    short |= {"needs": "16 frames of 256x256", "file": "table5_pidinet.pth", "source": "lllyasviel/Annotators"}
    return short.get(name) or Path("/home/somebody/deep/folder") / ("x" * 40)
