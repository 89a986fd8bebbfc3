import pytest

from alignment import files


def test_rows_come_back_whatever_their_text(tmp_path):
    rows = [{"prompt": "a\u2028b\u2029c\x85d\r\ne"}, {"prompt": "é", "n": 1}]
    files.write_rows(tmp_path / "deep/rows.jsonl", rows)
    assert files.read_rows(tmp_path / "deep/rows.jsonl") == rows


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    files.write(path, lambda f: f.write(b"old"))

    def fail(f):
        f.write(b"new")
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        files.write(path, fail)
    assert path.read_bytes() == b"old"


def test_two_writers_of_one_name_share_no_temporary_file(tmp_path):
    path = tmp_path / "file"
    with files.replacing(path) as first, files.replacing(path) as second:
        first.write(b"one")
        second.write(b"two")
    assert path.read_bytes() == b"one"  # the last to end
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "out"

    def replace(name, error=None):
        with files.replacing_folder(folder) as unfinished:
            (unfinished / name).write_text(name)
            if error is not None:
                raise error

    replace("old")
    with pytest.raises(RuntimeError):
        replace("new", RuntimeError())
    assert [p.name for p in folder.iterdir()] == ["old"]
    replace("new")
    assert [p.name for p in folder.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
