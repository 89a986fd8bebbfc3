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
