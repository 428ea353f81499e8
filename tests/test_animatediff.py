"""AnimateLCM's parts as one model, against diffusers' own pipelines on the same tiny weights: steps, LoRA, guidance, ControlNets."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPipeline,
    AutoencoderKL,
    ControlNetModel,
    LCMScheduler,
    MotionAdapter,
    UNet2DConditionModel,
)
from PIL import Image
from real import animatelcm, refused, sd15
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from videolcm import models
from videolcm.models.animatediff import LORA_SCALE, NEGATIVE_PROMPT, picture
from videolcm.models.base import TASKS, Conditions
from videolcm.pipeline import Request, generate
from videolcm.sampling import Noise, guided, sample_lcm

F, SIDE = 8, 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return animatelcm(tmp_path_factory.mktemp("animate") / "animatelcm")


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


def load(folder, role="student"):
    return models.load(folder, role, "cpu", "float32")


def pipeline(folder, kind=AnimateDiffPipeline, **more):
    """diffusers' own, put together as AnimateLCM's example does it."""
    base = folder / "base"
    parts = {"tokenizer": CLIPTokenizer, "text_encoder": CLIPTextModel, "vae": AutoencoderKL, "unet": UNet2DConditionModel}
    parts = {name: of.from_pretrained(base / name) for name, of in parts.items()}
    scheduler = LCMScheduler.from_config(LCMScheduler.load_config(base / "scheduler"), beta_schedule="linear")
    pipe = kind(**parts, motion_adapter=MotionAdapter.from_pretrained(folder / "motion_adapter"), scheduler=scheduler, **more)
    pipe.load_lora_weights(load_file(folder / "lora" / "AnimateLCM_sd15_t2v_lora.safetensors"), adapter_name="lcm-lora")
    pipe.set_adapters(["lcm-lora"], [LORA_SCALE])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def same_noise(monkeypatch, noise, timesteps):
    """The scheduler draws what our sampler draws."""
    drawn = iter([noise.at(t) for t in timesteps[1:]])
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, **__: next(drawn))


def ours(model, cond, steps, noise, w):
    empty = model.encode_text([""])
    *_, last = sample_lcm(guided(model.denoise, empty, w), model.schedule, noise, cond, steps)
    return last.x0


@torch.no_grad()
@pytest.mark.parametrize("steps, w", [(1, 0.0), (3, 1.0)])
def test_clips_are_those_of_diffusers_pipeline(folder, model, monkeypatch, steps, w):
    noise = Noise(model.latent_shape(F, SIDE, SIDE), 3)
    pipe = pipeline(folder)
    same_noise(monkeypatch, noise, model.schedule.lcm_timesteps(steps).tolist())
    asked = {"prompt": "a fox", "negative_prompt": NEGATIVE_PROMPT, "num_frames": F, "height": SIDE, "width": SIDE, "output_type": "latent"}
    theirs = pipe(**asked, num_inference_steps=steps, guidance_scale=1 + w, latents=noise.initial()).frames
    assert pipe.scheduler.timesteps.tolist() == model.schedule.lcm_timesteps(steps).tolist()
    mine = ours(model, Conditions(model.encode_text(["a fox"])), steps, noise, w)
    torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-3)


@torch.no_grad()
def test_control_nets_are_those_of_diffusers_pipeline(folder, model, monkeypatch):
    noise, rng = Noise(model.latent_shape(F, SIDE, SIDE), 4), np.random.default_rng(0)
    maps = {name: rng.integers(0, 256, (F, SIDE, SIDE), dtype=np.uint8) for name in ("depth", "sketch")}
    nets = [ControlNetModel.from_pretrained(folder / name) for name in ("controlnet_depth", "controlnet_softedge")]
    pipe = pipeline(folder, AnimateDiffControlNetPipeline, controlnet=nets)
    same_noise(monkeypatch, noise, model.schedule.lcm_timesteps(2).tolist())
    frames = [[Image.fromarray(np.repeat(frame[..., None], 3, 2)) for frame in clip] for clip in maps.values()]
    asked = {"prompt": "a fox", "negative_prompt": NEGATIVE_PROMPT, "num_frames": F, "height": SIDE, "width": SIDE, "output_type": "latent"}
    theirs = pipe(**asked, num_inference_steps=2, guidance_scale=2.0, latents=noise.initial(), conditioning_frames=frames).frames
    given = {name: torch.from_numpy(clip)[None, None].float() / 255 for name, clip in maps.items()}
    mine = ours(model, Conditions(model.encode_text(["a fox"]), **given), 2, noise, 1.0)
    free = ours(model, Conditions(model.encode_text(["a fox"])), 2, noise, 1.0)
    torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-3)
    assert (mine - free).abs().mean() > 0.05


def test_a_hole_is_shown_to_its_net_as_it_was_trained():
    whole = torch.rand(1, 3, 2, 16, 16) * 2 - 1
    hole = torch.zeros(1, 1, 2, 16, 16)
    hole[..., 4:8, 4:8], hole[..., 8:10, 4:8] = 1, 0.25  # the second a feathered edge
    shown = picture("masked", torch.cat([whole * (1 - hole), 1 - hole], 1), torch.zeros(1, 4, 2, 2, 2))
    assert shown.shape == (2, 3, 16, 16) and (shown[:, :, 4:8, 4:8] == -1).all()
    kept = (hole < 0.5).expand_as(whole)[0].transpose(0, 1)
    torch.testing.assert_close(shown[kept], ((whole + 1) / 2)[0].transpose(0, 1)[kept])
    assert picture("depth", torch.rand(1, 1, 2, 4, 4), torch.zeros(1, 4, 2, 2, 2)).shape == (2, 3, 16, 16)


@torch.no_grad()
def test_a_batch_mixes_clips_with_and_without_a_map(model):
    x, t = torch.randn(2, 4, 4, 8, 8), torch.tensor([999, 259])
    context, depth = model.encode_text(["a", "b"]), torch.rand(2, 1, 4, 64, 64)
    depth[1] = -1
    mixed = model.denoise(x, t, Conditions(context, depth=depth, masked=torch.full((2, 4, 4, 64, 64), -1.0)))
    alone = [model.denoise(x[i : i + 1], t[i : i + 1], Conditions(context[i : i + 1], depth=depth[i : i + 1])) for i in range(2)]
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_makes_a_clip(model, task):
    ask = {"frames": 8, "height": 128, "width": 128, "steps": 1, "task": task}
    if task != "text":
        ask["video"] = np.random.default_rng(1).integers(0, 256, (8, 128, 128, 3), dtype=np.uint8)
        ask["extractor"] = "as-is" if task != "inpaint" else None
    if task == "inpaint":
        ask["hole"] = np.zeros((8, 128, 128), np.float32)
        ask["hole"][:, 32:64, 32:64] = 1
    *_, result = generate(model, Request("a fox", **ask))
    assert result.frames.shape == (8, 128, 128, 3) and result.nfe == 1 and result.settings["role"] == "student"
    if task == "inpaint":
        assert (result.frames[:, :32] == ask["video"][:, :32]).all()


def test_what_it_is(model, folder):
    assert model.info.tasks == TASKS and model.prediction == "epsilon" and not model.schedule.zero_terminal_snr
    theirs = LCMScheduler.from_config(LCMScheduler.load_config(folder / "base" / "scheduler"), beta_schedule="linear")
    assert (theirs.alphas_cumprod - model.schedule.alphas_cumprod).abs().max() < 1e-5
    assert not any("lora" in name for name, _ in model.denoiser.named_parameters())
    assert "is a student" in refused("E_ROLE_MODEL", lambda: load(folder, "teacher"))
    refused("E_FRAMES_MODEL", lambda: model.latent_shape(33, 64, 64))


def test_parts_that_are_missing_or_do_not_fit(folder, tmp_path):
    here = shutil.copytree(folder, tmp_path / "a")
    shutil.rmtree(here / "controlnet_depth"), shutil.rmtree(here / "controlnet_inpaint")
    fewer = load(here)
    assert fewer.info.tasks == ("text", "sketch") and fewer.info.sha256 != load(folder).info.sha256
    cond = Conditions(fewer.encode_text(["a"]), depth=torch.rand(1, 1, 2, 32, 32))
    assert "sketch" in refused("E_CONDITION", lambda: fewer.denoise(torch.zeros(1, 4, 2, 4, 4), torch.tensor([999]), cond))
    lora = here / "lora" / "AnimateLCM_sd15_t2v_lora.safetensors"
    save_file({"something.weight": torch.zeros(2)}, lora)
    assert "usable lora" in refused("E_MODEL_PARTS", lambda: load(here))
    lora.write_bytes(b"nothing")
    refused("E_MODEL_PARTS", lambda: load(here))
    shutil.rmtree(here / "lora")
    assert "usable lora" in refused("E_MODEL_PARTS", lambda: load(here))
    MotionAdapter(block_out_channels=(32, 32, 32), motion_num_attention_heads=4).save_pretrained(here / "motion_adapter")
    shutil.copytree(folder / "lora", here / "lora")
    assert "motion_adapter that fits" in refused("E_MODEL_PARTS", lambda: load(here))
    shutil.rmtree(here / "base")
    assert "usable base" in refused("E_MODEL_PARTS", lambda: load(here))


def test_a_personalised_base_by_its_id(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VIDEOLCM_MODELS", str(tmp_path))
    named = shutil.copytree(folder, tmp_path / "animatelcm")
    ref = f"animatelcm:someone/toon.style@{'a' * 40}"
    assert f"someone/toon.style@{'a' * 40}"[:40] in refused("E_OFFLINE", lambda: load(ref))
    place = tmp_path / f"someone--toon.style@{'a' * 12}"
    place.mkdir()
    sd15(place)
    unet = load_file(place / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({name: value * 1.5 for name, value in unet.items()}, place / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    model = load(ref)
    assert model.info.name == ref and model.info.sha256 != load("animatelcm").info.sha256
    shutil.rmtree(named / "base")
    assert load(ref).info.sha256 == model.info.sha256
    refused("E_OFFLINE", lambda: load("animatelcm"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    refused("E_BASE", lambda: load("animatelcm"))
