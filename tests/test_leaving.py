"""How the page ends: fine-tunes save, what it started is ended, what others started goes on; a folder that is not there is a sentence."""

import subprocess
import sys

import pytest

import app
from videolcm import jobs as fine_tunes
from videolcm import ui
from videolcm.errors import AppError
from videolcm.lease import Lease

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


class Jobs:
    closed = False

    def close(self):
        self.closed = True


@pytest.mark.parametrize("ends", [SystemExit, KeyboardInterrupt, RuntimeError, None])
def test_no_child_stays_behind(monkeypatch, ends):
    monkeypatch.setattr(app.signal, "signal", lambda *_: None)
    before, jobs = subprocess.Popen(SLEEP), Jobs()
    try:
        with pytest.raises(ends) if ends else app.contextlib.nullcontext(), app.no_child_behind(jobs):
            mine = subprocess.Popen(SLEEP)
            if ends:
                raise ends
        assert jobs.closed and mine.wait(60) != 0 and before.poll() is None
    finally:
        before.kill()
        before.wait()


def test_fine_tunes_need_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AppError, match=r"\[E_FOLDER\] The folder for fine-tunes cannot be written to. Choose another with VIDEOLCM_JOBS."):
        Lease(tmp_path / "file" / "jobs")


def test_a_page_that_cannot_reach_itself(tmp_path, monkeypatch):
    def launch(*_, **__):
        raise ValueError("When localhost is not accessible, a shareable link must be created.")

    monkeypatch.setenv("VIDEOLCM_CLIPS", str(tmp_path / "clips"))
    monkeypatch.setattr(ui, "launch", launch)
    with pytest.raises(AppError, match=r"\[E_LOCALHOST\].*NO_PROXY"):
        app.serve(app.read_arguments([]), str(tmp_path), fine_tunes.Jobs(tmp_path / "jobs"))
