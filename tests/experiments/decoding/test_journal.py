import json

import pytest

from alignment.errors import InputError
from experiments.decoding.journal import ROWS, UNSORTED, Journal, take_over

KEYS = [(0, 0), (0, 1), (1, 0), (2, 0)]


def opened(folder, **made_from):
    return Journal(folder, made_from or {"weights": "w"}, KEYS)


def add(journal, *keys):
    for prompt, sample in keys:
        row = {"id": prompt, "response": f"«{prompt}»\u2028\n" * (1 + 9_000 * sample)}
        journal.add((prompt, sample), row, more={"extra": sample}, seconds=prompt + 0.5)


def ended(journal):
    journal.sort()
    rows = [(key, row["id"], more) for key, row, more in journal.entries()]
    journal.close()
    return rows


def test_rows_come_out_in_the_order_of_the_keys_whatever_order_they_came_in(tmp_path):
    for name, order in (("a", KEYS), ("b", KEYS[::-1])):
        journal = opened(tmp_path_of(tmp_path, name))
        add(journal, *order)
        assert [key for key, _, _ in ended(journal)] == KEYS
    assert (tmp_path / "a" / ROWS).read_bytes() == (tmp_path / "b" / ROWS).read_bytes()
    assert not (tmp_path / "a" / UNSORTED).exists()


def tmp_path_of(folder, name):
    (folder / name).mkdir()
    return folder / name


def test_a_start_after_a_kill_keeps_all_whole_rows_and_drops_a_torn_one(tmp_path):
    add(opened(tmp_path), (2, 0), (0, 1))
    whole = (tmp_path / UNSORTED).read_bytes()
    for torn in (b"[[1, 0], 0.5, {", b"[[1, 0], 0.5, {}, {}]", b"\0\0\0\n", b"[[7, 0], 0.5, {}, {}]\n"):
        (tmp_path / UNSORTED).write_bytes(whole + torn)
        journal = opened(tmp_path)
        assert len(journal) == 2 and (2, 0) in journal and (1, 0) not in journal and journal.seconds == 0.5
        assert (tmp_path / UNSORTED).read_bytes() == whole
    add(journal, (1, 0), (0, 0))
    assert [key for key, _, _ in ended(journal)] == KEYS


def test_a_kill_before_and_after_sorting_loses_nothing(tmp_path):
    journal = opened(tmp_path)
    add(journal, *KEYS)
    again = opened(tmp_path)  # killed before the rows were sorted
    assert len(again) == 4
    again.sort()
    content = (tmp_path / ROWS).read_bytes()
    third = opened(tmp_path)  # killed after that, before the unsorted rows were removed
    assert len(third) == 4 and [more["extra"] for _, _, more in third.entries()] == [0, 1, 0, 0]
    third.close()
    fourth = opened(tmp_path)  # killed once all was written
    assert len(fourth) == 4 and all(key in fourth for key in KEYS)
    assert [row["id"] for _, row, _ in fourth.entries()] == [0, 0, 1, 2]
    fourth.sort()
    assert (tmp_path / ROWS).read_bytes() == content and len(content.splitlines()) >= 4
    assert [json.loads(line)["id"] for line in content.decode().split("\n")[:-1]] == [0, 0, 1, 2]


def test_answers_of_other_weights_or_prompts_are_not_mixed(tmp_path):
    opened(tmp_path, weights="w", prompts="p")
    with pytest.raises(InputError, match="made from other prompts; answer anew in another --workdir"):
        opened(tmp_path, weights="w", prompts="q")


def test_the_answers_of_another_run_are_taken_over_where_they_are_of_the_same_weights_and_prompts(tmp_path):
    source, made_from = tmp_path / "source", {"weights": "w"}
    source.mkdir()
    journal = opened(source)
    add(journal, *KEYS)
    with pytest.raises(InputError, match=f"has no {ROWS}"):
        take_over(tmp_path / "new", source, made_from)
    rows = ended(journal)
    with pytest.raises(InputError, match="made from other weights than this run has"):
        take_over(tmp_path / "new", source, {"weights": "others"})
    assert not (tmp_path / "new").exists()
    take_over(tmp_path / "new", source, made_from)
    new = opened(tmp_path / "new")
    assert all(key in new for key in KEYS) and (tmp_path / "new" / ROWS).read_bytes() == (source / ROWS).read_bytes()
    assert [name for _, name, _ in ended(new)] == [name for _, name, _ in rows]


def test_a_folder_that_has_begun_to_answer_takes_nothing_over(tmp_path):
    folders = [tmp_path / name for name in ("source", "own")]
    for folder in folders:
        folder.mkdir()
        journal = opened(folder)
        add(journal, *KEYS[: 4 if folder.name == "source" else 1])
        if folder.name == "source":
            ended(journal)
    take_over(folders[1], folders[0], {"weights": "w"})
    assert not (folders[1] / ROWS).exists() and len(opened(folders[1])) == 1
