"""Adapters beside the weights: they begin with no effect, alone learn, and become plain weights again; a student of them is like any other."""

import json

import pytest
import tiny
import torch
from torch import nn

from videolcm import models
from videolcm.distill import DistillConfig, distill_stage, finished_student, write_student
from videolcm.errors import AppError
from videolcm.lora import merged, with_adapters
from videolcm.models.base import Conditions
from videolcm.training import train

CONFIG = DistillConfig(iterations=4, batch=2, lr=0.3, ema=0.4, lora=3)


class Net(nn.Module):
    """One of each kind of layer that gets an adapter, and a parameter that gets none."""

    def __init__(self):
        super().__init__()
        self.conv3, self.conv2, self.linear = nn.Conv3d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, stride=2), nn.Sequential(nn.Linear(6, 5))
        self.gain = nn.Parameter(torch.ones(5))

    def forward(self, x):
        return self.gain * self.linear(self.conv2(self.conv3(x).mean(2)).mean((2, 3)))


def adapted():
    torch.manual_seed(0)
    net = Net()
    return net, with_adapters(net, 2), tiny.randn(1, 3, 2, 4, 7, 7)


def test_adapters_begin_with_no_effect_and_alone_learn():
    torch.manual_seed(0)
    plain = Net()
    _, net, x = adapted()
    assert torch.equal(net(x), plain(x))
    learning = [name for name, p in net.named_parameters() if p.requires_grad]
    assert len(learning) == 6 and all(".lora_" in name for name in learning)


def test_merged_weights_say_what_weights_and_adapters_said_under_the_names_of_before():
    _, net, x = adapted()
    for i, (name, p) in enumerate(net.named_parameters()):
        if "lora_B" in name:
            p.data = 0.3 * tiny.randn(i, *p.shape)
    said, plain = net(x), merged(net)
    assert plain.state_dict().keys() == Net().state_dict().keys() and type(plain.conv3) is nn.Conv3d
    torch.testing.assert_close(plain(x), said, rtol=0, atol=1e-5)
    assert (said - adapted()[1](x)).abs().max() > 1e-2  # they did something
    assert torch.equal(net(x), said)  # and the original is as it was


@pytest.fixture
def base(tmp_path):
    return tiny.teacher_folder(tmp_path / "base")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_student_of_adapters_goes_on_bit_for_bit_and_is_loaded_like_any_other(base, tmp_path, dtype):
    teacher = models.load(base, "teacher", device="cpu", dtype=dtype)
    whole = [step.loss for step in train(distill_stage(teacher, tiny.clips(), CONFIG), tmp_path / "whole")]
    first = train(distill_stage(teacher, tiny.clips(), CONFIG), tmp_path / "parts")
    losses = [next(first).loss, next(first).loss]
    first.close()
    torch.rand(3)
    losses += [step.loss for step in train(distill_stage(teacher, tiny.clips(), CONFIG), tmp_path / "parts", resume=True)]
    assert losses == whole and len(set(whole)) == 4
    write_student(tmp_path / "parts", str(base), *finished_student(tmp_path / "parts", teacher, CONFIG), CONFIG)
    student = models.load(tmp_path / "parts", device="cpu", dtype=dtype)
    mine, theirs = student.denoiser.state_dict(), teacher.denoiser.state_dict()
    assert mine.keys() == theirs.keys()
    changed = {name for name in mine if not torch.allclose(mine[name].float(), theirs[name].float(), rtol=0, atol=1e-3)}
    assert "blocks.0.qkv.weight" in changed and not any(name.endswith(("bias", "gain", "table")) for name in changed)
    assert json.loads((tmp_path / "parts" / "manifest.json").read_text())["distilled"]["lora"] == 3


def test_what_a_preview_shows_is_merged(base, tmp_path):
    teacher, seen = models.load(base, "teacher", device="cpu", dtype="float32"), []
    stage = distill_stage(teacher, tiny.clips(), CONFIG)
    stage.validate, stage.validate_every = lambda net, out, iteration: seen.append(net), 4
    list(train(stage, tmp_path / "run"))
    net, iteration = finished_student(tmp_path / "run", teacher, CONFIG)
    x_t, t, cond = tiny.randn(1, 1, 4, 2, 4, 4), torch.tensor([500]), Conditions(teacher.encode_text(["a red ball"]))
    assert iteration == 4 and seen[0].state_dict().keys() == teacher.denoiser.state_dict().keys()
    torch.testing.assert_close(seen[0](x_t, t, cond), net(x_t, t, cond), rtol=0, atol=1e-6)


def test_another_kind_of_student_is_not_resumed(base, tmp_path):
    teacher = models.load(base, "teacher", device="cpu", dtype="float32")
    list(train(distill_stage(teacher, tiny.clips(), CONFIG), tmp_path, minutes=1e-9))
    for lora in (None, 2):
        with pytest.raises(AppError, match="E_RESUME"):
            next(train(distill_stage(teacher, tiny.clips(), DistillConfig(**{**vars(CONFIG), "lora": lora})), tmp_path, resume=True))
