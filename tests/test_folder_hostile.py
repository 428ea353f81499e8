"""Folders that are not what they say: whatever stands in their files, the door answers in one sentence, and runs nothing of it."""

import json
import shutil

import pytest
from real import animatelcm, modelscope, official, place_parts, refused

from videolcm import models
from videolcm.convert import convert

DEEP = "[" * 100_000
UNET, TEXT, VAE, SCHEDULER = "unet/config.json", "text_encoder/config.json", "vae/config.json", "scheduler/scheduler_config.json"


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    return modelscope(tmp_path_factory.mktemp("stock"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    root = tmp_path_factory.mktemp("converted")
    convert(official(root / "tft2v.pth"), root / "folder")
    return place_parts(root / "folder", 16)


@pytest.fixture(scope="module")
def animated(tmp_path_factory):
    return animatelcm(tmp_path_factory.mktemp("animate") / "animatelcm")


def door_refuses(code, folder, role="teacher"):
    message = refused(code, lambda: models.load(folder, role, "cpu", "float32"))
    assert len(message) < 260 and "\n" not in message
    return message


def changed(folder, tmp_path, file, change):
    """A copy of a folder in which a file has other words (a dict) or is another text."""
    copy = shutil.copytree(folder, tmp_path / "model")
    path = copy / file
    path.write_text(change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change))
    return copy


@pytest.mark.parametrize(
    "file, change, named",
    [
        (UNET, "null", "unet"),
        (UNET, {"attention_head_dim": 0}, "unet"),
        (UNET, {"norm_num_groups": 0}, "unet"),
        (TEXT, {"hidden_size": "a"}, "text_encoder"),
        (TEXT, {"num_attention_heads": 0}, "text_encoder"),
        (VAE, {"block_out_channels": []}, "vae"),
        (VAE, {"scaling_factor": "a"}, "scaling_factor of the vae"),
        (VAE, {"scaling_factor": 0}, "scaling_factor of the vae"),
        ("tokenizer/tokenizer.json", "null", "tokenizer"),
        ("tokenizer/tokenizer_config.json", '"a"', "tokenizer"),
        (SCHEDULER, DEEP, "scheduler"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_configs_that_no_network_has(stock, tmp_path, file, change, named):
    assert named in door_refuses("E_MODEL_PARTS", changed(stock, tmp_path, file, change))


@pytest.mark.parametrize("prediction", [[], {}, None, "sample"])
def test_predictions_that_are_not_known(stock, tmp_path, prediction):
    door_refuses("E_SCHEDULER", changed(stock, tmp_path, SCHEDULER, {"prediction_type": prediction}))


def test_code_that_a_config_asks_for_is_not_looked_for(stock, tmp_path):
    folder = changed(stock, tmp_path, UNET, {"auto_map": {"AutoModel": "evil.Model"}, "_class_name": "Evil"})
    (folder / "unet" / "evil.py").write_text("raise SystemExit('ran')")
    assert models.load(folder, "teacher", "cpu", "float32").info.role == "teacher"


def test_an_index_does_not_lead_out_of_the_folder(stock, tmp_path):
    folder = shutil.copytree(stock, tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "x.safetensors")
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "../../x.safetensors"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert "unet" in door_refuses("E_MODEL_PARTS", folder)


@pytest.mark.parametrize(
    "change",
    [
        '{"kind": "vgen", "files": {}}',
        '{"kind": [], "files": {}}',
        {"tasks": None},
        {"tasks": ["fly"]},
        {"guidance": "a"},
        {"fps": 0},
        {"config": {"dim": 32}},
        {"config": []},
        {"files": {"unet": 5}},
        {"files": {"unet": {}}},
        {"base": [1]},
    ],
    ids=str,
)
def test_manifests_with_other_words(converted, tmp_path, change):
    assert "manifest.json" in door_refuses("E_CHECKPOINT", changed(converted, tmp_path, "manifest.json", change))


def test_a_folder_that_is_its_own_base(converted, tmp_path):
    door_refuses("E_CHECKPOINT", changed(converted, tmp_path, "manifest.json", {"base": str(tmp_path / "model")}))


@pytest.mark.parametrize("depth", [{"num_res_blocks": 10**6}, {"dim": 2**30}])
def test_a_manifest_that_asks_for_too_much(converted, tmp_path, depth):
    config = json.loads((converted / "manifest.json").read_text())["config"]
    door_refuses("E_VGEN_CONFIG", changed(converted, tmp_path, "manifest.json", {"config": config | depth}))


def test_a_fetched_folder_has_float16_weights_alone(stock, tmp_path):
    folder = shutil.copytree(stock, tmp_path / "model")
    for path in folder.glob("*/*.safetensors"):
        path.rename(path.with_suffix("").with_suffix(".fp16.safetensors"))
    model, plain = (models.load(one, "teacher", "cpu", "float32") for one in (folder, stock))
    assert len(model.info.sha256) == 64 and model.info.sha256 != plain.info.sha256
    assert plain.info.sha256 == models.load(shutil.copytree(stock, tmp_path / "again"), "teacher", "cpu", "float32").info.sha256


@pytest.mark.parametrize("change", [{"cross_attention_dim": 32}, {"block_out_channels": [32, 64]}], ids=str)
def test_a_control_net_of_another_base(animated, tmp_path, change):
    from diffusers import ControlNetModel

    folder = shutil.copytree(animated, tmp_path / "model")
    down = ("CrossAttnDownBlock2D", "DownBlock2D")
    shape = {"block_out_channels": (32, 32), "layers_per_block": 1, "cross_attention_dim": 16, "attention_head_dim": 4, "down_block_types": down}
    ControlNetModel(**shape | change).save_pretrained(folder / "controlnet_depth")
    assert "controlnet_depth that fits the base" in door_refuses("E_MODEL_PARTS", folder, "student")


def test_an_adapter_with_impossible_words(animated, tmp_path):
    door_refuses("E_MODEL_PARTS", changed(animated, tmp_path, "motion_adapter/config.json", {"motion_num_attention_heads": 0}), "student")
