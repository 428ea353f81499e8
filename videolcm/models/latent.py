"""What models of Stable Diffusion's family share: CLIP's text encoder, an autoencoder that takes frame by frame, a scheduler's config.

In: folders in diffusers' layout, component by component and safetensors only. Out: LatentModel, the face of a VideoModel without its denoiser.
It knows nothing about denoising networks, hubs or pages.
"""

import hashlib
import json
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel, CLIPTokenizer

from ..checkpoint import sha256_of
from ..errors import AppError
from ..memory import in_parts, ran_out
from ..schedule import Schedule
from .base import VideoModel

CHUNK = 2  # frames the autoencoder takes at once, VGen's decoder_bs
PARTS = {"text_encoder": CLIPTextModel, "tokenizer": CLIPTokenizer, "vae": AutoencoderKL}
# A linear look at Stable Diffusion's latents: RGB in [-1, 1] of each of the four channels (Keturn, "Decoding latents to RGB without
# upscaling", discuss.huggingface.co/t/23204).
LATENT_RGB = ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473))
PREDICTIONS = {"v_prediction": Schedule.x0_from_v, "epsilon": Schedule.x0_from_eps}  # diffusers' names for what a network says


class LatentModel(VideoModel):
    """Text encoder and autoencoder already on `device` in `dtype`. Subclasses add `predict`: what the network says, of the kind `prediction`.

    parts: {name of PARTS: component}; suffix goes behind every prompt, negative stands for the empty one.
    """

    def __init__(self, info, parts, denoiser, schedule, prediction, device, dtype, suffix="", negative=""):
        self.info, self.device, self.dtype = info, torch.device(device), dtype
        self.tokenizer, self.language, self.vae, self.denoiser = parts["tokenizer"], parts["text_encoder"], parts["vae"], denoiser
        self.schedule, self.prediction, self.suffix, self.negative = schedule, prediction, suffix, negative

    @property
    def autoencoder(self):
        return self.vae

    @torch.no_grad()
    def encode_text(self, prompts):
        """(B, 77, D)."""
        texts = [prompt + self.suffix if prompt else self.negative for prompt in prompts]
        length = self.language.config.max_position_embeddings
        tokens = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        return self.language(tokens.to(self.device)).last_hidden_state

    def latent_shape(self, frames, height, width):
        down = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return (self.vae.config.latent_channels, frames, height // down, width // down)

    @torch.no_grad()
    def encode(self, pixels):
        scale = self.vae.config.scaling_factor  # brings latents to unit variance
        return self.frame_by_frame(pixels, lambda chunk: self.vae.encode(chunk).latent_dist.mode() * scale)

    @torch.no_grad()
    def decode(self, latents, frames):
        scale = self.vae.config.scaling_factor
        return self.frame_by_frame(latents[:, :, :frames], lambda chunk: self.vae.decode(chunk / scale).sample)

    def frame_by_frame(self, clips, function):
        """`function` on (CHUNK, C, H, W) after (CHUNK, C, H, W) of clips (B, C, F, H, W), or one by one where memory is short, back as float32."""
        flat = clips.to(self.device, self.dtype).transpose(1, 2).flatten(0, 1)  # (B F, C, H, W)
        done = in_parts(lambda size: torch.cat([function(chunk).float() for chunk in flat.split(size)]), (CHUNK, 1))
        return done.unflatten(0, (len(clips), -1)).transpose(1, 2)

    @torch.no_grad()
    def preview(self, latents, frames):
        rgb = torch.einsum("cfhw,cr->fhwr", latents[0, :, :frames].float(), latents.new_tensor(LATENT_RGB, dtype=torch.float32))
        return ((rgb + 1) * 127.5).clamp(0, 255).byte().cpu().numpy()

    def predict(self, x_t, t, cond):
        """What the network says of x_t (B, C, F, h, w) at t (B,): same shape. x_t and cond come in the network's own type."""
        raise NotImplementedError

    def denoise(self, x_t, t, cond):
        said = self.predict(x_t.to(self.dtype), t, cond.map(lambda value: value.to(self.device, self.dtype)))
        return PREDICTIONS[self.prediction](self.schedule, x_t.float(), said.float(), t)


def load_parts(folder, device, dtype):
    """{name of PARTS: component} from a folder that holds them, ready to compute. AppError E_MODEL_PARTS."""
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise AppError("E_MODEL_PARTS", folder=folder.name, given=" and ".join(missing))
    parts = {part: component(folder, part, kind) for part, kind in PARTS.items()}
    return {part: found if part == "tokenizer" else ready(found, device, dtype) for part, found in parts.items()}


def ready(net, device, dtype):
    """`net` as it computes: on its device, in its type, convolutions channels last, without gradients."""
    for module in torch.nn.Module.to(net, device, dtype).modules():  # diffusers' own `to` warns of nothing
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return net.eval().requires_grad_(False)


def component(folder, part, kind):
    """A tokenizer or network in diffusers' layout, from safetensors only and from this folder only. AppError E_MODEL_PARTS."""
    options = {} if kind is CLIPTokenizer else {"use_safetensors": True, "output_loading_info": True}
    files = [path.name for path in (folder / part).glob("*.safetensors")]
    if files and all(".fp16" in file for file in files):  # where it is all that was fetched
        options["variant"] = "fp16"
    with usable(folder, part):
        found = kind.from_pretrained(folder / part, local_files_only=True, **options)
    if not options:
        return found
    net, told = found
    if told["missing_keys"]:  # the library would leave them random
        raise AppError("E_MODEL_PARTS", folder=folder.name, given=part)
    return net


def require_fit(folder, parts, width, channels):
    """AppError E_MODEL_PARTS unless the text encoder says tokens of this width and the autoencoder latents of so many channels."""
    if parts["text_encoder"].config.hidden_size != width:
        raise AppError("E_MODEL_PARTS", folder=folder.name, given=f"text_encoder of width {width}")
    vae = parts["vae"].config
    if vae.latent_channels != channels:
        raise AppError("E_MODEL_PARTS", folder=folder.name, given=f"vae of {channels} latent channels")
    if not isinstance(vae.scaling_factor, (int, float)) or not vae.scaling_factor > 0:
        raise AppError("E_MODEL_PARTS", folder=folder.name, given="scaling_factor of the vae")


def digest_of(places):
    """One sha256 of all weights and configs that the parts, {name: folder}, are made of."""
    found = hashlib.sha256()
    for part, folder in sorted(places.items()):
        for path in sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json")):
            found.update(f"{part}/{path.relative_to(folder)} {sha256_of(path)}".encode())
    return found.hexdigest()


@contextmanager
def usable(folder, part):
    """Makes AppError E_MODEL_PARTS of what a library raises for files that are not what they say, which is anything; not of memory that ran out."""
    try:
        yield
    except Exception as error:
        if ran_out(error):
            raise
        raise AppError("E_MODEL_PARTS", folder=folder.name, given=part) from error


def read_config(folder, file):
    """The JSON object in a file of a model folder. AppError E_MODEL_PARTS."""
    try:
        found = json.loads((folder / file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AppError("E_MODEL_PARTS", folder=folder.name, given=file) from error
    if not isinstance(found, dict):
        raise AppError("E_MODEL_PARTS", folder=folder.name, given=file)
    return found


def schedule_of(config, **otherwise):
    """(Schedule, prediction) that the config of a diffusers scheduler means, with some words of it said otherwise. AppError E_SCHEDULER."""
    config = {"prediction_type": "epsilon", "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, **config, **otherwise}
    asked, timesteps = {name: config[name] for name in ("beta_schedule", "beta_start", "beta_end")}, config.get("num_train_timesteps", 1000)
    if config["prediction_type"] not in list(PREDICTIONS) or config.get("trained_betas") is not None or timesteps != 1000:
        raise AppError("E_SCHEDULER", detail=f"prediction {config['prediction_type']} of {timesteps} timesteps")
    try:
        schedule = Schedule(zero_terminal_snr=bool(config.get("rescale_betas_zero_snr")), **asked)
    except (AppError, TypeError) as error:
        raise AppError("E_SCHEDULER", detail=", ".join(f"{name} {value}" for name, value in asked.items())) from error
    if schedule.zero_terminal_snr and config["prediction_type"] == "epsilon":
        raise AppError("E_SCHEDULER", detail="epsilon at zero terminal SNR")
    return schedule, config["prediction_type"]
