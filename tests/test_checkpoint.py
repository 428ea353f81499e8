"""What is on disk is whole or not there: damaged bytes, leftovers, writes that fail."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import randn

from videolcm import checkpoint
from videolcm.checkpoint import KEEP, load_checkpoint, read_weights, remove_leftovers, save_checkpoint, write_atomic, write_json, write_weights
from videolcm.errors import AppError


def save(folder, *steps):
    for step in steps:
        save_checkpoint(folder, step, {"w": randn(step, 4, 3), "n": torch.tensor(step)}, {"threads": step})


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def refused(code, function, *arguments):
    with pytest.raises(AppError) as error:
        function(*arguments)
    assert error.value.code == code
    return str(error.value)


def test_what_was_saved_is_loaded(tmp_path):
    save(tmp_path / "new" / "run", 5)
    step, tensors, state = load_checkpoint(tmp_path / "new" / "run")
    assert step == 5 and state == {"threads": 5} and tensors["n"] == 5
    assert torch.equal(tensors["w"], randn(5, 4, 3))


@pytest.mark.parametrize("at", [20, -1])
def test_a_flipped_byte_is_noticed_and_the_one_before_is_used(tmp_path, at):
    save(tmp_path, 1, 2)
    flip(tmp_path / "step-00000002.safetensors", at)
    step, tensors, _ = load_checkpoint(tmp_path)
    assert step == 1 and torch.equal(tensors["w"], randn(1, 4, 3))
    flip(tmp_path / "step-00000001.safetensors", at)
    refused("E_CHECKPOINT", load_checkpoint, tmp_path)


def test_leftovers_are_removed(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".step-00000002.safetensors.77.tmp").write_bytes(b"half")
    (tmp_path / "log.jsonl").write_text("{}\n")
    (tmp_path / ".tmpA1b2C3").write_bytes(b"safetensors' own")
    (tmp_path / "step-00000002.safetensors").write_bytes(b"weights whose manifest was never written")
    remove_leftovers(tmp_path)
    assert load_checkpoint(tmp_path)[0] == 1
    assert names(tmp_path) == ["log.jsonl", "step-00000001.json", "step-00000001.safetensors"]


def test_only_the_newest_stay(tmp_path):
    save(tmp_path, 8, 9, 10, 11)
    kept = (8, 9, 10, 11)[-KEEP:]
    assert names(tmp_path) == sorted(f"step-{step:08d}.{end}" for step in kept for end in ("json", "safetensors"))
    assert load_checkpoint(tmp_path)[0] == 11


def test_nothing_to_resume(tmp_path):
    assert "there" in refused("E_NO_CHECKPOINT", load_checkpoint, tmp_path / "there")
    (tmp_path / "step-00000001.safetensors").write_bytes(b"weights whose manifest was never written")
    refused("E_NO_CHECKPOINT", load_checkpoint, tmp_path)


def test_a_manifest_without_its_weights_is_skipped(tmp_path):
    save(tmp_path, 1, 2)
    (tmp_path / "step-00000002.safetensors").unlink()
    assert load_checkpoint(tmp_path)[0] == 1


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    before = path.read_bytes()

    def broken(temporary):
        temporary.write_text("half")
        assert temporary.exists() and temporary.parent == tmp_path
        raise OSError("disk full")

    assert "value.json" in refused("E_DISK", write_atomic, path, broken)
    assert path.read_bytes() == before and names(tmp_path) == ["value.json"]


@pytest.mark.parametrize("owner, name", [("checkpoint", "save_file"), ("os", "fsync"), ("os", "replace"), ("Path", "write_text")])
def test_a_save_that_fails_leaves_the_checkpoint_before(tmp_path, monkeypatch, owner, name):
    def broken(*arguments, **named):
        raise OSError("disk full")

    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr({"checkpoint": checkpoint, "os": os, "Path": Path}[owner], name, broken)
        refused("E_DISK", save, tmp_path, 2)
    assert load_checkpoint(tmp_path)[0] == 1 and not list(tmp_path.glob(".*"))
    save(tmp_path, 2)
    assert load_checkpoint(tmp_path)[0] == 2


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit on the size of files here")
def test_a_disk_that_is_really_full(tmp_path):
    """A limit on the size of files, which writes meet as they meet a full disk."""
    code = """
import resource, signal, sys, torch
from videolcm.checkpoint import save_checkpoint
save_checkpoint(sys.argv[1], 1, {"w": torch.zeros(9)}, {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
save_checkpoint(sys.argv[1], 2, {"w": torch.zeros(9999)}, {})
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert "[E_DISK] The disk is full" in done.stderr
    remove_leftovers(tmp_path)
    assert load_checkpoint(tmp_path)[0] == 1 and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"step": 1, "sha256": "x", "state": {}}', '{"step": "2", "sha256": 0, "state": {}}', "\x00\xff"]
)
def test_a_broken_manifest_is_passed_over_and_said(tmp_path, caplog, text):
    save(tmp_path, 1, 2)
    (tmp_path / "step-00000002.json").write_text(text)
    assert load_checkpoint(tmp_path)[0] == 1
    assert "step-00000002 is damaged" in caplog.text


def test_a_run_that_starts_anew_drops_the_later_checkpoints_of_another(tmp_path):
    save(tmp_path, 50, 60, 10)
    assert load_checkpoint(tmp_path)[0] == 10 and len(list(tmp_path.iterdir())) == 2


def test_weights_are_read_only_with_their_sha256(tmp_path):
    path, view = tmp_path / "w.safetensors", randn(0, 4, 3).t()
    sha256 = write_weights(path, {"w": view.requires_grad_()})
    assert torch.equal(read_weights(path, sha256)["w"], view)
    flip(path)
    assert path.name in refused("E_CHECKPOINT", read_weights, path, sha256)
    path.unlink()
    assert path.name in refused("E_MODEL_FILE", read_weights, path, sha256)


def test_a_state_that_was_changed_is_noticed_and_an_older_manifest_read(tmp_path):
    save(tmp_path, 1, 2)
    manifest = tmp_path / "step-00000002.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"threads": 2', '"threads": 3'))
    assert load_checkpoint(tmp_path)[2] == {"threads": 1}
    older = json.loads(text)
    del older["check"]
    manifest.write_text(json.dumps(older))
    assert load_checkpoint(tmp_path)[2] == {"threads": 2}
