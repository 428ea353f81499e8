"""How fast and how large: every figure is measured in one run on one machine, and what is compared is measured in turns.

In: the embedded model. Out: a dict of seconds, ratios and mebibytes. The page's start and the import are timed in processes of their own.
It knows nothing about quality: evaluate.py does.
"""

import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import torch

from . import memory
from .conditions import EXTRACTORS
from .models.base import Conditions
from .pipeline import Request, generate, save, to_frames
from .sampling import SAMPLERS, Noise, guided, sample_lcm
from .schedule import Schedule, inside
from .stopwatch import Stopwatch, timed
from .video import write_mp4
from .world import sample

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a red ball rolls to the left over snow"


def quick(student, teacher, report):
    """All figures of `bench --quick`; `report(line)` hears of each stage."""
    figures = {"machine": machine(student)}
    report("one clip")
    figures |= one_clip(student, teacher)
    report("eight clips")
    figures |= eight_clips(student, teacher)
    report("maps")
    figures["seconds_of_maps"] = extraction(student)
    report("import and first page")
    figures["import_ratio"] = import_ratio()
    figures |= page()
    figures["peak_mebibytes"] = memory.peak()
    return figures


def machine(model):
    """What the figures belong to."""
    peak = matmul_peak(model.dtype, model.device)
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(model.dtype),
        "system": platform.system(),
        "matmul_gflops": peak,
    }


def matmul_peak(dtype, device, n=2048):
    """GFLOP/s of a square matrix product on a device, the best of five."""
    a = torch.randn(n, n).to(device, dtype)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # which waits for a GPU
        seconds.append(time.perf_counter() - start)
    return round(2 * n**3 / min(seconds[1:]) / 1e9)


def medians(plans, rounds, report=lambda line: None):
    """{name: {stage: seconds}} of `plans`, {name: a function that gives its seconds by stage, or (such a function, its own fewer rounds)}.

    All are called in turn, round by round, so that whatever else the machine does meets all of them; then each has its medians.
    """
    taken = {name: [] for name in plans}
    for index in range(rounds):
        for name, plan in plans.items():
            run, limit = plan if isinstance(plan, tuple) else (plan, rounds)
            if index < limit:
                report(f"{name}, round {index + 1} of {limit}")
                taken[name].append(run())
    return {name: {stage: statistics.median(row[stage] for row in rows) for stage in rows[0]} for name, rows in taken.items()}


def one_clip(student, teacher, rounds=5):
    """Medians, text to written mp4: seconds by stage at 4 steps, and how much longer 50 guided DDIM steps take."""
    few, many = Request(PROMPT, steps=4), Request(PROMPT, steps=50, sampler="ddim")
    made(student, few)
    found = medians({"lcm4": lambda: made(student, few).seconds, "ddim50": (lambda: made(teacher, many).seconds, 3)}, rounds)
    seconds, slow = found["lcm4"], found["ddim50"]["total"]
    return {
        "seconds_4_steps": {stage: round(value, 3) for stage, value in seconds.items()},
        "share_decode_and_write": share_after(seconds),
        "seconds_ddim_50": round(slow, 3),
        "speed_up_one_clip": round(slow / seconds["total"], 1),
        "video_seconds_per_second": round(2 / seconds["total"], 1),
    }


def made(model, request):
    with tempfile.TemporaryDirectory() as folder:
        *_, result = generate(model, request)
        return save(result, Path(folder) / "clip.mp4")


def extraction(model, rounds=3, names=("hed", "builtin-depth")):
    """{extractor: seconds} for the map of 16 frames of 256x256, by its function, which keeps no answers; the network is loaded before."""
    frames = sample(0).render().frames
    runs = {name: partial(EXTRACTORS[name].function, frames, model.device, model.dtype) for name in names}
    for run in runs.values():
        run()
    return {
        name: round(seconds["total"], 2) for name, seconds in medians({name: partial(clocked, run) for name, run in runs.items()}, rounds).items()
    }


def eight_clips(student, teacher, rounds=3):
    """Eight clips at a time, text to written mp4: seconds of 4 steps, and of 50 guided DDIM steps, which are made once between them."""
    plans = {"lcm4": lambda: batch_seconds(student, 4, "lcm"), "ddim50": (lambda: batch_seconds(teacher, 50, "ddim"), 1)}
    few, many = (seconds["total"] for seconds in medians(plans, rounds).values())
    return {"seconds_eight_lcm4": round(few, 2), "seconds_eight_ddim50": round(many, 2), "speed_up_eight_clips": round(many / few, 1)}


@torch.no_grad()
def batch_seconds(model, steps, sampler, size=(256, 256), frames=16, count=8):
    """Seconds by stage and in total of `count` clips of (height, width) `size` as one batch, text to written mp4."""
    watch = Stopwatch()
    with watch("text"):
        context, empty = model.encode_text([PROMPT] * count), model.encode_text([""])
    with watch("denoise"):
        noise = Noise(model.latent_shape(frames, *size), list(range(count)), model.device)
        denoise = guided(model.denoise, empty, model.info.guidance if model.info.role == "teacher" else 0.0, model.info.guided)
        *_, step = SAMPLERS[sampler](denoise, model.schedule, noise, Conditions(context), steps)
    with watch("decode"):
        clips = [to_frames(model.decode(one[None], frames)) for one in step.x0]
    with tempfile.TemporaryDirectory() as folder, watch("write"):
        for i, clip in enumerate(clips):
            write_mp4(Path(folder) / f"{i}.mp4", clip, model.info.fps, {})
    return timed(watch.seconds)


# ---- the whole bench


TABLE_SIZES = ((256, 256), (256, 448))  # (height, width), as Table 1 of the paper has them


def share_after(seconds):
    """Of the seconds of stages, the share of what comes after denoising: decoding and writing."""
    return round((seconds["decode"] + seconds["write"]) / seconds["total"], 2)


def table_1(student, teacher, report, rounds=3):
    """Table 1 of the paper on this machine: a row for each size and sampler, medians over interleaved rounds.

    {"size", "clips", stage: seconds, "total", "share_decode_and_write", "speed_up" over 50 guided DDIM steps, "video_seconds_per_second",
    "share_of_peak": of the machine's own matrix product while denoising}.
    """
    plans = {"teacher, DDIM 50": (teacher, 50, "ddim"), **{f"student, LCM {n}": (student, n, "lcm") for n in (8, 4, 2, 1)}}
    peak, rows = matmul_peak(student.dtype, student.device), []
    for size in TABLE_SIZES:
        shape = f"{size[1]}x{size[0]}"
        runs = {name: partial(batch_seconds, *plan, size) for name, plan in plans.items()}
        found = medians(runs, rounds, lambda line, shape=shape: report(f"{shape}, {line}"))
        slow = found["teacher, DDIM 50"]["total"]
        for name, seconds in found.items():
            model, steps, _ = plans[name]
            is_guided = inside(model.schedule.ddim_timesteps(steps), model.info.guided)
            guided_steps = is_guided.sum() if model is teacher and model.info.guidance else 0
            calls = 8 * int(steps + guided_steps)
            rows.append(
                {"size": shape, "clips": name}
                | {stage: round(value, 3) for stage, value in seconds.items() if stage != "conditions"}
                | {"share_decode_and_write": share_after(seconds)}
                | {"speed_up": round(slow / seconds["total"], 1), "video_seconds_per_second": round(16 / seconds["total"], 1)}
                | {"share_of_peak": round(calls * operations(model, size) / seconds["denoise"] / peak / 1e9, 2)}
            )
    return rows


def operations(model, size, frames=16):
    """Floating point operations of one call of the denoiser on one clip, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    cond, x_t = Conditions(model.encode_text([PROMPT])), torch.zeros(1, *model.latent_shape(frames, *size), device=model.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.denoise(x_t, torch.zeros(1, dtype=torch.long, device=model.device), cond)
    return counter.get_total_flops()


def growth(student, report, rounds=3):
    """How the seconds of 4 steps grow with frames and with clips at a time: {"frames": {16: 1.0, ...}, "clips": {1: 1.0, ...}}."""
    found = {}
    for what, plans in (("frames", {n: {"frames": n, "count": 1} for n in (16, 32, 64)}), ("clips", {n: {"count": n} for n in (1, 2, 4, 8)})):
        report(f"growth with {what}")
        taken = medians({n: partial(batch_seconds, student, 4, "lcm", **plan) for n, plan in plans.items()}, rounds)
        found[what] = {n: round(seconds["total"] / taken[min(taken)]["total"], 2) for n, seconds in taken.items()}
    return found


@torch.no_grad()
def beside_diffusers(rounds=5, steps=4, shape=(4, 16, 32, 32)):
    """How much longer this project's sampler takes than diffusers' LCMScheduler around the same UNet3DConditionModel, a small one without training,
    on latents of `shape` (C, F, h, w): the ratio of medians."""
    from .models.folder import scheduler_of
    from .models.vgen import VGenConfig, VideoUNet

    net = VideoUNet(VGenConfig(dim=64, dim_mult=(1, 2), num_res_blocks=1, attn_scales=(1.0, 0.5), head_dim=32, context_dim=64)).eval()
    schedule, scheduler, context, noise = Schedule(), scheduler_of("student"), torch.zeros(1, 77, 64), Noise(shape, 0)

    def ours():
        *_, step = sample_lcm(lambda x_t, t, cond: schedule.x0_from_v(x_t, net(x_t, t, cond.context), t), schedule, noise, Conditions(context), steps)
        return step.x0

    def theirs():
        scheduler.set_timesteps(steps)
        x = noise.initial()
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t[None], context), t, x, return_dict=False)[0]
        return x

    found = medians({"ours": lambda: clocked(ours), "diffusers": lambda: clocked(theirs)}, rounds)
    return round(found["ours"]["total"] / found["diffusers"]["total"], 2)


def clocked(run):
    """{"total": the seconds of `run()`}."""
    watch = Stopwatch()
    with watch("denoise"):
        run()
    return timed(watch.seconds)


def table_of(rows):
    """Rows of `table_1` as a markdown table."""
    names = {"share_decode_and_write": "decode + write", "speed_up": "times faster"}
    names |= {"video_seconds_per_second": "video s / s", "share_of_peak": "share of peak"}
    lines = ["| " + " | ".join(names.get(key, key) for key in rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return "\n".join(lines + ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows])


# ---- start and page


def import_ratio():
    """Seconds of `import videolcm` and its public names over seconds of `import torch`, medians of three turns."""
    commands = {"torch": "import torch", "videolcm": "import videolcm; [getattr(videolcm, name) for name in videolcm.__all__]"}
    taken = {name: [] for name in commands}
    for _ in range(3):
        for name, code in commands.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
            taken[name].append(time.perf_counter() - start)
    return round(statistics.median(taken["videolcm"]) / statistics.median(taken["torch"]), 2)


def page(clips=10, limit=60):
    """Seconds from starting app.py to its first answer of 200, and the peak memory of the app after so many clips over its API."""
    from gradio_client import Client

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}/"
    start = time.perf_counter()
    app = subprocess.Popen(
        [sys.executable, "app.py", "--port", address.split(":")[2][:-1]], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not answers(address) and time.perf_counter() - start < limit:
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            client = Client(address, verbose=False, download_files=folder)
            for seed in range(clips):
                client.predict(PROMPT, seed=seed, api_name="/text")
    finally:
        app.terminate()
        app.wait()
    peak = memory.peak("RUSAGE_CHILDREN")  # of the largest child, which the app is
    return {"first_page_seconds": round(seconds, 1), f"app_peak_mebibytes_after_{clips}_clips": peak}


def answers(address):
    """Whether a GET of `address` is answered by 200."""
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
