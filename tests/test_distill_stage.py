"""The stage that distils, on a tiny teacher and invented clips: who learns, who does not, and that the target is the average."""

import math
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tiny import clips, toybox

from videolcm import __main__ as command_line
from videolcm import distill, train_verbs
from videolcm.data import FREE_SHARE, latent_path
from videolcm.distill import DistillConfig, distill_stage
from videolcm.errors import AppError
from videolcm.models.denoiser import Block
from videolcm.training import Run, train

CONFIG = DistillConfig(iterations=3, batch=2, lr=4e-3, ema=0.4, skips=(20, 100))


def weights(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def teacher():
    return toybox("teacher")


def test_three_iterations_move_the_student_and_not_the_teacher(teacher, tmp_path):
    before = weights(teacher.denoiser)
    steps = list(train(distill_stage(teacher, clips(), CONFIG), tmp_path))
    assert [step.iteration for step in steps] == [1, 2, 3] and all(math.isfinite(step.loss) and step.loss > 0 for step in steps)
    assert same(weights(teacher.denoiser), before) and all(p.grad is None for p in teacher.denoiser.parameters())


def test_the_target_is_the_average_of_the_student(teacher):
    stage, seen = distill_stage(teacher, clips(), CONFIG), []
    whole = stage.loss

    def loss(net, target, iteration, part):
        seen.append((weights(net), weights(target)))
        return whole(net, target, iteration, part)

    stage.loss = loss
    run = Run(stage, stage.make())
    for iteration in range(3):
        run.step(iteration)
    start = weights(teacher.denoiser)
    assert same(seen[0][0], start) and same(seen[0][1], start)
    for iteration in range(2):
        (_, average), (student, following) = seen[iteration], seen[iteration + 1]
        rate = min(0.4, (1 + iteration) / (10 + iteration))
        for name in start:
            torch.testing.assert_close(following[name], rate * average[name] + (1 - rate) * student[name], rtol=0, atol=1e-6)
        assert not same(student, seen[iteration][0]) and not same(student, following)
    assert not any(p.requires_grad or p.grad is not None for p in run.ema.parameters())


def test_gradients_of_one_step_do_not_stay_for_the_next(teacher):
    stage = distill_stage(teacher, clips(), CONFIG)
    run = Run(stage, stage.make())
    run.step(0)
    assert all(p.grad is None for p in run.net.parameters())


def test_the_same_seed_gives_the_same_losses_and_another_others(teacher):
    def losses(**change):
        stage = distill_stage(teacher, clips(), DistillConfig(**{**vars(CONFIG), **change}))
        net = stage.make()
        return [stage.loss(net, teacher.denoiser, i).item() for i in range(3)]

    first = losses()
    assert first == losses() and len(set(first)) == 3
    assert losses(seed=1)[0] != first[0]
    assert losses(guidance=6.0)[0] != first[0]
    other = losses(skips=(100,))  # phases: 20, 20, 100 of three iterations
    assert other[0] != first[0] and other[2] == first[2]


def test_the_student_starts_as_the_teacher_in_float32_and_computes_in_the_teachers_type():
    teacher = toybox("teacher", torch.bfloat16)
    stage = distill_stage(teacher, clips(), CONFIG)
    run = Run(stage, stage.make())
    assert next(run.net.parameters()).dtype == torch.float32 and next(run.half.net.parameters()).dtype == torch.bfloat16
    before = weights(run.half.net)
    assert same(before, weights(teacher.denoiser))
    assert math.isfinite(run.step(0)) and not same(weights(run.half.net), before)
    assert same(weights(run.target.net), {name: value.bfloat16() for name, value in weights(run.ema).items()})


def test_blocks_that_are_computed_twice_give_the_same_gradients(teacher, monkeypatch):
    calls, attend = [], Block.attend
    monkeypatch.setattr(Block, "attend", lambda block, x: calls.append(torch.is_grad_enabled()) or attend(block, x))
    found, counts = [], []
    for checkpointing in (False, True):
        calls.clear()
        stage = distill_stage(teacher, clips(), CONFIG, checkpointing)
        run = Run(stage, stage.make())
        found.append((run.gradients(0), {name: p.grad for name, p in run.net.named_parameters()}))
        counts.append(sum(calls))
    assert found[0][0] == found[1][0] and same(found[0][1], found[1][1])
    assert counts[1] == 2 * counts[0] > 0


@pytest.fixture
def rendered(monkeypatch):
    """Rendering and encoding of Toybox that take no time: which shards were asked for, as (kind, index)."""
    asked = []

    def render(folder, shards):
        asked.extend(shards)
        yield from shards

    def encode(folder, encoder, into):
        for kind, index in asked:
            path = latent_path(into, kind, index)
            if not path.exists():
                save_file(clips().arrays, path)
                yield path

    monkeypatch.setattr(distill, "render_shards", render)
    monkeypatch.setattr(distill, "cache_latents", encode)
    return asked


def test_a_share_of_free_scenes_is_rendered_where_maps_are_learned(teacher, tmp_path, rendered):
    told = []
    made = distill.toybox_clips(tmp_path, teacher, told.append, 101, free=True)
    assert rendered == [("free", 0), ("plain", 0), ("plain", 1), ("plain", 2)] and made.free == [True] * 6 + [False] * 18
    assert told[:2] == ["rendered 1/4: 50 free scenes", "rendered 2/4: 50 plain scenes"] and "encoded latents-free-00000" in told
    drawn = torch.tensor(made.free)[made.draw(4000, torch.Generator().manual_seed(0))].float().mean()
    assert abs(drawn - FREE_SHARE) < 0.03


def test_a_run_keeps_to_its_clips_whatever_others_have_rendered(teacher, tmp_path, rendered):
    before = distill.toybox_clips(tmp_path, teacher, lambda line: None, 50)
    assert rendered == [("plain", 0)] and not any(before.free)
    distill.toybox_clips(tmp_path, teacher, lambda line: None, 150, free=True)
    rendered.clear()
    after = distill.toybox_clips(tmp_path, teacher, lambda line: None, 50)
    assert rendered == [] and after.plots == before.plots and len(distill.cached_clips(tmp_path, teacher)) == 24


@pytest.mark.parametrize(("conditions", "free"), [(("text",), False), (("text", "depth"), True), (("masked",), True)])
def test_the_command_asks_for_them_where_a_map_is_learned(teacher, monkeypatch, conditions, free):
    monkeypatch.setattr(distill, "toybox_clips", lambda *_, free: free)
    args = Namespace(data="toybox", clips=50)
    assert train_verbs.clips_of(args, teacher, None, conditions) is free


@pytest.mark.parametrize("verb", ["distill", "pretrain data", "pretrain text"])
def test_a_folder_that_cannot_be_is_told_before_the_work(tmp_path, capsys, verb):
    (tmp_path / "file").write_text("")
    out = tmp_path / {"distill": "file/run", "pretrain data": "file/data", "pretrain text": "file"}[verb]
    assert command_line.main([*verb.split(), "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith("[E_OUTPUT]")


# ---- what counts in the loss


def test_objects_count_more_in_the_loss_if_wanted():
    net, some = toybox("teacher", torch.float32), clips()
    some.arrays["ids"] = torch.zeros_like(some.arrays["ids"])
    some.arrays["ids"][..., 0] = 255
    stages = {more: distill_stage(net, some, replace(CONFIG, object_weight=more)) for more in (0.0, 1e-7, 3.0)}
    plain, hardly, more = (stage.loss(stage.make(), stage.make(), 0).item() for stage in stages.values())
    assert hardly == pytest.approx(plain, rel=1e-5) and abs(more - plain) > 1e-3 * plain


def test_what_half_seconds_change_by_counts_besides_if_wanted():
    net, some = toybox("teacher", torch.float32), clips()
    plain, more, most = (distill_stage(net, some, replace(CONFIG, seam_weight=x)) for x in (0.0, 1.0, 3.0))
    plain, more, most = (stage.loss(stage.make(), stage.make(), 0).item() for stage in (plain, more, most))
    assert more > 1.01 * plain and most - plain == pytest.approx(3 * (more - plain), rel=1e-4)
    net.seams = None
    with pytest.raises(AppError) as error:
        distill_stage(net, some, replace(CONFIG, seam_weight=1.0))
    assert error.value.code == "E_SEAMS"


def test_channels_count_as_pictures_show_them_if_wanted(monkeypatch):
    net, some = toybox("teacher", torch.float32), clips()

    def loss(scale, **knobs):
        net.codec.scale.copy_(torch.tensor(scale))
        stage = distill_stage(net, some, replace(CONFIG, **knobs))
        return stage.loss(stage.make(), stage.make(), 0).item()

    each = [loss([1e3 if i == n else 1e-3 for i in range(4)], as_shown=True) for n in range(4)]
    assert sum(each) / 4 == pytest.approx(loss([1.0] * 4), rel=1e-4) and min(each) < 0.9 * max(each)
    assert loss([1.0, 2.0, 1.0, 2.0], as_shown=True) == pytest.approx((each[0] + 4 * each[1] + each[2] + 4 * each[3]) / 10, rel=1e-4)
    monkeypatch.setattr(type(net), "shown", None)
    with pytest.raises(AppError) as error:
        loss([1.0] * 4, as_shown=True)
    assert error.value.code == "E_SHOWN"
