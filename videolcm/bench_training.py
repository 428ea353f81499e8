"""How long a training step of distilling takes beside what it cannot do without, and how much memory: measured in one run, in turns.

In: a teacher and a folder for clips. Out: seconds, their ratio, samples per second and mebibytes, and an estimate of what the paper's run takes.
It knows nothing about quality.
"""

import statistics
import time

import numpy as np
import torch

from . import memory
from .bench import matmul_peak, operations
from .data import conditions
from .distill import distill_stage, toybox_clips
from .knobs import Knobs, config_of
from .training import Run, generator

GPUS, ITERATIONS = 4, 4000  # Sec. 4.1
BATCH = 16  # of a GPU, for clips of 16 frames, in the official code's configuration
A100 = 312e12  # floating point operations a second in bfloat16, by its data sheet
FORWARDS = 6  # of the student in a step: three, and one forward and backward, which counts three


def training_step(teacher, folder, report, batch=16, rounds=9):
    """Medians over interleaved rounds: seconds of a step and of its parts, which are three forwards (the teacher with and without text, the target)
    and one forward and backward of the student, all on a batch as the step draws it; their ratio; and the peak memory so far, of the GPU or of
    this process. The step is the teacher's own, with its optimiser."""
    config, clips = config_of(Knobs(batch=batch), teacher), toybox_clips(folder, teacher, report, 1)
    stage, g = distill_stage(teacher, clips, config), generator(0, 0)
    run, chosen = Run(stage, stage.make()), clips.draw(batch, g)
    cond = conditions(clips, chosen, teacher.encode_text, g, np.random.default_rng(0)).map(lambda value: value.to(teacher.device))
    x_t, t = clips.arrays["latents"][chosen].float().to(teacher.device), torch.full((batch,), 499, device=teacher.device)

    def forward():
        with torch.no_grad():
            run.target.net(x_t, t, cond)

    def both_ways():
        run.half.net(x_t, t, cond).square().mean().backward()
        run.half.net.zero_grad()

    parts, taken = {"step": lambda: run.step(len(taken["step"])), "forward": forward, "forward_and_backward": both_ways}, {}
    for index in range(rounds + 1):
        report(f"round {index} of {rounds}")
        for name, part in parts.items():
            taken.setdefault(name, [])
            began = time.perf_counter()
            part()
            if teacher.device.type == "cuda":
                torch.cuda.synchronize()
            taken[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values[1:]) for name, values in taken.items()}
    whole = 3 * median["forward"] + median["forward_and_backward"]
    done = FORWARDS * batch * operations(teacher, (256, 256)) / median["step"]
    share = done / matmul_peak(teacher.dtype, teacher.device) / 1e9
    return {
        **{f"seconds_{name}": round(value, 3) for name, value in median.items()},
        "step_over_parts": round(median["step"] / whole, 3),
        "samples_per_second": round(batch / median["step"], 2),
        "share_of_peak": round(share, 3),
        "peak_mebibytes": peak_mebibytes(teacher.device),
        "estimate_of_the_paper": paper_estimate(share),
    }


def peak_mebibytes(device):
    """The most memory so far that tensors took on a GPU, or that this process took."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    return memory.peak()


def paper_estimate(share):
    """What the paper's run would take if its GPUs reach this share of their peak: an estimate, and a rough one."""
    rate = share * A100 / FORWARDS / official_operations()  # of one GPU
    hours = ITERATIONS * BATCH / rate / 3600
    return {"samples_per_second_and_gpu": round(rate, 2), "hours": round(hours, 1), "gpu_hours": round(GPUS * hours, 1)}


def official_operations():
    """Floating point operations of one call of the official text network on one clip, 16 frames of 448x256; nothing is computed."""
    from torch.utils.flop_counter import FlopCounterMode

    from .models.vgen import VGenConfig, build

    config = VGenConfig(dim=320, dim_mult=(1, 2, 4, 4), num_res_blocks=2, attn_scales=(1.0, 0.5, 0.25), head_dim=64, context_dim=1024)
    net = build(config)
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 4, 16, 32, 56), torch.empty(1), torch.empty(1, 77, 1024))
    return counter.get_total_flops()
