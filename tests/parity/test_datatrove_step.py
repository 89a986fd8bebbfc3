"""Our step inside datatrove's own executor, readers and writers."""

import dataclasses
import gzip
import pickle
import subprocess
import sys

import orjson
import pytest

from alignment.errors import InputError
from data.corpus import datatrove_step

pytest.importorskip("datatrove")


@dataclasses.dataclass
class Verdict:
    reason: str
    text: str | None = None
    language: str = ""
    attributes: dict = dataclasses.field(default_factory=dict)


def no_short_texts(records):
    assert all(set(r) == {"id", "text", "source", "metadata"} for r in records)
    return [
        Verdict("too_short" if len(r["text"]) < 6 else "", r["text"].strip("_"), "en", {"length": len(r["text"])})
        for r in records
    ]


def share_of_e(records):
    return [{"share_of_e": r["text"].count("e") / len(r["text"])} for r in records]


def rows(folder):
    found = [line for file in sorted(folder.glob("*.gz")) for line in gzip.decompress(file.read_bytes()).splitlines()]
    return {row["id"]: row for row in map(orjson.loads, found)}


@pytest.mark.parametrize("workers", [1, 2])
def test_attributes_reach_metadata_and_dropped_documents_the_exclusion_writer(tmp_path, workers):
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    texts = {"a": "__three trees__", "b": "tiny", "c": "enough words", "d": "no", "e": "see"}
    (tmp_path / "raw").mkdir()
    for name, ids in (("1.jsonl", "abc"), ("2.jsonl", "de")):
        lines = [orjson.dumps({"id": i, "text": texts[i], "metadata": {"url": f"http://{i}"}}) for i in ids]
        (tmp_path / "raw" / name).write_bytes(b"\n".join(lines))
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(tmp_path / "raw")),
            datatrove_step.step(
                share_of_e, no_short_texts, exclusion_writer=JsonlWriter(str(tmp_path / "removed")), batch_size=2
            ),
            JsonlWriter(str(tmp_path / "kept")),
        ],
        tasks=2,
        workers=workers,
        logging_dir=str(tmp_path / "logs"),
    ).run()
    kept, removed = rows(tmp_path / "kept"), rows(tmp_path / "removed")
    assert set(kept) == {"a", "c"} and set(removed) == {"b", "d", "e"}
    assert kept["a"]["text"] == "three trees"
    metadata = {"length": 15, "language": "en", "share_of_e": 4 / 11, "url": "http://a"}
    assert metadata.items() <= kept["a"]["metadata"].items()
    assert removed["b"]["metadata"]["filter_reason"] == "too_short" and removed["b"]["text"] == "tiny"
    assert "share_of_e" not in removed["b"]["metadata"]


def test_a_step_can_be_sent_to_another_process():
    step = datatrove_step.step(share_of_e)
    assert pickle.loads(pickle.dumps(step)).score is share_of_e


def test_a_step_of_nothing_is_refused():
    with pytest.raises(InputError, match="score="):
        datatrove_step.step()


def test_importing_the_module_imports_no_datatrove():
    code = "import sys; from data.corpus import datatrove_step; sys.exit('datatrove' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
