"""Folders in diffusers' layout as models and teachers: ModelScope's kind, students of it and of converted checkpoints, maps as those learned them."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, UNet3DConditionModel
from real import latents_folder, modelscope, official, place_parts, recorded, refused
from safetensors.torch import load_file
from test_conditions import photo
from test_midas import midas_folder  # noqa: F401  the fixture

from videolcm import __main__ as command_line
from videolcm import conditions, models
from videolcm.conditions import Maps, extract
from videolcm.convert import convert
from videolcm.guides import guides_of
from videolcm.models.base import Conditions
from videolcm.models.latent import digest_of
from videolcm.pipeline import Request, encode_prompt, generate
from videolcm.sampling import Noise, guided, sample_ddim

T = torch.tensor


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    return modelscope(tmp_path_factory.mktemp("stock"))


@pytest.fixture(scope="module")
def compositional(tmp_path_factory):
    """A converted compositional checkpoint as a teacher, whole."""
    root = tmp_path_factory.mktemp("teacher")
    convert(official(root / "tft2v_vcomposer.pth", "compositional"), root / "folder")
    return place_parts(root / "folder", 24)


def load(folder, role="teacher"):
    return models.load(folder, role, "cpu", "float32")


# ---- ModelScope's kind


@torch.no_grad()
def test_sampling_is_diffusers_own_on_the_same_weights(stock):
    model = load(stock)
    assert (model.info.role, model.info.tasks, model.info.guidance, model.info.words) == ("teacher", ("text",), 8.0, None)
    request = Request("a fox", steps=4, frames=8, height=128, width=128, sampler="ddim", guidance=8)
    cond, empty = encode_prompt(model, request)
    noise = Noise(model.latent_shape(8, 128, 128), 0)
    *_, last = sample_ddim(guided(model.denoise, empty, 8.0), model.schedule, noise, cond, 4)

    net = UNet3DConditionModel.from_pretrained(stock / "unet").eval()
    scheduler = DDIMScheduler.from_pretrained(stock / "scheduler", timestep_spacing="trailing", set_alpha_to_one=True)
    scheduler.set_timesteps(4)
    x = noise.initial()
    for t in scheduler.timesteps:
        eps_null, eps = net(torch.cat([x, x]), t, torch.cat([empty, cond.context])).sample.chunk(2)
        x = scheduler.step(eps_null + 9 * (eps - eps_null), t, x).prev_sample
    assert x.abs().max() > 1  # at t = 999 an eps prediction says much
    torch.testing.assert_close(last.x0, x, rtol=1e-3, atol=1e-3)


def test_it_makes_clips_and_is_a_teacher_alone(stock):
    *_, result = generate(load(stock), Request("a fox", steps=2, frames=8, height=128, width=128, sampler="ddim"))
    assert result.frames.shape == (8, 128, 128, 3) and result.nfe == 4
    assert result.settings["model_sha256"] == digest_of({"": stock})
    assert "--role teacher" in refused("E_ROLE_MODEL", lambda: load(stock, "student"))


def test_parts_that_are_missing_or_are_pickles(stock, tmp_path):
    folder = shutil.copytree(stock, tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), folder / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    assert "unet" in refused("E_MODEL_PARTS", lambda: load(folder))
    shutil.rmtree(folder / "scheduler")
    assert "scheduler" in refused("E_MODEL_PARTS", lambda: load(folder))


@pytest.mark.parametrize(
    "change", [{"prediction_type": "sample"}, {"num_train_timesteps": 500}, {"rescale_betas_zero_snr": True}, {"beta_start": "a"}]
)
def test_schedules_that_cannot_be_sampled(stock, tmp_path, change):
    folder = shutil.copytree(stock, tmp_path / "model")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused("E_SCHEDULER", lambda: load(folder))


# ---- students


def distil(teacher, data, out, *more):
    arguments = ["--iterations", "2", "--batch", "2", "--dtype", "float32", "--device", "cpu", "--lr", "0.01"]
    return command_line.main(["distill", "--teacher", str(teacher), "--data", str(data), "--out", str(out), *arguments, *more])


@pytest.mark.parametrize("kind", ["stock", "compositional"])
def test_a_teacher_is_distilled_into_a_folder_of_its_own_layout(kind, request, tmp_path, capsys):
    teacher = request.getfixturevalue(kind)
    data, out = latents_folder(tmp_path / "data"), tmp_path / "student"
    assert distil(teacher, data, out) == 0
    said, told = capsys.readouterr().err, json.loads((out / "manifest.json").read_text())
    assert ("masked is left out: the teacher does not follow it" in said) == (kind == "stock")
    assert ("Licence of the weights: research and non-commercial" in said) == (kind == "compositional")
    assert told["distilled"]["guidance"] == (8 if kind == "stock" else 9) and told["distilled"]["share_last"] == 0

    student, before = load(out, "student"), load(teacher)
    assert student.info.role == "student" and student.info.tasks == before.info.tasks and student.prediction == before.prediction
    changed = [not torch.equal(a, b) for a, b in zip(student.denoiser.parameters(), before.denoiser.parameters(), strict=True)]
    assert sum(changed) > len(changed) / 2 and all(value.isfinite().all() for value in student.denoiser.parameters())
    *_, result = generate(student, Request("a fox", steps=2, frames=8, height=128, width=128))
    assert result.frames.shape == (8, 128, 128, 3) and result.nfe == 2

    net = UNet3DConditionModel.from_pretrained(out / "unet", use_safetensors=True)  # stock diffusers loads it too
    mine = student.denoiser if kind == "stock" else student.denoiser.unet
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), mine.parameters(), strict=True))
    scheduler = LCMScheduler.from_pretrained(out / "scheduler")
    assert scheduler.config.prediction_type == before.prediction
    assert (scheduler.alphas_cumprod - before.schedule.alphas_cumprod).abs().max() < 1e-5
    assert load(out, "teacher").info.role == "teacher"
    assert distil(teacher, data, out, "--resume", "--iterations", "3") == 0 and load(out, "student")  # written over
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == sorted(
        {"unet", "scheduler", "conditions"} - {"stock": {"conditions"}}.get(kind, set())
    )


def test_the_rate_of_the_paper_is_these_teachers_own(stock, tmp_path):
    from videolcm.knobs import Knobs, config_of

    assert config_of(Knobs(conditions="text"), load(stock)).lr == 1e-5
    assert config_of(Knobs(conditions="text", lr=1e-3), load(stock)).lr == 1e-3


def test_a_student_needs_something_to_follow_and_its_base(stock, tmp_path, capsys):
    data = latents_folder(tmp_path / "data")
    assert distil(stock, data, tmp_path / "out", "--conditions", "depth") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("[E_CONDITIONS]")
    folder = shutil.copytree(stock, tmp_path / "teacher")
    assert distil(folder, data, tmp_path / "out") == 0
    path = tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused("E_CHECKPOINT", lambda: load(tmp_path / "out", "student"))
    shutil.rmtree(folder)
    refused("E_MODEL_FILE", lambda: load(tmp_path / "out", "student"))


# ---- maps


@torch.no_grad()
def test_a_batch_mixes_clips_with_and_without_a_map(compositional):
    model, case, t = load(compositional), recorded("compositional", "all"), T([999, 259])
    depth, sketch = case["depth"].clone(), case["sketch"].clone()
    depth[1], sketch[:] = -1, -1
    mixed = model.denoise(case["x"], t, Conditions(case["y"], depth=depth, sketch=sketch))
    with_map, without = (model.denoise(case["x"], t, Conditions(case["y"], **maps)) for maps in ({"depth": case["depth"]}, {}))
    torch.testing.assert_close(mixed, torch.cat([with_map[:1], without[1:]]), rtol=0, atol=1e-5)
    assert (with_map[1] - without[1]).abs().max() > 1e-3


def test_depth_comes_as_the_official_network_learned_it(compositional, midas_folder, monkeypatch):  # noqa: F811
    monkeypatch.setattr(conditions, "MAPS", Maps())
    monkeypatch.setenv("VIDEOLCM_DPT_LARGE", str(midas_folder))
    video = np.stack([photo(height=128, width=128), photo("coffee.png", 128, 128)] * 4)
    request = Request("a fox", task="depth", video=video, frames=8, height=128, width=128, steps=1)
    raw = extract("dpt-large", video, scale=np.asarray)
    known = conditions.EXTRACTORS["dpt-large"]._replace(function=lambda *_: 150 * raw / np.ptp(raw), together=True)
    monkeypatch.setitem(conditions.EXTRACTORS, "dpt-large", known)
    monkeypatch.setattr(conditions, "MAPS", Maps())
    model = load(compositional)
    *_, (maps, shown, remarks) = guides_of(request, model.device, model.dtype, model.learned)
    wanted = np.clip(150 * raw / np.ptp(raw) / 20, 0, 10)  # VGen's clamp
    assert np.allclose(maps["depth"][0], wanted) and wanted.max() > 1 and remarks == (f"How the depth was found: {known.what}.",)
    assert shown["depth"].min() == 0 and shown["depth"].max() == 255
    *_, (plain, _, none) = guides_of(request, model.device, model.dtype)  # for a model that was trained on [0, 1]
    assert plain["depth"].max() == 1 and none == remarks


def test_another_extractor_is_said_in_the_result(compositional, monkeypatch):
    model = models.load(compositional, "teacher", "cpu", "float32")
    video = np.stack([photo(height=128, width=128)] * 8)
    ask = {"video": video, "frames": 8, "height": 128, "width": 128, "steps": 1, "sampler": "ddim", "guidance": 0}
    *_, result = generate(model, Request("a fox", task="sketch", extractor="canny", **ask))
    assert result.notices == (
        "This model learned sketch from PiDiNet behind a simplifying network; here it is canny's, and may be followed less well.",
    )
    *_, result = generate(model, Request("a fox", task="depth", extractor="as-is", **ask))
    assert "MiDaS DPT-Large; here it is as-is's" in result.notices[0]
