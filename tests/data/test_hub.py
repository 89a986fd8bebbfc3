"""Data sets of the hub, from a small one on the loopback address and from its cache."""

import gzip
import http.server
import json
import threading

import pytest

from alignment.errors import InputError
from data import hub, records

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ENDINGS, TABLES = (".jsonl", ".jsonl.gz", ".parquet"), (".csv",)
ONE = hub.Spec("a/b", None, "")


def choose(*names, glob="", card=""):
    return hub.choose(hub.Spec("a/b", None, glob), names, card, ENDINGS, TABLES)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hub:a/b", ("a/b", None, "")),
        ("hub:a/b-c.d@v1.0", ("a/b-c.d", "v1.0", "")),
        ("hub:a/b:data/*.parquet", ("a/b", None, "data/*.parquet")),
        ("hub:a/b@refs/convert/parquet:default/train/*", ("a/b", "refs/convert/parquet", "default/train/*")),
    ],
)
def test_a_name_has_a_revision_and_a_glob(text, parts):
    assert hub.parse(text) == parts and str(hub.parse(text)) == text


@pytest.mark.parametrize("text", ["hub:", "hub:a", "hub:a/b/c", "hub:a/b@", "hub:a/b:", "hub:a/../b", "hub://a/b"])
def test_other_spellings_are_refused(text):
    with pytest.raises(InputError, match="must read hub:owner/name"):
        hub.check(text)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'plumbline\[hub\]'"):
        hub.check("hub:a/b")


def test_all_data_files_are_taken_and_nothing_else():
    assert choose("README.md", "data/train-0.parquet", ".git/x.jsonl", "data/a.png") == ["data/train-0.parquet"]
    assert choose("a.jsonl", "b.jsonl.gz", "c.csv") == ["a.jsonl", "b.jsonl.gz"]
    assert choose("c.csv", "LICENSE") == ["c.csv"]
    assert choose("x/a.jsonl", "y/a.jsonl", glob="x/") == ["x/a.jsonl"]
    assert choose("x/a.jsonl", "c.csv", glob="*.csv") == ["c.csv"]


@pytest.mark.parametrize(
    ("names", "glob", "said"),
    [
        (("a.jsonl", "a.parquet"), "", r"several formats.* hub:a/b:\*\.jsonl\* or hub:a/b:\*\.parquet\*"),
        (("README.md", "x.arrow"), "", "has no file that is read .* it has README.md, x.arrow"),
        (("a.jsonl",), "*.parquet", "none of the 1 files has such a name; there are a.jsonl"),
        (("a.jsonl", "a.arrow"), "a.*", "a.arrow is not of a kind that is read"),
    ],
)
def test_where_it_is_open_which_files_are_meant_it_is_asked(names, glob, said):
    with pytest.raises(InputError, match=said):
        choose(*names, glob=glob)


CARD = """---
license: mit
configs:
- config_name: {}
  data_files:
  - split: train
    path: "{}"
- config_name: other
  data_files: [{}]
---
# A data set
"""


def test_the_sets_that_a_card_declares_are_told_apart():
    card = CARD.format("main", "main/train-*", "other/a.jsonl, ./other/b.jsonl")
    assert hub.configurations(card) == {"main": ["main/train-*"], "other": ["other/a.jsonl", "other/b.jsonl"]}
    with pytest.raises(InputError, match=r"holds 2 sets; .* main: hub:a/b:main/train-\*; other: hub:a/b:other/a.jsonl"):
        choose("main/train-0.jsonl", "other/a.jsonl", card=card)
    only = "---\nconfigs:\n- config_name: default\n  data_files: data/*.jsonl\n---\n"
    assert choose("data/a.jsonl", "notes.jsonl", card=only) == ["data/a.jsonl"]
    for odd in ("", "# no head", "---\n: [\n---\n", "---\n- a list\n---\n", "---\nconfigs: 3\n"):
        assert hub.configurations(odd) == {}


# ---- a hub of one data set


def rows(name, num=3):
    return [{"text": f"{name} {i}"} for i in range(num)]


FILES = {
    "README.md": b"# ours",
    "train-0.jsonl": "".join(json.dumps(row) + "\n" for row in rows("train")).encode(),
    "test-0.jsonl.gz": gzip.compress("".join(json.dumps(row) + "\n" for row in rows("test", 2)).encode()),
    "more/extra.csv": b"text\nfrom a table\n",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of a hub, for `ours/texts`."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, _, _ = self.path.partition("?")
        self.server.asked.append(path)
        name = path.removeprefix("/datasets/ours/texts/resolve/").partition("/")[2]
        if path.startswith("/api/datasets/ours/texts"):
            self.answer_api(path)
        elif path.startswith("/datasets/ours/texts/resolve/") and name in FILES:
            headers = {"ETag": f'"{len(FILES[name])}{name[:4]}"', "X-Repo-Commit": COMMIT}
            self.answer(200, FILES[name], **headers)
        else:
            self.answer(404, b"{}", **{"X-Error-Code": "RepoNotFound", "Content-Type": "application/json"})

    def answer_api(self, path):
        if "/tree/" in path:
            found = [{"type": "file", "path": name, "size": len(FILES[name]), "oid": "0" * 40} for name in FILES]
        else:
            found = {"id": "ours/texts", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
        self.answer(200, json.dumps(found).encode(), **{"Content-Type": "application/json"})

    def answer(self, status, content, **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *unused):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub on the loopback address, with a cache of its own."""
    constants = pytest.importorskip("huggingface_hub.constants")
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    made.asked = []
    threading.Thread(target=made.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{made.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.fetch.cache_clear()
    yield made
    made.shutdown()
    made.server_close()
    hub.fetch.cache_clear()


def texts(path):
    return [record.value["text"] for record in records.read(path)[0]]


def test_files_are_fetched_and_read_as_from_a_folder(server, capsys):
    assert texts("hub:ours/texts") == ["test 0", "test 1", "train 0", "train 1", "train 2"]
    assert texts("hub:ours/texts:train*") == ["train 0", "train 1", "train 2"]
    assert texts(["hub:ours/texts:train*", "hub:ours/texts:more/"]) == ["train 0", "train 1", "train 2", "from a table"]
    assert f"hub:ours/texts at commit {COMMIT}: 2 files in" in capsys.readouterr().out


def test_test_files_are_held_out_as_in_a_folder(server):
    train, heldout = records.parts("hub:ours/texts")
    assert [texts(side)[0] for side in (train, heldout)] == ["train 0", "test 0"]
    assert records.parts("hub:ours/texts:train*") == ("hub:ours/texts:train*", [])


def test_without_the_hub_what_was_fetched_is_read_and_that_is_said(server, capsys, monkeypatch):
    texts("hub:ours/texts:train*")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the hub's client pauses 23 s in all before it gives up
    server.shutdown()
    server.server_close()
    hub.fetch.cache_clear()
    assert texts("hub:ours/texts:train*") == ["train 0", "train 1", "train 2"]
    assert "the hub cannot be reached" in (said := capsys.readouterr().out) and "the hub may have others now" in said
    for other in ("hub:ours/texts:more/*", "hub:ours/other", "hub:ours/texts@old"):
        with pytest.raises(InputError, match=r"cannot be reached .* connect this machine, or give files by their path"):
            texts(other)


def test_a_data_set_that_the_hub_does_not_have_is_refused(server):
    with pytest.raises(InputError, match="no such data set or revision, or this account may not read it"):
        texts("hub:ours/nothing")
