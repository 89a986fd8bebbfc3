import bz2
import functools
import gzip
import json
import lzma
import os
import tracemalloc
import zlib

import hypothesis
import hypothesis.strategies as st
import orjson
import pytest
import zstandard

from alignment.errors import InputError
from data.corpus import slices

PACK = {
    "": bytes,
    ".gz": functools.partial(gzip.compress, mtime=0),
    ".zst": zstandard.compress,
    ".zstd": zstandard.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}
ROWS = [{"id": f"d{i}", "text": f"row {i} é", "source": "web", "metadata": {"url": f"http://x/{i}"}} for i in range(90)]


def jsonl(rows):
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def read(file, slice_bytes=1 << 20, **options):
    plan = slices.plan(str(file), slice_bytes=slice_bytes)
    return [item for part in plan for item in slices.read(part, **options)]


def save(path, content):
    path.write_bytes(content)
    return path


def reasons(items):
    return [item.reason for item in items if isinstance(item, slices.Bad)]


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".ndjson"])
def test_every_container_gives_the_same_documents(tmp_path, ending, packed):
    assert read(save(tmp_path / f"a{ending}{packed}", PACK[packed](jsonl(ROWS))), 100) == ROWS


LINES = st.lists(
    st.one_of(
        st.text("aé字😀\t", max_size=8).map(lambda t: orjson.dumps({"id": "1", "text": t + "."})),
        st.sampled_from([b"", b" ", b"{", b"\xff", b"\0"]),
    ),
    max_size=12,
)


@hypothesis.given(LINES, st.integers(1, 40), st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.booleans())
@hypothesis.settings(max_examples=150, deadline=None)
def test_slices_of_every_size_concatenate_to_the_file(tmp_path_factory, lines, slice_bytes, end, is_ended, has_bom):
    content = (b"\xef\xbb\xbf" if has_bom else b"") + end.join(lines) + (end if is_ended else b"")
    file = save(tmp_path_factory.getbasetemp() / "cut.jsonl", content)
    bare = [{**vars(i), "line": 0} if isinstance(i, slices.Bad) else i for i in read(file)]
    assert [{**vars(i), "line": 0} if isinstance(i, slices.Bad) else i for i in read(file, slice_bytes)] == bare
    assert len(bare) == sum(bool(line.strip()) for line in lines)  # a slow count
    gzipped = save(tmp_path_factory.getbasetemp() / "cut.jsonl.gz", gzip.compress(content))
    packed = [{**vars(i), "line": 0} if isinstance(i, slices.Bad) else i for i in read(gzipped)]
    assert packed == [{**i, "file": str(gzipped)} if "reason" in i else i for i in bare]


def slow_paragraphs(text):
    """Blocks of lines between blank ones, with the byte offset of each."""
    blocks, block, start, at = [], [], 0, 0
    for line in [*text.split("\n"), ""]:
        if line.strip():
            start = start if block else at
            block.append(line.removesuffix("\r"))
        elif block:
            blocks.append((start, "\n".join(block)))
            block = []
        at += len(line.encode()) + 1
    return blocks


@hypothesis.given(st.text("aé \n\r", max_size=60), st.integers(1, 12))
@hypothesis.settings(max_examples=200, deadline=None)
def test_paragraphs_of_every_slicing_are_the_blocks_between_blank_lines(tmp_path_factory, text, slice_bytes):
    file = save(tmp_path_factory.getbasetemp() / "cut.txt", text.encode())
    items = read(file, slice_bytes, text_unit="paragraphs")
    assert [(d["id"], d["text"]) for d in items] == [(f"cut.txt:{at}", block) for at, block in slow_paragraphs(text)]


def test_lines_of_plain_text_are_documents_named_by_file_and_byte(tmp_path):
    (tmp_path / "web").mkdir()
    file = save(tmp_path / "web" / "a.txt", "\ufeffeins é\r\n\n  \nzwei".encode())
    expected = [("a.txt:0", "eins é"), ("a.txt:16", "zwei")]
    for size in (1, 5, 100):
        items = read(file, size)
        assert [(d["id"], d["text"]) for d in items] == expected
        assert all(d["source"] == "web" and d["metadata"] == {} for d in items)


def test_ids_made_of_places_name_files_below_the_folder_of_all_inputs(tmp_path):
    for name in ("a/x.jsonl", "b/x.jsonl"):
        (tmp_path / name).parent.mkdir()
        save(tmp_path / name, b'{"text": "t"}\n{"text": "u"}\n')
    plan = slices.plan(str(tmp_path))
    ids = [d["id"] for part in plan for d in slices.read(part, columns={"text": "text", "id": ""}, source="s")]
    assert ids == ["a/x.jsonl:0", "a/x.jsonl:14", "b/x.jsonl:0", "b/x.jsonl:14"]


BAD_LINES = {
    b'{"id": "1", "text": "cut': "not JSON",
    b'{"id": "1", "text": "\xff"}': "not UTF-8",
    b'{"id": "1", "text": "a\0b"}': "NUL bytes",
    b'{"id": "1", "text": "a\\u0000b"}': "NUL bytes",
    b'{"id": "1", "text": "\\ud800"}': "half of a surrogate pair",
    b"[1, 2]": "a JSON list, not an object",
    b"3": "a JSON int, not an object",
    b'{"id": "1"}': "no 'text'",
    b'{"id": "1", "text": null}': "no 'text'",
    b'{"id": "1", "text": ""}': "empty text",
    b'{"id": "1", "text": " \\n\\u00a0"}': "empty text",
    b'{"id": "1", "text": 5}': "'text' is not a text: int",
    b'{"text": "t"}': "no 'id'",
    b'{"id": "", "text": "t"}': "no 'id'",
    b'{"id": [1], "text": "t"}': "'id' is neither text nor number: list",
    b'{"id": true, "text": "t"}': "'id' is neither text nor number: bool",
    b'{"id": "1", "text": "' + b"x" * 120 + b'"}': "120 bytes long, more than 100",
    b'{"id": "1", "text": "' + b"x" * 900 + b'"}': "923 bytes long, more than 100",
    b'{"id": "1", "text": "t", "a": NaN, "b": ' + b"9" * 30 + b"}": "a number or nesting that JSON files cannot hold",
}


@pytest.mark.parametrize("slice_bytes", [7, 1 << 20])
def test_bad_lines_are_set_aside_with_their_byte_and_the_rest_is_kept(tmp_path, slice_bytes):
    good = b'{"id": "ok", "text": "fine"}'
    content, expected = b"", []
    for line, reason in BAD_LINES.items():
        content += good + b"\n"
        expected.append((len(content), reason))
        content += line + b"\n"
    file = save(tmp_path / "a.jsonl", content)
    items = read(file, slice_bytes, max_document_bytes=100)
    bad = [item for item in items if isinstance(item, slices.Bad)]
    assert sum(isinstance(item, dict) for item in items) == len(BAD_LINES)
    assert [item.offset for item in bad] == [offset for offset, _ in expected]
    for item, (_, reason) in zip(bad, expected):
        assert item.reason.startswith(reason) and item.file == str(file)


def test_what_cannot_be_written_again_is_set_aside(tmp_path):
    deep = b'{"id": "1", "text": "t", "a": ' + b"[" * 260 + b"]" * 260 + b"}\n"
    file = save(tmp_path / "a.jsonl", deep + b'{"id": "2", "text": "t", "a": NaN}\n')
    bad, good = read(file)
    assert bad.reason == "nested too deeply" and bad.line == 1
    assert good["metadata"] == {"a": None}


def test_other_fields_become_metadata_and_numbers_become_ids(tmp_path):
    row = {"doc": 7, "body": "t", "link": "http://x", "lang": "ar", "n": 2, "metadata": {"n": 1, "date": "today"}}
    file = save(tmp_path / "a.jsonl", jsonl([row]))
    (document,) = read(file, columns={"text": "body", "id": "doc", "url": "link"}, source="crawl")
    assert document == {
        "id": "7",
        "text": "t",
        "source": "crawl",
        "metadata": {"lang": "ar", "n": 1, "date": "today", "url": "http://x"},
    }


@pytest.mark.parametrize("packed", [".gz", ".zst", ".xz", ".bz2"])
def test_a_truncated_file_keeps_its_whole_lines_and_records_the_break(tmp_path, packed):
    rows = [{"id": str(i), "text": os.urandom(300).hex(), "source": "s", "metadata": {}} for i in range(2000)]
    content = jsonl(rows)
    whole = PACK[packed](content)
    for cut in (1, 3, 9, 5000, len(whole) // 2, len(whole) - 3):
        file = save(tmp_path / f"a.jsonl{packed}", whole[:-cut])
        *good, bad = read(file)
        assert good == rows[: len(good)]
        assert bad.reason.startswith("truncated") and bad.offset == len(jsonl(good))
    assert len(good) == 0


@pytest.mark.parametrize(
    ("packed", "name", "least"), [(".gz", "gzip", 1450), (".xz", "xz", 1400), (".bz2", "bzip2", 900)]
)
def test_damage_in_the_midst_keeps_what_comes_before(tmp_path, packed, name, least):
    rows = [{"id": str(i), "text": os.urandom(300).hex(), "source": "s", "metadata": {}} for i in range(2000)]
    whole = PACK[packed](jsonl(rows))
    middle = len(whole) * 3 // 4
    items = read(save(tmp_path / f"a.jsonl{packed}", whole[:middle] + b"\xff" * 500 + whole[middle:]))
    assert items[:least] == rows[:least]  # damage is noticed only after some bytes of it; bzip2 has blocks of 900 kB
    assert reasons(items)[-1].startswith(f"damaged {name} data")


@pytest.mark.parametrize("packed", [".gz", ".zst", ".xz", ".bz2"])
def test_members_back_to_back_and_padding_are_one_file(tmp_path, packed):
    half = jsonl(ROWS[:40])[:-5]
    rest = jsonl(ROWS)[len(half) :]
    content = PACK[packed](half) + PACK[packed](b"") + PACK[packed](rest)
    content += b"\0" * 100 if packed != ".zst" else b"\x50\x2a\x4d\x18" + (7).to_bytes(4, "little") + b"skipped"
    assert read(save(tmp_path / f"a.jsonl{packed}", content)) == ROWS


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("num", [0, 1, 200, 300, 70_000, 200_000])
def test_whole_zstandard_frames_of_every_header_are_taken_for_whole(tmp_path, num, known, checksum):
    body = orjson.dumps({"id": "1", "text": "x" * num + "y"})
    pack = zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=known)
    packed = pack.compress(body) if known else b"".join([(c := pack.compressobj()).compress(body), c.flush()])
    (document,) = read(save(tmp_path / "a.jsonl.zst", packed))
    assert document["text"] == "x" * num + "y"
    assert "truncated" in reasons(read(save(tmp_path / "b.jsonl.zst", packed[:-1])))[0]


@pytest.mark.parametrize("packed", ["", ".gz", ".zst", ".xz", ".bz2"])
def test_a_line_of_any_length_is_passed_over_in_little_memory(tmp_path, packed):
    good = b'{"id": "1", "text": "fine"}\n'
    long = b'{"id": "2", "text": "' + b"x" * (30 << 20) + b'"}\n'
    file = save(tmp_path / f"a.jsonl{packed}", PACK[packed](good + long + good))
    del long
    tracemalloc.start()
    items = read(file, 8 << 20, max_document_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [type(item) is dict for item in items] == [True, False, True]
    assert items[1].offset == len(good) and items[1].reason == f"{(30 << 20) + 23} bytes long, more than {1 << 20}"
    assert peak < (21 if packed == ".xz" else 12) << 20  # xz has a dictionary of 8 MB and more


def test_plans_are_sorted_numbered_and_leave_empty_files_out(tmp_path):
    for name, num in (("b.jsonl", 10), ("a.jsonl", 25), ("empty.jsonl", 0)):
        save(tmp_path / name, b"x" * num)
    plan = slices.plan([str(tmp_path / "b.jsonl"), str(tmp_path)], slice_bytes=10)
    assert [(p.index, p.name, p.start, p.stop, p.unit) for p in plan] == [
        (0, "a.jsonl", 0, 10, "bytes"),
        (1, "a.jsonl", 10, 20, "bytes"),
        (2, "a.jsonl", 20, 25, "bytes"),
        (3, "b.jsonl", 0, 10, "bytes"),
    ]
    assert slices.empty_files(str(tmp_path)) == [str(tmp_path / "empty.jsonl")]
    assert [slices.Slice(**json.loads(json.dumps(vars(p)))) for p in plan] == plan


def test_changed_and_missing_files_are_noticed(tmp_path):
    file = save(tmp_path / "a.jsonl", jsonl(ROWS))
    plan = slices.plan(str(file), slice_bytes=1000)
    slices.check(plan)
    file.write_bytes(jsonl(ROWS[1:]))
    with pytest.raises(InputError, match=r"a\.jsonl has changed"):
        slices.check(plan)
    with pytest.raises(InputError, match=r"a\.jsonl has changed"):
        slices.read(plan[0])
    file.unlink()
    with pytest.raises(InputError, match=r"a\.jsonl was planned for and is gone"):
        slices.check(plan)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.csv", b"x", r"documents are read from"),
        ("a.json", b' [\n {"text": "t"}]', "an array over many lines; give JSONL"),
        ("a.jsonl", b'[{"text": "t"}]', "an array over many lines; give JSONL"),
        ("a.json.gz", PACK[".gz"](b"[\n1]"), "an array over many lines; give JSONL"),
        ("a.json", b'{\n "text": "t"}', "one object over many lines"),
        ("a.jsonl.gz", b'{"text": "t"}', "not what its name says: it starts with 7b 22"),
        ("a.txt.zst", PACK[".gz"](b"text"), "not what its name says: it starts with 1f 8b"),
        ("a.parquet", b"PAR1", "not a readable parquet"),
        ("none*.jsonl", None, "no such file, folder or glob"),
    ],
)
def test_inputs_that_cannot_be_sliced_are_refused_before_work_begins(tmp_path, name, content, match):
    if content is not None:
        save(tmp_path / name, content)
    with pytest.raises(InputError, match=match):
        slices.plan(str(tmp_path / name))


def table(path, rows, **options):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path, **options)


def test_parquet_is_cut_by_row_groups_and_reads_as_jsonl_does(tmp_path):
    rows = [{**row, "n": i} for i, row in enumerate(ROWS)]
    table(tmp_path / "a.parquet", rows, row_group_size=7)
    expected = [{**row, "metadata": {"n": i, **row["metadata"]}} for i, row in enumerate(ROWS)]
    assert read(tmp_path / "a.parquet") == expected
    plan = slices.plan(str(tmp_path / "a.parquet"), slice_bytes=1800)
    assert 3 < len(plan) < 13 and plan[-1].stop == 13
    assert read(tmp_path / "a.parquet", 1800) == read(tmp_path / "a.parquet", 1) == expected


def test_bad_rows_of_a_table_are_set_aside_by_number(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    texts = pyarrow.array([b"good", b"\xff", b"fine", None]).cast(pyarrow.binary()).view(pyarrow.string())
    extra = pyarrow.array([b"\xff", b"b", None, b"d"])
    columns = pyarrow.table({"id": [1, 2, 3, 4], "text": texts, "raw": extra})
    pytest.importorskip("pyarrow.parquet").write_table(columns, tmp_path / "a.parquet")
    items = read(tmp_path / "a.parquet")
    assert [d["id"] for d in items if isinstance(d, dict)] == ["1", "3"]
    bad = [d for d in items if isinstance(d, slices.Bad)]
    assert [(b.offset, b.reason[:9]) for b in bad] == [(1, "not UTF-8"), (3, "no 'text'")]


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    save(tmp_path / "a.parquet", b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'plumbline\[data\]'"):
        slices.plan(str(tmp_path / "a.parquet"))


def test_gzip_whose_checksum_is_wrong_is_recorded_as_damaged(tmp_path):
    content = bytearray(gzip.compress(jsonl(ROWS)))
    content[-8:-4] = zlib.crc32(b"other").to_bytes(4, "little")
    items = read(save(tmp_path / "a.jsonl.gz", bytes(content)))
    assert reasons(items)[0].startswith("damaged gzip data")


def test_real_text_is_read_whole_whatever_the_slices(shared_data):
    inputs = [str(shared_data / f"text_*/*[!m].{ending}") for ending in ("jsonl", "txt")]
    columns = {"text": "text", "id": ""}
    whole, cut = (
        [d for part in slices.plan(inputs, slice_bytes=size) for d in slices.read(part, columns=columns)]
        for size in (1 << 30, 100_003)
    )
    assert whole == cut and len({d["id"] for d in whole}) == len(whole) > 10_000
    assert not reasons(whole)
    assert {d["source"] for d in whole} >= {"text_en_web", "text_ar_tashkeela", "text_ar_wikipedia_arcd"}


def test_a_column_that_no_record_has_is_refused_before_any_work(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"content": "one", "key": 1}\n' * 3, "utf-8")
    plan = slices.plan(str(tmp_path))
    with pytest.raises(InputError, match=r"'text'.*read\.columns\.text=NAME"):
        slices.check_columns(plan, columns={"text": "text", "id": "key"})
    with pytest.raises(InputError, match=r"'id'.*read\.columns\.id=NAME.*empty"):
        slices.check_columns(plan, columns={"text": "content", "id": "id"})
    slices.check_columns(plan, columns={"text": "content", "id": ""})
    (tmp_path / "b.jsonl").write_text('{"text": "two", "id": "b"}\n', "utf-8")
    slices.check_columns(slices.plan(str(tmp_path)), columns={"text": "text", "id": "id"})  # some have it: set aside


def test_slices_too_small_for_the_input_are_refused_with_a_size_that_works(tmp_path):
    file = save(tmp_path / "a.jsonl", jsonl(ROWS) * 100)
    size = file.stat().st_size
    with pytest.raises(InputError, match=rf"slices of 2 bytes would be {-(-size // 2):,} of them.*about 10,000") as e:
        slices.plan(str(file), slice_bytes=2)
    advised = int(str(e.value).split("; ")[1].split(" bytes")[0].replace(",", ""))
    assert 5_000 < len(slices.plan(str(file), slice_bytes=advised)) <= 10_001


def test_folders_that_are_links_are_read_and_links_that_lead_back_are_not_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "raw/deep").mkdir(parents=True)
    save(tmp_path / "real/a.jsonl", jsonl(ROWS[:3]))
    save(tmp_path / "raw/b.jsonl", jsonl(ROWS[3:5]))
    (tmp_path / "raw/linked").symlink_to(tmp_path / "real")
    (tmp_path / "raw/deep/back").symlink_to(tmp_path / "raw")
    assert sorted(row["id"] for row in read(tmp_path / "raw")) == ["d0", "d1", "d2", "d3", "d4"]


@pytest.mark.parametrize("log", [27, 31])
def test_zstandard_with_a_long_window_is_read(tmp_path, log):
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=log, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=settings).compressobj()  # knows no size beforehand
    packed = compressor.compress(jsonl(ROWS)) + compressor.flush()
    assert read(save(tmp_path / "a.jsonl.zst", packed)) == ROWS


def test_ids_that_lost_digits_as_numbers_are_set_aside(tmp_path):
    lines = [b'{"id": 12345678901234567890121, "text": "a"}', b'{"id": 9007199254740993.0, "text": "b"}']
    lines += [b'{"id": 9007199254740993, "text": "c"}', b'{"id": 1.5, "text": "d"}']
    items = read(save(tmp_path / "a.jsonl", b"\n".join(lines)), columns={"text": "text", "id": "id"})
    assert [item["id"] for item in items if isinstance(item, dict)] == ["9007199254740993", "1.5"]
    assert len(reasons(items)) == 2 and all("write it as text" in reason for reason in reasons(items))


def test_a_date_that_no_calendar_has_costs_its_row_alone(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    times = pyarrow.array([0, 2**62, 1], pyarrow.timestamp("us"))
    table = pyarrow.table({"id": ["a", "b", "c"], "text": ["x", "y", "z"], "at": times})
    parquet.write_table(table, tmp_path / "a.parquet")
    items = read(tmp_path / "a.parquet")
    assert [item["id"] for item in items if isinstance(item, dict)] == ["a", "c"]
    assert [reason.split(":")[0] for reason in reasons(items)] == ["a value that Python cannot express"]
