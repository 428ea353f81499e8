"""The bench's tables on a model with known answers: what is in them, never how fast it was."""

import pytest
import torch
from conftest import FakeModel

from videolcm import bench
from videolcm.models.toybox import Denoiser, DenoiserConfig


@pytest.fixture
def small(monkeypatch):
    """Two small sizes, and a machine whose peak is known."""
    monkeypatch.setattr(bench, "TABLE_SIZES", ((128, 128), (128, 160)))
    monkeypatch.setattr(bench, "matmul_peak", lambda dtype: 100.0)
    monkeypatch.setattr(bench, "operations", lambda model, size: 1e6)
    return FakeModel("student"), FakeModel("teacher")


def test_a_batch_is_timed_by_stage(small):
    seconds = bench.batch_seconds(small[0], 2, "lcm", (128, 160), frames=8, count=3)
    assert seconds["total"] == pytest.approx(sum(value for stage, value in seconds.items() if stage != "total"))
    assert all(seconds[stage] > 0 for stage in ("text", "denoise", "decode", "write")) and seconds["conditions"] == 0
    assert len(small[0].calls) == 2


def test_table_1_has_every_size_and_sampler(small):
    heard = []
    rows = bench.table_1(*small, heard.append, rounds=1)
    assert [(row["size"], row["clips"]) for row in rows[:5]] == [
        ("128x128", name) for name in ("teacher, DDIM 50", "student, LCM 8", "student, LCM 4", "student, LCM 2", "student, LCM 1")
    ]
    assert {row["size"] for row in rows[5:]} == {"160x128"} and len(heard) == len(rows) == 10
    assert rows[0]["speed_up"] == 1.0 and rows[0]["total"] >= rows[0]["denoise"] > 0
    lines = bench.table_of(rows).splitlines()
    assert len(lines) == 12 and len({line.count("|") for line in lines}) == 1


def test_growth_begins_at_one(small):
    found = bench.growth(small[0], lambda line: None, rounds=1)
    assert found["frames"][16] == found["clips"][1] == 1.0 and list(found["frames"]) == [16, 32, 64] and list(found["clips"]) == [1, 2, 4, 8]


def test_operations_are_those_of_one_call():
    """A denoiser of twice the depth needs more; a clip of twice the area about twice as many."""

    class Model:
        device = torch.device("cpu")

        def __init__(self, depth):
            self.net = Denoiser(DenoiserConfig(depth=depth, width=64, stem=16, fine=8, backdrop=32))

        def encode_text(self, prompts):
            return torch.zeros(len(prompts), 3, 192)

        def latent_shape(self, frames, height, width):
            return (48, frames // 4, height // 16, width // 16)

        def denoise(self, x_t, t, cond):
            return self.net(x_t, t, cond)

    one = bench.operations(Model(2), (128, 128))
    assert one > 1e7 and bench.operations(Model(4), (128, 128)) > one
    assert 1.9 < bench.operations(Model(2), (128, 256)) / one < 2.2
