"""Small runs of the filter for tests, and what they leave."""

import json
import pathlib

import orjson

from data.corpus import shards
from data.toys import toyweb
from tests.experiments.conftest import launch

NUM = 160  # pages
CLOCK = ("docs_per_second", "seconds")


def write(folder, num=NUM, seed=5):
    """Toy pages in two files of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = toyweb.documents(num, seed=seed)
    for i in range(2):
        lines = b"".join(orjson.dumps(d) + b"\n" for d in documents[i::2])
        (folder / f"part-{i}.jsonl").write_bytes(lines)
    return documents


def flags(inputs, **values):
    values = {"inputs": inputs, "slice_mb": 0.03} | values
    return [f"--config.{name.replace('__', '.')}={value}" for name, value in values.items()]


def start(workdir, inputs, **values):
    """A finished run; `rules__c4__policy=False` sets rules.c4.policy."""
    return launch("filter.py:tiny", workdir, *flags(inputs, **values))


def content(folder):
    """Every file below it; answers of the rewriter are a cache."""
    files = [p for p in sorted(pathlib.Path(folder).rglob("*")) if p.is_file() and "answers" not in p.parts]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def numbers(workdir):
    return {k: v for k, v in json.loads((workdir / "summary.json").read_text()).items() if k not in CLOCK}


def rows(folder):
    return [row for path in sorted(pathlib.Path(folder).glob("*.jsonl*")) for row in shards.read(path)]
