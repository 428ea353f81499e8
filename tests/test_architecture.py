"""The import arrows of CONTRIBUTING.md, the words that may not be in the code, and what importing the package costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = {"errors", "schedule", "sampling", "checkpoint", "optim", "render", "scenery", "world", "video", "footage", "conditions", "masks", "guides"}
CORE |= {"training", "data", "distill", "pipeline", "judge", "metrics", "compare", "uploads", "lease", "own_files", "own_clips", "batch"}
CORE |= {"fetching", "history", "jobs", "knobs", "lines", "memory", "processes", "sources"}
MAY_IMPORT = {
    "errors": set(),
    "memory": set(),
    "lines": {"errors"},
    "schedule": {"errors"},
    "sampling": {"errors", "schedule"},
    "checkpoint": {"errors"},
    "video": {"errors"},
    "footage": {"errors", "video"},
    "processes": {"errors"},
    "lora": set(),
    "optim": {"processes"},
    "solids": set(),
    "scenery": set(),
    "render": {"errors", "scenery", "solids"},
    "world": {"errors", "render", "scenery", "solids"},
    "training": {"errors", "checkpoint", "lines", "optim", "processes"},
    "data": {"checkpoint", "errors", "world", "video", "models"},
    "own_files": {"errors", "footage"},
    "own_clips": {"checkpoint", "conditions", "data", "depth", "errors", "footage", "own_files"},
    "distill": {"errors", "models", "data", "schedule", "checkpoint", "training", "lora", "matching", "processes"},
    "matching": {"schedule"},
    "students": set(),
    "sources": {"errors", "students"},
    "fetching": {"errors", "sources"},
    "fetch_verb": {"arguments", "errors", "fetching", "memory", "models", "sources"},
    "lease": {"errors"},
    "history": {"errors", "video"},
    "jobs": {"errors", "checkpoint", "lines", "own_files", "students"},
    "knobs": {"arguments", "distill", "errors"},
    "previews": {"errors", "pipeline"},
    "pipeline": {"errors", "guides", "memory", "models", "sampling", "stopwatch", "video"},
    "stopwatch": set(),
    "judge": {"errors", "checkpoint", "world"},
    "metrics": {"judge"},
    "compare": {"conditions", "errors", "guides", "judge", "metrics", "pipeline", "stopwatch", "students", "world"},
    "real_clips": {"errors", "footage"},
    "evaluate_guided": {"compare", "conditions", "data", "judge", "masks", "metrics", "pipeline", "real_clips", "world"},
    "grid": {"video"},
    "depth": {"errors", "checkpoint", "models"},
    "conditions": {"errors", "checkpoint", "depth"},
    "masks": {"errors"},
    "guides": {"conditions", "masks"},
    "uploads": {"errors", "footage", "masks", "models", "pipeline"},
    "batch": {"errors", "pipeline", "processes", "video"},
    "batch_verb": {"arguments", "batch", "errors", "pipeline", "processes", "video"},
    "gallery": {"render", "video", "world"},
    "arguments": {"errors"},
    "guide_arguments": {"arguments", "errors", "uploads"},
    "models": {"errors", "memory", "schedule", "checkpoint", "models", "sources", "students"},
    "convert": {"errors", "checkpoint", "models"},
    "convert_verb": {"arguments", "errors", "convert", "models"},
}
HEAVY = {
    "gradio": ("ui", "app"),
    "spaces": ("ui", "app"),
    "diffusers": ("models",),
    "transformers": ("models", "conditions"),
    "controlnet_aux": ("conditions",),
    "peft": ("lora",),
}
MODULES = sorted((ROOT / "videolcm").rglob("*.py")) + [ROOT / "app.py"]


def room(path):
    """The module that a file belongs to: its name, or the package's for files in models/ and ui/."""
    parts = path.relative_to(ROOT).parts
    return parts[1].removesuffix(".py") if len(parts) > 1 else parts[0].removesuffix(".py")


def imports(path):
    """(top-level package, module of ours or None) of every import in a file."""
    depth = len(path.relative_to(ROOT).parts) - 1
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], (alias.name.split(".") + [None])[1]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            parts = node.module.split(".") + ([node.names[0].name] if node.module == "videolcm" else [])
            yield parts[0], (parts + [None])[1]
        elif isinstance(node, ast.ImportFrom):
            inside = path.relative_to(ROOT).parts[1 : depth + 1 - node.level]
            parts = [*inside, *((node.module or "").split(".") if node.module else [node.names[0].name])]
            yield "videolcm", parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
    here = room(path)
    for top, ours in imports(path):
        if top == "videolcm" and ours and here in MAY_IMPORT and ours != here:
            assert ours in MAY_IMPORT[here], f"{here} imports {ours}"
        if top in HEAVY:
            assert here in HEAVY[top], f"{here} imports {top}"


def test_every_module_of_the_core_has_its_row():
    assert set(MAY_IMPORT) >= CORE
    assert {room(path) for path in MODULES} >= CORE


RUNS = {"eval", "exec", "compile", "__import__", "system", "popen"}  # as plain names: a network has an eval() of its own
RUNS_TOO = {"popen", "getoutput", "getstatusoutput", "create_subprocess_shell", "extractall", "load_pickle"}
UNPICKLE = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
OPENS = {"shell", "trust_remote_code", "custom_pipeline", "allow_pickle"}
MAY_LOAD = {"conditions", "convert"}  # torch.load, and only with weights_only=True


def safe(call):
    return any(keyword.arg == "weights_only" and getattr(keyword.value, "value", None) is True for keyword in call.keywords)


def unsafe(text, here=""):
    """What the code `text` of the module `here` does that may run what somebody else wrote, one after another."""
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        sources = names if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from ({source.split(".")[0] for source in sources} & UNPICKLE if names != ["UnpicklingError"] else ())  # what torch may raise
        yield from (f"torch.{name}" for name in names if sources == ["torch"] and name == "load")
        if isinstance(node, ast.Call):
            plain, name = isinstance(node.func, ast.Name), getattr(node.func, "attr", getattr(node.func, "id", ""))
            owner = getattr(getattr(node.func, "value", None), "id", "")
            yield from [name] if name in (RUNS if plain else RUNS_TOO) else []
            yield from ["os.system"] if (owner, name) == ("os", "system") else []
            yield from ["torch.load"] if (owner, name) == ("torch", "load") and not (here in MAY_LOAD and safe(node)) else []
            yield from ({keyword.arg for keyword in node.keywords} & OPENS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unsafe_is_called(path):
    assert not list(unsafe(path.read_text(encoding="utf-8"), room(path)))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "import pickle",
            "from pickle import loads",
            "import torch, yaml",
            "from torch import load",
            "eval(x)",
            "exec(x)",
            "compile(x, '', 'exec')",
        ),
        *("os.system(x)", "from os import system; system(x)", "os.popen(x)", "subprocess.getoutput(x)", "subprocess.run(x, shell=False)"),
        *("tar.extractall()", "torch.load(x)", "torch.load(x, weights_only=False)", "np.load(x, allow_pickle=True)"),
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)
def test_what_is_unsafe_is_seen(text):
    assert list(unsafe(text, "convert"))


def test_what_is_safe_is_let_be():
    assert not list(
        unsafe("from pickle import UnpicklingError; net.eval(); re.compile(x); torch.load(x, weights_only=True); subprocess.run([x])", "convert")
    )


def test_importing_the_package_brings_no_page_and_no_diffusers():
    heavy = {"gradio", "spaces", "diffusers", "transformers", "controlnet_aux", "moviepy", "peft"}
    code = f"import sys, videolcm; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
