"""Tiny random checkpoints in the layouts that real ones have: official files, and folders as diffusers writes them."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, MotionAdapter, UNet2DConditionModel, UNet3DConditionModel
from safetensors.torch import load_file, save_file
from tiny import awake
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from videolcm.data import latent_path
from videolcm.errors import AppError

DATA = Path(__file__).parent / "data" / "vgen"
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def tensors_of(name):
    return {key: value.float() for key, value in load_file(DATA / f"tiny_{name}.weights.safetensors").items()}


def recorded(name, case):
    return {
        key.removeprefix(f"{case}/"): value for key, value in load_file(DATA / f"tiny_{name}.io.safetensors").items() if key.startswith(f"{case}/")
    }


def official(path, name="t2v", **wrapping):
    torch.save({"state_dict": tensors_of(name), "step": 544000} | wrapping, path)
    return path


def place_parts(folder, width):
    """A tiny random text encoder with its tokenizer and an autoencoder, in diffusers' layout."""
    torch.manual_seed(5)
    letters = [*map(chr, range(33, 127))]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    CLIPTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}, merges=[], model_max_length=77).save_pretrained(folder / "tokenizer")
    heads = dict(num_attention_heads=2, num_hidden_layers=2, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    text = CLIPTextConfig(vocab_size=len(vocabulary), hidden_size=width, intermediate_size=32, **heads)
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, **blocks).save_pretrained(folder / "vae")
    return folder


def index(folder, kind):
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    return folder


def modelscope(folder):
    """The layout of ali-vilab/text-to-video-ms-1.7b: an epsilon-predicting UNet3DConditionModel, plain betas."""
    torch.manual_seed(6)
    blocks = {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")}
    UNet3DConditionModel(block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4, **blocks).save_pretrained(
        folder / "unet"
    )
    DDIMScheduler(**SD_BETAS, set_alpha_to_one=False, steps_offset=1).save_pretrained(folder / "scheduler")
    return index(place_parts(folder, 16), "TextToVideoSDPipeline")


def sd15(folder):
    """The layout of a Stable Diffusion 1.5."""
    torch.manual_seed(8)
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    net = UNet2DConditionModel(block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4, **blocks)
    net.save_pretrained(folder / "unet")
    (folder / "scheduler").mkdir()
    pndm = {"_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({**SD_BETAS, **pndm, "trained_betas": None}))
    index(place_parts(folder, 16), "StableDiffusionPipeline")
    return net


def animatelcm(folder):
    """The parts of AnimateLCM, as SOURCES names their folders; the LoRA as kohya's scripts name it, one ControlNet in float16 alone."""
    (folder / "base").mkdir(parents=True)
    unet = sd15(folder / "base")
    motion = MotionAdapter(block_out_channels=(32, 32), motion_layers_per_block=1, motion_num_attention_heads=4, use_motion_mid_block=False)
    awake(motion, 1).save_pretrained(folder / "motion_adapter")
    g, lora = torch.Generator().manual_seed(9), {}
    for name, layer in unet.named_modules():
        if name.endswith(("attn1.to_q", "attn2.to_k", "attn2.to_out.0")):
            key = f"lora_unet_{name.replace('.', '_')}"
            lora[f"{key}.lora_down.weight"] = torch.randn((4, layer.in_features), generator=g) * 0.3
            lora[f"{key}.lora_up.weight"] = torch.randn((layer.out_features, 4), generator=g) * 0.3
            lora[f"{key}.alpha"] = torch.tensor(2.0)
    (folder / "lora").mkdir()
    save_file(lora, folder / "lora" / "AnimateLCM_sd15_t2v_lora.safetensors")
    for seed, kind in enumerate(("depth", "softedge", "inpaint"), 2):
        net = awake(ControlNetModel.from_unet(unet), seed)
        half = {"variant": "fp16"} if kind == "inpaint" else {}
        (net.half() if half else net).save_pretrained(folder / f"controlnet_{kind}", **half)
    return folder


def latents_folder(folder, frames=4, side=4):
    """Cached clips of an autoencoder that keeps every frame: latents (6, 4, frames, side, side) and their maps."""
    g = torch.Generator().manual_seed(7)
    maps = (6, frames, 4 * side, 4 * side)
    ids = torch.zeros(maps, dtype=torch.uint8)
    ids[:, :, 5:9, 6:11] = 255
    arrays = {name: torch.randint(0, 256, (*maps, *more), generator=g, dtype=torch.uint8) for name, more in SHAPES.items()}
    folder.mkdir()
    latents = torch.randn((6, 4, frames, side, side), generator=g).half()
    save_file({"latents": latents, "ids": ids, **arrays}, latent_path(folder, "plain", 0))
    return folder


SHAPES = {"depth": (), "edges": (), "rgb": (3,)}


def refused(code, run):
    with pytest.raises(AppError) as error:
        run()
    assert error.value.code == code, error.value
    return str(error.value)
