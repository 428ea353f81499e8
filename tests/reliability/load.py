"""Lines on many at once and on those who leave: cancels (R8), memory (R9), users (R10), crowds (R11), growth (R12), closed tabs (R13)."""

import json
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from .shared import site
from .site import Site, clip_of
from .visitor import API, SMALL, Visitor

STEP = 0.25  # seconds of a step, where a line needs one that can be hit
QUEUE = 32  # clips that may wait
USERS = 8
EIGHT = {**SMALL, "steps": 8}


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def settled(page, seconds=60):
    """Seconds until nobody holds the device."""
    began = time.monotonic()
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
    page.tell(delay=STEP)
    with Visitor(page.url) as one, Visitor(page.url) as other:
        for i in range(n):
            asked = one.join("text", **EIGHT).json()["event_id"]
            taken(page)
            time.sleep(random.uniform(0, 4 * STEP))
            if i % 3 == 2:  # a stranger's cancel does nothing
                other.cancel("text", "0" * 32)
                yield "" if page.tell()["taken"] else "a stranger stopped the clip"
            one.cancel("text", asked)
            if i % 3 == 1:
                yield "" if one.cancel("text", asked).status_code == 200 else "the second cancel failed"
            freed.append(settled(page))
            page.tell(delay=0)
            event, data = other.call("text", **{**SMALL, "seed": i})
            page.tell(delay=STEP)
            yield "" if event == "complete" and data[1]["seed"] == i else f"the next clip: {event} {str(data)[:100]}"
        late = one.cancel("text", asked)
        yield "" if late.status_code == 200 else f"a late cancel: {late.status_code}"
    figures |= {"p95 until free in steps": round(percentile(freed, 0.95) / STEP, 2), "most at once": page.tell(delay=0)["most"]}
    yield "" if figures["p95 until free in steps"] <= 1.2 else f"freed after {figures}"
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
    followed = Request("a red ball", frames=8, height=128, width=128, task="sketch", extractor="as-is", video=np.zeros((8, 128, 128, 3), np.uint8))
    real = conditions.EXTRACTORS["as-is"]

    def no_memory(*args, **named):
        raise MemoryError

    def answer(asked):
        model.done = 0
        return list(engine.run(asked, "student"))[-1]

    for _ in range(3):
        answer(request), answer(followed)
    for _ in range(n):
        for stage in ("text", *range(1, 9), "decode", "extractor"):
            before, model.fails = memory(), stage
            if stage == "extractor":
                conditions.EXTRACTORS["as-is"] = real._replace(function=no_memory)
            try:
                answer(followed if stage == "extractor" else request)
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
    """Eight users, a clip of their own for each request, and somebody who asks after the page's health meanwhile."""
    page = site()
    page.tell(delay=0.05)
    seeds, slow, alone = list(range(1000, 1000 + n)), [], []
    with Visitor(page.url) as visitor:
        for seed in range(5):
            began = time.monotonic()
            visitor.call("text", **{**SMALL, "seed": seed})
            alone.append(time.monotonic() - began)
    over, health = threading.Event(), []

    def ask_after():
        with Visitor(page.url) as nurse:
            while not over.wait(0.1):
                began = time.monotonic()
                health.append((nurse.http.get("/readyz").status_code, time.monotonic() - began))

    def user(mine):
        with Visitor(page.url) as visitor:
            return [one_clip(visitor, seed, slow) for seed in mine]

    nurse = threading.Thread(target=ask_after)
    nurse.start()
    with ThreadPoolExecutor(USERS) as pool:
        answers = [answer for many in pool.map(user, [seeds[i::USERS] for i in range(USERS)]) for answer in many]
    over.set()
    nurse.join()
    for seed, event, data in answers:
        right = event == "complete" and data == clip_of(prompt=SMALL["prompt"], steps=1, seed=seed, frames=8, height=128, width=128)
        yield "" if right else f"seed {seed}: {event}, {'another clip' if event == 'complete' else data}"
    service = statistics.median(alone)
    figures |= {"p50 alone in s": round(service, 3), "p95 among eight in s": round(percentile(slow, 0.95), 3)}
    figures |= {"readyz p99 in ms": round(1000 * percentile([seconds for _, seconds in health], 0.99)), "readyz asked": len(health)}
    yield "" if percentile(slow, 0.95) <= USERS * service * 1.25 else f"slow: {figures}"
    yield "" if {code for code, _ in health} == {200} and figures["readyz p99 in ms"] < 200 else f"health: {figures}"
    page.tell(delay=0)


def one_clip(visitor, seed, slow):
    began = time.monotonic()
    event, data = visitor.call("text", **{**SMALL, "seed": seed})
    slow.append(time.monotonic() - began)
    if event != "complete":
        return seed, event, str(data)[:100]
    return seed, event, visitor.http.get(f"{API}/file={file_of(data[0])['path']}").content


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
                yield "" if right and seconds < 1 else f"{answer.status_code} after {seconds:.2f} s: {answer.text[:100]}"
        for i, answer in good:
            event, data = visitors[0].result("text", answer.json()["event_id"])
            yield "" if event == "complete" and data[1]["seed"] == i else f"clip {i}: {event} {str(data)[:100]}"
    finally:
        page.tell(delay=0)
        for visitor in visitors:
            visitor.http.close()


def r12(n, random, figures):
    """A clip in a new session, over and over: memory of the second half by regression; threads, files and clips left over."""
    held = []
    with Site() as page, Visitor(page.url) as visitor:
        for i in range(n):
            event, data = visitor.call("text", **{**SMALL, "seed": i})
            yield "" if event == "complete" else f"clip {i}: {event} {str(data)[:100]}"
            if i % 10 == 9:
                held.append((i, page.tell()))
    half = held[len(held) // 2 :]
    slope = 100 * statistics.linear_regression([i for i, _ in half], [state["rss"] for _, state in half]).slope
    figures |= {"MB for 100 clips": round(slope, 2), "MB in 24 h at one a minute, extrapolated": round(slope * 14.4, 1)}
    yield "" if slope <= 2.5 else f"{slope:.2f} MB for 100 clips"
    for name in ("threads", "files", "clips"):
        grown = half[-1][1][name] - half[0][1][name]
        figures[name] = f"{half[0][1][name]} to {half[-1][1][name]}"
        yield "" if grown <= (0 if name == "clips" else 3) else f"{name} grew by {grown}"


# ---- tabs that are closed


def r13(n, random, figures):
    """A tab is closed in the middle of a clip: the device is free within a step and a bit. One is closed after it: the clip is in its history."""
    from videolcm.history import History

    page, freed = site(), []
    history = History(f"{page.folder.name}/clips")
    for i in range(n):
        page.tell(delay=STEP)
        with Visitor(page.url) as visitor:
            visitor.http.get("/")  # the browser gets its key
            visitor.join("text", **EIGHT)
            heard = visitor.messages()
            next(heard)
            taken(page)
            time.sleep(random.uniform(0, 4 * STEP))
            heard.close()
        freed.append(settled(page))
        page.tell(delay=0)
        with Visitor(page.url) as visitor:
            visitor.http.get("/")
            key = visitor.http.cookies["videolcm"]
            visitor.join("text", **{**SMALL, "seed": i})
            end = time.monotonic() + 30
            while not history.list(key) and time.monotonic() < end:
                time.sleep(0.02)
        kept = history.list(key)
        yield "" if len(kept) == 1 and kept[0].settings["seed"] == i else f"{len(kept)} clips in the history"
    settled(page)
    state = page.tell(delay=0)
    figures["slowest until free in steps"] = round(max(freed) / STEP, 2)
    yield "" if not state["taken"] and state["most"] <= 1 else f"in the end: {state}"
    for seconds in freed:
        yield "" if seconds <= 2 * STEP else f"freed after {seconds / STEP:.1f} steps"
