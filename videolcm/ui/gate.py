"""What stands before the page: GET /healthz and GET /readyz, and a gate that every request passes.

In: requests from anybody. Out: the page's answers with headers that keep browsers from guessing and framing, a cookie by which a browser finds
its clips again, and one sentence in place of what gradio leaves as an error of its own: a body that is too large, a name that the API does not
have, a request that makes no sense, a full queue.
It knows nothing about what the page shows.
"""

import functools
import logging
import os
import re
import shutil
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from uuid import uuid4

import gradio as gr
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from videolcm.errors import AppError
from videolcm.history import is_key

MAX_BODY = 4 << 20  # bytes of a request; a painted mask takes a tenth of them
MAX_UPLOAD = 1 << 30  # bytes of files that are uploaded together; 64 MB each is launch()'s to say
RESERVE = 200 << 20  # bytes of disk below which nothing is ready and no work begins
CALL = re.compile("/gradio_api/call/(?:v2/)?([^/]+)/?")
COOKIE = "videolcm"
JOIN = re.compile("/gradio_api/(queue/join|call/.*)")

log = logging.getLogger(__name__)


def gate(page, engine):
    """The middleware for the server of `page`."""
    return Middleware(Gate, page=page, engine=engine)


def refusal(status, code, headers=None, **values):
    """An answer of one sentence, in the two places where gradio's clients look for it."""
    text = str(AppError(code, **values))
    return JSONResponse({"detail": text, "error": text}, status, headers)


def in_our_words():
    """From now on gradio says a sentence of ours wherever it would show an exception's text, which is then in the log alone.

    gradio asks nobody what to say of an exception that its own code raises: show_error is its text or nothing, and a server's exception handlers
    never see what the queue caught. So the function that makes the answer is replaced.
    """
    for module in (gr.queueing, gr.utils):
        if not hasattr(module.error_payload, "__wrapped__"):
            module.error_payload = sentences_only(module.error_payload)


def sentences_only(error_payload):
    @functools.wraps(error_payload)
    def said(error, show_error):
        return error_payload(error if isinstance(error, gr.Error) else gr.Error(str(AppError("E_REQUEST"))), True)

    return said


class Body:
    """`receive`, which fails when a body without a length, or with a wrong one, grows beyond `limit` bytes; `left` is then below 0."""

    def __init__(self, receive, limit):
        self.receive, self.left = receive, limit

    async def __call__(self):
        message = await self.receive()
        self.left -= len(message.get("body", b""))
        if self.left < 0:
            raise ValueError("the body is too large")
        return message


class Gate:
    """An ASGI middleware. An exception that comes out of the page's own routes is the request's fault: handlers let none out."""

    def __init__(self, app, page, engine):
        self.app, self.page, self.engine = app, page, engine

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = Body(receive, limit_of(scope))
        answer = Answer(send, lambda status: self.in_place_of(status, scope, body), [*HEADERS, *cookies_for(scope)])
        try:
            refused = self.before(scope)
            await (refused or self.app)(scope, body, answer)
        except Exception as error:
            log.warning("a request was not understood: %s", type(error).__name__)
            if answer.begun:
                raise
            await refusal(400, "E_REQUEST")(scope, receive, answer)

    def before(self, scope):
        """What is refused unread."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit_of(scope):
            return refusal(413, "E_BODY", limit=limit_of(scope) >> 20)
        name = CALL.fullmatch(scope["path"])
        if scope["method"] == "POST" and name and name[1] not in names_of(self.page):
            return refusal(404, "E_API", given=name[1], known=", ".join(named(self.page)))
        return None

    def in_place_of(self, status, scope, body):
        """What is said in place of gradio's answer of this status, if anything."""
        if body.left < 0:
            return refusal(413, "E_BODY", limit=limit_of(scope) >> 20)
        if status == 503 and self.page._queue.stopped:
            return refusal(503, "E_CLOSING")
        if status == 503 and JOIN.fullmatch(scope["path"]):
            waiting = len(self.page._queue)
            seconds = self.engine.seconds_for(waiting)
            return refusal(503, "E_QUEUE", {"retry-after": str(seconds)}, given=waiting, seconds=seconds)
        return refusal(400, "E_REQUEST") if status == 500 else None


class Answer:
    """`send` with headers of ours. What gradio says with status 400, 500 or 503 is read first: where `in_place_of(status)` knows better, that is
    said, but a sentence of ours stays."""

    def __init__(self, send, in_place_of, headers):
        self.send, self.in_place_of, self.headers = send, in_place_of, headers
        self.begun, self.held, self.body = False, None, b""

    async def __call__(self, message):
        if message["type"] == "http.response.start":
            self.begun = True
            message = {**message, "headers": [*message.get("headers", ()), *self.headers]}
            if message["status"] in (400, 500, 503):
                self.held = message
                return
        elif self.held:
            self.body += message.get("body", b"")
            if not message.get("more_body"):
                await self.instead()
            return
        await self.send(message)

    async def instead(self):
        """Sends what was held, or another answer."""
        start, body = self.held, self.body
        if b"[E_" in body and start["status"] == 500:
            start = {**start, "status": 400}
        elif other := self.in_place_of(start["status"]):
            start = {**start, "status": other.status_code, "headers": [*other.raw_headers, *self.headers]}
            body = other.body
        await self.send(start)
        await self.send({"type": "http.response.body", "body": body})


def headers_of(environ):
    """Headers of every answer. A Space is shown in a frame of huggingface.co."""
    frames = "'self' https://huggingface.co https://*.hf.space" if "SPACE_ID" in environ else "'self'"
    told = {"x-content-type-options": "nosniff", "content-security-policy": f"frame-ancestors {frames}", "referrer-policy": "same-origin"}
    return [(name.encode(), value.encode()) for name, value in told.items()]


HEADERS = headers_of(os.environ)


def cookies_for(scope):
    """A new key for a browser that opens the page without one."""
    sent = dict(scope["headers"]).get(b"cookie", b"").decode("latin-1")
    if scope["path"] != "/" or is_key(key_in(sent)):
        return []
    across = "; SameSite=None; Secure; Partitioned" if "SPACE_ID" in os.environ else "; SameSite=Lax"
    return [(b"set-cookie", f"{COOKIE}={uuid4().hex}; Path=/; Max-Age=31536000; HttpOnly{across}".encode())]


def key_in(cookies):
    """The key in a Cookie header, None where there is none."""
    try:
        found = SimpleCookie(cookies).get(COOKIE)
    except CookieError:
        return None
    return found.value if found else None


def key_of(visitor):
    """The key of whoever sent a gr.Request, None where there is none."""
    headers = getattr(visitor, "headers", None) or {}
    return key_in(dict(headers).get("cookie", ""))


def limit_of(scope):
    return MAX_UPLOAD if scope["path"].startswith("/gradio_api/upload") else MAX_BODY


def names_of(page):
    """Every name of an event, private ones too: those are refused by their handlers."""
    return {fn.api_name for fn in page.fns.values() if isinstance(fn.api_name, str)}


def named(page):
    return [fn.api_name for fn in page.fns.values() if isinstance(fn.api_name, str) and fn.api_visibility == "public"]


# ---- room on disk, health


def free_bytes(folder):
    """Of the disk of a folder, which need not be there yet."""
    folder = Path(folder).absolute()
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def require_room(folder):
    """AppError E_ROOM where the disk of `folder` has less than RESERVE: what is begun could not be written."""
    free = free_bytes(folder)
    if free <= RESERVE:
        raise AppError("E_ROOM", given=free >> 20, limit=RESERVE >> 20)


def health(page, engine, folder, jobs=None):
    """GET /healthz: the server answers. GET /readyz: 200 once a model is loaded and there is room in `folder`, 503 before; and what is going on."""

    async def alive(request):
        return JSONResponse({"ok": True})

    async def ready(request):
        state = await run_in_threadpool(state_of, page, engine, folder, jobs)
        return JSONResponse(state, 200 if state["ready"] else 503)

    return [Route("/healthz", alive), Route("/readyz", ready)]


def state_of(page, engine, folder, jobs):
    """{ready, model: loaded ones, disk: megabytes free, queue: clips waiting, lease: free or taken, job: state of the newest fine-tune or None}."""
    free = free_bytes(folder)
    newest = next(iter(jobs.list()), None) if jobs else None
    return {
        "ready": bool(engine.models) and free > RESERVE,
        "model": sorted({"/".join(key) for key in list(engine.models)}),
        "disk": free >> 20,
        "queue": len(page._queue),
        "lease": "taken" if engine.device.locked() else "free",
        "job": newest and newest.state,
    }
