"""The components of the page: what they hold reaches the handlers unread, also after gradio has made them anew for an update."""

import asyncio
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.components.image_editor import AcceptBlobs
from gradio.state_holder import SessionState

from videolcm.history import History
from videolcm.jobs import Jobs
from videolcm.ui import Engine, build_ui
from videolcm.ui.distil_handlers import Guard
from videolcm.ui.hole import layer_sent, painted
from videolcm.ui.parts import as_given, path_of, paths_of, unchecked

OWN = (gr.State, gr.Dataset, gr.JSON, gr.HTML)  # which gradio does not check, but for the class of an example
READ = {"UncheckedImageEditor": painted}  # of the others only files are not as_given


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """The page with all of its tabs."""
    folder = tmp_path_factory.mktemp("page")
    return build_ui(Engine(), folder, (Jobs(folder / "jobs"), Guard(), {"toybox": "toybox"}), History(folder / "clips"))


def inputs_of(blocks):
    """Every component that a handler is given the value of, by its id; what only the browser reads is left out."""
    return {one._id: one for event in blocks.fns.values() if event.fn for one in event.inputs}


def test_after_an_update_every_component_is_read_as_before(blocks):
    state = SessionState(blocks)
    for event in blocks.fns.values():
        if event.outputs:
            asyncio.run(blocks.postprocess_data(event, gr.skip(), state))
    anew = 0
    for id, before in inputs_of(blocks).items():
        after = state[id]
        anew += after is not before
        if not isinstance(before, OWN) and before.label != "Make it again: a file that was made here":
            assert type(after).preprocess is type(before).preprocess in (READ.get(type(after).__name__, as_given), path_of, paths_of), before.label
    assert anew > 20


@pytest.mark.parametrize("kind", [gr.Slider, gr.Dropdown, gr.File])
def test_the_browser_sees_the_component_of_gradio(kind):
    own, plain = unchecked(kind)(label="x", render=False), kind(label="x", render=False)
    assert own.get_config() == plain.get_config() and own.get_block_name() == plain.get_block_name() and own.api_info() == plain.api_info()
    assert unchecked(kind) is type(own) and isinstance(own, kind) and own.preprocess({"anything": "x"}) == {"anything": "x"}


def sent(component, index, data=b"x", id="a", type="layer"):
    component.accept_blobs(AcceptBlobs(data={"type": type, "index": str(index), "id": id, "file": data}, files=[("file", data)]))


def test_a_painting_takes_no_more_room_than_it_needs():
    editor = unchecked(gr.ImageEditor, painted, accept_blobs=layer_sent)(render=False)
    for index in (4, 40_000_000, -1, "x"):
        with pytest.raises(ValueError):
            sent(editor, index)
    sent(editor, 0, type="background")
    assert not editor.blob_storage
    sent(editor, 1), sent(editor, 0, b"y")
    assert editor.preprocess(SimpleNamespace(id="a")) == [b"y", b"x"] and not editor.blob_storage
    for number in range(100):
        sent(editor, 0, bytes(1 << 20), f"id {number}")
    assert list(editor.blob_storage) == [f"id {number}" for number in range(36, 100)]


def test_files_are_names_that_nobody_opened():
    video, files = unchecked(gr.File, path_of)(render=False), unchecked(gr.File, paths_of)(file_count="multiple", render=False)
    assert video.preprocess(SimpleNamespace(path="no/such/file")) == "no/such/file" and video.preprocess(None) is None
    several = SimpleNamespace(root=[SimpleNamespace(path="a"), SimpleNamespace(path="b")])
    assert files.preprocess(several) == ["a", "b"] and files.preprocess(None) == []
