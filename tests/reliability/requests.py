"""Lines on what is asked: values of every kind by function (R3) and over the wire (R4), and what errors say (R18)."""

import re
import string
from collections import Counter
from pathlib import Path
from uuid import uuid4

import httpx
from hypothesis import strategies as st

from . import ROOT
from .shared import site
from .values import calls, doors, drawn, dumped, spoiled, values
from .visitor import API, SMALL, Visitor

LEAKS = re.compile(r"Traceback|\b0x[0-9a-f]{6}|/(?:usr|tmp|home|work|etc|root|opt|var)/|site-packages|line \d+, in")
SENTENCE = re.compile(r"\[(E_[A-Z_]+)\] \S.* [A-Z].*[.)>]", re.DOTALL)


def r3(n, random, figures):
    """Calls of every door with arguments of which none, some or all are wrong: an answer, or a sentence."""
    codes, refusing = Counter(), set()
    places = doors()
    for door, given in drawn(calls(), n, random):
        code, problem = outcome(places[door][0], given)
        codes[code] += 1
        refusing |= {door} if code.startswith("E_") else set()
        yield problem
    figures["by code"] = dict(sorted(codes.items()))
    yield "" if len(refusing) == len(places) and codes["accepted"] > n / 100 else f"only {len(refusing)} doors refused anything: {codes}"


def outcome(function, given):
    """(code of the AppError or "accepted", what is wrong with that)."""
    from videolcm.errors import AppError

    try:
        function(**given)
        return "accepted", ""
    except AppError as error:
        return error.code, wrong_words(str(error), dumped(list(given.values())))
    except Exception as error:
        return "", f"{type(error).__name__}: {error} for {dumped(given)[:200]}"


def wrong_words(text, given=""):
    """What is wrong with an error's text, "" if nothing; it may repeat what was given."""
    if not SENTENCE.fullmatch(text):
        return f"no sentence: {text!r}"
    leaks = [found[0] for found in LEAKS.finditer(text) if found[0] not in given]
    return f"{len(text)} characters: {text!r}" if len(text) >= 200 else f"leaks: {text!r}" if leaks else ""


# ---- over the wire

DOORS = ("/queue/join", "/run/predict", "/cancel", "/reset", "/upload", "/component_server")
BODY = ("data", "fn_index", "session_hash", "event_id")
KINDS = ("application/json", "text/plain", "multipart/form-data; boundary=x")
TAILS = ("", "/", "/x", "%00", "/../..", "?__theme=" + "x" * 50)


def r4(n, random, figures):
    """Public endpoints, private ones and raw bodies in turn; after every fifty a good request."""
    page, codes = site(), Counter()
    with Visitor(page.url) as visitor:
        ways = {asked: drawn(strategy(visitor), n, random) for asked, strategy in ((public, publics), (private, privates), (raw, raws))}
        for i in range(n):
            asked = (public, private, raw)[i % 3]
            told, text = asked(visitor, *next(ways[asked]))
            codes[f"{asked.__name__} {told}"] += 1
            yield wrong_answer(told, text)
            if i % 50 == 49:
                yield "" if visitor.call("text", **{**SMALL, "seed": i})[0] == "complete" else "a good request failed afterwards"
    figures["answers"] = dict(sorted(codes.items()))
    seen = {"public complete", "public error", "private complete", "private error"} <= set(codes)
    yield "" if seen else f"not every kind of answer came: {codes}"


def wrong_answer(told, text):
    """What is wrong with a status or event and its text, "" if nothing: errors are sentences, of the server there are none, paths leak nowhere."""
    if told.startswith("5"):
        return "" if told == "503" and "[E_QUEUE]" in text else f"{told}: {text[:200]}"
    if told == "error":
        return wrong_words(text, text if "/etc/passwd" in text else "")
    return f"leaks: {text[:300]}" if LEAKS.search(text) and not text.startswith("{") else ""


def publics(visitor):
    """(endpoint, its arguments): good ones, some of them replaced."""
    rows = {name: [row["parameter_name"] for row in found["parameters"]] for name, found in visitor.parameters.items()}
    return st.one_of([st.tuples(st.just(name[1:]), spoiled(SMALL, names)) for name, names in rows.items()])


def public(visitor, name, given):
    asked = visitor.post(f"{API}/call/{name}", dumped({"data": visitor.data(name, **given)}))
    if asked.status_code != 200:
        return str(asked.status_code), asked.text
    event, data = visitor.result(name, asked.json()["event_id"])
    return event, data.get("error") or "" if event == "error" else ""


def privates(visitor):
    """(number of an event, values for what it takes): what only the page's own buttons ask."""
    counts = {event["id"]: len(event["inputs"]) for event in visitor.events}
    return st.one_of([st.tuples(st.just(id), st.lists(values, min_size=count, max_size=count)) for id, count in counts.items()])


def private(visitor, id, data):
    session = uuid4().hex
    asked = visitor.post(f"{API}/queue/join", dumped({"data": data, "fn_index": id, "session_hash": session}))
    if asked.status_code != 200:
        return str(asked.status_code), asked.text
    output = next(message for message in visitor.messages(session) if message["msg"] == "process_completed")
    return ("complete", "") if output["success"] else ("error", output["output"]["error"] or "")


def raws(visitor):
    """(method, address, headers, bytes) of any kind."""
    names = [*visitor.parameters, *(f"/{name}" for name in visitor.index), "/nope"]
    paths = st.sampled_from([*DOORS, *(f"/{door}{name}" for door in ("call", "run", "api") for name in names)])
    bodies = st.dictionaries(st.sampled_from(BODY), values).map(lambda body: dumped(body).encode()) | st.binary(max_size=300)
    methods = st.sampled_from(("POST", "POST", "POST", "GET", "PUT", "DELETE"))
    return st.tuples(methods, st.builds(str.__add__, paths, st.sampled_from(TAILS)), st.sampled_from(KINDS), bodies)


def raw(visitor, method, path, kind, body):
    try:
        with visitor.http.stream(method, f"{API}{path}", content=body, headers={"content-type": kind}, timeout=60) as answer:
            endless = "event-stream" in answer.headers.get("content-type", "")
            return str(answer.status_code), "" if endless else answer.read().decode(errors="replace")[:4000]
    except (ValueError, httpx.InvalidURL) as error:  # httpx itself refuses the address
        return "unsent", str(type(error))


# ---- what errors say


def r18(n, random, figures):
    """Each code of the catalogue: raised by the app, produced in a test, and fit to be read whatever it is given."""
    from videolcm.errors import CATALOGUE, AppError

    app = "".join(path.read_text(encoding="utf-8") for path in [ROOT / "app.py", *(ROOT / "videolcm").rglob("*.py")])
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    app = app.replace((ROOT / "videolcm" / "errors.py").read_text(encoding="utf-8"), "")
    tests = re.sub(r'AppError\("E_\w+"', "", tests)  # made by the test itself
    for code, (message, hint) in CATALOGUE.items():
        names = {name: spec for _, name, spec, _ in string.Formatter().parse(f"{message} {hint}") if name}
        yield "" if re.search(rf"\b{code}\b", app) else f"{code} is never raised"
        yield "" if re.search(rf"\b{code}\b", tests) else f"{code} is produced by no test"
        yield "" if hint.strip() else f"{code} does not say what to do"
        for given in ("w" * 999, Path("/home/somebody/deep/folder") / ("x" * 300), 10**5000):
            yield wrong_words(str(AppError(code, **{name: 33_177_600 if spec else given for name, spec in names.items()})))
    figures["codes"] = len(CATALOGUE)
