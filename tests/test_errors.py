"""Sentences: of whatever they are given they show one short line, and codes that no other test asks for are produced here."""

import pickle
import string
from argparse import Namespace
from pathlib import Path

import pytest
from filelock import FileLock
from test_training import stage

from videolcm import jobs
from videolcm.errors import CATALOGUE, AppError, one_line
from videolcm.jobs import Worker, work
from videolcm.own_files import shard
from videolcm.train_verbs import run_pretrain, train_and_report
from videolcm.training import train


def refused(code, function, *arguments, **named):
    with pytest.raises(AppError) as error:
        function(*arguments, **named)
    assert error.value.code == code and "\n" not in str(error.value) and len(str(error.value)) < 200
    return str(error.value)


@pytest.mark.parametrize(
    "given",
    [10**5000, -(10**5000), float("nan"), "x" * 10**6, "a\n\x1b[31m\0", ["deep"] * 999, Path("/secret") / ("y" * 300)],
    ids=lambda given: type(given).__name__,
)
def test_whatever_is_given_is_one_short_line(given):
    text = str(AppError("E_JOB", given=given))
    assert len(text) < 150 and text.isprintable() and "secret" not in text
    assert len(one_line(given)) <= 60


@pytest.mark.parametrize("code", CATALOGUE)
def test_no_sentence_is_too_long_whatever_it_is_given(code):
    names = {name: spec for _, name, spec, _ in string.Formatter().parse(" ".join(CATALOGUE[code])) if name}
    for given in ("w" * 999, Path("/secret") / ("y" * 300), 10**5000):
        error = AppError(code, **{name: 33_177_600 if spec else given for name, spec in names.items()})
        assert len(str(error)) < 200 and str(error) == f"[{code}] {error.message} {error.hint}" and error.hint
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_what_was_given_is_cut_before_what_is_known():
    text = str(AppError("E_TASK", given="g" * 60, known="k" * 110))
    assert "k" * 107 in text and "g" * 15 in text and len(text) == 199


def test_a_number_keeps_its_commas():
    assert "100,000 characters" in str(AppError("E_PROMPT_LONG", given=100_000, limit=512))


def test_no_such_stage():
    assert "codec" in refused("E_STAGE", run_pretrain, Namespace(stage="poet"))


def test_a_shard_that_is_no_tar(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar" * 999)
    (sample,) = shard(tmp_path / "a.tar")
    assert "a.tar" in refused("E_SHARD", next(value for value in vars(sample).values() if callable(value)))


def test_a_run_without_iterations_left(tmp_path, monkeypatch):
    monkeypatch.setattr("videolcm.train_verbs.signal.signal", lambda *_: None)
    list(train(stage(), tmp_path))
    refused("E_DONE", train_and_report, stage(), tmp_path, Namespace(resume=True, minutes=None))


def test_a_job_that_another_process_does(tmp_path, monkeypatch):
    with FileLock(tmp_path / "alive.lock", thread_local=False):
        monkeypatch.setattr(jobs, "FileLock", Impatient)
        refused("E_JOB_FOLDER", work, tmp_path, lambda worker: {})
    assert Worker(tmp_path).wish is None


class Impatient(FileLock):
    """Waits for nobody."""

    def acquire(self, *args, **named):
        return super().acquire(timeout=0)
