"""The door: a shipped folder in, a model out; whatever is wrong with the folder is said by one code."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from tiny import randn

from videolcm import models
from videolcm.checkpoint import save_checkpoint, sha256_of
from videolcm.distill import DistillConfig, finished_student, write_student
from videolcm.errors import AppError
from videolcm.models.base import TASKS, Conditions
from videolcm.models.denoiser import Denoiser
from videolcm.pipeline import Request, generate
from videolcm.shipping import ship

PARTS = {"codec": tiny.codec, "text": tiny.text, "teacher": tiny.denoiser, "student": lambda: tiny.denoiser(9)}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped") / "tinybox"
    for part, make in PARTS.items():
        ship(folder, part, make(), guidance=3.5)
    return folder


@pytest.fixture
def folder(shipped, tmp_path):
    """A copy to spoil; nothing is remembered of it afterwards."""
    yield shutil.copytree(shipped, tmp_path / "model")
    models.network.cache_clear()


def load(folder, role="student", device="cpu", dtype="float32"):
    return models.load(folder, role, device, dtype)


def refused(code, *arguments, **named):
    with pytest.raises(AppError) as error:
        load(*arguments, **named)
    assert error.value.code == code, error.value
    return str(error.value)


def edit(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def denoised(model):
    return model.denoise(randn(0, 2, 4, 2, 4, 6), torch.tensor([999, 19]), Conditions(model.encode_text(["a red ball", ""])))


@pytest.mark.parametrize(("able", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_that_only_emulates_bfloat16_computes_in_float16(monkeypatch, able, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: able or including_emulation)
    assert models.pick_dtype(None, torch.device("cuda")) == dtype


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_both_roles_load_and_denoise(shipped, role):
    model = load(shipped, role)
    assert denoised(model).shape == (2, 4, 2, 4, 6) and denoised(model).isfinite().all()
    info = model.info
    assert (info.role, info.guidance, info.fps, info.tasks, info.words) == (role, 3.5, 8, TASKS, frozenset(tiny.WORDS))
    assert info.name == str(shipped) and info.sha256 == sha256_of(shipped / "manifest.json")
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    for name, value in PARTS[role]().state_dict().items():
        assert torch.equal(model.denoiser.state_dict()[name], value.half().float())
    assert not model.denoiser.training and not any(p.requires_grad for p in model.denoiser.parameters())


def test_teacher_and_student_share_all_but_the_denoiser(shipped):
    student, teacher = load(shipped), load(shipped, "teacher")
    assert student.codec is teacher.codec and student.text is teacher.text
    assert (denoised(student) - denoised(teacher)).abs().max() > 1e-3


def test_a_loaded_model_makes_clips(shipped):
    *_, result = generate(load(shipped), Request("a red ball rolls", steps=2, frames=9, height=128, width=160))
    assert result.frames.shape == (9, 128, 160, 3) and result.frames.dtype == np.uint8
    assert result.settings["model_sha256"] == sha256_of(shipped / "manifest.json")


@pytest.mark.parametrize("given", ["bfloat16", torch.bfloat16])
def test_the_number_format_is_what_was_asked_for(shipped, given):
    model = load(shipped, dtype=given)
    assert model.dtype == torch.bfloat16 == next(model.codec.parameters()).dtype
    assert denoised(model).dtype == torch.float32


def test_left_out_device_and_format_are_chosen(shipped):
    model = models.load(shipped)
    assert model.dtype in models.DTYPES.values() and next(model.denoiser.parameters()).dtype == model.dtype
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("ref", ["nothing", "/no/such/folder", "x" * 300, "", None])
def test_an_unknown_model(ref):
    assert "toybox" in refused("E_MODEL", ref)


def test_a_compiled_model_leaves_the_one_that_is_kept_as_it_is(shipped):
    compiled, kept = models.load(shipped, compiled=True), models.load(shipped)
    assert compiled.denoiser._compiled_call_impl is not None and kept.denoiser._compiled_call_impl is None
    assert next(compiled.denoiser.parameters()) is next(kept.denoiser.parameters())


@pytest.mark.parametrize("role", ["judge", "", None])
def test_an_unknown_role(shipped, role):
    refused("E_ROLE", shipped, role)


@pytest.mark.parametrize("device", ["nope", "cuda", "meta", "cuda:99", 3.5])
def test_a_device_that_is_not_there(shipped, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    assert "cpu" in refused("E_DEVICE", shipped, device=device)


@pytest.mark.parametrize("dtype", ["int4", "float64", torch.int8])
def test_an_unknown_number_format(shipped, dtype):
    assert "bfloat16" in refused("E_DTYPE", shipped, dtype=dtype)


@pytest.mark.parametrize("part", ["codec", "text", "student"])
def test_a_missing_file(folder, part):
    (folder / f"{part}.safetensors").unlink()
    assert part in refused("E_MODEL_FILE", folder)


def test_a_missing_manifest_and_a_missing_role(folder):
    edit(folder, lambda manifest: manifest["files"].pop("student"))
    assert "student" in refused("E_MODEL_FILE", folder)
    assert load(folder, "teacher").info.role == "teacher"
    (folder / "manifest.json").unlink()
    refused("E_MODEL", folder)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"files": 3}'])
def test_a_damaged_manifest(folder, data):
    (folder / "manifest.json").write_bytes(data)
    assert "manifest.json" in refused("E_CHECKPOINT", folder)


def test_a_manifest_with_a_wrong_name(folder):
    text = (folder / "manifest.json").read_text()
    for name in ("guidance", "latent", "config"):
        (folder / "manifest.json").write_text(text.replace(f'"{name}"', f'"{name[:-1]}"'))
        refused("E_CHECKPOINT", folder)


def test_at_which_timesteps_a_teacher_is_guided(folder):
    assert load(folder, "teacher").info.guided == (0, 1000)
    edit(folder, lambda manifest: manifest.update(guided=[500, 900]))
    assert load(folder, "teacher").info.guided == (500, 900)
    for bad in (500, [500], [-1, 9], [5, 5], [0, 1001], [0.5, 9], [5, "x"], "xy", None):
        edit(folder, lambda manifest, bad=bad: manifest.update(guided=bad))
        refused("E_CHECKPOINT", folder)


@pytest.mark.parametrize("part", ["codec", "text", "student"])
def test_one_flipped_byte(folder, part):
    path = folder / f"{part}.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert path.name in refused("E_CHECKPOINT", folder)


@pytest.mark.parametrize("change, named", [({"maps": 16}, "enter.weight"), ({"depth": 2}, "blocks.1.")])
def test_weights_of_another_shape_or_with_others_names(folder, change, named):
    edit(folder, lambda manifest: manifest["files"]["student"]["config"].update(change))
    assert named in refused("E_CHECKPOINT_KEYS", folder)


def test_a_manifest_from_before_the_feed_forward_part_had_a_width_of_its_own(folder):
    """It was four times the width of a token then."""
    ship(folder, "student", Denoiser(replace(tiny.DENOISER, hidden=4 * tiny.DENOISER.width)))
    wanted = denoised(load(folder))
    edit(folder, lambda manifest: manifest["files"]["student"]["config"].pop("hidden"))
    models.network.cache_clear()
    assert torch.equal(denoised(load(folder)), wanted)


# ---- a student of one's own


def run_folder(out, base, teacher):
    """A run folder as distilling leaves it, with known averaged weights, made loadable."""
    average = tiny.denoiser(21).state_dict()
    save_checkpoint(out, 3, {f"ema/{name}": value for name, value in average.items()}, {})
    write_student(out, str(base), *finished_student(out, teacher), DistillConfig(iterations=3, skips=(20, 100)))
    return average


def test_a_distilled_folder_is_a_student_on_its_base(shipped, tmp_path):
    teacher = load(shipped, "teacher")
    before = {name: value.clone() for name, value in teacher.denoiser.state_dict().items()}
    average = run_folder(tmp_path / "run", shipped, teacher)
    student = load(tmp_path / "run")
    assert all(torch.equal(student.denoiser.state_dict()[name], value.half().float()) for name, value in average.items())
    assert student.codec is teacher.codec and student.info.guidance == 3.5
    assert student.info.sha256 == sha256_of(tmp_path / "run" / "manifest.json") != teacher.info.sha256
    assert all(torch.equal(teacher.denoiser.state_dict()[name], value) for name, value in before.items())
    assert load(tmp_path / "run", "teacher").denoiser is teacher.denoiser
    told = json.loads((tmp_path / "run" / "manifest.json").read_text())["distilled"]
    assert told["skips"] == [20, 100] and told["iterations"] == 3


def test_a_distilled_folder_whose_base_is_gone(folder, tmp_path):
    run_folder(tmp_path / "run", folder, load(folder, "teacher"))
    models.network.cache_clear()
    shutil.rmtree(folder)
    assert folder.name in refused("E_MODEL_FILE", tmp_path / "run")
