"""The official network: recorded outputs, the real checkpoints' names and shapes, diffusers' scheduler; and what is said of other tensors."""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from diffusers import LCMScheduler, UNet3DConditionModel
from diffusers.schedulers import scheduling_lcm
from safetensors.torch import load_file
from torch._subclasses import FakeTensorMode

from videolcm.errors import AppError
from videolcm.models import vgen
from videolcm.models.vgen import VGenConfig, VideoUNet, complete_config, load_state_dict
from videolcm.sampling import sample_lcm
from videolcm.schedule import Schedule

DATA = Path(__file__).parent / "data" / "vgen"
TOLERANCE = 1e-4
CONDITIONS = ("depth", "sketch", "single_sketch", "masked", "motion", "local_image", "image")
MAPS = ("text", "mask", "depthmap", "sketch", "motion", "image", "local_image", "single_sketch")
NAMES = ("tiny_t2v", "tiny_compositional")


def facts(name):
    return json.loads((DATA / f"{name}.json").read_text())


@lru_cache
def weights(name):
    return {key: value.float() for key, value in load_file(DATA / f"{name}.weights.safetensors").items()}


@lru_cache
def network(name):
    return load_state_dict(weights(name), facts(name)["config"])


@lru_cache
def recorded(name):
    return load_file(DATA / f"{name}.io.safetensors")


def case_of(name, case):
    return {key.removeprefix(f"{case}/"): value for key, value in recorded(name).items() if key.startswith(f"{case}/")}


def conditions_of(case):
    return {name: case[name] for name in CONDITIONS if name in case}


def close(a, b, atol=TOLERANCE):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def official(net):
    """The tensors of `net` under VGen's names and in VGen's shapes."""
    found = {}
    for ours, value in net.state_dict().items():
        temporal = "temp_attentions" in ours or "transformer_in" in ours
        conv = temporal and ours.endswith(("proj_in.weight", "proj_out.weight"))
        found[vgen.official_name(ours, net.config)] = value.unsqueeze(-1) if conv else value
    assert len(found) == len(net.state_dict())
    return found


def refused(code, state_dict, config=None):
    with pytest.raises(AppError) as error:
        load_state_dict(state_dict, config)
    assert error.value.code == code, error.value
    assert len(str(error.value)) < 260
    return str(error.value)


# ---- outputs of the official code


CASES = [(name, case) for name in NAMES for case in facts(name)["cases"] if case != "e2e_4step"]


@pytest.mark.parametrize(("name", "case"), CASES)
@torch.no_grad()
def test_every_recorded_case(name, case):
    given, net = case_of(name, case), network(name)
    close(net(given["x"], given["t"], given["y"], **conditions_of(given)), given["out"])


@pytest.mark.parametrize("case", [case for name, case in CASES if name == "tiny_compositional" and case != "text_only"])
@torch.no_grad()
def test_the_encoded_maps_and_tokens_of_every_case(case):
    given, net = case_of("tiny_compositional", case), network("tiny_compositional")
    maps = {name: value for name, value in conditions_of(given).items() if name != "image"}
    close(net.encode_maps(given["x"], maps), given["expected_concat"])
    tokens = [net.image_context(given["image"])] if "image" in given else []
    close(torch.cat([given["y"], *tokens], 1), given["expected_context"])


class Recorded:
    """The official loop's noise."""

    def __init__(self, case):
        self.first, self.later = case["noise"], iter(case["step_noise"])

    def initial(self):
        return self.first

    def at(self, t):
        return next(self.later)


@pytest.mark.parametrize("name", NAMES)
def test_four_steps_end_to_end(name):
    case, net, schedule = case_of(name, "e2e_4step"), network(name), Schedule()

    def denoise(x_t, t, cond):
        return schedule.x0_from_v(x_t, net(x_t, t.float(), case["y"], depth=case.get("depth")), t)

    *_, last = sample_lcm(denoise, schedule, Recorded(case), None, 4)
    close(last.x0, case["final_latents"])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_four_steps_with_the_scheduler_of_diffusers(name, monkeypatch):
    case, net = case_of(name, "e2e_4step"), network(name)
    settings = dict(beta_schedule="scaled_linear", clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.012, **settings)
    scheduler.set_timesteps(4)
    later = iter(case["step_noise"])
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *arguments, **options: next(later))
    x_t = case["noise"]
    for t in scheduler.timesteps:
        v = net(x_t, t.float().expand(len(x_t)), case["y"], depth=case.get("depth"))
        x_t = scheduler.step(v, t, x_t, return_dict=False)[0]
    close(x_t, case["final_latents"])


# ---- the real checkpoints


@pytest.mark.parametrize("name", ["t2v", "compositional"])
def test_the_real_tensors_fit_and_nothing_is_left_over(name):
    manifest = facts(f"real_{name}_manifest")
    tensors = {key: torch.empty(shape, device="meta") for key, shape in manifest["state_dict"].items()}
    net = load_state_dict(tensors, manifest["config"])
    assert len(net.state_dict()) == manifest["n_tensors"]
    sliced = 8 * 320 * 9 if name == "t2v" else 0  # the eight input channels that are always zero
    assert sum(value.numel() for value in net.parameters()) == manifest["n_params"] - sliced
    told = complete_config(tensors)
    assert set(told.video_compositions) == set(net.config.video_compositions)
    assert replace(told, video_compositions=net.config.video_compositions) == net.config


def test_the_real_text_network_is_the_default_of_diffusers():
    net = load_state_dict({key: torch.empty(shape, device="meta") for key, shape in facts("real_t2v_manifest")["state_dict"].items()})
    with torch.device("meta"):
        stock = UNet3DConditionModel()
    hidden = "_use_default_values"
    assert {**net.unet.config, hidden: None} == {**stock.config, hidden: None}
    assert {key: value.shape for key, value in net.unet.state_dict().items()} == {key: value.shape for key, value in stock.state_dict().items()}


def test_the_rules_say_what_the_table_says():
    table = facts("real_to_unet3d_keymap")
    tensors = {key: torch.empty(shape, device="meta") for key, shape in facts("real_compositional_manifest")["state_dict"].items()}
    net = load_state_dict(tensors)
    ours = {vgen.official_name(f"unet.{key}", net.config): [key, value.shape] for key, value in net.unet.state_dict().items()}
    assert {name: key for name, (key, _) in ours.items()} == {name: key for name, (key, _) in table["map"].items()}
    squeezed = {name for name, (_, what) in table["map"].items() if what == "squeeze_last_dim"}
    assert squeezed == {name for name, (_, shape) in ours.items() if tensors[name].shape != shape} and len(squeezed) == 34
    extra = {vgen.official_name(key, net.config) for key in net.state_dict() if not key.startswith("unet.")}
    assert extra == set(table["extra_in_compositional"])
    assert net.config.unet3d() == {key: tuple(value) if isinstance(value, list) else value for key, value in table["unet3d_kwargs"].items()}


# ---- other networks


@pytest.mark.parametrize("name", NAMES)
def test_the_tensors_tell_the_config(name):
    said = complete_config(weights(name), facts(name)["config"])
    assert said.resolution == (64, 32)
    told = complete_config(weights(name))
    assert set(told.video_compositions) == set(said.video_compositions)
    assert replace(told, video_compositions=said.video_compositions, resolution=(64, 32)) == said


@torch.no_grad()
def test_four_and_twelve_input_channels_are_the_same_text_network():
    tensors, case = dict(weights("tiny_t2v")), case_of("tiny_t2v", "mixed_t")
    tensors["input_blocks.0.0.weight"] = tensors["input_blocks.0.0.weight"][:, :4]
    net = load_state_dict(tensors, facts("tiny_t2v")["config"])
    assert load_state_dict(tensors).config.encoders == () and net.unet.config.in_channels == 4
    close(net(case["x"], case["t"], case["y"]), case["out"])


@pytest.mark.parametrize(
    "case, kept", [("image", ("image",)), ("depth", ("depthmap",)), ("depth+image", ("depthmap", "image", "motion")), ("masked", ("mask",))]
)
@torch.no_grad()
def test_some_of_the_compositions(case, kept):
    """A checkpoint with fewer encoders gives what the whole one gives without the others; the image alone needs no extra channels."""
    dropped = [vgen.ENCODERS[name][1:3] for name in vgen.ENCODERS if vgen.ENCODERS[name][0] not in kept]
    dropped += [] if "image" in kept else [("pre_image_condition",)]
    prefixes = tuple(f"{name}." for names in dropped for name in names)
    tensors = {key: value for key, value in weights("tiny_compositional").items() if not key.startswith(prefixes)}
    net = load_state_dict(tensors, {**facts("tiny_compositional")["config"], "video_compositions": ["text", *kept]})
    given = case_of("tiny_compositional", case)
    assert net.unet.config.in_channels == (4 if kept == ("image",) else 12)
    close(net(given["x"], given["t"], given["y"], **conditions_of(given)), given["out"])
    assert set(complete_config(tensors).video_compositions) == {"text", *kept}


SMALL = dict(dim=32, dim_mult=(1, 2), num_res_blocks=1, attn_scales=(1.0,), head_dim=8, context_dim=24)
OTHERS = [
    {},
    {"dim": 64, "dim_mult": (1,), "num_res_blocks": 2},
    {"dim_mult": (1, 3, 2), "attn_scales": (0.5,), "num_res_blocks": 3},
    {"attn_scales": ()},
    {"attn_scales": (1.0, 0.5), "head_dim": 16, "context_dim": 40, "video_compositions": ("text", "sketch"), "concat_dim": 6},
    {"video_compositions": MAPS, "num_tokens": 3, "adapter_transformer_layers": 2, "resolution": (96, 32)},
]


@pytest.mark.parametrize("change", OTHERS, ids=str)
@torch.no_grad()
def test_other_configs(change):
    config = VGenConfig(**SMALL | change)
    torch.manual_seed(3)
    net = VideoUNet(config).eval()
    again = load_state_dict(official(net))
    expected = {**vars(config), "resolution": (448, 256), "concat_dim": config.concat_dim if config.encoders else 0}
    assert {**vars(again.config), "video_compositions": None} == {**expected, "video_compositions": None}
    assert set(again.config.video_compositions) == set(config.video_compositions)
    maps = {name: torch.randn(1, vgen.ENCODERS[name][3], 2, 40, 24) for name in config.encoders}
    given = (torch.randn(1, 4, 2, 8, 4), torch.tensor([7]), torch.randn(1, 5, config.context_dim))
    v = again(*given, **maps)
    assert v.shape == (1, 4, 2, 8, 4) and v.dtype == torch.float32
    close(v, net(*given, **maps), 1e-6)


@torch.no_grad()
def test_another_number_of_heads_in_the_first_transformer():
    net = VideoUNet(VGenConfig(**SMALL, num_heads=4))
    tensors = official(net)
    assert tensors["input_blocks.0.1.proj_in.weight"].shape == (4 * 8, 32, 1)
    again = load_state_dict(tensors, {"num_heads": 4, "head_dim": 8})
    assert again.unet.transformer_in.transformer_blocks[0].attn1.heads == 4
    assert complete_config(tensors).head_dim == 4  # what eight heads would mean


def test_maps_are_pooled_to_the_grid_of_the_config_where_it_fits():
    assert network("tiny_compositional").grid(4, 8) == (16, 32)  # 64x32 pixels
    assert network("tiny_compositional").grid(5, 8) == (20, 32)
    odd = VideoUNet(VGenConfig(**SMALL, video_compositions=("text", "depthmap"), resolution=(44, 28)))
    assert odd.grid(4, 6) == (14, 22)


def test_it_can_be_trained():
    net = load_state_dict({key: value.clone() for key, value in weights("tiny_compositional").items()})
    case = case_of("tiny_compositional", "all")
    net(case["x"], case["t"], case["y"], **conditions_of(case)).square().mean().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in net.parameters())


def test_half_precision_weights_become_float32():
    halves = load_file(DATA / "tiny_t2v.weights.safetensors")
    assert {value.dtype for value in halves.values()} == {torch.float16}
    assert {value.dtype for value in load_state_dict(halves).parameters()} == {torch.float32}


def test_nothing_strays_from_the_device():
    case = case_of("tiny_compositional", "all")
    with FakeTensorMode():
        with torch.device("cuda"):
            net = VideoUNet(network("tiny_compositional").config).eval()
        cuda = {name: torch.empty(value.shape, device="cuda") for name, value in case.items()}
        v = net(cuda["x"], cuda["t"], cuda["y"], **conditions_of(cuda))
    assert v.device.type == "cuda" and v.shape == case["out"].shape


# ---- what does not fit


@pytest.mark.parametrize(
    "change, named",
    [
        ({"dim": 64}, "input_blocks.0.0.weight is 32x12x3x3 but should give 64x4x3x3"),
        ({"dim_mult": [1, 3]}, "input_blocks.3.0."),
        ({"head_dim": 16}, "input_blocks.0.1.proj_in.weight"),
        ({"num_heads": 4}, "input_blocks.0.1.proj_in.weight"),
        ({"context_dim": 24}, "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"),
        ({"concat_dim": 7}, "input_blocks.0.0.weight"),
        ({"out_dim": 8}, "out.2.weight"),
        ({"num_res_blocks": 2}, "input_blocks."),
        ({"attn_scales": [1, 0.5]}, "input_blocks.3.1."),
        ({"attn_scales": []}, "input_blocks.1.1."),
        ({"video_compositions": ["text", "depthmap"]}, "depth_embedding.0.weight"),
        ({"video_compositions": ["text", "image"]}, "pre_image_condition.0.weight"),
    ],
    ids=str,
)
def test_a_config_that_disagrees(change, named):
    assert named in refused("E_VGEN_TENSORS", weights("tiny_t2v"), {**facts("tiny_t2v")["config"], **change})


@pytest.mark.parametrize(
    "change, named",
    [
        ({"video_compositions": ["text"]}, "depth_embedding.0.bias belongs"),
        ({"video_compositions": [name for name in MAPS if name != "image"]}, "pre_image_condition.0.bias belongs"),
        ({"video_compositions": [name for name in MAPS if name != "mask"]}, "mask_embedding_after.layers.0.0.fn.to_out.0.bias belongs"),
        ({"num_tokens": 2}, "pre_image_condition.2.weight is 96x24 but should give 48x24"),
        ({"adapter_transformer_layers": 2}, "depth_embedding_after.layers.1.0.norm.weight is missing"),
    ],
    ids=str,
)
def test_a_config_that_disagrees_with_the_encoders(change, named):
    assert named in refused("E_VGEN_TENSORS", weights("tiny_compositional"), {**facts("tiny_compositional")["config"], **change})


@pytest.mark.parametrize("name", ["input_blocks.2.op.bias", "output_blocks.1.1.conv.weight", "middle_block.2.norm.weight", "time_embed.2.bias"])
def test_a_missing_tensor(name):
    tensors = {key: value for key, value in weights("tiny_t2v").items() if key != name}
    assert f"{name} is missing" in refused("E_VGEN_TENSORS", tensors, facts("tiny_t2v")["config"])


def test_a_tensor_too_many_and_several_at_once():
    tensors = {**weights("tiny_t2v"), "fps_embedding.0.weight": torch.zeros(2), "zero_y": torch.zeros(2)}
    message = refused("E_VGEN_TENSORS", tensors)
    assert "2 tensors" in message and "fps_embedding.0.weight belongs to no part" in message and "zero_y" in message


@pytest.mark.parametrize("tensors", [{}, {"conv_in.weight": torch.zeros(32, 4, 3, 3)}, {"input_blocks.0.0.weight": torch.zeros(())}])
def test_tensors_of_something_else(tensors):
    refused("E_NOT_VGEN", tensors)


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 0}, {"dim": "32"}, {"dim": True}, {"dim": 40}, {"dim_mult": []}, {"dim_mult": 2}, {"dim_mult": [1, -2]},
        {"dim_mult": [1, float("inf")]}, {"attn_scales": ["1"]}, {"resolution": [64]}, {"resolution": 64},
        {"video_compositions": "text"}, {"head_dim": None}, {"head_dim": 2.5},
        {"use_fps_condition": True}, {"temporal_attn_times": 2}, {"temporal_attention": False},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_no_network_has(change):
    assert next(iter(change)) in refused("E_VGEN_CONFIG", weights("tiny_t2v"), change)


@pytest.mark.parametrize("name, given", [("tiny_t2v", "depth"), ("tiny_t2v", "image"), ("tiny_compositional", "canny")])
def test_a_condition_that_the_network_lacks(name, given):
    case = case_of(name, next(iter(facts(name)["cases"])))
    with pytest.raises(AppError, match="E_CONDITION") as error:
        network(name)(case["x"], case["t"], case["y"], **{given: torch.zeros(1)})
    assert given in str(error.value)


# ---- how conditions are prepared


def test_depth_as_the_encoder_was_trained():
    assert vgen.depth_map(torch.tensor([-1.0, 0.0, 30.0, 500.0])).tolist() == [0.0, 0.0, 1.5, 10.0]
