"""How fast and how large: every figure is measured in one run on one machine, and what is compared is measured in turns.

In: the embedded model. Out: a dict of seconds, ratios and mebibytes. The page's start and the import are timed in processes of their own.
It knows nothing about quality: evaluate.py does.
"""

import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import torch

from . import evaluate, models
from .pipeline import Request, generate, save

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a red ball rolls to the left over snow"


def quick(report):
    """All figures of `bench --quick`; `report(line)` hears of each stage. About five minutes on two cores."""
    student, teacher = models.load("toybox"), models.load("toybox", role="teacher")
    figures = {"machine": machine(student)}
    report("one clip")
    figures |= one_clip(student, teacher)
    report("eight clips")
    figures |= eight_clips(student, teacher)
    report("import and first page")
    figures["import_ratio"] = import_ratio()
    figures |= page()
    figures["peak_mebibytes"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return figures


def machine(model):
    """What the figures belong to."""
    peak = matmul_peak(model.dtype)
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(model.dtype),
        "system": platform.system(),
        "matmul_gflops": peak,
    }


def matmul_peak(dtype, n=2048):
    """GFLOP/s of a square matrix product, the best of five."""
    a = torch.randn(n, n).to(dtype)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return round(2 * n**3 / min(seconds[1:]) / 1e9)


def one_clip(student, teacher, rounds=5):
    """Medians over interleaved rounds, text to written mp4: seconds by stage at 4 steps, and how much longer 50 guided DDIM steps take."""
    requests = {"lcm4": (student, Request(PROMPT, steps=4)), "ddim50": (teacher, Request(PROMPT, steps=50, sampler="ddim"))}
    made(student, requests["lcm4"][1])
    taken = {name: [] for name in requests}
    for index in range(rounds):
        for name, (model, request) in requests.items():
            if name == "lcm4" or index < 3:
                taken[name].append(made(model, request).seconds)
    median = {name: {stage: statistics.median(row[stage] for row in rows) for stage in rows[0]} for name, rows in taken.items()}
    return {
        "seconds_4_steps": {stage: round(value, 3) for stage, value in median["lcm4"].items()},
        "seconds_ddim_50": round(median["ddim50"]["total"], 3),
        "speed_up_one_clip": round(median["ddim50"]["total"] / median["lcm4"]["total"], 1),
        "video_seconds_per_second": round(2 / median["lcm4"]["total"], 1),
    }


def made(model, request):
    with tempfile.TemporaryDirectory() as folder:
        *_, result = generate(model, request)
        return save(result, Path(folder) / "clip.mp4")


def eight_clips(student, teacher):
    """Table 1 of the paper: eight clips at a time, text to frames."""
    prompts, seeds = [PROMPT] * 8, range(8)
    taken = {}
    for name, arguments in (("lcm4", (student, prompts, seeds, 4, "lcm")), ("ddim50", (teacher, prompts, seeds, 50, "ddim", teacher.info.guidance))):
        start = time.perf_counter()
        evaluate.clips(*arguments)
        taken[name] = time.perf_counter() - start
    return {f"seconds_eight_{name}": round(value, 2) for name, value in taken.items()} | {
        "speed_up_eight_clips": round(taken["ddim50"] / taken["lcm4"], 1)
    }


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
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of the largest child, which the app is
    return {"first_page_seconds": round(seconds, 1), f"app_peak_mebibytes_after_{clips}_clips": round(peak / 1024)}


def answers(address):
    """Whether a GET of `address` is answered by 200."""
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
