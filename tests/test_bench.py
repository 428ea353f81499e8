"""The bench's tables on a model with known answers: what is in them, never how fast it was."""

import pytest
import torch
from conftest import FakeModel

from videolcm import bench
from videolcm.conditions import EXTRACTORS
from videolcm.models.denoiser import Denoiser, DenoiserConfig


@pytest.fixture
def small(monkeypatch):
    """Two small sizes, and a machine whose peak is known."""
    monkeypatch.setattr(bench, "TABLE_SIZES", ((128, 128), (128, 160)))
    monkeypatch.setattr(bench, "matmul_peak", lambda dtype, device: 100.0)
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
    assert all(0 < row["share_decode_and_write"] <= 1 for row in rows)
    lines = bench.table_of(rows).splitlines()
    assert len(lines) == 12 and len({line.count("|") for line in lines}) == 1


def test_medians_are_of_runs_in_turn():
    order, answers = [], {"a": iter((5, 1, 3)), "b": iter((7,))}

    def run(name):
        order.append(name)
        return {"total": next(answers[name])}

    heard = []
    assert bench.medians({"a": lambda: run("a"), "b": (lambda: run("b"), 1)}, 3, heard.append) == {"a": {"total": 3}, "b": {"total": 7}}
    assert order == ["a", "b", "a", "a"] and heard[:2] == ["a, round 1 of 3", "b, round 1 of 1"]


def test_one_and_eight_clips_are_timed_by_the_same_means(small):
    one, eight = bench.one_clip(*small, rounds=1), bench.eight_clips(*small, rounds=1)
    assert one["seconds_4_steps"]["write"] > 0 and 0 < one["share_decode_and_write"] <= 1 and one["speed_up_one_clip"] > 0
    assert set(eight) == {"seconds_eight_lcm4", "seconds_eight_ddim50", "speed_up_eight_clips"}
    assert [len(model.calls) for model in small] == [4 + 4 + 4, 50 + 50]


def test_maps_are_made_anew_every_time(small, monkeypatch):
    seen = []

    def look(frames, device, dtype):
        seen.append((frames.shape, dtype))
        return frames[..., 0] / 255

    monkeypatch.setitem(EXTRACTORS, "hed", EXTRACTORS["hed"]._replace(function=look))
    assert bench.extraction(small[0], 2, ("hed",))["hed"] >= 0 and seen == [((16, 256, 256, 3), torch.float32)] * 3


def test_diffusers_runs_the_same_network_on_the_same_timesteps(monkeypatch):
    asked = []

    def forward(self, x, t, y):
        asked.append(int(t[0]))
        return x

    monkeypatch.setattr("videolcm.models.vgen.VideoUNet.forward", forward)
    assert bench.beside_diffusers(rounds=1, shape=(4, 2, 4, 4)) > 0
    assert asked[:4] == asked[4:] == [999, 759, 499, 259]


def test_growth_begins_at_one(small):
    found = bench.growth(small[0], lambda line: None, rounds=1)
    assert found["frames"][16] == found["clips"][1] == 1.0 and list(found["frames"]) == [16, 32, 64] and list(found["clips"]) == [1, 2, 4, 8]


def test_operations_are_those_of_one_call():
    """A denoiser of twice the depth needs more; a clip of twice the area about twice as many."""

    class Model:
        device = torch.device("cpu")

        def __init__(self, depth):
            self.net = Denoiser(DenoiserConfig(depth=depth, width=64, heads=4, hidden=256, stem=16, fine=8, backdrop=32))

        def encode_text(self, prompts):
            return torch.zeros(len(prompts), 3, 192)

        def latent_shape(self, frames, height, width):
            return (48, frames // 4, height // 16, width // 16)

        def denoise(self, x_t, t, cond):
            return self.net(x_t, t, cond)

    one = bench.operations(Model(2), (128, 128))
    assert one > 1e7 and bench.operations(Model(4), (128, 128)) > one
    assert 1.9 < bench.operations(Model(2), (128, 256)) / one < 2.2
