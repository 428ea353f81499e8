"""Lines on many at once and on those who leave: cancels (R8), memory (R9), users (R10), crowds (R11), growth (R12), closed tabs (R13)."""

import itertools
import json
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from .shared import late, site
from .site import Site
from .visitor import API, SMALL, Visitor

STEP = 0.25  # seconds of a step, where a line needs one that can be hit
QUEUE = 32  # clips that may wait
USERS = 8
EIGHT = {**SMALL, "steps": 8}


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def settled(page, began, seconds=60):
    """Seconds since `began` until nobody holds the device."""
    while page.tell()["taken"] and time.monotonic() < began + seconds:
        time.sleep(0.01)
    return time.monotonic() - began


def taken(page):
    """Waits until somebody holds the device."""
    end = time.monotonic() + 60
    while not page.tell()["taken"] and time.monotonic() < end:
        time.sleep(0.01)


def r8(n, random, figures):
    """Cancels in the middle of a clip: once, twice, or by somebody who does not know the clip's id; the next clip is made each time."""
    page, freed = site(), []
    with Visitor(page.url) as one, Visitor(page.url) as other:
        for i in range(n):
            steps = page.tell(delay=STEP)["steps"]
            asked = one.join("text", **EIGHT).json()["event_id"]
            taken(page)
            time.sleep(random.uniform(0, 4 * STEP))
            if i % 3 == 2:  # a stranger's cancel does nothing
                other.cancel("text", "0" * 32)
                yield "" if page.tell()["taken"] else "a stranger stopped the clip"
            began = time.monotonic()  # the answer to a cancel comes when the step is over
            one.cancel("text", asked)
            if i % 3 == 1:
                yield "" if one.cancel("text", asked).status_code == 200 else "the second cancel failed"
            freed.append(settled(page, began))
            steps = page.tell(delay=0)["steps"] - steps
            yield "" if 0 < steps < EIGHT["steps"] else f"{steps} steps were computed of a clip that was cancelled"
            event, data = other.call("text", **{**SMALL, "seed": i})
            yield "" if event == "complete" and data[1]["seed"] == i else f"the next clip: {event} {str(data)[:100]}"
        done = one.cancel("text", asked)
        yield "" if done.status_code == 200 else f"a late cancel: {done.status_code}"
    figures |= {"p95 until free in steps": round(percentile(freed, 0.95) / STEP, 2), "most at once": page.tell(delay=0)["most"]}
    yield late(percentile(freed, 0.95), 1.2 * STEP, "95 of 100 were freed")
    yield "" if figures["most at once"] == 1 else f"{figures['most at once']} computed at once"


# ---- memory


def r9(n, random, figures):
    """Memory runs out at each stage, with 64 MB in hand: one sentence, the next clip is made, and the memory is back."""
    import numpy as np
    import torch

    from videolcm import conditions
    from videolcm.errors import AppError
    from videolcm.pipeline import Request, Result
    from videolcm.ui import Engine

    from .site import known_model

    class Full(type(known_model())):
        fails = None

        def at(self, stage):
            if stage == self.fails:
                held = torch.ones(16 << 20)
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(held)}")

        def encode_text(self, prompts):
            self.at("text")
            return super().encode_text(prompts)

        def decode(self, latents, frames):
            self.at("decode")
            return super().decode(latents, frames)

        def denoise(self, x_t, t, cond):
            self.done = getattr(self, "done", 0) + 1
            self.at(self.done)
            return super().denoise(x_t, t, cond)

    model = Full()
    engine = Engine(load=lambda ref, role: model)
    request = Request("a red ball", steps=8, frames=8, height=128, width=128)
    clip = {"frames": 8, "height": 128, "width": 128, "task": "sketch", "extractor": "as-is"}
    grey = itertools.count()  # no video twice: maps are remembered
    real = conditions.EXTRACTORS["as-is"]

    def no_memory(*args, **named):
        raise MemoryError

    def followed():
        return Request("a red ball", video=np.full((8, 128, 128, 3), next(grey), np.uint8), **clip)

    def answer(asked):
        model.done = 0
        return list(engine.run(asked, "student"))[-1]

    for _ in range(3):
        answer(request), answer(followed())
    for _ in range(n):
        for stage in ("text", *range(1, 9), "decode", "extractor"):
            before, model.fails = memory(), stage
            if stage == "extractor":
                conditions.EXTRACTORS["as-is"] = real._replace(function=no_memory)
            try:
                answer(followed() if stage == "extractor" else request)
                yield f"{stage}: nobody noticed"
            except AppError as error:
                yield "" if error.code == "E_MEMORY" else f"{stage}: {error}"
            finally:
                model.fails, conditions.EXTRACTORS["as-is"] = None, real
            good = isinstance(answer(request), Result) and not engine.device.locked()
            grown = memory() - before
            yield "" if good and grown < 5 else f"{stage}: next clip {good}, {grown:.1f} MB more"


def memory():
    """Megabytes of this process."""
    with open("/proc/self/status") as file:
        return int(file.read().split("VmRSS:")[1].split()[0]) / 1024


# ---- many at once


def r10(n, random, figures):
    """Eight users with a seed of their own each, by a known model and by the built-in one, and somebody who asks after the page's health."""
    page = site()
    page.tell(delay=0.05)
    yield from crowd(page, "known clips", n, figures)
    page.tell(delay=0)
    with Site(SITE_MODEL="toybox") as real:
        yield from crowd(real, "the built-in model", n, figures)


def crowd(page, what, n, figures):
    """Each user's clips are those that the page makes for the same seed when nobody else is there."""
    alone, service, waits, over, health = {}, [], [], threading.Event(), []
    with Visitor(page.url) as visitor:
        for seed in range(USERS):
            alone[seed] = one_clip(visitor, seed, service)
    yield "" if len(set(alone.values())) == USERS else f"clips of different seeds are the same: {list(alone.values())[0][:100]}"
    usual = statistics.median(service)

    def ask_after():
        with Visitor(page.url) as nurse:
            while not over.wait(0.05):
                path, began = ("/healthz", "/readyz")[len(health) % 2], time.monotonic()
                health.append((nurse.http.get(path).status_code, time.monotonic() - began))

    def user(seed):
        with Visitor(page.url) as visitor:
            return [(seed, one_clip(visitor, seed, waits)) for _ in range(seed, n, USERS)]

    nurse = threading.Thread(target=ask_after)
    nurse.start()
    with ThreadPoolExecutor(USERS) as pool:
        answers = [answer for many in pool.map(user, range(USERS)) for answer in many]
    over.set()
    nurse.join()
    for seed, answer in answers:
        yield "" if answer == alone[seed] else f"seed {seed}, {what}: {'of another' if answer in alone.values() else answer[:100]}"
    waited, answered = percentile(waits, 0.95) - usual, percentile([seconds for _, seconds in health], 0.99)
    figures[what] = {"p50 alone in s": round(usual, 3), "p95 of the wait in s": round(waited, 3), "health p99 in ms": round(1000 * answered)}
    figures[what] |= {"health asked": len(health)}
    yield late(waited, (USERS - 1) * usual * 1.25, f"{what}: 95 of 100 had waited")
    yield "" if {code for code, _ in health} == {200} else f"{what}: ill"
    yield late(answered, 0.2, f"{what}: health answered 99 of 100")


def one_clip(visitor, seed, seconds):
    """The mp4's bytes, or what was said instead; `seconds` gets how long it took."""
    began = time.monotonic()
    event, data = visitor.call("text", **{**SMALL, "seed": seed})
    seconds.append(time.monotonic() - began)
    return visitor.http.get(f"{API}/file={file_of(data[0])['path']}").content if event == "complete" else f"{event} {str(data)[:100]}".encode()


def file_of(output):
    """The file of a video as the API tells of it."""
    return output.get("video", output)


def r11(n, random, figures):
    """All at once: as many as may wait are taken, the others hear at once when to come back, and those that were taken get their clip."""
    page = site()
    page.tell(delay=3)
    began = threading.Barrier(n)

    def ask(i):
        with_own = visitors[i % len(visitors)]
        began.wait()
        start = time.monotonic()
        answer = with_own.post(f"{API}/call/text", bodies[i])
        return answer, time.monotonic() - start

    visitors = [Visitor(page.url) for _ in range(10)]
    bodies = [json.dumps({"data": visitors[0].data("text", **{**SMALL, "seed": i})}) for i in range(n)]
    try:
        with ThreadPoolExecutor(n) as pool:
            answers = list(pool.map(ask, range(n)))
        page.tell(delay=0)
        good = [(i, answer) for i, (answer, _) in enumerate(answers) if answer.status_code == 200]
        figures |= {"taken": len(good), "slowest refusal in s": round(max((s for a, s in answers if a.status_code != 200), default=0), 2)}
        yield "" if QUEUE <= len(good) <= QUEUE + 1 else f"{len(good)} were taken"
        for answer, seconds in answers:
            if answer.status_code != 200:
                right = answer.status_code == 503 and "[E_QUEUE]" in answer.text and int(answer.headers["retry-after"]) > 0
                yield late(seconds, 1, "a refusal came") if right else f"{answer.status_code}: {answer.text[:100]}"
        for i, answer in good:
            event, data = visitors[0].result("text", answer.json()["event_id"])
            yield "" if event == "complete" and data[1]["seed"] == i else f"clip {i}: {event} {str(data)[:100]}"
    finally:
        page.tell(delay=0)
        for visitor in visitors:
            visitor.http.close()


def r12(n, random, figures):
    """A clip in a new session, over and over; then in one session, and of the built-in model: memory, threads, files and clips left over.

    A page remembers its last sessions, so memory is flat after the first hundred at the earliest.
    """
    with Site() as page, Visitor(page.url) as visitor:
        examples = page.tell(clips=True)["given"]
        yield from soak(page, n, lambda seed: visitor.call("text", **{**SMALL, "seed": seed}), 2.5, "new sessions", figures)
        yield from soak(page, max(100, n // 4), lambda seed: in_one_session(visitor, seed), 0.6, "one session", figures)
        before, left = (page.tell(**{order: True})["given"] - examples for order in ("clips", "clean"))
        figures["clips on disk before and after gradio's clean-up"] = f"{before} and {left}"
        yield "" if before >= n and not left else f"of {before} clips on disk gradio's clean-up leaves {left}"
    with Site(SITE_MODEL="toybox") as page, Visitor(page.url) as visitor:
        yield from soak(page, 100, lambda seed: in_one_session(visitor, seed), 2.5, "the built-in model", figures)
    day = figures["new sessions"]["MB for 100 clips"] * 14.4
    figures["MB in 24 h at one a minute, extrapolated"] = round(day, 1)
    yield "" if day < 60 else f"{day:.0f} MB in 24 h"


def in_one_session(visitor, seed):
    """As `Visitor.call`, but the page remembers who asks."""
    visitor.join("text", **{**SMALL, "seed": seed})
    told = [message for message in visitor.messages() if message["msg"] == "process_completed"][-1]  # the stream is heard to its end, as browsers do
    return "complete" if told["success"] else "error", told["output"].get("data") or told["output"]


def soak(page, n, make, limit, what, figures):
    """`make(seed)` n times: memory of the second half by regression, at most `limit` MB for 100; its end holds no more of the rest than its start."""
    held = []
    for i in range(n):
        event, data = make(i)
        yield "" if event == "complete" else f"{what}, clip {i}: {event} {str(data)[:100]}"
        if i % (n // 100) == 0:
            held.append((i, page.tell(clips=True)))
    half = held[len(held) // 2 :]
    slope = 100 * statistics.linear_regression([i for i, _ in half], [state["rss"] for _, state in half]).slope
    figures[what] = {"MB for 100 clips": round(slope, 2)}
    yield "" if slope <= limit else f"{what}: {slope:.2f} MB for 100 clips"
    for name in ("threads", "files", "clips"):
        begin, end = (statistics.median(state[name] for _, state in part) for part in (half[: len(half) // 2], half[len(half) // 2 :]))
        figures[what][name] = f"{begin:g} to {end:g}"
        yield "" if end <= begin else f"{what}: {name} grew from {begin:g} to {end:g}"


# ---- tabs that are closed


def r13(n, random, figures):
    """A tab is closed in the middle of a clip: the device is free within a step and a bit. One is closed after it: the clip is in its history."""
    from videolcm.history import History

    page, freed = site(), []
    history = History(f"{page.folder.name}/clips")
    for i in range(n):
        steps = page.tell(delay=STEP)["steps"]
        with Visitor(page.url) as visitor:
            visitor.http.get("/")  # the browser gets its key
            visitor.join("text", **EIGHT)
            heard = visitor.messages()
            next(heard)
            taken(page)
            time.sleep(random.uniform(0, 4 * STEP))
            began = time.monotonic()
            heard.close()
        freed.append(settled(page, began))
        steps = page.tell(delay=0)["steps"] - steps
        yield "" if 0 < steps < EIGHT["steps"] else f"{steps} steps were computed of a clip that nobody waited for"
        with Visitor(page.url) as visitor:
            visitor.http.get("/")
            key = visitor.http.cookies["videolcm"]
            visitor.join("text", **{**SMALL, "seed": i})
            end = time.monotonic() + 60
            while not history.list(key) and time.monotonic() < end:
                time.sleep(0.02)
        kept = history.list(key)
        yield "" if len(kept) == 1 and kept[0].settings["seed"] == i else f"{len(kept)} clips in the history"
    settled(page, time.monotonic())
    state = page.tell(delay=0)
    figures["slowest until free in steps"] = round(max(freed) / STEP, 2)
    yield "" if not state["taken"] and state["most"] <= 1 else f"in the end: {state}"
    for seconds in freed:
        yield late(seconds, 1.2 * STEP, "freed")
