"""A folder that `convert` wrote, with Stable Diffusion 2.1's text encoder and autoencoder placed beside it, as a VideoModel.

In: the folder: manifest.json, unet/ and scheduler/ (which stock diffusers loads too), conditions/ where the checkpoint has encoders,
and text_encoder/, tokenizer/, vae/. Out: a FolderModel. It knows nothing about official names, sampling or pages.
"""

import json
from dataclasses import replace

import torch
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer

from ..checkpoint import read_weights, sha256_of
from ..errors import AppError
from ..schedule import Schedule
from . import fill
from .base import ModelInfo, VideoModel
from .vgen import NEGATIVE_PROMPT, PROMPT_SUFFIX, VGenConfig, build

LATENT_SCALE = 0.18215  # brings SD 2.1's latents to unit variance
CHUNK = 2  # frames the autoencoder takes at once, VGen's decoder_bs
GUIDANCE = 9.0  # w of the teacher (Sec. 4.1)
FPS = 8
FILES = {"unet": "unet/diffusion_pytorch_model.safetensors", "conditions": "conditions/model.safetensors"}
TASK_OF = {"depth": "depth", "sketch": "sketch", "masked": "inpaint"}  # encoder: the task that it makes possible
PARTS = ("text_encoder", "tokenizer", "vae")  # what a checkpoint does not hold
# A linear look at Stable Diffusion's latents: RGB in [-1, 1] of each of the four channels (Keturn, "Decoding latents to RGB without
# upscaling", discuss.huggingface.co/t/23204).
LATENT_RGB = ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473))


class FolderModel(VideoModel):
    """Networks already on `device` in `dtype` behind the common face. Text is prepared as the official inference does it."""

    schedule = Schedule()  # zero terminal SNR, v-prediction

    def __init__(self, info, tokenizer, text_encoder, vae, denoiser, device, dtype):
        self.info, self.device, self.dtype = info, torch.device(device), dtype
        self.tokenizer, self.language, self.vae, self.denoiser = tokenizer, text_encoder, vae, denoiser

    @property
    def autoencoder(self):
        return self.vae

    @torch.no_grad()
    def encode_text(self, prompts):
        """(B, 77, D): the official suffix is appended to every prompt; the empty one stands for the official negative prompt."""
        texts = [prompt + PROMPT_SUFFIX if prompt else NEGATIVE_PROMPT for prompt in prompts]
        length = self.language.config.max_position_embeddings
        tokens = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        return self.language(tokens.to(self.device)).last_hidden_state

    def latent_shape(self, frames, height, width):
        down = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return (self.vae.config.latent_channels, frames, height // down, width // down)

    @torch.no_grad()
    def encode(self, pixels):
        return self.frame_by_frame(pixels, lambda chunk: self.vae.encode(chunk).latent_dist.mode() * LATENT_SCALE)

    @torch.no_grad()
    def decode(self, latents, frames):
        return self.frame_by_frame(latents[:, :, :frames], lambda chunk: self.vae.decode(chunk / LATENT_SCALE).sample)

    def frame_by_frame(self, clips, function):
        """`function` on (CHUNK, C, H, W) after (CHUNK, C, H, W) of clips (B, C, F, H, W), back as float32 clips."""
        flat = clips.to(self.device, self.dtype).transpose(1, 2).flatten(0, 1)  # (B F, C, H, W)
        done = torch.cat([function(chunk).float() for chunk in flat.split(CHUNK)])
        return done.unflatten(0, (len(clips), -1)).transpose(1, 2)

    @torch.no_grad()
    def preview(self, latents, frames):
        rgb = torch.einsum("cfhw,cr->fhwr", latents[0, :, :frames].float(), latents.new_tensor(LATENT_RGB, dtype=torch.float32))
        return ((rgb + 1) * 127.5).clamp(0, 255).byte().cpu().numpy()

    def denoise(self, x_t, t, cond):
        given = cond.map(lambda value: value.to(self.device, self.dtype))
        v = self.denoiser(x_t.to(self.dtype), t.float(), given.context, depth=given.depth, sketch=given.sketch, masked=given.masked)
        return self.schedule.x0_from_v(x_t.float(), v.float(), t)


def tasks_of(config):
    """The tasks that a network of this VGenConfig can do."""
    return ("text", *(task for encoder, task in TASK_OF.items() if encoder in config.encoders))


def scheduler_of(role):
    """diffusers' scheduler with the official settings: LCM for a student; DDIM from 981 down to 1 for a teacher."""
    common = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
    }
    if role == "student":
        return LCMScheduler(**common)
    return DDIMScheduler(**common, timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False)


def load_folder(name, folder, role, device, dtype):
    """The model in `folder`. AppError E_ROLE_MODEL for the other role, E_MODEL_PARTS, E_MODEL_FILE, E_CHECKPOINT, E_CHECKPOINT_KEYS."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if role != manifest["role"]:
        raise AppError("E_ROLE_MODEL", model=folder.name, role=manifest["role"])
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise AppError("E_MODEL_PARTS", folder=folder.name, given=" and ".join(missing))
    tokenizer = component(folder, "tokenizer", CLIPTokenizer)
    text_encoder, vae = component(folder, "text_encoder", CLIPTextModel), component(folder, "vae", AutoencoderKL)
    net = read_network(folder, manifest)
    if text_encoder.config.hidden_size != net.config.context_dim:
        raise AppError("E_MODEL_PARTS", folder=folder.name, given=f"text_encoder of width {net.config.context_dim}")
    if vae.config.latent_channels != net.config.in_dim:
        raise AppError("E_MODEL_PARTS", folder=folder.name, given=f"vae of {net.config.in_dim} latent channels")
    info = ModelInfo(name, role, tuple(manifest["tasks"]), manifest["guidance"], manifest["fps"], sha256_of(folder / "manifest.json"))
    ready = [part.to(device, dtype).eval().requires_grad_(False) for part in (text_encoder, vae, net)]
    return FolderModel(info, tokenizer, *ready, device, dtype)


def load_distilled(name, folder, manifest, places, role, device, dtype):
    """The model of a `folder` that distilling left: its base's, for the student with the network that was trained.

    `manifest` and `places` as the door's `read_manifest` gives them. AppError as `load_folder`.
    """
    model = load_folder(name, places["unet"], manifest["role"], device, dtype)
    if role == "student":
        entry = manifest["files"]["student"]
        net = build(VGenConfig(**{word: value for word, value in entry["config"].items() if word != "class"}))
        fill(net, read_weights(folder / entry["file"], entry["sha256"]), entry["file"])
        model.denoiser = net.to(device, dtype).eval().requires_grad_(False)
        model.info = replace(model.info, role="student", sha256=sha256_of(folder / "manifest.json"))
    return model


def component(folder, part, kind):
    """A tokenizer or network in diffusers' layout, from safetensors only and from this folder only. AppError E_MODEL_PARTS."""
    options = {} if kind is CLIPTokenizer else {"use_safetensors": True, "output_loading_info": True}
    try:
        found = kind.from_pretrained(folder / part, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise AppError("E_MODEL_PARTS", folder=folder.name, given=part) from error
    if not options:
        return found
    net, told = found
    if told["missing_keys"]:  # the library would leave them random
        raise AppError("E_MODEL_PARTS", folder=folder.name, given=part)
    return net


def read_network(folder, manifest):
    """The VideoUNet of a converted folder, in the number format of its files, after a check of every byte."""
    net, weights = build(VGenConfig(**manifest["config"])), {}
    for part, file in FILES.items():
        if part in manifest["files"]:
            tensors = read_weights(folder / file, manifest["files"][part]["sha256"])
            weights |= {f"unet.{name}" if part == "unet" else name: value for name, value in tensors.items()}
    fill(net, weights, FILES["unet"])
    return net
