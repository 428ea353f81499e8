"""The weights in assets/toybox do what their card says. These tests need trained weights: random ones fail each of them."""

import json

import numpy as np
import pytest
import torch

from videolcm import models
from videolcm.evaluate import clips
from videolcm.judge import judge, look
from videolcm.models import ASSETS
from videolcm.pretrain_judge import shown_labels
from videolcm.world import sample

FOLDER = ASSETS / "toybox"
HELD_OUT = range(4)


@pytest.fixture(scope="module")
def student():
    return models.load("toybox", dtype="float32")


def made(model, *prompts, steps=4, seed=3):
    return clips(model, prompts, [seed] * len(prompts), steps, "lcm").astype(float)


def redness(clip):
    """How much redder than blue the reddest or bluest hundredth of a clip (F, H, W, 3) is."""
    difference = clip[..., 0] - clip[..., 2]
    return np.quantile(difference, 0.99) + np.quantile(difference, 0.01)


def test_all_files_are_listed_and_small():
    listed = {entry["file"] for entry in json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))["files"].values()}
    there = {path.name for path in FOLDER.glob("*.safetensors")}
    assert there == listed
    assert sum(path.stat().st_size for path in FOLDER.parent.rglob("*.safetensors")) <= 120e6  # all weights of the repository


def test_the_codec_keeps_rendered_clips(student):
    errors = []
    for seed in HELD_OUT:
        pixels = torch.from_numpy(sample(seed).render().frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        latents = student.encode(pixels)
        errors.append(((student.decode(latents, 16).clamp(-1, 1) - pixels) / 2).square().mean())
    assert -10 * torch.stack(errors).mean().log10() > 28


def test_the_preview_looks_like_the_clip(student):
    frames = sample(3).render().frames
    latents = student.encode(torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1)
    look = student.preview(latents, 16).astype(float)
    cells = frames.reshape(16, 32, 8, 32, 8, 3).mean((2, 4))
    assert np.corrcoef(look.ravel(), cells.ravel())[0, 1] > 0.9


def test_colours_are_obeyed(student):
    red, blue = made(student, "a big red ball stands still on snow in a studio", "a big blue ball stands still on snow in a studio")
    assert redness(red) > 40 > -40 > redness(blue)


def test_floors_and_skies_are_obeyed(student):
    grass, snow, night = made(student, "a red cube spins on grass by day", "a red cube spins on snow by day", "a red cube spins on snow at night")
    ground = [clip[:, 200:].mean((0, 1, 2)) for clip in (grass, snow)]
    assert ground[0][1] - ground[0][2] > 30 + ground[1][1] - ground[1][2]
    assert snow[:, :60].mean() > night[:, :60].mean() + 60


def test_clips_move_and_do_not_depend_on_the_batch(student):
    prompts = ("a red ball rolls to the left over snow", "a big green cube spins on wood at sunset")
    both = made(student, *prompts)
    assert np.abs(np.diff(both, axis=1)).mean() > 0.3
    alone = made(student, prompts[0])
    assert np.abs(both[0] - alone[0]).max() <= 3


def test_other_sizes_and_lengths_work(student):
    clip = clips(student, ["a red ball rolls to the left over snow"], [1], 2, "lcm", frames=9, size=(128, 192))
    assert clip.shape == (1, 9, 128, 192, 3)


def test_the_judge_sees_what_rendered_clips_show():
    """On clips that it was not trained on; 98.6 % on 312, so 40 leave room for chance."""
    net, right = judge(), []
    for seed in range(40):
        told = sample(seed)
        answers = net(look(told.render().frames[None]))
        right += [int(answers[key].argmax()) == label for key, label in shown_labels(told).items()]
    assert np.mean(right) > 0.97
