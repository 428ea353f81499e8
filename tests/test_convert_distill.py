"""An official network, converted, as the teacher of a student: by the command line, on tiny random weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from real import official, place_parts
from safetensors.torch import save_file
from test_convert import converted, load, recorded, whole  # noqa: F401  the fixtures

from videolcm.__main__ import main
from videolcm.data import latent_path
from videolcm.models.base import Conditions
from videolcm.pipeline import Request, generate


def test_an_official_teacher_is_distilled_into_a_folder_that_the_door_loads(whole, tmp_path, capsys):  # noqa: F811
    """By the command line, on cached latents: text only, with adapters, and with blocks computed twice, which changes no loss."""
    (tmp_path / "data").mkdir()
    save_file(tiny.clips(side=8).arrays, latent_path(tmp_path / "data", "plain", 0))
    knobs = ["--iterations", "2", "--batch", "2", "--lr", "0.05", "--dtype", "float32"]
    words = ["distill", "--teacher", str(whole["teacher"]), "--data", str(tmp_path / "data"), *knobs]
    for name, more in (("plain", []), ("twice", ["--checkpointing"]), ("lora", ["--lora", "2"])):
        assert main([*words, "--out", str(tmp_path / name), *more]) == 0
        assert "depth is left out" in capsys.readouterr().err
    told = [[json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").open()] for name in ("plain", "twice")]
    assert told[0] == pytest.approx(told[1], rel=1e-5)
    base = load(whole["teacher"], "teacher")
    for name in ("plain", "lora"):
        student = load(tmp_path / name)
        assert (student.info.role, student.info.tasks) == ("student", ("text",)) and load(tmp_path / name, "teacher").info.role == "teacher"
        pairs = [(value, base.denoiser.state_dict()[key]) for key, value in student.denoiser.state_dict().items()]
        assert any((a - b).abs().max() > 1e-4 for a, b in pairs)
    *_, result = generate(student, Request("a fox", steps=1, frames=8, height=128, width=128))
    assert result.nfe == 1 and result.settings["role"] == "student"
    assert main([*words, "--out", str(tmp_path / "more"), "--two-time"]) == 2
    assert "[E_INPUTS]" in capsys.readouterr().err


def test_two_processes_learn_what_one_does_though_a_share_may_lack_a_map(tmp_path):
    """With one clip a process many an update has a map in one share alone; all encoders must run in both, or the processes wait for ever."""
    official(tmp_path / "all.pth", "compositional")
    assert main(["convert", str(tmp_path / "all.pth"), "--out", str(tmp_path / "all"), "--role", "teacher"]) == 0
    place_parts(tmp_path / "all", 24)
    (tmp_path / "data").mkdir()
    arrays = {
        name: value if name == "latents" else value[:, ::4].contiguous() for name, value in tiny.clips(side=8).arrays.items()
    }  # a latent a frame
    save_file(arrays, latent_path(tmp_path / "data", "plain", 0))
    knobs = "--iterations 6 --dtype float32 --threads 1 --optimiser adamw --conditions text,depth,sketch,masked"
    common = f"distill --teacher {tmp_path}/all --data {tmp_path}/data {knobs}"
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(Path(__file__).with_name("processes_script.py")),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    line = f"{common} --batch 1 --out {tmp_path}/two"
    done = subprocess.run([*torchrun, line], env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    assert main([*f"{common} --batch 2 --out {tmp_path}/one".split()]) == 0
    told = [[json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").open()] for name in ("one", "two")]
    assert len(told[0]) == 6 and told[1] == pytest.approx(told[0], rel=1e-4)


def test_latents_of_another_model_are_not_trained_on(whole, tmp_path, capsys):  # noqa: F811
    (tmp_path / "data").mkdir()
    arrays = tiny.clips().arrays
    save_file(arrays | {"latents": arrays["latents"][:, :3].contiguous()}, latent_path(tmp_path / "data", "plain", 0))
    assert main(["distill", "--teacher", str(whole["teacher"]), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]) == 2
    assert "[E_LATENTS]" in capsys.readouterr().err


@torch.no_grad()
def test_a_sample_whose_map_is_all_minus_one_is_one_without_it(whole):  # noqa: F811
    model, case = load(whole["compositional"]), recorded("compositional", "depth")
    t, absent = torch.tensor([999, 259]), torch.full_like(case["depth"][:1], -1)
    mixed = model.denoise(case["x"], t, Conditions(case["y"], depth=torch.cat([case["depth"][:1], absent])))
    present, without = (model.denoise(case["x"], t, Conditions(case["y"], depth=depth)) for depth in (case["depth"], None))
    torch.testing.assert_close(mixed[0], present[0])
    torch.testing.assert_close(mixed[1], without[1])
    assert (present[1] - without[1]).abs().max() > 1e-5
