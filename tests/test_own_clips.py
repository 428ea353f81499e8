"""A user's own clips: real files with captions, bad ones, shards, the cache, pictures in a batch, and runs on them."""

import io
import json
import signal
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from conftest import wait_for
from test_browser import PATIENCE, browser  # noqa: F401  the fixture

from videolcm import __main__ as command_line
from videolcm import conditions, footage
from videolcm.data import conditions as batch_conditions
from videolcm.errors import AppError
from videolcm.footage import read_video
from videolcm.jobs import Jobs
from videolcm.knobs import Knobs
from videolcm.optim import MuonAdamW
from videolcm.own_clips import OwnClips, Row, begun_with, followed, own_clips
from videolcm.own_files import captioned, samples, suggest

BROKEN = b"\0\0\0\x18ftypmp42" + bytes(range(200))


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr(footage, "LIMITS", replace(footage.LIMITS, wall=600.0))


@pytest.fixture
def folder(tmp_path, made):
    """A video whose name is its caption, a picture with one beside it, and two files that are no clips."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "red-ball_rolls (2).mp4").write_bytes(made["mp4"])
    (mine / "b.png").write_bytes(made["png"])
    (mine / "b.txt").write_text("\ufeffa blue cube\n on  grass\n", encoding="utf-8")
    (mine / "broken.mp4").write_bytes(BROKEN)
    (mine / "notes.doc").write_bytes(b"no clip")
    (mine / ".hidden").write_bytes(b"")
    return mine


def gathered(folder, cache, teacher=None, **options):
    lines = []
    return own_clips(folder, teacher or tiny.toybox("teacher"), cache, lines.append, **options), lines


def refused(code, function, *arguments, **options):
    with pytest.raises(AppError) as error:
        function(*arguments, **options)
    assert error.value.code == code
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("red-ball_rolls.mp4", "red ball rolls"),
        ("/a/b/2 red balls (1).mp4", "2 red balls"),
        ("Öl.am.Strand.webm", "Öl am Strand"),
        ("0001", ""),
        ("x" * 600, "x" * 512),
        ("a\nb\x1b[0m.png", "a b 0m"),
    ],
)
def test_a_caption_is_suggested_from_a_name(name, caption):
    assert suggest(name) == caption


def test_a_folder_of_files(folder, tmp_path):
    clips, lines = gathered(folder, tmp_path / "cache", conditions=("text", "masked"))
    assert len(clips) == 2 and [clips.caption(i, None) for i in range(2)] == ["a blue cube on grass", "red ball rolls"]
    assert clips.skipped == (
        "broken.mp4: The file cannot be decoded: it is damaged, cut short or unusual.",
        "notes.doc: The file is neither a video nor a picture that is read here.",
    )
    assert [line.split(":")[0] for line in lines] == ["read b.png", "skipped broken.mp4", "skipped notes.doc", "read red-ball_rolls (2).mp4"]
    expected = read_video(folder / "red-ball_rolls (2).mp4").frames
    latents = tiny.toybox().encode(torch.from_numpy(expected).permute(3, 0, 1, 2)[None].float() / 127.5 - 1)[0]
    assert torch.equal(clips.arrays["latents"][1], latents.half()) and clips.arrays["latents"].shape == (2, 4, 4, 16, 16)
    middle = clips.arrays["rgb"][1][:, 32, 32, 0].float()
    assert abs(middle - torch.linspace(40, 200, 16)).max() < 12 and (clips.arrays["rgb"][0] == clips.arrays["rgb"][0][:1]).all()
    shapes = {name: (2, 16, 64, 64, *more) for name, more in (("depth", ()), ("edges", ()), ("ids", ()), ("rgb", (3,)))}
    assert {name: tuple(value.shape) for name, value in clips.arrays.items() if name != "latents"} == shapes
    assert not any(clips.arrays[name].any() for name in ("depth", "edges", "ids"))
    cond = batch_conditions(clips, torch.tensor([1, 0, 1]), lambda texts: texts, torch.Generator().manual_seed(0), np.random.default_rng(0), 0.0, 0.0)
    assert cond.context == ["red ball rolls", "a blue cube on grass", "red ball rolls"] and cond.masked.shape == (3, 4, 16, 64, 64)


def test_what_is_made_of_a_content_is_made_once(folder, tmp_path, light, monkeypatch):
    first, _ = gathered(folder, tmp_path / "cache", conditions=("text", "sketch"))
    assert first.arrays["edges"].any() and not first.arrays["rgb"].any()
    (folder / "b.png").rename(folder / "z.png")
    (folder / "b.txt").unlink()

    def again(*_):
        raise AssertionError("made twice")

    monkeypatch.setattr("videolcm.own_clips.extract", again)
    teacher = tiny.toybox("teacher")
    teacher.encode = again
    (tmp_path / "cache" / "other.safetensors").write_bytes(b"not one of ours")
    second, _ = gathered(folder, tmp_path / "cache", teacher, conditions=("text", "sketch"))
    assert [second.caption(i, None) for i in range(2)] == ["red ball rolls", "z"]
    for name in ("latents", "edges"):
        assert torch.equal(second.arrays[name], first.arrays[name].flip(0))
    teacher.codec.basis.neg_()  # another encoder
    with pytest.raises(AssertionError, match="made twice"):
        gathered(folder, tmp_path / "cache", teacher)


def test_a_damaged_file_of_the_cache_is_made_again(folder, tmp_path):
    first, _ = gathered(folder, tmp_path / "cache")
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    again, _ = gathered(folder, tmp_path / "cache")
    assert torch.equal(again.arrays["latents"], first.arrays["latents"])


def test_a_condition_that_no_extractor_makes_is_left_out(monkeypatch):
    rows, lines = conditions.EXTRACTORS, []
    for name in ("midas", "builtin-depth"):
        monkeypatch.setitem(rows, name, rows[name]._replace(ready=lambda: False))
    assert followed(("text", "depth", "sketch"), lines.append) == ("text", "sketch") and lines[0].startswith("depth is left out")
    assert "text, sketch, masked, not depth" in refused("E_CONDITIONS", followed, ("depth",), lines.append)
    monkeypatch.setitem(rows, "midas", rows["midas"]._replace(ready=lambda: True))
    assert followed(("text", "depth"), lines.append) == ("text", "depth")


def test_nothing_to_train_on(tmp_path):
    refused("E_DATA", gathered, tmp_path / "nowhere", tmp_path / "cache")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("E_DATA", gathered, empty, tmp_path / "cache")
    (empty / "a.mp4").write_bytes(BROKEN)
    assert "None of the 1 files in empty" in refused("E_CLIPS", gathered, empty, tmp_path / "cache")


def test_what_concerns_every_file_is_fatal(folder, tmp_path, monkeypatch):
    def without(*_):
        raise AppError("E_FFMPEG")

    monkeypatch.setattr("videolcm.own_clips.read_video", without)
    refused("E_FFMPEG", gathered, folder, tmp_path / "cache")


# ---- shards


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("link.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


def test_shards_with_captions_bad_members_and_a_shard_cut_short(tmp_path, made):
    mine = tmp_path / "mine"
    mine.mkdir()
    files = [("a/1.txt", b"a red ball"), ("a/1.json", b"{}"), ("a/1.mp4", made["mp4"]), ("../../blue-cube.png", made["png"])]
    files += [("bad.mp4", BROKEN), ("alone.txt", b"no clip"), ("mask.seg.png", made["png"]), ("none.gif", b"")]
    whole = write_tar(mine / "s-000.tar", files).read_bytes()
    (mine / "s-001.tar").write_bytes(whole[: whole.index(made["png"]) + 5])  # the first sample of it is whole
    (mine / "s-002.tar").write_bytes(b"no tar")
    before = set(tmp_path.rglob("*"))
    assert [sample.name for sample in samples(mine)][:2] == ["s-000.tar/a/1.mp4", "s-000.tar/../../blue-cube.png"]
    clips, _ = gathered(mine, tmp_path / "cache")
    assert [clips.caption(i, None) for i in range(len(clips))] == ["a red ball", "blue cube", "a red ball"]
    assert [line.split(":")[0] for line in clips.skipped] == ["s-000.tar/bad.mp4", "s-000.tar/none.gif", "s-001.tar", "s-002.tar"]
    assert "cannot be read to its end" in clips.skipped[2]
    assert torch.equal(clips.arrays["latents"][0], clips.arrays["latents"][2]) and len(list((tmp_path / "cache").iterdir())) == 2
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before


def test_a_member_that_is_too_large_is_skipped(tmp_path, made, monkeypatch):
    monkeypatch.setattr("videolcm.own_files.LIMITS", replace(footage.LIMITS, upload=len(made["png"]) + 10))
    write_tar(tmp_path / "s.tar", [("large.mp4", made["mp4"] + bytes(1 << 20)), ("small.png", made["png"])])
    large, small = samples(tmp_path)
    refused("E_VIDEO_LARGE", large.load)
    assert small.load() == made["png"]


# ---- batches


def rows_of(pictures, videos):
    kinds = [True] * pictures + [False] * videos
    return [Row(str(i), f"clip {i}", still, {"latents": torch.zeros(1)}) for i, still in enumerate(kinds)]


def pictures_drawn(clips, count, draws=400):
    """How many pictures each of many batches has; the first `pictures` rows are pictures."""
    g = torch.Generator().manual_seed(3)
    return torch.tensor([sum(clips.rows[i].still for i in clips.draw(count, g)) for _ in range(draws)]).float()


@pytest.mark.parametrize(("images", "count", "least", "most", "mean"), [(None, 8, 2, 2, 2), (0.3, 2, 0, 1, 0.6), (0, 4, 0, 0, 0), (1, 4, 4, 4, 4)])
def test_pictures_have_their_share_of_a_batch(images, count, least, most, mean):
    drawn = pictures_drawn(OwnClips(rows_of(3, 5), images), count)
    assert drawn.min() == least and drawn.max() == most and abs(drawn.mean() - mean) < 0.1


def test_one_kind_alone_fills_the_batch_and_places_are_even():
    assert pictures_drawn(OwnClips(rows_of(3, 0), 0.1), 4, 20).tolist() == [4] * 20
    assert pictures_drawn(OwnClips(rows_of(0, 3), 0.9), 4, 20).tolist() == [0] * 20
    clips, g = OwnClips(rows_of(3, 5), 0.5), torch.Generator().manual_seed(0)
    batches = torch.stack([clips.draw(4, g) for _ in range(600)])
    assert ((batches < 3).float().mean(0) - 0.5).abs().max() < 0.1 and set(batches.flatten().tolist()) == set(range(8))
    assert torch.equal(clips.draw(4, torch.Generator().manual_seed(9)), clips.draw(4, torch.Generator().manual_seed(9)))


def test_a_run_that_goes_on_keeps_its_clips(tmp_path):
    rows = rows_of(1, 3)
    assert len(begun_with(OwnClips(rows[:3]), tmp_path / "run", resume=True)) == 3  # the list was not there yet
    more = begun_with(OwnClips(rows[::-1]), tmp_path / "run", resume=True)
    assert [row.content for row in more.rows] == ["0", "1", "2"]
    refused("E_CLIPS_CHANGED", begun_with, OwnClips(rows[1:]), tmp_path / "run", True)
    refused("E_CLIPS_CHANGED", begun_with, OwnClips([replace(rows[0], caption="new"), *rows[1:]]), tmp_path / "run", True)
    assert len(begun_with(OwnClips(rows[1:]), tmp_path / "run", resume=False)) == 3


# ---- runs


def test_a_signal_in_the_middle_of_an_update_waits_for_its_end(tmp_path, monkeypatch, capsys):
    teacher, data = tiny.teacher_folder(tmp_path / "tiny"), tiny.data_folder(tmp_path / "data")
    words = f"distill --teacher {teacher} --data {data} --iterations 5 --batch 2 --device cpu --dtype float32"
    own, updates = MuonAdamW.step, []

    def step(self, lr):
        updates.append(lr)
        self.adam.param_groups[0]["lr"] = lr
        self.adam.step()  # half of it
        if len(updates) == 3:
            signal.raise_signal(signal.SIGTERM)
        own(self, lr)

    def losses(out, *more):
        code = command_line.main([*words.split(), "--out", str(tmp_path / out), *more])
        return code, [json.loads(line)["loss"] for line in (tmp_path / out / "log.jsonl").open()]

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(MuonAdamW, "step", step)
    halted = losses("halted")
    assert halted[0] == 130 and len(halted[1]) == 3 and signal.getsignal(signal.SIGTERM) == before
    assert losses("halted", "--resume") == losses("whole") and len(halted[1]) == 3
    capsys.readouterr()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder, and the tiny teacher's."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("VIDEOLCM_JOBS", str(tmp_path / "jobs"))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield str(tiny.teacher_folder(tmp_path / "tiny"))
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_run_on_a_folder_goes_on_bit_for_bit_though_clips_were_added(folder, place, made, light, capsys):
    def distill(out, *more):
        numbers = ["--iterations", "3", "--batch", "2", "--images", "0.5"]
        words = ["--device", "cpu", "--dtype", "float32", "--conditions", "text,sketch,masked", *numbers]
        code = command_line.main(["distill", "--teacher", place, "--data", str(folder), "--out", out, *words, *more])
        return code, capsys.readouterr()

    def losses(out):
        return [json.loads(line)["loss"] for line in Path(out, "log.jsonl").open()]

    code, said = distill("whole")
    assert code == 0 and json.loads(said.out.splitlines()[-1])["iterations"] == 3, said.err
    assert "skipped broken.mp4: The file cannot be decoded" in said.err and "read b.png: a blue cube on grass" in said.err
    assert json.loads(Path("whole/manifest.json").read_text())["distilled"]["conditions"] == ["text", "sketch", "masked"]
    assert distill("halted", "--minutes", "1e-9")[0] == 0 and len(losses("halted")) == 1
    (folder / "a-new-one.png").write_bytes(made["png"] + b"more")
    assert distill("halted", "--resume")[0] == 0
    assert losses("halted") == losses("whole") and len(set(losses("whole"))) == 3
    assert Path("halted/student.safetensors").read_bytes() == Path("whole/student.safetensors").read_bytes()
    (folder / "b.txt").unlink()
    code, said = distill("halted", "--resume", "--iterations", "4")
    assert code == 2 and said.err.splitlines()[-1].startswith("[E_CLIPS_CHANGED]")
    code, said = distill("halted", "--images", "2")
    assert code == 2 and said.err.startswith("[E_NUMBER] images must be")


def test_a_job_on_uploads_says_what_it_skipped(folder, place, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    jobs = Jobs()
    clips = captioned([folder / "broken.mp4", folder / "b.png"], "\na blue cube")
    knobs = Knobs(iterations=2, batch=1, conditions="text,masked", preview_every=None)
    id = jobs.start(knobs, place, clips)
    try:
        wait_for(lambda: jobs.children[id].poll() is not None, 300)
        job = jobs.get(id)
        assert job.state == "DONE", (job.folder / "output.txt").read_text()
        notes = [json.loads(line) for line in (job.folder / "journal.jsonl").open()]
        assert any(note["state"] == "RUNNING" and note["message"].startswith("Skipped 1 of 2 files. 0001: The file cannot") for note in notes)
        assert sorted(path.name for path in (job.folder / "clips").iterdir()) == ["0001", "0001.txt", "0002", "0002.txt"]
        assert [caption for _, caption in json.loads((job.folder / "clips.json").read_text())] == ["a blue cube"]
        jobs.delete(id)
        assert not job.folder.exists()
    finally:
        jobs.children.get(id) and jobs.children[id].stdin.close()
