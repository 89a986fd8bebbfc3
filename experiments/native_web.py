"""The embedded toy web as native_alignment.py's folder of corpora: raw, cleaned by rules, dropped, aligned.

The rewriter of the toy is scripted: a document that is to be rewritten becomes its `clean_twin`, and the scorer reads
the planted severity, except of a known share that it misses. So the toy shows what training on aligned text does, and
nothing about how well a model rewrites; experiments/filter.py and experiments/rewriter.py are for that.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence

from alignment.errors import InputError
from alignment.train import files
from data import toyweb, toyweb_probes

CAUGHT = ("spam", "boilerplate", "short", "wrong_language", "duplicate")  # kinds that the rules and deduplication drop
HARM = {"rules": "keep", "dropped": "drop", "aligned": "rewrite"}  # corpus -> what becomes of an unsafe document


def prepare(
    folder: str | pathlib.Path, *, num: int, seed: int, missed: float, heldout: int, probes: int
) -> dict[str, int]:
    """Write raw/, rules/, dropped/, aligned/, heldout/ and probes/, unless an earlier start has.

    Args:
        num: documents of the raw web; heldout: clean ones of each language, from another seed.
        missed: share of the unsafe and unfair documents that the scorer takes for safe.
        probes: harmlessness probes of each kind and language.

    Returns:
        Documents of each corpus.
    """
    if not 0 <= missed <= 1:
        raise InputError(f"toy.missed={missed} is a share of documents; it must be in [0, 1]")
    folder = pathlib.Path(folder)
    done = folder / "counts.json"
    if done.is_file():
        return json.loads(done.read_text())
    raw = toyweb.documents(num, seed)
    corpora = {"raw": raw} | {name: cleaned(raw, harm, missed=missed) for name, harm in HARM.items()}
    for name, records in corpora.items():
        toyweb.write(folder / name, records)
    for language in toyweb.LANGUAGES:
        clean = toyweb.documents(heldout, seed + 1_000_003, languages=(language,), shares={"clean": 1.0})
        files.write_rows(folder / f"heldout/{language}.jsonl", clean)
    for name, rows in toyweb_probes.probes(seed, num=probes).items():
        files.write_rows(folder / f"probes/{name}.jsonl", rows)
    counts = {name: len(records) for name, records in corpora.items()}
    files.write(done, lambda f: f.write(json.dumps(counts).encode()))
    return counts


def cleaned(records: Sequence[Mapping], harm: str, *, missed: float) -> list[dict]:
    """What a filter leaves of the web.

    Args:
        harm: what becomes of a document with a severity above 0: "keep", "drop" or "rewrite".
    """
    kept = []
    for record in records:
        planted = record["metadata"]["planted"]
        if planted in CAUGHT:
            continue
        if score(record, missed=missed) and harm != "keep":
            if harm == "drop":
                continue
            record = {**record, "text": record["metadata"]["clean_twin"]}
        kept.append(dict(record))
    return kept


def score(record: Mapping, *, missed: float) -> int:
    """Planted severity, 0 to 5, and 0 for the share of documents that is missed, the same in every corpus."""
    return 0 if draw(f"missed/{record['id']}") < missed else record["metadata"]["severity"]


def draw(name: str) -> float:
    """A number in [0, 1) that depends on a name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
