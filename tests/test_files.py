import pathlib

import pytest

from alignment import files
from alignment.errors import InputError


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


def test_a_folder_that_cannot_take_its_name_leaves_the_old_one_in_place(tmp_path, monkeypatch):
    with files.replacing_folder(tmp_path / "out") as unfinished:
        (unfinished / "old").touch()
    rename = pathlib.Path.rename

    def fails(path, target):
        if path.suffix == ".unfinished":
            raise OSError("disk")
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", fails)
    with pytest.raises(OSError, match="disk"), files.replacing_folder(tmp_path / "out"):
        pass
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["out", "out/old"]


def test_a_sweep_between_a_temporary_file_and_its_lock_costs_no_write(tmp_path, monkeypatch):
    lock, num_locks = files._lock, iter(range(9))

    def swept(file, *, is_old):
        number = next(num_locks)
        if number == 0:  # the sweep has removed the file
            pathlib.Path(file.name).unlink()
        return number != 1 and lock(file, is_old=is_old)  # the second time the sweep holds the lock

    monkeypatch.setattr(files, "_lock", swept)
    files.write(tmp_path / "file", lambda f: f.write(b"new"))
    assert (tmp_path / "file").read_bytes() == b"new" and next(num_locks) == 3


@pytest.mark.parametrize("size", [0, 1, 7, 8, 20])
def test_blocks_are_a_files_content_in_its_order(tmp_path, size):
    content = bytes(range(size))
    (tmp_path / "file").write_bytes(content)
    parts = [bytes(block) for block in files.blocks(tmp_path / "file", 8)]
    assert b"".join(parts) == content and all(len(part) == 8 for part in parts[:-1])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read .*; fetch it again"),
        (b"", "is not a JSON object"),
        (b'{"a": 1', "is not a JSON object"),
        (b"[1]", "is not a JSON object; fetch it again"),
        (b'{"a": "\xff"}', "is not a JSON object"),
    ],
)
def test_what_is_not_the_object_of_a_json_file_is_refused(content, said, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_object(path) == {"a": 1}
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        files.read_object(path)
    with pytest.raises(InputError, match="remove it to have its part of the run done again"):
        files.read_note(path)
