"""AnimateLCM by diffusers' current classes: a Stable Diffusion 1.5 base, a motion adapter, an LCM LoRA, and ControlNets for what is followed.

In: the folders of these parts: base/ (unet, vae, text_encoder, tokenizer, scheduler: any personalised one), motion_adapter/, lora/, and of
controlnet_depth/, controlnet_softedge/, controlnet_inpaint/ those that are there. Out: an AnimateModel, a student. It knows nothing about hubs,
sampling or pages.
"""

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from safetensors.torch import load_file

from ..errors import AppError
from .base import ModelInfo
from .latent import LatentModel, component, digest_of, load_parts, read_config, ready, require_fit, schedule_of, usable

NEGATIVE_PROMPT = "bad quality, worse quality, low resolution"  # as in AnimateLCM's own example, and so the next three
LORA_SCALE = 0.8
GUIDANCE = 1.0  # w; the usual scale of 2
BETAS = "linear"  # AnimateDiff's motion modules were trained on these, whatever the base's config says
FPS = 8
SIDE = 8  # pixels per latent that a ControlNet's own encoder reads
CONTROLNETS = {  # map: (the part that follows it, the task that it makes possible)
    "depth": ("controlnet_depth", "depth"),
    "sketch": ("controlnet_softedge", "sketch"),
    "masked": ("controlnet_inpaint", "inpaint"),
}


class AnimateModel(LatentModel):
    """A UNetMotionModel that predicts epsilon, and {map: ControlNetModel} whose residuals are added up, as MultiControlNetModel does it."""

    controlnets = {}

    def latent_shape(self, frames, height, width):
        """As every LatentModel; AppError E_FRAMES_MODEL for more frames than the motion modules know places for."""
        limit = self.denoiser.config.motion_max_seq_length
        if frames > limit:
            raise AppError("E_FRAMES_MODEL", given=frames, limit=limit)
        return super().latent_shape(frames, height, width)

    def predict(self, x_t, t, cond):
        context = cond.context.repeat_interleave(x_t.shape[2], 0)  # (B F, L, D)
        down, mid = self.followed(x_t, t, cond, context)
        said = self.denoiser(x_t, t, context, down_block_additional_residuals=down, mid_block_additional_residual=mid, return_dict=False)
        return said[0]

    def followed(self, x_t, t, cond, context):
        """What the ControlNets of the maps that are there add: (residuals on the way down, residual in the middle), None twice without any."""
        total = None
        for name, value in cond.maps().items():
            if name not in self.controlnets:
                raise AppError("E_CONDITION", given=name, known=", ".join(self.controlnets) or "none")
            there = (value.flatten(1).amax(1) > -1).to(x_t.dtype).repeat_interleave(x_t.shape[2])  # (B F,)
            down, mid = self.controlnets[name](
                x_t.transpose(1, 2).flatten(0, 1),
                t.repeat_interleave(x_t.shape[2]),
                encoder_hidden_states=context,
                controlnet_cond=picture(name, value, x_t),
                return_dict=False,
            )
            added = [residual * there[:, None, None, None] for residual in (*down, mid)]
            total = added if total is None else [a + b for a, b in zip(total, added, strict=True)]
        return (None, None) if total is None else (tuple(total[:-1]), total[-1])


def picture(name, value, x_t):
    """A map (B, C, F, H, W) as its ControlNet was trained on it: (B F, 3, 8 h, 8 w) in [0, 1]; a hole is -1 in every colour."""
    size = tuple(SIDE * side for side in x_t.shape[3:])
    flat = value.transpose(1, 2).flatten(0, 1)  # (B F, C, H, W)
    if flat.shape[2:] != size:
        flat = F.interpolate(flat, size, mode="area")
    if name != "masked":
        return flat.expand(-1, 3, -1, -1)
    pixels, kept = flat[:, :3], flat[:, 3:]
    whole = (pixels / kept.clamp(min=0.5) + 1) / 2  # a feathered edge is darkened towards the hole: the picture itself
    return torch.where(kept >= 0.5, whole.clamp(0, 1), -1.0)


def load_animatediff(name, places, role, device, dtype):
    """The model of the parts that lie in `places`, {part: folder}. AppError E_ROLE_MODEL, E_MODEL_PARTS, E_SCHEDULER."""
    if role != "student":
        raise AppError("E_ROLE_MODEL", model=name, role="student")
    base, adapter = places["base"], places["motion_adapter"]
    schedule = schedule_of(read_config(base, "scheduler/scheduler_config.json"), beta_schedule=BETAS)
    parts = load_parts(base, device, dtype)
    unet, motion = component(base, "unet", UNet2DConditionModel), component(adapter.parent, adapter.name, MotionAdapter)
    require_fit(base, parts, unet.config.cross_attention_dim, unet.config.in_channels)
    with usable(adapter.parent, f"{adapter.name} that fits the base"):
        net = UNetMotionModel.from_unet2d(unet, motion)
    merge(net, places["lora"])
    controls = {which: places[part] for which, (part, _) in CONTROLNETS.items() if part in places}
    tasks = ("text", *(CONTROLNETS[which][1] for which in controls))
    info = ModelInfo(name, role, tasks, GUIDANCE, FPS, digest_of(places))
    model = AnimateModel(info, parts, ready(net, device, dtype), *schedule, device, dtype, negative=NEGATIVE_PROMPT)
    model.controlnets = {which: ready(control_net(at, unet), device, dtype) for which, at in controls.items()}
    return model


def control_net(folder, unet):
    """The ControlNet in `folder`. AppError E_MODEL_PARTS if it is not one for this network."""
    net = component(folder.parent, folder.name, ControlNetModel)
    for name in ("in_channels", "block_out_channels", "cross_attention_dim", "layers_per_block"):
        if str(net.config[name]).strip("[()]") != str(unet.config[name]).strip("[()]"):  # a default is a tuple, what JSON says a list
            raise AppError("E_MODEL_PARTS", folder=folder.parent.name, given=f"{folder.name} that fits the base")
    return net


def merge(net, folder):
    """Adds the LoRA in `folder` to the weights of `net`, in the strength of AnimateLCM's example. AppError E_MODEL_PARTS."""
    files = sorted(folder.glob("*.safetensors"))
    files = [path for path in files if "lora" in path.name.lower()] or files  # on the hub it lies beside the motion adapter
    with usable(folder.parent, "lora"):
        weights, alphas, *_ = StableDiffusionLoraLoaderMixin.lora_state_dict(load_file(files[0]), unet_config=net.config)
        if not any(key.startswith("unet.") and "lora" in key for key in weights):  # diffusers would only warn
            raise ValueError("no LoRA of the network")
        StableDiffusionLoraLoaderMixin.load_lora_into_unet(weights, network_alphas=alphas, unet=net, adapter_name="lcm")
        net.set_adapters(["lcm"], [LORA_SCALE])
        net.fuse_lora()
        net.unload_lora()
