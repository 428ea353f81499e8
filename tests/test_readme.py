"""What the README tells other programs to do, run as it stands there against a page with a known model."""

import re
from pathlib import Path

import gradio_client
import pytest
from conftest import FakeModel

from videolcm.ui import Engine, build_ui, launch
from videolcm.video import read_settings

README = Path(__file__).resolve().parents[1] / "README.md"
ADDRESS = "http://127.0.0.1:7860"  # where the README says that the page is


def blocks_of(section):
    """The Python code of a section of the README, block by block."""
    text = re.search(rf"\n## {section}\n(.*?)\n## ", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    return re.findall("```python\n(.*?)```", text, re.DOTALL)


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
