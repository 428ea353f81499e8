"""The one training loop: pretraining and distilling run their stages in it.

In: a Stage (a network, a loss, a plan of the learning rate). Out: TrainSteps, and a run folder with checkpoints and log.jsonl. A loss draws its
batch, noise and timesteps from generators seeded by the iteration, so a resumed run goes on bit for bit. It knows nothing about data.
"""

import copy
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from .checkpoint import load_checkpoint, save_checkpoint
from .errors import AppError
from .optim import HalfCopy, MuonAdamW, update_ema

SAVE_SECONDS = 240


@dataclass(frozen=True)
class TrainStep:
    """What one iteration reports; `figures` are validation results where there are any."""

    iteration: int
    iterations: int
    loss: float
    lr: float
    samples_per_second: float
    figures: dict | None = None


@dataclass
class Stage:
    """One network and how it is trained.

    `loss(net, iteration)` draws its own batch; with `with_target` it is `loss(net, target, iteration)`, target being the EMA of net (theta*).
    `validate(net, folder, iteration)` returns figures of the EMA. The rate rises over `warmup` iterations, stays, and falls to zero.
    """

    make: callable
    loss: callable
    iterations: int
    lr: float
    batch: int
    ema: float = 0.998
    warmup: int = 200
    cooldown: float = 0.3  # share of the iterations over which the rate falls linearly to zero
    validate: callable = None
    validate_every: int = 500
    dtype: torch.dtype = torch.bfloat16
    muon: bool = True  # on the hidden matrices; AdamW on everything otherwise
    with_target: bool = False
    compiled: bool = False  # by torch.compile: faster, needs a C++ compiler, other last bits
    before: callable = None  # `before(net, iteration)` may change the master's buffers

    def rate(self, iteration):
        left = (self.iterations - iteration) / max(1, self.cooldown * self.iterations)
        return self.lr * min(1.0, (iteration + 1) / self.warmup, left)


def generator(seed, iteration):
    """The random source of one iteration."""
    return torch.Generator().manual_seed(seed * 1_000_003 + iteration)


def train(stage, out, seed=0, resume=False, minutes=None):
    """Runs `stage` in folder `out`; yields TrainStep. Stops after `minutes` with a checkpoint, and at three losses in a row that are not
    numbers with AppError E_NAN. Closing the generator saves too."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    net = stage.make()
    run = Run(stage, net)
    first = run.load(out) if resume else 0
    began = saved = time.monotonic()
    iteration, bad = first, 0
    with open(out / "log.jsonl", "a", encoding="utf-8") as log:
        try:
            while iteration < stage.iterations:
                tick = time.monotonic()
                loss = run.step(iteration)
                bad = 0 if math.isfinite(loss) else bad + 1
                if bad == 3:
                    raise AppError("E_NAN", given=3)
                iteration += 1
                figures = None
                if stage.validate and (iteration % stage.validate_every == 0 or iteration == stage.iterations):
                    figures = stage.validate(run.averaged(), out, iteration)
                rate = stage.batch / (time.monotonic() - tick)
                step = TrainStep(iteration, stage.iterations, loss, stage.rate(iteration - 1), rate, figures)
                log.write(json.dumps(step.__dict__) + "\n")
                log.flush()
                yield step
                now = time.monotonic()
                if now - saved > SAVE_SECONDS:
                    run.save(out, iteration)
                    saved = now
                if minutes and now - began > minutes * 60:
                    break
        finally:
            if iteration > first:
                run.save(out, iteration)


class Run:
    """The moving parts of a training run: master weights, the copy that computes, their average, the optimiser."""

    def __init__(self, stage, net):
        self.stage, self.net = stage, net
        self.half = HalfCopy(net, lambda: copy.deepcopy(net), stage.dtype)
        self.optimiser = MuonAdamW(net, muon=stage.muon)
        self.ema = copy.deepcopy(net).requires_grad_(False)
        self.nets = [torch.compile(self.half.net) if stage.compiled else self.half.net]
        if stage.with_target:
            self.target = HalfCopy(self.ema, lambda: copy.deepcopy(self.ema), stage.dtype)
            self.nets.append(self.target.net)

    def step(self, iteration):
        """One update; a loss or a gradient that is not a number changes nothing. Returns the loss, NaN in that case."""
        if self.stage.before:
            self.stage.before(self.net, iteration)
            self.half.refresh()
        loss = self.stage.loss(*self.nets, iteration)
        loss.backward()
        if not torch.isfinite(loss) or not torch.isfinite(self.half.take_gradients()):
            self.half.net.zero_grad(), self.net.zero_grad()
            return math.nan
        self.optimiser.step(self.stage.rate(iteration))
        self.net.zero_grad()  # in float32 the network that computes is this one, and its gradients would add up
        self.half.refresh()
        update_ema(self.ema, self.net, min(self.stage.ema, (1 + iteration) / (10 + iteration)))
        if self.stage.with_target:
            self.target.refresh()
        return loss.item()

    def averaged(self):
        """The EMA weights in the type that computes."""
        return copy.deepcopy(self.ema).to(self.stage.dtype).eval()

    def save(self, out, iteration):
        tensors = {f"net/{k}": v for k, v in self.net.state_dict().items()} | {f"ema/{k}": v for k, v in self.ema.state_dict().items()}
        save_checkpoint(out, iteration, tensors | self.optimiser.state(), {"threads": torch.get_num_threads()})

    def load(self, out):
        iteration, tensors, _ = load_checkpoint(out)
        self.net.load_state_dict(part(tensors, "net/"))
        self.ema.load_state_dict(part(tensors, "ema/"))
        self.optimiser.restore(tensors)
        self.half.refresh()
        if self.stage.with_target:
            self.target.refresh()
        return iteration


def part(tensors, prefix):
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def averaged_weights(out):
    """(iteration, EMA weights) of the newest checkpoint of a run."""
    iteration, tensors, _ = load_checkpoint(out)
    return iteration, part(tensors, "ema/")
