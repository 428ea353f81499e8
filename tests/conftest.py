"""No network, no telemetry; and FakeModel, whose clips are known: a bright square on dark ground moves two pixels a frame."""

import os

os.environ.update(HF_HUB_OFFLINE="1", GRADIO_ANALYTICS_ENABLED="False", HYPOTHESIS_STORAGE_DIRECTORY=os.devnull)  # which keeps nothing

import tempfile
import time
from dataclasses import replace

import pytest
import torch
from media import corners, make
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from videolcm import footage
from videolcm.models.base import TASKS, ModelInfo, VideoModel
from videolcm.schedule import Schedule

WORDS = frozenset(("a", "the", "red", "ball", "rolls", "to", "left", "over", "snow", "big", "cube", "spins", "on"))
CELL = 8  # pixels per latent


def moving_square(shape):
    """The answer of FakeModel: latents (C, f, h, w) of -0.8 with a square of 0.8 that moves one cell to the right every frame."""
    x0 = torch.full(shape, -0.8)
    for f in range(shape[1]):
        x0[:, f, 4:8, f % (shape[3] - 4) : f % (shape[3] - 4) + 4] = 0.8
    return x0


def wait_for(condition, seconds=60):
    """Returns when `condition()` is true; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class FakeModel(VideoModel):
    """A VideoModel with a known answer: `denoise` says the moving square whatever the noise, `decode` enlarges 8 times.

    Where it has maps its answer is them: red is the depth, green the sketch, blue what is kept around a hole.
    """

    def __init__(self, role="student", delay=0.0, words=WORDS, name="fake", tasks=TASKS):
        self.info = ModelInfo(name, role, tasks, 2.5, 8, "f" * 64, words)
        self.schedule, self.device, self.dtype = Schedule(), torch.device("cpu"), torch.float32
        self.delay, self.calls, self.prompts = delay, [], []

    def encode_text(self, prompts):
        self.prompts.append(list(prompts))
        return torch.tensor([[[float(len(prompt))]] for prompt in prompts])

    def latent_shape(self, frames, height, width):
        return (3, frames, height // CELL, width // CELL)

    def encode(self, pixels):
        return torch.nn.functional.avg_pool3d(pixels, (1, CELL, CELL))

    def decode(self, latents, frames):
        return latents.repeat_interleave(CELL, 3).repeat_interleave(CELL, 4)[:, :, :frames]

    def preview(self, latents, frames):
        return ((latents[0, :, :frames] + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).numpy()

    def denoise(self, x_t, t, cond):
        time.sleep(self.delay)
        self.calls.append((len(x_t), int(t[0])))
        x0 = moving_square(x_t.shape[1:]).expand_as(x_t).clone()
        for channel, found in enumerate((cond.depth, cond.sketch, cond.masked)):
            if found is not None:
                x0[:, channel] = self.encode(2 * found[:, -1:] - 1)[:, 0]
        return x0


@pytest.fixture
def model():
    return FakeModel()


@pytest.fixture
def teacher():
    return FakeModel("teacher")


@pytest.fixture
def light(monkeypatch):
    """Sketches by canny, which needs no network, where nobody chose."""
    from videolcm import conditions

    left = {name: row for name, row in conditions.EXTRACTORS.items() if name not in ("hed", "hed-fast", "pidinet")}
    monkeypatch.setattr(conditions, "EXTRACTORS", left)  # a whole one, for the order of its rows is the order of choice


@pytest.fixture
def pretend(monkeypatch):
    """Tensors without values on a device that is not there: operations on two devices fail as on a real one. Checks of values pass."""
    for name, answer in {"any": False, "all": True, "tolist": [999, 499], "item": 1.0, "__bool__": True, "__int__": 0}.items():
        monkeypatch.setattr(FakeTensor, name, lambda self, *_, answer=answer, **__: answer, raising=False)  # tolist: the timesteps of LCM
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        mode.cache_enabled = False  # of what operations gave before, also in other tests: it has crashed the interpreter
        yield


@pytest.fixture
def tidy(tmp_path, monkeypatch):
    """A temporary folder of the test's own, which must be empty afterwards; and time enough on a busy machine."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(footage, "LIMITS", replace(footage.LIMITS, wall=600.0))
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The bytes of a video and of a picture."""
    folder = tmp_path_factory.mktemp("made")
    return {kind: make(folder / f"clip.{kind}", corners(frames)).read_bytes() for kind, frames in (("mp4", 16), ("png", 1))}
