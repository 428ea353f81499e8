"""Depth by networks of transformers: MiDaS, and the large one that models learned from."""

import cv2
import numpy as np
import pytest
import torch
from test_conditions import code, disk_clip, nothing_kept, photo  # noqa: F401  a fixture among them
from transformers import BitConfig, DPTConfig, DPTForDepthEstimation, DPTImageProcessor

from videolcm import conditions
from videolcm.conditions import Maps, choose, extract, known, per_clip
from videolcm.errors import AppError

BIT = {"layer_type": "bottleneck", "embedding_dynamic_padding": True, "global_padding": "same", "out_features": ["stage1", "stage2", "stage3"]}


@pytest.fixture(scope="module")
def midas_folder(tmp_path_factory):
    """A random network of the hybrid kind, as Intel/dpt-hybrid-midas is laid out, reading squares of 64x64."""
    folder = tmp_path_factory.mktemp("midas")
    stem = BitConfig(embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 1, 1], num_groups=4, **BIT)
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 64, "patch_size": 16}
    neck = {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 16, 32, 32], "fusion_hidden_size": 32, "readout_type": "project"}
    config = DPTConfig(
        is_hybrid=True,
        backbone_config=stem,
        backbone_featmap_shape=[1, 24, 4, 4],
        neck_ignore_stages=[0, 1],
        reassemble_factors=[1, 1, 1, 0.5],
        **shape,
        **neck,
    )
    torch.manual_seed(0)
    net = DPTForDepthEstimation(config)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    net.save_pretrained(folder)
    return folder


def test_midas_agrees_with_transformers_own_way(midas_folder, monkeypatch):
    monkeypatch.setenv("VIDEOLCM_MIDAS", str(midas_folder))
    frames = np.stack([cv2.GaussianBlur(photo(name, 96, 128), (0, 0), 3) for name in ("astronaut.png", "coffee.png")])
    made = extract("midas", frames)
    processor = DPTImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    net = DPTForDepthEstimation.from_pretrained(midas_folder).eval()
    with torch.no_grad():
        out = net(**processor(list(frames), return_tensors="pt"))
    theirs = processor.post_process_depth_estimation(out, target_sizes=[(96, 128)] * 2)
    theirs = per_clip(np.stack([row["predicted_depth"].numpy() for row in theirs]))
    assert made.shape == (2, 96, 128) and made.min() == 0 and made.max() == 1
    assert np.abs(made - theirs).mean() < 0.02 and np.corrcoef(made.ravel(), theirs.ravel())[0, 1] > 0.995
    assert next(iter(known("depth"))) == "midas"


def test_the_large_one_is_taken_for_who_learned_from_it_in_its_own_units(midas_folder, monkeypatch):
    monkeypatch.setenv("VIDEOLCM_DPT_LARGE", str(midas_folder))
    frames = np.stack([photo(height=96, width=128), photo("coffee.png", 96, 128)])
    assert choose("depth", frames, "dpt-large") == "dpt-large" == choose("depth", frames)
    assert choose("depth", frames, "pidinet") == "dpt-large"  # what cannot make such a map is not asked
    raw, halved = extract("dpt-large", frames, scale=np.asarray), extract("dpt-large", frames, scale=half)
    assert np.array_equal(halved, raw / 2) and np.array_equal(extract("dpt-large", frames), per_clip(raw))
    assert extract("dpt-large", frames, scale=half) is halved  # each range is kept by itself


def half(values):
    return values / 2


def test_midas_is_never_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(conditions, "ASSETS", tmp_path)
    monkeypatch.delenv("VIDEOLCM_MIDAS", raising=False)
    monkeypatch.setattr(conditions, "midas_network", None)
    with pytest.raises(AppError, match="Intel/dpt-hybrid-midas. Put them into assets/midas") as error:
        extract("midas", disk_clip())
    assert error.value.code == "E_WEIGHTS" and "midas" not in known("depth")


def test_midas_with_half_its_weights_is_refused(midas_folder, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    weights = load_file(midas_folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "head" not in name}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((midas_folder / "config.json").read_bytes())
    monkeypatch.setenv("VIDEOLCM_MIDAS", str(tmp_path))
    assert len(kept) < len(weights) and code(extract, "midas", disk_clip()) == "E_WEIGHTS"


def test_midas_without_what_it_never_uses_is_taken(midas_folder, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    weights = load_file(midas_folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith(conditions.MIDAS_UNUSED)}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((midas_folder / "config.json").read_bytes())
    made = []
    for folder in (midas_folder, tmp_path):
        monkeypatch.setattr(conditions, "MAPS", Maps())
        monkeypatch.setenv("VIDEOLCM_MIDAS", str(folder))
        made.append(extract("midas", disk_clip()))
    assert len(kept) < len(weights) and np.array_equal(*made)
