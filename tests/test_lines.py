"""JSON lines that grow: what was written whole is read again, whatever cut the rest."""

import pytest

from videolcm.errors import AppError
from videolcm.lines import add_lines, read_lines


def test_lines_are_read_as_they_were_added(tmp_path):
    path = tmp_path / "a.jsonl"
    assert read_lines(path) == []
    add_lines(path, {"a": 1}, [2, "\n"])
    add_lines(path, None)
    assert read_lines(path) == [{"a": 1}, [2, "\n"], None]


@pytest.mark.parametrize("left", range(1, 12))
def test_a_line_that_was_cut_takes_no_other_with_it(tmp_path, left):
    path = tmp_path / "a.jsonl"
    add_lines(path, "first", {"ab": 12})
    whole = path.read_bytes()
    path.write_bytes(whole[:-left])
    add_lines(path, "third")
    kept = [{"ab": 12}] if left == 1 else []  # then only its end was missing
    assert read_lines(path) == ["first", *kept, "third"]


def test_what_cannot_be_written_is_said(tmp_path):
    with pytest.raises(AppError) as caught:
        add_lines(tmp_path, "a folder")
    assert caught.value.code == "E_DISK"
