"""Consistency distillation: a teacher that needs many steps -> a student that needs one to eight (Sec. 3.2).

In: three denoisers `denoise(x_t, t, cond) -> x0` (the frozen teacher, the student theta, its average theta*), clean latents and their
conditions. Out: the loss of Eq. 2, whose gradient reaches the student alone, and the averaged weights.
It knows nothing about what the networks are, nor about sampling.
"""

import copy
import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .checkpoint import write_json
from .data import ALL, CLIPS_PER_SHARD, MAPS, TEACHING, Clips, cache_latents, conditions, latent_path, object_weight, render_shards
from .errors import AppError
from .lora import merged, with_adapters
from .matching import ALONE, FASTER, Matched, draw_matching, matching_losses
from .models import write_student as write_denoiser
from .processes import sharded, world
from .schedule import EVERYWHERE, consistency, guide, jump
from .training import Stage, averaged_weights, checkpointed, fill, generator

FREE_OF = 12  # clips of the plain world for one free scene to be rendered, which takes eight times as long


@dataclass(frozen=True)
class DistillConfig:
    """The method's knobs, as the paper has them where it says so. A teacher has its own where the paper's did harm: `VideoModel.distilling`."""

    iterations: int = 1000  # paper: about 4,000
    batch: int = 16  # of a process at once
    accumulate: int = 1  # batches of a process that an update sees
    lr: float = 1e-5
    optimiser: str = "adamw"  # or muon, for the hidden matrices
    guidance: float = 9.0  # w
    skips: tuple[int, ...] = (20,)  # k of each phase, equally long
    solver_steps: int = 1  # of the teacher in k; paper: 1
    huber: float = 1e-3
    ema: float = 0.95  # Sec. 4.1
    share_last: float = 0.0  # of a batch at t = 999; paper: not said
    seed: int = 0
    conditions: tuple[str, ...] = ("text", *MAPS)  # what the student learns to follow
    lora: int | None = None  # rank of the adapters that learn in place of the weights
    w_range: tuple[float, float] | None = None  # w drawn from here and told to it (T2V-Turbo, arXiv 2405.18750)
    share_own: float = 0.0  # of a batch, with two_time: see `own_beginnings`; paper: 0
    guided: tuple[int, int] = EVERYWHERE  # the timesteps low <= t < high at which the teacher is guided; paper: everywhere
    object_weight: float = 0.0  # added to the loss where objects are, whose places cached clips know; paper: 0
    seam_weight: float = 0.0  # of what pictures change by where latent frames meet (`VideoModel.seams`); paper: 0
    as_shown: bool = False  # whether channels of latents count as much as pictures show of them (`VideoModel.shown`); paper: all alike
    matching: float = 0.0  # weight of the loss of `matching_losses` beside Eq. 2's; paper: 0
    begin: str | None = None  # the student that it begins as, by its name; the teacher, if None
    since: str | None = None  # the teacher of that student, by its name, if it is not this one: see `carried`
    two_time: bool = False  # to every s < t in place of 0 alone (CTM, arXiv 2310.02279; TCD, arXiv 2402.19159): see `jump`

    @property
    def inputs(self):
        """What the student's network is told besides t."""
        return (("w",) if self.w_range else ()) + (("s",) if self.two_time else ())


def distill_stage(teacher, clips, config, checkpointing=False, shared=False, begin=None):
    """The Stage that trains a student of `teacher` (a VideoModel) on cached `clips`. The target, theta*, is what should be shipped. `begin` are
    the weights that the student begins with, the teacher's otherwise.

    What is drawn is drawn for the whole update, of which each process makes its parts. `checkpointing` computes the inside of blocks twice in
    place of remembering it; `shared`: no process holds a whole network that computes. AppError E_INPUTS, E_SEAMS, E_SHOWN.
    """
    for asked, known, code in ((config.seam_weight, teacher.seams, "E_SEAMS"), (config.as_shown, teacher.shown, "E_SHOWN")):
        if asked and known is None:
            raise AppError(code, given=teacher.info.name)
    shown = teacher.shown[:, None, None, None] if config.as_shown else 1.0
    empty = teacher.encode_text([""])  # (1, L, D)
    frozen = teacher.with_denoiser(sharded(copy.deepcopy(teacher.denoiser), teacher.dtype)) if shared else teacher

    def loss(net, target, iteration, part=ALL):
        g, rng = generator(51 + config.seed, iteration), np.random.default_rng((51 + config.seed, iteration))
        samples, skip = config.batch * config.accumulate * world(), config.skips[iteration * len(config.skips) // config.iterations]
        chosen = clips.draw(samples, g, free=any(name in config.conditions for name in MAPS))
        drop_text = 0.0 if "text" in config.conditions else 1.0
        cond = conditions(clips, chosen, teacher.encode_text, g, rng, drop_text, kept=config.conditions, part=part)
        x0 = clips.arrays["latents"][chosen[part]].float()
        t, t_prev = teacher.schedule.sample_pair(samples, g, skip, config.share_last)
        eps = torch.randn((samples, *x0.shape[1:]), generator=g)
        w, s = config.guidance, None
        if config.w_range:
            low, high = config.w_range
            w = (low + (high - low) * torch.rand(samples, generator=g))[part].to(teacher.device)
            cond = replace(cond, w=w)
        if config.two_time:
            s = teacher.schedule.sample_goal(t, skip, g)[part].to(teacher.device)
        own = (torch.rand(samples, generator=g) < config.share_own)[part].to(teacher.device) if config.share_own else None
        x0, t, t_prev, eps = (value.to(teacher.device) for value in (x0, t[part], t_prev[part], eps[part]))
        cond = cond.map(lambda value: value.to(teacher.device))
        nets = (net.student, target.student, net.fake, target.fake) if config.matching else (net, target)
        student, average, *fakes = (teacher.with_denoiser(one).denoise for one in nets)
        x_t = teacher.schedule.add_noise(x0, eps, t)
        if own is not None:
            x_t = own_beginnings(average, teacher.schedule, x_t, eps, t, cond, own)
        places = object_weight(clips.arrays["ids"][chosen], x0.shape[2:], config.object_weight)[part].to(x0) if config.object_weight else 1.0
        null, solver = cond.null(empty), {"guided": config.guided}

        def distance(made, goal):
            apart = pseudo_huber(made, goal, config.huber, shown * places)
            if not config.seam_weight:
                return apart
            return apart + config.seam_weight * pseudo_huber(teacher.seams(made - goal), 0.0, config.huber)

        rest = {"s": s, "distance": distance, "solver_steps": config.solver_steps, **solver}
        apart = consistency_pair_loss(student, average, frozen.denoise, teacher.schedule, x_t, t, t_prev, cond, null, w, **rest)
        if not config.matching:
            return apart
        way, drawn = draw_matching(teacher.schedule, (samples, *x0.shape[1:]), config.two_time, g)
        drawn = [value[part].to(teacher.device) for value in drawn]
        unlike, learned = matching_losses(student, *fakes, frozen.denoise, teacher.schedule, way, drawn, cond, null, w, **solver)
        return apart + config.matching * min(1.0, iteration / ALONE) * unlike + learned

    def make():
        net = trained_net(teacher, config, begin)
        return checkpointed(net) if checkpointing else net

    return Stage(
        make,
        loss,
        config.iterations,
        config.lr,
        config.batch,
        ema=config.ema,
        warmup=20,
        cooldown=0.7,
        dtype=teacher.dtype,
        muon=config.optimiser == "muon",
        with_target=True,
        in_parts=True,
        accumulate=config.accumulate,
        sharded=shared,
        faster={"fake.": FASTER},
        finish=partial(used, config=config),
    )


def student_net(teacher, config, begin=None):
    """The network that a student begins as, float32: the teacher's with whatever the config adds, which changes nothing yet, or with the weights
    `begin`, without adapters. AppError E_INPUTS, E_RESUME."""
    net = copy.deepcopy(teacher.denoiser).float().requires_grad_(True)
    if config.inputs and not hasattr(net, "with_inputs"):
        raise AppError("E_INPUTS", given=teacher.info.name)
    net = with_adapters(net, config.lora) if config.lora else net
    net = net.with_inputs(config.inputs) if config.inputs else net
    if begin is not None:
        fill(net, begin)
    return net


def carried(student, before, teacher):
    """The weights of `student`, for a student of `teacher` to begin with, which its own teacher `before` has become by training on: what it has
    learned since is added (task arithmetic, arXiv 2212.04089), and what only it has is taken over. All three are networks."""
    known, old, new = ({name: value.float().cpu() for name, value in net.state_dict().items()} for net in (student, before, teacher))
    learned = {name: new[name] - old[name] for name in old if name in new and new[name].shape == old[name].shape}
    return {**new, **{name: value + learned.get(name, 0) for name, value in known.items()}}


def trained_net(teacher, config, begin=None):
    """All that is trained: `student_net`, and with matching the network that learns what it makes. AppError E_INPUTS, E_RESUME."""
    net = student_net(teacher, config, begin)
    return Matched(net, copy.deepcopy(teacher.denoiser).float().requires_grad_(True)) if config.matching else net


def used(net, config):
    """A copy of what is used of `trained_net`: the student, its adapters merged."""
    net = net.student if config.matching else net
    return merged(net) if config.lora else copy.deepcopy(net)


def toybox_clips(folder, teacher, report, count=600, latents=None, free=False):
    """The first `count` clips of Toybox, in whole shards, and a free scene for FREE_OF of them if wanted: in `folder`, their latents in `latents`
    (the same, if None), rendered and encoded first where they are missing. `report(line)` hears of it.

    What else lies there is left alone, so that a run that goes on finds the clips that it began with.
    """
    latents, counts = latents or folder, {"free": -(-count // FREE_OF // CLIPS_PER_SHARD)} if free else {}
    counts["plain"] = -(-count // CLIPS_PER_SHARD)
    missing = [(kind, i) for kind, n in counts.items() for i in range(n) if not latent_path(latents, kind, i).exists()]
    for done, (kind, _) in enumerate(render_shards(folder, missing), 1):
        report(f"rendered {done}/{len(missing)}: {CLIPS_PER_SHARD} {kind} scenes")
    for path in cache_latents(folder, teacher.encode, latents) if missing else ():
        report(f"encoded {path.stem}")
    return cached_clips(latents, teacher, counts)


def cached_clips(folder, teacher, kinds=("plain", "free")):
    """The cached clips that lie in `folder`, latents-plain-*.safetensors as `data.cache_latents` writes them; `kinds` as Clips has them.
    AppError E_DATA if there are none, E_LATENTS if they have other channels than the teacher's."""
    if not any(Path(folder).glob("latents-plain-*.safetensors")):
        raise AppError("E_DATA", given=Path(folder).name)
    clips = Clips(folder, kinds, TEACHING)
    if clips.arrays["latents"].shape[1] != teacher.latent_shape(16, 256, 256)[0]:
        raise AppError("E_LATENTS", given=Path(folder).name)
    return clips


def finished_student(out, teacher, config=DistillConfig()):
    """(denoiser, iteration): the averaged weights (theta*) of the newest checkpoint of the run in `out`, float32. AppError E_RESUME, E_INPUTS."""
    net = trained_net(teacher, config).requires_grad_(False)
    iteration, weights = averaged_weights(out)
    fill(net, weights)
    return used(net, config), iteration


def write_student(out, base, net, iteration, config):
    """Makes the run folder `out` a model that the door loads: the denoiser `net` after so many iterations, and a manifest that names its base and
    says what sampling has to know."""
    written = write_denoiser(net, base, out)
    if config.w_range:
        written["files"]["student"]["w_range"] = config.w_range
    distilled = {"iteration": iteration, **asdict(config)}
    write_json(Path(out) / "manifest.json", {"base": base, **written, "distilled": distilled})


def student_info(info, config):
    """What is known of a student of the teacher with this ModelInfo."""
    return replace(info, role="student", two_time=config.two_time).taking(config.w_range)


def student_iteration(out):
    """After how many iterations the student that lies in `out` was written; None where there is none."""
    path = Path(out) / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8"))["distilled"]["iteration"] if path.exists() else None


def consistency_loss(student, target, teacher, schedule, x0, cond, null, w, generator, skip=20, c=1e-3, share_last=0.0):
    """Eq. 2 on a batch: a scalar, float32. x0 (B, C, F, h, w) clean latents; `null` is `cond` with the empty or negative text.

    w >= 0 is the fixed guidance of Eq. 5 (the paper's 9 is the usual scale 10), skip the train timesteps between t_{n+k} and t_n, c the
    Huber threshold. share_last as in `Schedule.sample_pair`. Timesteps and noise come from `generator`, on its device.
    """
    t, t_prev = schedule.sample_pair(len(x0), generator, skip, share_last)  # t_{n+k}, t_n: (B,) twice
    x_t = schedule.add_noise(x0, randn_like(x0, generator), t)  # (B, C, F, h, w)
    return consistency_pair_loss(student, target, teacher, schedule, x_t, t, t_prev, cond, null, w, c)


def consistency_pair_loss(
    student, target, teacher, schedule, x_t, t, t_prev, cond, null, w, c=1e-3, s=None, distance=None, solver_steps=1, guided=EVERYWHERE
):
    """Eq. 2 for given noised latents x_t (B, C, F, h, w) and timesteps t > t_prev (B,): a scalar, float32. w: a number or (B,).

    With s (B,), each s <= t_prev, the student answers for where its trajectory passes s: that answer and what the target makes of x_prev
    (`jump`) are compared as the x0 that both mean, so that a short way, which changes x_t little, weighs as much as a long one.
    `solver_steps`: of the teacher from t to t_prev, `guided` as `between` of `guide`.
    `distance`: (the student's x0, what it should be) -> a scalar, where it is not `pseudo_huber` with c.
    """
    told = cond if s is None else cond.towards(s)
    with torch.no_grad():
        x_prev = solver_step(teacher, schedule, x_t, t, t_prev, cond, null, w, solver_steps, guided)
        if s is None:
            goal = consistency(target, schedule, x_prev, t_prev, cond)
        else:
            goal = schedule.x0_of_step(x_t, jump(target, schedule, x_prev, t_prev, s, cond), t, s)
    # Eq. 2: d(f_theta(x_{t_{n+k}}, t_{n+k}), f_theta*(x_{t_n}, t_n))
    made = consistency(student, schedule, x_t, t, told)
    return distance(made, goal) if distance else pseudo_huber(made, goal, c)


def solver_step(teacher, schedule, x_t, t, t_prev, cond, null, w, steps=1, guided=EVERYWHERE):
    """Where the guided teacher goes from x_t at t: x_prev at t_prev, float32, by DDIM steps, each one call on a batch of 2 B.

    Each step is twice as long as the one before it: where x_t is noise alone, the first tells nothing of what the clip will be, and over a long one
    of that kind all clips become alike.
    For the grid's first point t_prev is 0, which is abar_0 and not the clean end: f is the identity there.
    """
    x, at = x_t, t
    for left in range(steps, 0, -1):
        # Eq. 5 in x0 form
        x0 = guide(teacher, x, at, cond, null, w, guided)
        to = at - (at - t_prev) // (2**left - 1)
        # Eq. 4: x_prev = x_t + Psi(x_t, t, t_prev, c)
        x, at = schedule.ddim_step(x, x0, at, to), to
    return x


def own_beginnings(denoise, schedule, x_t, eps, t, cond, own):
    """x_t (B, C, F, h, w), but where `own` (B,) says so the place at t that the student itself goes to from its noise eps, in one `jump`.

    There it is when it is sampled, and not where noised clips are: without it small mistakes grow from step to step (the mixed trajectories of
    MCM, arXiv 2406.06890). All of the batch is computed: processes that share an update must do the same.
    """
    with torch.no_grad():
        gone = jump(denoise, schedule, eps, torch.full_like(t, schedule.train_steps - 1), t, cond)
    return torch.where(own.reshape(-1, 1, 1, 1, 1), gone, x_t)


def pseudo_huber(a, b, c, weight=1.0):
    """mean(weight (sqrt((a - b)^2 + c^2) - c)): quadratic below c > 0, absolute above it; no weight by timestep (Sec. 4.1: "a Huber loss")."""
    return (weight * (((a - b) ** 2 + c**2).sqrt() - c)).mean()


def randn_like(x, generator):
    """Standard normal noise of x's shape and device, float32, drawn on the generator's device."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device).to(x.device)
