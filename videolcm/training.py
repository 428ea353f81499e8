"""The one training loop: pretraining and distilling run their stages in it.

In: a Stage (a network, a loss, a plan of the learning rate). Out: TrainSteps, and a run folder with checkpoints and log.jsonl. A loss draws its
batch, noise and timesteps from generators seeded by the iteration, so a resumed run goes on bit for bit. Several processes share an update: each
takes its slices of the samples, and the first one alone writes. It knows nothing about data.
"""

import copy
import json
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .checkpoint import load_checkpoint, misfits, remove_checkpoints, remove_leftovers, save_checkpoint, write_atomic
from .errors import AppError
from .lines import add_lines, read_lines
from .optim import HalfCopy, MuonAdamW, update_ema
from .processes import agreed, average, laid_out, rank, sharded, whole, world

SAVE_SECONDS = 240
BAD_IN_A_ROW = 3  # losses that are not numbers, until a run stops


@dataclass(frozen=True)
class TrainStep:
    """What one iteration reports; `figures` are validation results where there are any, `skipped` counts the losses that were not numbers."""

    iteration: int
    iterations: int
    loss: float
    lr: float
    samples_per_second: float
    figures: dict | None = None
    skipped: int = 0
    seconds: float = 0.0  # of the iteration
    spent: float = 0.0  # seconds since the run began or went on


@dataclass
class Stage:
    """One network and how it is trained.

    `loss(net, iteration)` draws its own batch; with `with_target` it is `loss(net, target, iteration)`, target being the EMA of net (theta*);
    with `in_parts` there is a last argument, the slice of the update's samples that the loss is the mean of.
    `validate(net, folder, iteration)` returns figures of the EMA. The rate rises over `warmup` iterations, stays, and falls to zero.
    """

    make: callable
    loss: callable
    iterations: int
    lr: float
    batch: int  # samples that go through the network at once
    ema: float = 0.998
    warmup: int = 200
    cooldown: float = 0.3  # share of the iterations over which the rate falls linearly to zero
    validate: callable = None
    validate_every: int = 500
    validate_seconds: float = math.inf  # besides, whenever so long has passed since the last time
    dtype: torch.dtype = torch.bfloat16
    muon: bool = True  # on the hidden matrices; AdamW on everything otherwise
    faster: dict | None = None  # {how the names of parameters begin: how many times the rate they learn at}
    with_target: bool = False
    compiled: bool = False  # by torch.compile: faster, needs a C++ compiler, other last bits
    in_parts: bool = False  # whether processes can share an update, and a process can take its share in several goes
    accumulate: int = 1  # goes
    sharded: bool = False  # no process holds the whole network (FSDP)
    finish: callable = None  # what the trained network becomes when it is used: adapters are merged

    @property
    def samples(self):
        """Samples of an update, of all processes."""
        return self.batch * self.accumulate * world()

    def parts(self):
        """The arguments that say which samples of an update are this process's: one for each time that the loss is asked for."""
        if not self.in_parts:
            return [()]
        firsts = range(rank() * self.accumulate, (rank() + 1) * self.accumulate)
        return [(slice(i * self.batch, (i + 1) * self.batch),) for i in firsts]

    def rate(self, iteration):
        left = (self.iterations - iteration) / max(1, self.cooldown * self.iterations)
        return self.lr * min(1.0, (iteration + 1) / self.warmup, left)

    def is_due(self, iteration, seconds):
        """Whether to validate after so many iterations, and so many seconds since the last time."""
        return bool(self.validate) and (iteration % self.validate_every == 0 or iteration == self.iterations or seconds > self.validate_seconds)


def generator(seed, iteration):
    """The random source of one iteration."""
    return torch.Generator().manual_seed(seed * 1_000_003 + iteration)


def train(stage, out, seed=0, resume=False, minutes=None, turn=nullcontext, save_seconds=SAVE_SECONDS, stop=lambda: False):
    """Runs `stage` in folder `out`; yields TrainStep. Stops after `minutes`, and as soon as `stop()`, with a checkpoint, and at three losses in a row
    that are not numbers with AppError E_NAN. Closing the generator saves too, where one process holds the whole network. `turn()` is a context held
    during each iteration: others may have the device between two. AppError E_DISK where the disk is full: what was saved before stays, and the run
    can be resumed. Of several processes the first one decides what clocks and `stop` decide; all of them must see the folder to resume."""
    out, first = Path(out), rank() == 0
    if first:
        out.mkdir(parents=True, exist_ok=True)
        if not resume:
            remove_checkpoints(out)
        remove_leftovers(out)
    torch.manual_seed(seed)
    run = Run(stage, stage.make())
    if resume:
        run.load(out)
    if first:
        cut_log(out / "log.jsonl", run.iteration)
    began = saved = validated = time.monotonic()
    kept = run.iteration  # what is on disk, or needs not be
    ordered = not stage.sharded  # whether this process may save by itself
    try:
        while run.iteration < stage.iterations:
            with turn() if first else nullcontext():
                tick = time.monotonic()
                loss = run.step(run.iteration)
                seconds = time.monotonic() - tick
            run.count(loss)
            figures = None
            if agreed(stage.is_due(run.iteration, since(validated)))[0]:
                figures, validated = stage.validate(run.averaged(), out, run.iteration) if first else None, time.monotonic()
            rate, speed = stage.rate(run.iteration - 1), stage.samples / seconds
            times = round(seconds, 4), round(since(began), 1)
            step = TrainStep(run.iteration, stage.iterations, loss, rate, speed, figures, run.skipped, *times)
            if first:
                append_line(out / "log.jsonl", step)
            yield step
            saving, ending = agreed(since(saved) > save_seconds, minutes is not None and since(began) > minutes * 60 or stop())
            if saving:
                kept = run.iteration  # a save that fails is not tried again
                run.save(out)
                saved = time.monotonic()
            if ending:
                break
        ordered = True
    finally:
        if run.iteration > kept and ordered:
            run.save(out)


def since(moment):
    return time.monotonic() - moment


def append_line(path, step):
    """A TrainStep as a line of JSON; a loss that is not a number is null. AppError E_DISK."""
    add_lines(path, {**vars(step), "loss": step.loss if math.isfinite(step.loss) else None})


def cut_log(path, iteration):
    """Leaves of a log what was said up to `iteration`: what came after the checkpoint will be said again."""
    rows = [row for row in read_lines(path) if isinstance(row, dict) and isinstance(row.get("iteration"), int)]
    kept = [row for row in rows if row["iteration"] <= iteration]
    write_atomic(path, lambda temporary: temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8"))


class Run:
    """The moving parts of a training run: master weights, the copy that computes, their average, the optimiser."""

    def __init__(self, stage, net):
        self.stage, self.net, self.ema = stage, net, copy.deepcopy(net).requires_grad_(False)
        self.iteration, self.skipped, self.bad = 0, 0, 0  # the next one; losses that were not numbers; of them the last in a row
        if stage.sharded:
            self.net, self.ema = sharded(net, stage.dtype), sharded(self.ema, stage.dtype)
        self.half = HalfCopy(self.net, lambda: copy.deepcopy(net), stage.dtype, stage.sharded)
        self.optimiser = MuonAdamW(self.net, muon=stage.muon, dtype=stage.dtype, faster=stage.faster)
        self.nets = [torch.compile(self.half.net) if stage.compiled else self.half.net]
        if stage.with_target:
            self.target = HalfCopy(self.ema, lambda: copy.deepcopy(self.ema), stage.dtype, stage.sharded)
            self.nets.append(self.target.net)

    def gradients(self, iteration):
        """Puts the gradients of an update at the master, the mean over parts and processes; returns the loss, the same mean."""
        parts, losses = self.stage.parts(), []
        for part in parts:
            loss = self.stage.loss(*self.nets, iteration, *part)
            (loss * (self.half.scale / len(parts))).backward()
            self.half.add_gradients()
            losses.append(loss.detach())
        loss = torch.stack(losses).mean()
        average([loss])
        if not self.stage.sharded:  # FSDP has done it
            average([p.grad for p in self.net.parameters() if p.grad is not None])
        return loss

    def step(self, iteration):
        """One update; a loss or a gradient that is not a number changes nothing. Returns the loss, NaN in that case."""
        loss = self.gradients(iteration)
        if not torch.isfinite(loss) or not torch.isfinite(whole(self.half.clip_gradients())):
            self.half.net.zero_grad(), self.net.zero_grad()
            return math.nan
        self.optimiser.step(self.stage.rate(iteration))
        self.net.zero_grad()  # in float32 the network that computes is this one, and its gradients would add up
        self.half.refresh()
        update_ema(self.ema, self.net, min(self.stage.ema, (1 + iteration) / (10 + iteration)))
        if self.stage.with_target:
            self.target.refresh()
        return loss.item()

    def count(self, loss):
        """An iteration is over. AppError E_NAN at the third loss in a row that is not a number; that iteration then does not count."""
        bad = not math.isfinite(loss)
        if bad and self.bad == BAD_IN_A_ROW - 1:
            raise AppError("E_NAN", given=BAD_IN_A_ROW)
        self.iteration, self.skipped, self.bad = self.iteration + 1, self.skipped + bad, self.bad + 1 if bad else 0

    def averaged(self):
        """The EMA weights in the type that computes."""
        net = self.stage.finish(self.ema) if self.stage.finish else copy.deepcopy(self.ema)
        return net.to(self.stage.dtype).eval()

    def save(self, out):
        """A checkpoint, by the first process; where each holds a share, with the help of all."""
        if rank() and not self.stage.sharded:
            return
        tensors = {f"net/{k}": v for k, v in self.net.state_dict().items()} | {f"ema/{k}": v for k, v in self.ema.state_dict().items()}
        tensors = {name: whole(value) for name, value in (tensors | self.optimiser.state()).items()}
        state = {"threads": torch.get_num_threads(), "skipped": self.skipped, "bad": self.bad}
        if rank() == 0:
            save_checkpoint(out, self.iteration, tensors, state)

    def load(self, out):
        """Goes on where the newest whole checkpoint in `out` is, with as many threads: another number of them rounds otherwise.

        AppError E_RESUME if it is of another network.
        """
        self.iteration, tensors, state = load_checkpoint(out)
        self.skipped, self.bad = state.get("skipped", 0), state.get("bad", 0)
        torch.set_num_threads(state.get("threads", torch.get_num_threads()))
        for net, prefix in ((self.net, "net/"), (self.ema, "ema/")):
            fill(net, part(tensors, prefix))
        self.optimiser.restore(tensors)
        self.half.refresh()
        if self.stage.with_target:
            self.target.refresh()


def checkpointed(net):
    """`net`, changed in place: the blocks of its lists remember their inputs alone, and are computed again for the gradients."""
    lists = [name for name, module in net.named_modules() if isinstance(module, nn.ModuleList)]
    for name in lists:
        if not any(name.startswith(f"{other}.") for other in lists):
            for block in net.get_submodule(name):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return net


def fill(net, weights):
    """Loads `weights` into `net`, whole or not. AppError E_RESUME if they are of another network."""
    mine = net.state_dict()
    if misfits(mine, weights):
        raise AppError("E_RESUME")
    net.load_state_dict({name: laid_out(value, mine[name]) for name, value in weights.items()})


def part(tensors, prefix):
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def averaged_weights(out):
    """(iteration, EMA weights) of the newest checkpoint of a run."""
    iteration, tensors, _ = load_checkpoint(out)
    return iteration, part(tensors, "ema/")
