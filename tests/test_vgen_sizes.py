"""The official network in other sizes than the recorded ones: against a second reading of it, which the recorded outputs hold to."""

import json

import pytest
import torch
from official_network import ENCODERS, Network, Shapes, random_weights
from test_vgen import CASES, DATA, case_of, close, conditions_of, facts, refused, weights

from videolcm.models.vgen import load_state_dict

ALL = ["text", "mask", "depthmap", "sketch", "motion", "image", "local_image", "single_sketch"]
USUAL = {"in_dim": 4, "out_dim": 4, "num_heads": 8, "num_tokens": 4, "concat_dim": 8, "adapter_transformer_layers": 1, "head_dim": 8}
SMALL = {"dim": 32, "dim_mult": [1, 2], "num_res_blocks": 1, "attn_scales": [1.0], "context_dim": 16, "video_compositions": ["text"]}
OTHERS = [
    {"dim": 64, "dim_mult": [1, 2, 4], "num_res_blocks": 2, "attn_scales": [1.0, 0.5]},
    {"dim_mult": [1, 2, 2, 2], "attn_scales": [1.0, 0.5, 0.25], "head_dim": 16, "context_dim": 40, "resolution": [128, 64]},
    {"dim_mult": [1, 3, 2], "attn_scales": [0.25], "num_res_blocks": 3},
    {"dim": 96, "dim_mult": [1], "head_dim": 16, "in_dim": 8, "out_dim": 8},
    {"num_heads": 2, "head_dim": 16},
    {"video_compositions": ALL, "resolution": [96, 64], "concat_dim": 4, "num_tokens": 2, "adapter_transformer_layers": 3},
    {"video_compositions": ["text", "motion", "sketch"], "in_dim": 5, "concat_dim": 16},
]


@pytest.mark.parametrize("name", ["tiny_t2v", "tiny_compositional", "real_t2v_manifest", "real_compositional_manifest"])
def test_the_second_reading_has_the_official_names_and_shapes(name):
    told = json.loads((DATA / f"{name}.json").read_text())
    assert {key: list(shape) for key, shape in Shapes({**USUAL, **told["config"]}).items()} == told["state_dict"]


@pytest.mark.parametrize(("name", "case"), [one for one in CASES if one[1] in ("mixed_t", "one_frame", "all", "depth_at_2x_resolution")])
@torch.no_grad()
def test_the_second_reading_gives_the_recorded_outputs(name, case):
    given = case_of(name, case)
    close(Network(weights(name), facts(name)["config"])(given["x"], given["t"], given["y"], **conditions_of(given)), given["out"])


@pytest.mark.parametrize("change", OTHERS, ids=str)
@torch.no_grad()
def test_any_size(change):
    config = {**USUAL, **SMALL, "resolution": [64, 32], **change}
    tensors, generator = random_weights(config), torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    width, height = config["resolution"]
    given = (draw(2, config["in_dim"], 3, height // 8, width // 8), torch.tensor([999.0, 259.0]), draw(2, 7, config["context_dim"]))
    maps = {name: draw(2, row[3], 3, height, width) for name, row in ENCODERS.items() if row[0] in config["video_compositions"]}
    maps |= {"image": draw(2, 1, config["context_dim"])} if "image" in config["video_compositions"] else {}
    expected = Network(tensors, config)(*given, **maps)
    close(load_state_dict(tensors, config)(*given, **maps), expected)
    if config["num_heads"] == 8 and config["in_dim"] == config["out_dim"]:  # what no tensor tells
        close(load_state_dict(tensors)(*given, **maps), expected)


@torch.no_grad()
def test_a_motion_to_the_left_is_a_map_like_any_other():
    """Only a map of nothing but -1 means that there is none."""
    config = {**USUAL, **SMALL, "resolution": [64, 32], "video_compositions": ["text", "motion"]}
    tensors, given = random_weights(config), (torch.ones(1, 4, 2, 4, 8), torch.tensor([499.0]), torch.ones(1, 3, 16))
    left = torch.full((1, 2, 2, 32, 64), -3.0)
    net = load_state_dict(tensors, config)
    close(net(*given, motion=left), Network(tensors, config)(*given, motion=left))
    close(net(*given, motion=left / 3), net(*given))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"dim_mult": [2, 1]}, "begins with 2"),
        ({"num_res_blocks": 10**6}, "num_res_blocks is 1000000"),
        ({"num_res_blocks": 100}, "more than 64"),
        ({"adapter_transformer_layers": 100}, "more than 64"),
        ({"dim": 2**30}, "dim is"),
        ({"dim_mult": [1, 1e9]}, "multiples of 32 up to"),
        ({"resolution": [448.0, 256.0]}, "resolution is"),
    ],
    ids=str,
)
def test_sizes_that_are_not_built(change, said):
    assert said in refused("E_VGEN_CONFIG", weights("tiny_t2v"), {**facts("tiny_t2v")["config"], **change})


def test_names_that_only_look_like_blocks():
    refused("E_VGEN_TENSORS", {**weights("tiny_t2v"), "input_blocks.1e9.op.weight": torch.zeros(1)})
