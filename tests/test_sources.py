"""The table of models: what is here, what is to be downloaded and asked first, what does not fit, and what is said offline."""

import io
import json
import re
import sys
from types import SimpleNamespace

import pytest
from conftest import FakeModel
from real import DATA, animatelcm

from videolcm import __main__ as command_line
from videolcm import models, sources
from videolcm.errors import AppError
from videolcm.sources import GB, HUB, SOURCES, is_here, licence_of, menu, missing, place_of, slow_here, split, state_of
from videolcm.ui import Engine
from videolcm.ui.engine import Loading
from videolcm.ui.handlers import make_handler
from videolcm.ui.messages import status
from videolcm.ui.tab import told

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDEOLCM_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def online(monkeypatch):
    """huggingface_hub as it would answer: asked for a part it writes files of the names that the patterns say."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    asked = []

    def snapshot_download(repo, revision, allow_patterns, local_dir, dry_run=False):
        names = [pattern.replace("*", "diffusion_pytorch_model") for pattern in allow_patterns]
        if dry_run:
            return [SimpleNamespace(filename=name, file_size=GB, will_download=not (local_dir / name).exists()) for name in names]
        asked.append((repo, revision, tuple(allow_patterns)))
        for name in names:
            (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
            (local_dir / name).write_bytes(b"x")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "data:,")  # which answers
    return asked


def run(*arguments):
    return command_line.main(list(arguments))


@pytest.mark.parametrize("gpu", [False, True])
def test_without_a_gpu_people_are_told_before(monkeypatch, gpu):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert ("There is no GPU here: a clip takes minutes" in status(Loading("modelscope"))) != gpu
    assert slow_here("toybox") is None and slow_here("elsewhere") is None and "no GPU" not in status(Loading("toybox"))


def refused(code, call):
    with pytest.raises(AppError) as error:
        call()
    assert error.value.code == code and len(str(error.value)) < 260, error.value
    return str(error.value)


def test_every_row_says_where_its_files_come_from():
    for name, source in SOURCES.items():
        assert set(source.tasks) <= {"text", "depth", "sketch", "inpaint"} and source.licence and source.steps
        assert source.parts or source.official or name == "toybox"
        for part in source.parts:
            assert HUB.fullmatch(f"{part.repo}@{part.revision}") and (part.size is None or 1e7 < part.size < 1e11)
            assert not any(re.search("[.](bin|ckpt|pth?)$", pattern) for pattern in part.files)
    assert {source.kind for source in SOURCES.values()} == {"toybox", "vgen", "diffusers", "animatediff"}


def test_names_become_safe_folders(folder):
    assert place_of("animatelcm") == folder / "animatelcm" and place_of("somewhere/else") is None
    assert place_of(f"a.b/c-d@{REVISION}") == folder / "a.b--c-d@0123456789ab"
    for ref in (f"../x@{REVISION}", f"a/../b@{REVISION}", f"a/b@{REVISION[:39]}", "a/b@main", f"/a/b@{REVISION}"):
        assert place_of(ref) is None
    assert split("animatelcm:a/b") == ("animatelcm", "a/b") and split("C:folder") == ("C:folder", None) and split("toybox:x") == ("toybox:x", None)


def test_what_is_here_and_what_is_not(folder):
    assert is_here("toybox") and not is_here("animatelcm") and list(models.list_models()) == ["toybox"]
    assert [part.name for part in missing("animatelcm")][:2] == ["motion_adapter", "lora"] and len(missing("animatelcm")) == 5
    assert state_of("toybox") == "" and state_of("videolcm-t2v") == "to be converted first"
    assert state_of("animatelcm") == "3.2 GB and more to download"
    assert state_of("animatelcm", free=1 * GB) == "does not fit: needs 3.2 GB at least, 1.0 GB are free"
    assert state_of("videolcm-compose", free=1 * GB) == "does not fit: needs 2.8 GB at least, 1.0 GB are free"
    manifests = {"videolcm-t2v": "real_t2v", "videolcm-compose": "real_compositional"}
    assert {name: json.loads((DATA / f"{of}_manifest.json").read_text())["n_params"] for name, of in manifests.items()} == {
        name: SOURCES[name].parameters for name in manifests
    }
    (folder / "videolcm-t2v" / "vae").mkdir(parents=True)
    (folder / "videolcm-t2v" / "manifest.json").write_text("{}")
    assert state_of("videolcm-t2v") == "still without text_encoder, tokenizer of Stable Diffusion 2.1"
    assert state_of("animatelcm", free=100 * GB) == state_of("animatelcm")
    assert ("animatelcm (3.2 GB and more to download)", "animatelcm") in menu() and menu()[0] == ("toybox", "toybox")
    animatelcm(folder / "animatelcm")
    for kind in ("depth", "softedge"):
        path = folder / "animatelcm" / f"controlnet_{kind}"
        (path / "diffusion_pytorch_model.safetensors").rename(path / "diffusion_pytorch_model.fp16.safetensors")
    adapter = folder / "animatelcm" / "motion_adapter"
    (adapter / "diffusion_pytorch_model.safetensors").rename(adapter / "diffusion_pytorch_model.fp16.safetensors")
    assert is_here("animatelcm") and missing("animatelcm") == [] and state_of("animatelcm") == ""
    assert models.load("animatelcm", device="cpu", dtype="float32").info.name == "animatelcm"  # as it would lie after fetching


def test_offline_it_says_so_at_once_and_where_files_go(folder):
    message = refused("E_OFFLINE", lambda: models.load("animatelcm"))
    assert "offline" in message and "models/animatelcm" in message
    assert "convert FILE --out models/videolcm-t2v" in refused("E_BY_HAND", lambda: models.load("videolcm-t2v"))
    refused("E_OFFLINE", lambda: models.load(f"a/b@{REVISION}"))


def test_online_it_says_how_much_and_how_to_fetch(folder, online):
    message = refused("E_NOT_HERE", lambda: models.load("modelscope", "teacher"))
    assert "2.8 GB and more to download" in message and "videolcm fetch modelscope" in message
    assert not online  # loading never downloads


def test_nothing_is_downloaded_unasked(folder, online, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # nobody at a terminal
    assert run("fetch", "animatelcm") == 2 and not online
    assert capsys.readouterr().err.splitlines()[-1].startswith("[E_DECLINED]")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    assert run("fetch", "animatelcm") == 2 and not online
    assert "Download 9.00 GB into" in capsys.readouterr().err  # nine files
    monkeypatch.setattr(sys, "stdin", Terminal("yes\n"))
    assert run("fetch", "animatelcm") == 0
    told = json.loads(capsys.readouterr().out)
    assert [repo for repo, *_ in online] == told["fetched"] == [part.repo for part in SOURCES["animatelcm"].parts] and told["bytes"] == 9 * GB
    assert all(len(revision) == 40 for _, revision, _ in online)
    assert run("fetch", "animatelcm", "--yes") == 0 and len(online) == 5  # nothing twice
    assert "Still to choose is its base" in capsys.readouterr().err


def test_a_pinned_model_of_the_hub_and_a_base(folder, online, capsys):
    assert run("fetch", f"animatelcm:some/base@{REVISION}", "--yes") == 0
    assert online[0][:2] == ("some/base", REVISION) and not any(pattern.endswith((".bin", "*")) for pattern in online[0][2])
    assert (folder / "some--base@0123456789ab" / "unet").is_dir()
    capsys.readouterr()
    for name in ("some/base@main", "nothing"):
        assert run("fetch", name) == 2 and "[E_REVISION]" in capsys.readouterr().err
    assert run("fetch", "videolcm-compose") == 2 and "[E_BY_HAND]" in capsys.readouterr().err


def test_a_download_that_fails_or_brings_no_safetensors(folder, online, capsys, monkeypatch):
    def fails(*_, **__):
        raise OSError("connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    assert run("fetch", "modelscope", "--yes") == 2 and "[E_FETCH]" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: [])
    assert run("fetch", "modelscope", "--yes") == 2 and "no safetensors" in capsys.readouterr().err


def test_fetching_offline(folder, capsys):
    assert run("fetch", "modelscope", "--yes") == 2 and "[E_OFFLINE]" in capsys.readouterr().err


def test_the_list(folder, capsys):
    assert run("models", "--device", "cpu") == 0
    out, err = capsys.readouterr()
    told = json.loads(out)["models"]
    assert list(told) == list(SOURCES) and told["toybox"]["state"] == "here" and told["modelscope"]["parts"][0]["bytes"] == 2.82 * GB
    assert "modelscope" in err and "CC-BY-NC-4.0" in err


def test_the_licence_is_shown_before_research_only_weights_are_loaded(folder, tmp_path, capsys):
    assert "research and non-commercial" in licence_of("modelscope") and licence_of("toybox") is None and licence_of("animatelcm") is None
    converted = tmp_path / "converted"
    converted.mkdir()
    (converted / "manifest.json").write_text(json.dumps({"kind": "vgen", "licence": "research only"}))
    assert licence_of(converted) == "Licence of the weights: research only."
    student = tmp_path / "student"  # of it, as its base's folder and by a chain of names
    student.mkdir()
    for base in (str(converted), "modelscope", str(place_of("modelscope")), f"ali-vilab/text-to-video-ms-1.7b@{REVISION}"):
        (student / "manifest.json").write_text(json.dumps({"base": base, "files": {}}))
        assert licence_of(student) == licence_of(base) is not None, base
    (student / "manifest.json").write_text(json.dumps({"base": str(student)}))
    assert licence_of(str(student)) is None and licence_of([]) is None
    assert "research and non-commercial" in status(Loading("modelscope")) and "Licence" not in status(Loading("toybox"))
    assert run("generate", "a fox", "--model", "modelscope", "--role", "teacher", "--out", str(tmp_path / "a.mp4")) == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Licence of the weights: CC-BY-NC-4.0") and last.startswith("[E_OFFLINE]")
    for verb, *given in (("evaluate", "--model"), ("distill", "--out", str(tmp_path / "a"), "--teacher"), ("compare", "a fox", "--model")):
        assert run(verb, *given, "modelscope") == 2
        first, *_, last = capsys.readouterr().err.splitlines()
        assert first.startswith("Licence of the weights: CC-BY-NC-4.0") and last.startswith("[E_OFFLINE]"), verb
    assert "CC-BY-NC-4.0" in told("modelscope") and told("toybox") == told(str(student)) == told([]) == ""


def test_the_page_refuses_what_is_not_here_before_it_waits(folder, tmp_path):
    import gradio as gr

    engine = Engine(load=lambda ref, role: FakeModel(role))
    with pytest.raises(gr.Error, match="E_OFFLINE"):
        list(make_handler("text", engine, tmp_path)("a fox", model="animatelcm"))
    with pytest.raises(gr.Error, match="E_MODEL"):
        list(make_handler("text", engine, tmp_path)("a fox", model="/etc"))
    assert not engine.models
    assert sources.offline()
