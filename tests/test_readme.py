"""What the README tells other programs to do, run as it stands there: against a page with a known model, and on tiny weights in real layouts."""

import os
import re
import shlex
from pathlib import Path

import gradio_client
import pytest
from conftest import FakeModel
from real import animatelcm, modelscope, official, place_parts

from videolcm import __main__ as command_line
from videolcm import world
from videolcm.sources import SOURCES
from videolcm.ui import Engine, build_ui, launch
from videolcm.video import read_settings

README = Path(__file__).resolve().parents[1] / "README.md"
ADDRESS = "http://127.0.0.1:7860"  # where the README says that the page is


def section_of(title):
    return re.search(rf"\n## {title}\n(.*?)\n## ", README.read_text(encoding="utf-8"), re.DOTALL)[1]


def blocks_of(section, language="python"):
    """The code of a section of the README, block by block."""
    return re.findall(f"```{language}\n(.*?)```", section_of(section), re.DOTALL)


@pytest.fixture
def page(monkeypatch):
    """A page somewhere else, which is what the README's address leads to."""
    blocks = build_ui(Engine(load=lambda ref, role: FakeModel(role)))
    _, url, _ = launch(blocks, Engine(), server_name="127.0.0.1", quiet=True)
    client = gradio_client.Client
    monkeypatch.setattr(gradio_client, "Client", lambda address: client({ADDRESS: url}[address], verbose=False))
    yield url
    blocks.close()


def test_the_examples_for_other_programs_run(page, capsys):
    text, comparison = blocks_of("From other programs")
    names = {}
    exec(compile(text, "README.md", "exec"), names)
    assert read_settings(names["clip"]) == names["settings"] and names["settings"]["seed"] == 7
    assert capsys.readouterr().out.split() == [names["clip"], "7", "fake"]
    exec(compile(comparison, "README.md", "exec"), names)
    assert read_settings(names["grid"])["cells"] == [cell["settings"] for cell in names["cells"]]
    told = capsys.readouterr().out.splitlines()
    assert told[-4] == "3 clips are made" and told[-1].startswith("teacher, 20 steps, ddim, 40 evaluations 40 ")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, light):
    """A folder with tiny weights where the README says that real ones go."""
    animatelcm(tmp_path / "models" / "animatelcm")
    for kind in ("motion_adapter", "controlnet_depth", "controlnet_softedge"):
        folder = tmp_path / "models" / "animatelcm" / kind
        (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    (tmp_path / "models" / "modelscope").mkdir()
    modelscope(tmp_path / "models" / "modelscope")
    official(tmp_path / "videolcm_t2v_non_ema_544000.pth")
    os.symlink(README.parent / "assets", tmp_path / "assets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_for_other_models_run(elsewhere, capsys):
    lines = [line for block in blocks_of("Other models", "sh") for line in block.splitlines()]
    here = [line for line in lines if "OWNER/NAME" not in line and "my-clips" not in line and "runs/mine" not in line]
    assert len(here) == 6
    for line in here:
        if line.startswith("#"):
            place_parts(elsewhere / "models" / "videolcm-t2v", 16)
            continue
        python, _, module, *arguments = shlex.split(line)
        assert (python, module) == ("python", "videolcm")
        small = ["--frames", "8", "--size", "128x128"] if arguments[0] == "generate" else []
        assert command_line.main([*arguments, *small]) == 0, line
    made = {"panda.mp4": "animatelcm", "sketch.mp4": "animatelcm", "teacher.mp4": "modelscope", "official.mp4": "videolcm-t2v"}
    assert {name: read_settings(elsewhere / name)["model"] for name in made} == made
    assert "research and non-commercial use only" in capsys.readouterr().err


def test_the_table_of_models_is_the_one_in_the_code():
    rows = re.findall(r"^\| `(\w[\w-]*)` \| (.*) \|$", section_of("Other models"), re.MULTILINE)
    assert [name for name, _ in rows] == list(SOURCES)
    for name, row in rows:
        _, tasks, _, download, licence = row.split(" | ")
        source = SOURCES[name]
        assert tasks == ", ".join(source.tasks) and ("research" in licence) == source.research
        assert f"{source.size / 1e9:.1f} GB" in download if source.parts else download in ("none", "by hand")


def test_the_words_are_those_of_the_world():
    rows = dict(re.findall(r"^\| ([a-z ]+) \| (.*) \|$", section_of("Try it").split("### What Toybox understands")[1].split("###")[0], re.MULTILINE))
    tables = {"size": world.SIZE_WORDS, "material": world.MATERIAL_WORDS, "colour": world.COLOUR_WORDS, "shape": world.SHAPE_WORDS}
    tables |= {"motion": world.MOTION_WORDS, "motion of a ball": world.ROLL_WORDS, "floor": world.FLOOR_WORDS, "sky": world.SKY_WORDS}
    assert rows == {name: "; ".join(", ".join(dict.fromkeys(words)) for words in table.values()) for name, table in tables.items()}
    assert list(rows) == list(tables)


def test_every_variable_that_the_code_reads_is_in_its_table():
    said = set(re.findall(r"`(VIDEOLCM_\w+)`", "".join(re.findall(r"^\| (.*?) \|", section_of("Settings of the environment"), re.MULTILINE))))
    code = [README.with_name("app.py"), *(README.parent / "videolcm").rglob("*.py")]
    assert said == set(re.findall(r"VIDEOLCM_[A-Z_]+", "".join(path.read_text(encoding="utf-8") for path in code)))
