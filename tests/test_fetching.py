"""Downloading: what is chosen of what the hub lists, what is still missing after a stop, and the page's tab, all by a hub that is not there."""

import re
import runpy
import socket
from pathlib import Path

import gradio as gr
import psutil
import pytest
from conftest import wait_for
from test_browser import PATIENCE, browser  # noqa: F401  the fixture

from videolcm.errors import AppError
from videolcm.fetching import chosen, fetch, fetching, parts_of, wanted
from videolcm.sources import SOURCES, amount, is_here, place_of
from videolcm.ui import Engine, launch, weights
from videolcm.ui.weights import download, look_up, table, why_off

FAKES = Path(__file__).parent / "fakes"
REF = f"some/base@{'0123456789' * 4}"
REFUSED = [("../x", "E_REVISION"), (None, "E_REVISION"), ([], "E_REVISION"), ("videolcm-t2v", "E_BY_HAND"), ("some/base@main", "E_REVISION")]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub for this process and for those that it starts; returns the folder of models."""
    fake = runpy.run_path(str(FAKES / "huggingface_hub" / "__init__.py"))
    for name, value in {"VIDEOLCM_MODELS": tmp_path / "models", "PYTHONPATH": FAKES, "HF_HUB_OFFLINE": 0, "TRANSFORMERS_OFFLINE": 0}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake["snapshot_download"])
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "data:,")  # which answers
    return tmp_path / "models"


def children():
    return [child for child in psutil.Process().children() if "fetch" in child.cmdline()]


def test_of_several_formats_one_is_fetched():
    layout = ["model_index.json", "unet/a.fp16.safetensors", "unet/a.safetensors", "unet/a.non_ema.safetensors", "vae/b.safetensors"]
    assert chosen(layout) == ("model_index.json", "unet/a.safetensors", "vae/b.safetensors")
    assert chosen([*layout, "vae/b.fp16.safetensors"]) == ("model_index.json", "unet/a.fp16.safetensors", "vae/b.fp16.safetensors")
    parts = [f"unet/a{kind}-0000{i}-of-00002.safetensors" for kind in (".fp16", "") for i in (1, 2)]
    assert chosen(parts) == tuple(parts[:2]) and chosen(parts[2:]) == tuple(parts[2:])


def test_what_would_be_downloaded(hub):
    (one,) = wanted(REF)
    weighty = sorted(name for name in one.files if name.endswith(".safetensors"))
    assert weighty == [f"{part}/model.fp16.safetensors" for part in ("text_encoder", "unet", "vae")]
    assert one.size == 1000 * len(one.files) and one.place == place_of(REF)
    assert str(one).startswith(f"some/base at 012345678901: {one.size / 1e3:.1f} kB, licence")
    base, *parts = wanted(f"animatelcm:{REF}")
    assert base == one and [got.part for got in parts] == list(SOURCES["animatelcm"].parts)


def test_what_a_stop_left_is_fetched_the_next_time(hub):
    (one,) = wanted(REF)
    (one.place / "unet").mkdir(parents=True)
    (one.place / "unet" / "config.json").write_text("{}")
    assert parts_of(REF)
    fetch(one)
    assert not parts_of(REF) and wanted(REF) == []
    fetch(wanted("modelscope")[0])
    assert is_here("modelscope")
    (place_of("modelscope") / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink(missing_ok=True)
    for path in (place_of("modelscope") / "vae").iterdir():
        path.unlink()
    assert not is_here("modelscope") and parts_of("modelscope")


def test_another_process_downloads_and_tells_how_far_it_is(hub):
    places = [one.place for one in wanted(REF)]
    counts = list(fetching(REF, places, pace=0.05))
    assert counts[0] == 0 and counts == sorted(counts) and not parts_of(REF) and not children()


def test_a_stop_ends_the_other_process(hub, monkeypatch):
    monkeypatch.setenv("FAKE_HUB", "slow")
    places = [one.place for one in wanted(REF)]
    counts = fetching(REF, places, pace=0.05)
    wait_for(lambda: next(counts) > 0)
    assert len(children()) == 1
    counts.close()
    assert not children() and parts_of(REF)


def test_what_fails_there_is_told_here(hub, monkeypatch):
    monkeypatch.setenv("FAKE_HUB", "fails")
    with pytest.raises(AppError, match=r"\[E_FETCH\] The download of some/base@\S+ failed: OSError\."):
        list(fetching(REF, [], pace=0.05))


def test_a_hub_that_does_not_answer_is_called_that(hub, monkeypatch):
    from huggingface_hub import errors

    def silent(*_, **__):
        raise errors.LocalEntryNotFoundError("no answer")

    monkeypatch.setattr("huggingface_hub.snapshot_download", silent)
    with pytest.raises(AppError, match="failed: the hub cannot be reached"):
        wanted(REF)


def test_one_question_tells_that_there_is_no_hub(hub, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("it was asked again"))
        with pytest.raises(AppError, match="failed: the hub cannot be reached"):
            wanted(REF)


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 bytes"), (999, "999 bytes"), (1e3, "1.00 kB"), (45e3, "45.0 kB"), (904e6, "904 MB"), (2 << 30, "2.15 GB")]
)
def test_bytes_are_told_in_units_that_suit(count, said):
    assert amount(count) == said


# ---- the page


def test_it_asks_first_and_shows_how_far_it_is(hub, monkeypatch):
    monkeypatch.setattr(weights, "fetching", lambda ref, places: fetching(ref, places, pace=0.05))
    with pytest.raises(gr.Error, match="E_DECLINED"):
        list(download(None, "modelscope"))
    (asking, off, nothing), (said, button, ref) = look_up("modelscope")
    assert "Asking the hub" in asking and not off["interactive"] and nothing is None
    assert "would be downloaded" in said and "CC-BY-NC-4.0" in said and "ali-vilab/text-to-video-ms-1.7b" in said
    assert button["interactive"] and re.match(r"Download \d+\.\d kB$", button["value"]) and not is_here("modelscope")
    with pytest.raises(gr.Error, match="E_DECLINED"):
        list(download(ref, "animatelcm"))  # chosen since
    *told, last = download(ref, "modelscope")
    assert told and all("<progress" in one for one in told) and "is here" in last and is_here("modelscope")
    *_, (said, button, ref) = look_up("modelscope")
    assert "is here" in said and ref is None and not button["interactive"]


@pytest.mark.parametrize("ref, code", REFUSED, ids=str)
def test_what_the_page_does_not_fetch(hub, ref, code):
    with pytest.raises(gr.Error, match=code):
        list(look_up(ref))
    assert not hub.exists()


def test_offline_the_page_says_so_and_where_files_go(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(gr.Error, match="E_OFFLINE"):
        list(look_up("animatelcm"))
    shown = table()
    assert "offline" in shown and "models/animatelcm/motion_adapter: config.json" in shown and "convert FILE --out models/videolcm-t2v" in shown
    assert "<h4>toybox: here</h4>" in shown and "research and non-commercial" in shown


def test_who_may_download():
    assert why_off({}, False) is None and "--auth" in why_off({}, True) and "Space" in why_off({"SPACE_ID": "me/it"}, False)
    for reason in (None, "so it is"):
        with gr.Blocks() as page, gr.Tabs():
            weights.build_weights(reason)
        said = [getattr(block, "value", None) for block in page.blocks.values()]
        assert ("What would be downloaded?" in said) == (reason is None)
        assert ("Downloading is off here: so it is." in said) == (reason is not None)


def test_a_download_in_a_browser(hub, browser):  # noqa: F811
    with gr.Blocks() as blocks, gr.Tabs():
        with gr.Tab("First"):
            gr.Markdown("nothing")
        weights.build_weights()
    _, url, _ = launch(blocks.queue(), Engine(), server_name="127.0.0.1", quiet=True)
    page, failed = browser.new_page(), []
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: failed.append(str(error)))
    try:
        page.goto(url)
        page.get_by_role("tab", name="Models").click()
        page.get_by_role("heading", name="modelscope: 2.8 GB and more to download").wait_for()
        model = page.get_by_label("Model", exact=True)
        model.fill("modelscope"), model.press("Enter")
        assert page.get_by_role("button", name="Download", exact=True).is_disabled()
        page.get_by_role("button", name="What would be downloaded?").click()
        page.get_by_text("would be downloaded.").wait_for()
        page.get_by_role("button", name=re.compile(r"Download \d+\.\d kB")).click()
        page.get_by_role("heading", name="modelscope: here").wait_for()
        page.get_by_text("modelscope is here. Choose it under Weights.").wait_for()
        assert is_here("modelscope") and not failed
    finally:
        page.close()
        blocks.close()
