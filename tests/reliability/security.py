"""Lines on who may be trusted: nobody (R16, through a page and its files), and what the code may not contain (R17)."""

import ast
import builtins
import contextlib
import importlib.metadata
import json
import os
import pickle
import re
import socket
import tempfile
import zipfile
from pathlib import Path

from . import ROOT
from .shared import site
from .visitor import API, SMALL, Visitor

SECRET = "canary-5f0c1d"


def r16(n, random, figures):
    page = site()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place, Visitor(page.url) as visitor:  # not where gradio's files are
        canary = Path(place, "secret.txt")
        canary.write_text(SECRET)
        for part in (files, addresses, origins, private_doors, others_clips, models, names_and_logs):
            problems = list(part(visitor, page, canary))
            figures[part.__name__] = len(problems)
            yield from problems
        yield from weights(Path(place))


def kept(answer, what):
    """ "" if the answer gives nothing away."""
    return f"{what}: {answer.status_code} {answer.text[:100]}" if SECRET in answer.text or answer.status_code >= 500 else ""


def files(visitor, page, canary):
    """Names of files of this machine in every place where the page takes names."""
    uploads, app = Path(page.folder.name) / "gradio", ROOT / "app.py"
    uploads.mkdir(exist_ok=True)
    up = "../" * 12
    targets = [
        str(canary),
        f"//{canary}",
        f"/./{canary}",
        f"/{up}{str(canary)[1:]}",
        f"file://{canary}",
        f"file:{canary}",
        f"{uploads}/../../../..{canary}",
    ]
    targets += [
        f"{uploads}/{up}{str(canary)[1:]}",
        up + str(canary)[1:],
        f"{canary}%00.mp4",
        f"{canary}/.",
        f"{canary}?a=b",
        f"{canary}#a",
        f"{canary};a",
    ]
    targets += [
        "/etc/passwd",
        "/etc/hosts",
        "/proc/self/environ",
        "/proc/self/cmdline",
        "/proc/self/cwd/app.py",
        "/dev/stdin",
        "~/.bashrc",
        "/root/.bashrc",
    ]
    targets += [
        "app.py",
        "./app.py",
        str(app),
        "requirements.txt",
        str(ROOT / "requirements.txt"),
        "assets/toybox/student.safetensors",
        ".git/config",
    ]
    targets += [
        str(ROOT / "assets/toybox/student.safetensors"),
        str(ROOT / "assets/examples/../../app.py"),
        str(page.folder.name) + "/log",
        f"{ROOT}/.git/config",
    ]
    targets += [
        "%2e%2e/%2e%2e/etc/passwd",
        "..%2f..%2fetc/passwd",
        "%2Fetc%2Fpasswd",
        "....//....//etc/passwd",
        "\\etc\\passwd",
        "..\\..\\etc\\passwd",
    ]
    targets += ["C:/windows/win.ini", "\\\\host\\share\\a", "data:text/plain,a", "/gradio_api/file=/etc/passwd", "static/../../app.py", ""]
    for target in targets:
        for prefix in ("/file=", f"{API}/file=", f"{API}/file/"):
            answer = visitor.http.get(prefix + target)
            opened = answer.status_code == 200 and not answer.headers["content-type"].startswith("text/html")
            yield kept(answer, target) or (f"{prefix}{target} was opened" if opened else "")
    for target in (str(canary), "/etc/passwd", str(app), "../../secret.txt"):
        given = {"path": target, "meta": {"_type": "gradio.FileData"}}
        event, data = visitor.call("depth", **{**SMALL, "video": given})
        yield "" if event != "complete" and SECRET not in str(data) else f"{target} was taken as an upload"


def addresses(visitor, page, canary):
    """Addresses in place of files: nobody may knock where they point."""
    heard, server = [], socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.1)
    port = server.getsockname()[1]
    hosts = (
        "127.0.0.1",
        "localhost",
        "[::ffff:127.0.0.1]",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0.0.0.0",
        "a@127.0.0.1",
        "127.0.0.1.nip.io",
    )
    named = [f"http://{host}:{port}/a.mp4" for host in hosts]
    named += [f"{kind}://127.0.0.1:{port}/a" for kind in ("https", "ftp", "rtsp", "tcp", "udp", "gopher", "HTTP", "file", "concat:http")]
    for address in (*named, f"//127.0.0.1:{port}/a.mp4", "http://169.254.169.254/latest/meta-data/"):
        for given in ({"path": address}, {"path": None, "url": address}):
            event, data = visitor.call("depth", **{**SMALL, "video": {**given, "meta": {"_type": "gradio.FileData"}}})
            with contextlib.suppress(TimeoutError):
                heard.append(server.accept()[0].recv(100))
            yield f"{address} was fetched" if heard else "" if event != "complete" else f"{address} was taken"
        answer = visitor.http.get(f"{API}/proxy={address}")
        yield kept(answer, address) or ("the proxy is open" if answer.status_code == 200 else "")
    server.close()


def origins(visitor, page, canary):
    """Other pages in the same browser."""
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
        answer = visitor.http.get("/config", headers={"origin": origin})
        allowed = answer.headers.get("access-control-allow-origin")
        yield f"{origin} may read" if allowed in (origin, "*") else ""
    for path in ("/", "/config", "/healthz", f"{API}/file=/etc/passwd", f"{API}/call/nope"):
        headers = visitor.http.get(path).headers
        yield "" if headers.get("x-content-type-options") == "nosniff" and "frame-ancestors" in headers.get("content-security-policy", "") else path


def private_doors(visitor, page, canary):
    """What is off, and what is not in the API: monitoring, MCP, distilling without leave."""
    for path in ("/monitoring", "/monitoring/summary", f"{API}/monitoring", f"{API}/monitoring/summary", f"{API}/mcp/", f"{API}/mcp/sse", "/mcp"):
        answer = visitor.http.get(path)
        yield f"{path} is open" if answer.status_code == 200 and "text/html" not in answer.headers.get("content-type", "") else kept(answer, path)
    for name in ("distill", "pause_distillation", "resume_distillation", "cancel_distillation", "delete_distillation"):
        answer = visitor.post(f"{API}/call/{name}", '{"data": []}')
        yield "" if answer.status_code == 404 else f"{name}: {answer.status_code} {answer.text[:100]}"


def models(visitor, page, canary):
    """Folders and files of this machine in place of a model's name; one that the page does not list is none."""
    (canary.parent / "link").symlink_to(ROOT / "assets" / "toybox")
    names = [
        str(ROOT / "assets/toybox"),
        "assets/toybox",
        "../assets/toybox",
        "toybox/../toybox",
        str(canary.parent / "link"),
        str(canary),
        "/etc",
        ".",
    ]
    names += [
        "toybox/",
        "student-00000000",
        f"owner/name@{'0' * 40}",
        "file:///etc/passwd",
        "https://127.0.0.1/a",
        "toybox\0",
        ["toybox"],
        {"a": 1},
        None,
    ]
    for name in names:
        event, data = visitor.call("text", **{**SMALL, "model": name})
        yield "" if event == "error" and "[E_MODEL]" in str(data) else f"{name!r} was taken for a model: {event} {str(data)[:100]}"
    for name in ("student.safetensors", "../student", "teacher/../student", ["student"], None):
        event, data = visitor.call("text", **{**SMALL, "role": name})
        yield "" if event == "error" and "[E_ROLE]" in str(data) else f"{name!r} was taken for a role: {event} {str(data)[:100]}"


def others_clips(visitor, page, canary):
    """What somebody made is shown to nobody else, whatever key they come with."""
    from videolcm.history import History

    history = History(f"{page.folder.name}/clips")
    visitor.http.get("/")
    mine = visitor.http.cookies["videolcm"]
    event, data = visitor.call("text", **SMALL)
    kept_now = history.list(mine)
    yield "" if event == "complete" and kept_now else f"the clip is not in the history: {event} {str(data)[:100]}"
    for key in ("0" * 32, "../" * 8 + str(canary)[1:], "*", f"{mine}/", ""):
        with Visitor(page.url) as other:
            other.http.cookies.set("videolcm", key)
            for name in ("show", "remove"):
                asked = {"data": [kept_now[0].name], "fn_index": other.index[name], "session_hash": other.session}
                answer = other.post(f"{API}/{'queue/join' if name == 'show' else 'run/predict'}", json.dumps(asked))
                told = next((m for m in other.messages() if m["msg"] == "process_completed"), {}) if name == "show" else answer.json()
                yield "" if "[E_KEPT]" in str(told) else f"{name} with the key {key!r}: {str(told)[:200]}"
    yield "" if history.list(mine) == kept_now else "a stranger deleted a clip"


def names_and_logs(visitor, page, canary):
    """Names and prompts that mean something to browsers, terminals and logs."""
    name, ansi = "<img src=x onerror=alert(1)>.mp4", "\x1b[31mred\n[ERROR] forged"
    bad = canary.with_name("upload.mp4")
    bad.write_bytes(b"no video")
    given = visitor.upload(bad, name)
    _, data = visitor.call("depth", **{**SMALL, "video": given})
    yield "a name came back as HTML" if "<img" in str(data) else ""
    event, data = visitor.call("text", **{**SMALL, "prompt": f"<script>alert(1)</script> {ansi}"})
    yield "" if event == "complete" and "<script" not in str(data[2:]) else f"a prompt came back as HTML: {event}"
    yield "a prompt is in the log as it was typed" if "\x1b[31m" in page.log() or "\n[ERROR] forged" in page.log() else ""
    for path in ("a.svg", "a.html"):
        bad.with_name(path).write_text("<script>alert(1)</script>")
        there = visitor.upload(bad.with_name(path))["path"]
        answer = visitor.http.get(f"{API}/file={there}")
        inline = "attachment" not in answer.headers.get("content-disposition", "") and answer.headers.get("content-type", "").startswith(
            ("text/html", "image/svg")
        )
        yield f"an uploaded {path} is shown as a page" if answer.status_code == 200 and inline else ""


class Gadget:
    """What runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def weights(place):
    """Checkpoints that want to run, and one that grows when it is read."""
    import torch

    from videolcm import models
    from videolcm.convert import read_official
    from videolcm.errors import AppError

    ran = place / "ran"
    gadget = Gadget(f"touch {ran}")
    with zipfile.ZipFile(place / "zip.pth", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"w": gadget}))
        file.writestr("archive/version", "3")
    for i, protocol in enumerate((0, 2, 4, 5)):
        (place / f"p{i}.pth").write_bytes(pickle.dumps({"state_dict": gadget}, protocol))
    torch.save({"w": torch.zeros(16 << 20)}, place / "flat")
    with zipfile.ZipFile(place / "flat") as flat, zipfile.ZipFile(place / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in flat.namelist():
            bomb.writestr(name, flat.read(name))
    (place / "folder").mkdir()
    (place / "folder" / "student.safetensors").write_bytes(pickle.dumps(gadget))
    for path in [*sorted(place.glob("*.pth")), place / "folder"]:
        for door in (models.load, read_official):
            try:
                door(path if door is read_official else str(path))
                yield f"{path.name} was read"
            except AppError as error:
                yield "" if not ran.exists() else f"{path.name} ran a command: {error.code}"


# ---- the code


FLOORS = {"gradio": (6, 17), "torch": (2, 8), "safetensors": (0, 6), "diffusers": (0, 38), "starlette": (0, 40), "pillow": (10, 3)}


def r17(n, random, figures):
    import pytest

    for name, floor in FLOORS.items():
        version = tuple(int(part) for part in re.findall(r"\d+", importlib.metadata.version(name))[:2])
        yield "" if version >= floor else f"{name} {version} is older than {floor}"
    found = []

    class Listener:
        def pytest_runtest_logreport(self, report):
            if report.when == "call" or report.failed:
                found.append("" if report.passed else f"{report.nodeid} failed")

    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        code = pytest.main(["-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "test_architecture.py")], plugins=[Listener()])
    yield from found
    yield "" if code == 0 and found else f"tests/test_architecture.py ended with {code!r}"
    for path in [ROOT / "app.py", *sorted((ROOT / "videolcm").rglob("*.py"))]:
        yield forbidden(path)


CAUGHT = {  # files and what they raise that is no AppError, and where it stays
    ("app.py", "ValueError"): "the parser of arguments",
    ("gate.py", "ValueError"): "the gate",
    ("animatediff.py", "ValueError"): "read_lora",
    ("footage.py", "FileNotFoundError"): "upload_bytes",
    ("video.py", "IsADirectoryError"): "require_writable",
    ("jobs.py", "Stopped"): "work",
    ("train_verbs.py", "KeyboardInterrupt"): "exit_code",
    ("latent.py", "NotImplementedError"): "nobody: each model has its own",
    ("__init__.py", "AttributeError"): "Python, which asks the package for names",
}


def forbidden(path):
    """What a file does that nothing here may do, "" for nothing: settings that open the page, and errors without a code raised for people."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.keyword) and node.arg == "enable_mcp":
            return f"{path.name}:{node.value.lineno} {node.arg}"
        if isinstance(node, ast.Attribute) and node.attr in ("FileExplorer", "mktemp", "yaml_load"):
            return f"{path.name}:{node.lineno} {node.attr}"
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and (getattr(node.func.value, "id", ""), node.func.attr) == ("gr", "load")
        ):
            return f"{path.name}:{node.lineno} gr.load"
        if isinstance(node, ast.Raise):
            name = getattr(getattr(node.exc, "func", node.exc), "id", "")
            if (isinstance(getattr(builtins, name, None), type) or name == "Stopped") and (path.name, name) not in CAUGHT:
                return f"{path.name}:{node.lineno} raises {name}"
        raised = node.exc if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) else None
        if raised and getattr(raised.func, "attr", "") == "Error" and "str(" not in ast.unparse(raised):  # a gr.Error says what an AppError says
            return f"{path.name}:{node.lineno} raises {ast.unparse(raised)[:60]}"
    return ""
