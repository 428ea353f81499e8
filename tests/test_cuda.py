"""Every network, sampler and training step on a `cuda` device that is not there: tensors without values, so that one that strays is an error."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet3DConditionModel, UNetMotionModel
from test_vgen import network
from tiny import DENOISER, TEXT, clips
from transformers import CLIPTextConfig, CLIPTextModel, DPTConfig, DPTForDepthEstimation

from videolcm import conditions, training
from videolcm.depth import DepthNet
from videolcm.distill import DistillConfig, distill_stage
from videolcm.judge import Judge
from videolcm.matching import matching_losses
from videolcm.models.animatediff import AnimateModel
from videolcm.models.base import Conditions, ModelInfo
from videolcm.models.codec import Codec
from videolcm.models.denoiser import Denoiser
from videolcm.models.folder import FolderModel
from videolcm.models.toybox import TextEncoder, Toybox
from videolcm.models.vgen import VideoUNet
from videolcm.pipeline import Request, decode, denoising, look
from videolcm.sampling import guided
from videolcm.schedule import Schedule
from videolcm.training import Run

BLOCKS3D = {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")}
SMALL = {"block_out_channels": (32, 32), "layers_per_block": 1, "cross_attention_dim": 16, "attention_head_dim": 4}
CUDA = torch.device("cuda")
HALF = torch.float16


def tokens(texts, **_):
    """A tokenizer, which is no network."""
    return type("Tokens", (), {"input_ids": torch.zeros((len(texts), 77), dtype=torch.int64)})


def parts(width=16):
    text = CLIPTextConfig(vocab_size=100, hidden_size=width, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1)
    four = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, **four)
    return {"tokenizer": tokens, "text_encoder": CLIPTextModel(text).eval(), "vae": vae.eval()}


def info(*tasks):
    return ModelInfo("fake", "teacher", ("text", *tasks), 2.0, 8, "")


def toybox(dtype):
    nets = [Codec().eval(), TextEncoder(TEXT).eval(), Denoiser(replace(DENOISER, latent=48)).eval()]
    return Toybox(info("depth", "sketch", "inpaint"), *nets, CUDA, dtype)


def official(dtype):
    net = VideoUNet(network("tiny_compositional").config).eval()
    return FolderModel(info("depth", "sketch", "inpaint"), parts(24), net, None, "v_prediction", CUDA, dtype, "suffix", "negative")


def modelscope(dtype):
    net = UNet3DConditionModel(**SMALL, **BLOCKS3D).eval()
    return FolderModel(info(), parts(), net, None, "epsilon", CUDA, dtype)


def animatelcm(dtype):
    blocks = {"down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"), "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion")}
    shape = {name: value for name, value in SMALL.items() if name != "attention_head_dim"}
    net = UNetMotionModel(**shape, **blocks, num_attention_heads=4, motion_num_attention_heads=4, use_motion_mid_block=False).eval()
    model = AnimateModel(info("depth", "sketch", "inpaint"), parts(), net, None, "epsilon", CUDA, dtype)
    down = ("CrossAttnDownBlock2D", "DownBlock2D")
    model.controlnets = {name: ControlNetModel(**SMALL, down_block_types=down).eval() for name in ("depth", "sketch", "masked")}
    return model


SCHEDULES = dict.fromkeys(("toybox", "official"), Schedule)
SCHEDULES["modelscope"] = partial(Schedule, zero_terminal_snr=False)
SCHEDULES["animatelcm"] = partial(Schedule, zero_terminal_snr=False, beta_schedule="linear")
KINDS = {"toybox": toybox, "official": official, "modelscope": modelscope, "animatelcm": animatelcm}


def made(kind, dtype):
    """The model, born on the device in its type: modules of fake tensors cannot be converted."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with CUDA:
            model = KINDS[kind](dtype)
    finally:
        torch.set_default_dtype(before)
    model.schedule = SCHEDULES[kind]()  # which lies on the processor
    return model


@pytest.fixture(scope="module", autouse=True)
def known_beforehand():
    """What reads a file of the fixtures is read before tensors lose their values."""
    network("tiny_compositional")


def followed(kind, batch, frames, side):
    if kind == "modelscope":
        return {}
    channels = {"depth": 1, "sketch": 1, "masked": 4}
    return {name: torch.zeros(batch, count, frames, side, side, device=CUDA) for name, count in channels.items()}


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_from_text_to_pixels(pretend, kind, dtype):
    model = made(kind, dtype)
    context = model.encode_text(["a fox", ""])
    assert context.device.type == "cuda" and context.dtype == dtype
    cond = Conditions(context[:1], **followed(kind, 1, 8, 128))
    for sampler in ("lcm", "tcd", "ddim"):
        request = Request("a fox", steps=2, frames=8, height=128, width=128, sampler=sampler, gamma=0.3 if sampler == "tcd" else None)
        *_, step = denoising(model, request, guided(model.denoise, context[1:], 2.0), cond)
        assert step.x0.device.type == "cuda" and step.x0.dtype == torch.float32 and step.x0.shape[1:] == model.latent_shape(8, 128, 128)
    pixels = model.decode(step.x0, 8)
    assert pixels.device.type == "cuda" and pixels.shape == (1, 3, 8, 128, 128)
    assert model.encode(torch.zeros(1, 3, 8, 128, 128)).device.type == "cuda"


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("kind", ["toybox", "official", "modelscope"])
def test_a_training_step(pretend, kind, dtype, monkeypatch):
    """All of it but the backward pass: autograd wants a device that is really there."""
    teacher = made(kind, dtype)
    if kind == "modelscope":
        monkeypatch.setattr(Conditions, "maps", lambda self: {})  # whose values, all -1, are not known here
    side, frames = (4, 2) if kind == "toybox" else (8, 4)
    batch = clips(f=2, side=side)
    if kind != "toybox":
        maps = {name: torch.zeros((6, frames, *value.shape[2:]), dtype=value.dtype) for name, value in batch.arrays.items() if name != "latents"}
        batch.arrays = {"latents": torch.zeros(6, 4, frames, side, side), **maps}
    else:
        batch.arrays["latents"] = torch.zeros(6, 48, frames, side, side)
    stage = distill_stage(teacher, batch, DistillConfig(iterations=2, batch=2, skips=(20,)))
    stage.make = lambda: teacher.denoiser.requires_grad_(True)  # a copy of what has no values fails; the network itself will do
    stage.dtype, stage.with_target, stage.loss = torch.float32, False, alone(stage.loss, teacher)
    # a copy of pretended tensors would belong to another pretence
    monkeypatch.setattr(training, "copy", SimpleNamespace(deepcopy=lambda net: made(kind, dtype).denoiser))
    run, passed = Run(stage, stage.make()), []

    def backward(loss):
        passed.append((loss.device.type, loss.dtype, loss.requires_grad))
        for value in run.net.parameters():
            value.grad = torch.zeros_like(value)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    assert run.step(0) == 1.0  # what a pretended number is
    assert passed == [("cuda", torch.float32, True)]
    assert {value.device.type for value in [*run.net.parameters(), *run.ema.parameters()]} == {"cuda"}
    moved = [state[name] for state in run.optimiser.adam.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert moved and {value.device.type for value in moved} == {"cuda"}


@pytest.mark.parametrize("way", [(999, -1), (999, 759, 499)])
def test_what_matching_compares(pretend, way):
    teacher = made("toybox", HALF)
    cond, null = (Conditions(teacher.encode_text([text])) for text in ("a fox", ""))
    noise, t = (torch.zeros(1, *teacher.latent_shape(8, 128, 128), device=CUDA), torch.full((1,), 900, device=CUDA))
    losses = matching_losses(*[teacher.denoise] * 4, teacher.schedule, way, (noise, t, noise, t, noise), cond, null, 1.0)
    assert {(loss.device.type, loss.dtype, loss.shape) for loss in losses} == {("cuda", torch.float32, ())}


def alone(loss, teacher):
    """The loss with the teacher's own network as the target."""
    return lambda net, iteration, *part: loss(net, teacher.denoiser, iteration, *part)


def test_networks_that_make_maps_and_judge(pretend):
    with CUDA:
        shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 64, "patch_size": 16}
        neck = {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 16, 32, 32], "fusion_hidden_size": 32, "is_hybrid": False}
        dpt, depth, judge = DPTForDepthEstimation(DPTConfig(**shape, **neck)), DepthNet(), Judge()
        hed = conditions.controlnet("hed").ControlNetHED_Apache2()
        pixels = torch.zeros(2, 3, 64, 64)
        outputs = [dpt(pixels).predicted_depth, *hed(pixels), depth(pixels.transpose(0, 1)[None])]
        outputs += [look_at(judge)]
    assert {value.device.type for value in outputs} == {"cuda"}


def look_at(judge):
    """One output of the judge on frames of the size that it sees."""
    found = judge(torch.zeros(1, 8, 3, 128, 128))
    while not torch.is_tensor(found):
        found = next(iter(found.values() if isinstance(found, dict) else found))
    return found


def test_previews_and_frames_come_back_to_the_processor(monkeypatch):
    """With real tensors: what is shown is no longer on the device that made it."""
    moved = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: moved.append(self.shape) or cpu(self))
    from tiny import toybox as real

    model = real()
    latents = torch.zeros(1, *model.latent_shape(8, 128, 128))
    assert look(model, latents, 8).shape[0] == 8 and decode(model, latents, 8).shape == (8, 128, 128, 3)
    assert len(moved) >= 2
