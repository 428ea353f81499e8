"""Official files in, folders out: stock diffusers loads them, the door too once text encoder and autoencoder lie beside; bad files are told apart."""

import json
import os
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, LCMScheduler, UNet3DConditionModel
from real import DATA, official, place_parts, recorded, tensors_of
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from videolcm import __main__ as command_line
from videolcm import models
from videolcm.checkpoint import sha256_of
from videolcm.errors import AppError
from videolcm.models.base import Conditions
from videolcm.models.vgen import NEGATIVE_PROMPT, PROMPT_SUFFIX, load_state_dict
from videolcm.pipeline import Request, generate

ONE_LINE = re.compile(r"\[(E_[A-Z_]+)\] [A-Z].*\. [A-Z].*\.")


def convert(path, out, *more):
    return command_line.main(["convert", str(path), "--out", str(out), *more])


def refused(capsys, code, *arguments):
    assert convert(*arguments) == 2
    out, err = capsys.readouterr()
    match = ONE_LINE.fullmatch(err.splitlines()[-1])
    assert match and match[1] == code and out == "" and len(match[0]) < 260, err
    return match[0]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """{name: folder}: the three kinds of checkpoint, converted once."""
    root = tmp_path_factory.mktemp("converted")
    official(root / "videolcm_t2v_non_ema_544000.pth")
    official(root / "tft2v_t2v_non_ema_512000.pth")
    official(root / "videolcm_vcomposer_non_ema_914000.pth", "compositional")
    names = {"student": "videolcm_t2v_non_ema_544000", "teacher": "tft2v_t2v_non_ema_512000", "compositional": "videolcm_vcomposer_non_ema_914000"}
    for kind, name in names.items():
        assert convert(root / f"{name}.pth", root / kind) == 0
    return {kind: root / kind for kind in names}


# ---- what is written


@torch.no_grad()
def test_stock_diffusers_loads_the_text_network(converted):
    case = recorded("t2v", "mixed_t")
    net = UNet3DConditionModel.from_pretrained(converted["student"] / "unet", use_safetensors=True)
    assert net.config.in_channels == 4
    v = net(case["x"], case["t"], case["y"]).sample
    torch.testing.assert_close(v, case["out"], rtol=0, atol=1e-4)


@torch.no_grad()
def test_stock_diffusers_loads_the_compositional_network(converted):
    case = recorded("compositional", "depth+image")
    net = UNet3DConditionModel.from_pretrained(converted["compositional"] / "unet", use_safetensors=True)
    v = net(torch.cat([case["x"], case["expected_concat"]], 1), case["t"], case["expected_context"]).sample
    torch.testing.assert_close(v, case["out"], rtol=0, atol=1e-4)


def test_the_schedulers_are_the_official_ones(converted):
    lcm = LCMScheduler.from_pretrained(converted["student"] / "scheduler")
    lcm.set_timesteps(4)
    assert lcm.timesteps.tolist() == [999, 759, 499, 259]
    ddim = DDIMScheduler.from_pretrained(converted["teacher"] / "scheduler")
    for steps, ends in {4: [751, 501, 251, 1], 50: [981, 961, 21, 1]}.items():
        ddim.set_timesteps(steps)
        assert [*ddim.timesteps[:2].tolist(), *ddim.timesteps[-2:].tolist()] == ends
    abar = load_file(DATA.parent / "schedule.safetensors")
    for scheduler in (lcm, ddim):
        assert scheduler.config.prediction_type == "v_prediction" and scheduler.alphas_cumprod[999] < 1e-6
        assert any((value - scheduler.alphas_cumprod).abs().max() < 1e-5 for value in abar.values() if value.shape == (1000,))
    assert ddim.final_alpha_cumprod == ddim.alphas_cumprod[0]


def test_the_manifest_and_the_json(tmp_path, capsys):
    path = official(tmp_path / "videolcm_vcomposer.pth", "compositional")
    assert convert(path, tmp_path / "out") == 0
    out, err = capsys.readouterr()
    told, manifest = json.loads(out.splitlines()[-1]), json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert told == {"out": str(tmp_path / "out"), **manifest, "missing": ["text_encoder", "tokenizer", "vae"]}
    assert manifest["role"] == "student" and manifest["tasks"] == ["text", "depth", "sketch", "inpaint"] and manifest["guidance"] == 9
    assert manifest["source"] == {"file": path.name, "sha256": sha256_of(path), "step": 544000}
    assert {part: sha256_of(tmp_path / "out" / entry["file"]) for part, entry in manifest["files"].items()} == {
        part: entry["sha256"] for part, entry in manifest["files"].items()
    }
    extra = load_file(tmp_path / "out" / "conditions" / "model.safetensors")
    assert len(extra) == 94 and json.loads((tmp_path / "out" / "conditions" / "config.json").read_text()) == manifest["config"]
    assert err.startswith("Licence of the weights: research and non-commercial use only") and "text_encoder/, tokenizer/ and vae/" in err
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["conditions", "manifest.json", "scheduler", "unet"]


@pytest.mark.parametrize("form", ["bare", "module", "legacy", "half"])
def test_every_form_of_file_gives_the_same_folder(converted, tmp_path, form):
    path, tensors = tmp_path / "videolcm.pth", tensors_of("t2v")
    if form == "module":
        official(path, state_dict={f"module.{key}": value for key, value in tensors.items()})
    else:
        tensors = {key: value.half() for key, value in tensors.items()} if form == "half" else tensors
        torch.save(tensors, path, _use_new_zipfile_serialization=form != "legacy")
    assert convert(path, tmp_path / "out") == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["files"] == json.loads((converted["student"] / "manifest.json").read_text())["files"]
    assert manifest["source"]["step"] == (544000 if form == "module" else None)


@pytest.mark.parametrize(
    "name, more, role", [("x.pth", (), "student"), ("TFT2V_x.pth", (), "teacher"), ("tft2v.pth", ("--role", "student"), "student")]
)
def test_the_role(tmp_path, name, more, role):
    assert convert(official(tmp_path / name), tmp_path / "out", *more) == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["role"] == role


def test_four_input_channels_are_a_teachers(tmp_path):
    tensors = tensors_of("t2v")
    tensors["input_blocks.0.0.weight"] = tensors["input_blocks.0.0.weight"][:, :4].clone()
    assert convert(official(tmp_path / "a.pth", state_dict=tensors), tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["role"] == "teacher"


def test_a_config_file(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps({"resolution": [64, 32], "head_dim": 8, "y_dim": 16, "dropout": 0.1}))
    assert convert(official(tmp_path / "a.pth"), tmp_path / "out", "--config", str(tmp_path / "a.json")) == 0
    assert json.loads(capsys.readouterr().out)["config"]["resolution"] == [64, 32]


# ---- bad files


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_not_run(tmp_path, capsys):
    for i, write in enumerate((lambda file, value: pickle.dump(value, file), lambda file, value: torch.save(value, file))):
        with (tmp_path / f"{i}.pth").open("wb") as file:
            write(file, {"state_dict": {"a": Bomb(tmp_path / "ran")}})
        refused(capsys, "E_NOT_CHECKPOINT", tmp_path / f"{i}.pth", tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x80\x02}q\x00.", bytes(range(256)) * 8])
def test_bytes_that_are_no_checkpoint(tmp_path, capsys, content):
    (tmp_path / "a.pth").write_bytes(content)
    assert "a.pth" in refused(capsys, "E_NOT_CHECKPOINT", tmp_path / "a.pth", tmp_path / "out")


def test_a_truncated_checkpoint(tmp_path, capsys):
    data = official(tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(data[: len(data) // 2])
    refused(capsys, "E_NOT_CHECKPOINT", tmp_path / "a.pth", tmp_path / "out")


@pytest.mark.parametrize(
    "value", [torch.zeros(3), [1, 2], {}, {"a": 1}, {"state_dict": {}}, {"state_dict": {"a": torch.zeros(2, dtype=torch.int64)}}], ids=str
)
def test_other_values(tmp_path, capsys, value):
    torch.save(value, tmp_path / "a.pth")
    refused(capsys, "E_NOT_CHECKPOINT", tmp_path / "a.pth", tmp_path / "out")


@pytest.mark.parametrize("kind", ["sparse", "meta", "expanded", "tied"])
def test_tensors_that_are_not_all_there(tmp_path, capsys, kind):
    """The last are two names for one tensor, which safetensors do not hold."""
    tensors, name = tensors_of("t2v"), "time_embed.2.bias"
    spoiled = {"sparse": tensors[name].to_sparse(), "meta": tensors[name].to("meta"), "tied": tensors["time_embed.0.bias"]}
    tensors[name] = spoiled.get(kind, torch.zeros(1).expand_as(tensors[name]))
    refused(capsys, "E_NOT_CHECKPOINT", official(tmp_path / "a.pth", state_dict=tensors), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_network_and_a_missing_tensor(tmp_path, capsys):
    torch.save({"state_dict": {"conv1.weight": torch.zeros(2)}}, tmp_path / "a.pth")
    assert "input_blocks.0.0.weight" in refused(capsys, "E_NOT_VGEN", tmp_path / "a.pth", tmp_path / "out")
    tensors = {key: value for key, value in tensors_of("t2v").items() if key != "out.0.bias"}
    official(tmp_path / "b.pth", state_dict=tensors)
    assert "out.0.bias is missing" in refused(capsys, "E_VGEN_TENSORS", tmp_path / "b.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_places_that_cannot_be_read_or_written(converted, tmp_path, capsys):
    path = official(tmp_path / "a.pth")
    refused(capsys, "E_INPUT", tmp_path / "none.pth", tmp_path / "out")
    refused(capsys, "E_INPUT", tmp_path, tmp_path / "out")
    refused(capsys, "E_OUTPUT", path, path / "inside")
    before = sha256_of(converted["student"] / "manifest.json")
    refused(capsys, "E_OUT_TAKEN", path, converted["student"])
    assert sha256_of(converted["student"] / "manifest.json") == before
    refused(capsys, "E_ROLE", path, tmp_path / "out", "--role", "pupil")
    refused(capsys, "E_INPUT", path, tmp_path / "out", "--config", str(tmp_path / "none.json"))


@pytest.mark.parametrize("text", ["", "[1]", "{'dim': 32}", '{"dim": "wide"}', '{"num_heads": 4, "head_dim": 16}', '{"head_dim": 16}'])
def test_bad_config_files(tmp_path, capsys, text):
    (tmp_path / "a.json").write_text(text)
    code = "E_VGEN_TENSORS" if text == '{"head_dim": 16}' else "E_VGEN_CONFIG"  # four heads of 16 fit the tensors, but not diffusers
    refused(capsys, code, official(tmp_path / "a.pth"), tmp_path / "out", "--config", str(tmp_path / "a.json"))


# ---- the door


@pytest.fixture(scope="module")
def whole(converted, tmp_path_factory):
    """{name: folder} with everything beside."""
    root = tmp_path_factory.mktemp("whole")
    widths = {"student": 16, "teacher": 16, "compositional": 24}
    return {name: place_parts(shutil.copytree(folder, root / name), widths[name]) for name, folder in converted.items()}


def load(folder, role="student", dtype="float32"):
    return models.load(folder, role, "cpu", dtype)


def door_refuses(code, folder, role="student"):
    with pytest.raises(AppError) as error:
        load(folder, role)
    assert error.value.code == code and ONE_LINE.fullmatch(str(error.value)) and len(str(error.value)) < 260, error.value
    return str(error.value)


def test_a_checkpoint_file_is_sent_to_convert(tmp_path):
    assert "videolcm convert" in door_refuses("E_CONVERT", "file.pth")
    assert "a.PTH" in door_refuses("E_CONVERT", official(tmp_path / "a.PTH"))


def test_what_is_missing_is_said(converted, whole, tmp_path):
    message = door_refuses("E_MODEL_PARTS", converted["student"])
    assert "text_encoder and tokenizer and vae" in message and "Stable Diffusion 2.1" in message
    folder = shutil.copytree(whole["student"], tmp_path / "model")
    shutil.rmtree(folder / "vae")
    assert "lacks a usable vae" in door_refuses("E_MODEL_PARTS", folder)


def test_one_network_has_one_role(whole):
    assert "--role teacher" in door_refuses("E_ROLE_MODEL", whole["teacher"], "student")
    assert "is a student" in door_refuses("E_ROLE_MODEL", whole["student"], "teacher")


@pytest.mark.parametrize("spoiled", ["text_encoder", "vae"])
def test_parts_that_lack_weights_or_do_not_fit(whole, tmp_path, spoiled):
    folder = shutil.copytree(whole["student"], tmp_path / "model")
    path = next((folder / spoiled).glob("*.safetensors"))
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata={"format": "pt"})
    assert spoiled in door_refuses("E_MODEL_PARTS", folder)
    path.write_bytes(b"nothing")
    assert spoiled in door_refuses("E_MODEL_PARTS", folder)
    path.unlink()
    torch.save(tensors, folder / spoiled / "pytorch_model.bin")  # no pickle, whatever it is called
    assert spoiled in door_refuses("E_MODEL_PARTS", folder)


def test_a_text_encoder_of_another_width(whole, tmp_path):
    folder = shutil.copytree(whole["student"], tmp_path / "model")
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(whole["compositional"] / "text_encoder", folder / "text_encoder")
    assert "text_encoder of width 16" in door_refuses("E_MODEL_PARTS", folder)


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "conditions/model.safetensors"])
def test_one_flipped_byte(whole, tmp_path, file):
    folder = shutil.copytree(whole["compositional"], tmp_path / "model")
    data = bytearray((folder / file).read_bytes())
    data[-1] ^= 1
    (folder / file).write_bytes(data)
    door_refuses("E_CHECKPOINT", folder)


@pytest.mark.parametrize("name, role", [("student", "student"), ("teacher", "teacher"), ("compositional", "student")])
def test_a_loaded_model_makes_clips(whole, name, role):
    model = load(whole[name], role)
    assert model.info.role == role and model.info.guidance == 9 and model.schedule.zero_terminal_snr and model.info.words is None
    assert model.info.tasks == (("text", "depth", "sketch", "inpaint") if name == "compositional" else ("text",))
    sampler = "lcm" if role == "student" else "ddim"
    *progress, result = generate(model, Request("a fox", steps=1 + (name == "teacher"), frames=8, height=128, width=128, sampler=sampler))
    assert result.frames.shape == (8, 128, 128, 3) and result.frames.dtype == np.uint8
    assert result.nfe == (1 if role == "student" else 4)
    assert {step.preview.shape for step in progress if step.preview is not None} == {(8, 16, 16, 3)}


def test_stock_diffusers_loads_a_whole_text_folder(whole, converted):
    for name, kind in {"student": LCMScheduler, "teacher": DDIMScheduler}.items():
        pipe = DiffusionPipeline.from_pretrained(whole[name])
        assert isinstance(pipe.scheduler, kind) and isinstance(pipe.unet, UNet3DConditionModel) and pipe.unet.config.in_channels == 4
    assert not (converted["compositional"] / "model_index.json").exists()  # whose maps no pipeline makes


@torch.no_grad()
def test_text_is_encoded_as_the_official_inference_does(whole):
    model = load(whole["student"])
    tokenizer = CLIPTokenizer.from_pretrained(whole["student"] / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(whole["student"] / "text_encoder")
    tokens = [
        tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        for text in ("cat" + PROMPT_SUFFIX, NEGATIVE_PROMPT)
    ]
    expected = torch.cat([encoder(token.input_ids).last_hidden_state for token in tokens])
    context = model.encode_text(["cat", ""])
    assert context.shape == (2, 77, 16)
    torch.testing.assert_close(context, expected)


@torch.no_grad()
def test_frames_go_through_the_autoencoder_in_chunks(whole, monkeypatch):
    model = load(whole["student"])
    vae, pixels = AutoencoderKL.from_pretrained(whole["student"] / "vae"), torch.rand(2, 3, 5, 32, 48) * 2 - 1
    latents = model.encode(pixels)
    assert latents.shape == (2, *model.latent_shape(5, 32, 48)) == (2, 4, 5, 4, 6)
    torch.testing.assert_close(latents[1, :, 3], vae.encode(pixels[1:, :, 3]).latent_dist.mean[0] * 0.18215, rtol=0, atol=1e-5)
    sizes, whole_decode = [], model.vae.decode
    monkeypatch.setattr(model.vae, "decode", lambda chunk: sizes.append(len(chunk)) or whole_decode(chunk))
    decoded = model.decode(latents, 5)
    assert decoded.shape == pixels.shape and sizes == [2, 2, 2, 2, 2]
    torch.testing.assert_close(decoded[1, :, 3], vae.decode(latents[1:, :, 3] / 0.18215).sample[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_denoise_is_the_official_network_seen_as_x0(whole):
    model, net = load(whole["compositional"]), load_state_dict(tensors_of("compositional"))
    case, t = recorded("compositional", "depth"), torch.tensor([999, 259])
    x0 = model.denoise(case["x"], t, Conditions(case["y"], depth=case["depth"]))
    v = net(case["x"], t.float(), case["y"], depth=case["depth"])
    torch.testing.assert_close(x0, model.schedule.x0_from_v(case["x"], v, t))
    torch.testing.assert_close(x0[0], -case["out"][0], rtol=0, atol=1e-4)  # at t = 999, which the case was recorded at, x0 = -v


def test_number_format(whole):
    model = load(whole["compositional"], dtype="bfloat16")
    assert {value.dtype for part in (model.vae, model.language, model.denoiser) for value in part.parameters()} == {torch.bfloat16}
    case = recorded("compositional", "all")
    cond = Conditions(model.encode_text(["a", "b"]), depth=case["depth"], sketch=case["sketch"], masked=case["masked"])
    assert model.denoise(case["x"], torch.tensor([999, 19]), cond).dtype == torch.float32
    assert not any(value.requires_grad for value in model.denoiser.parameters())
