"""The embedded toy web as native_alignment.py's folder of corpora: raw, cleaned by rules, dropped, aligned.

The corpora come from the filter itself (alignment/filtering/pipeline.py): language, rules, duplicates, routing, gates.
But its rewriter is scripted: a document that is to be rewritten becomes its `clean_twin`, and its scorer reads the
planted severity, except of a known share that it misses. So the toy shows what training on aligned text does, and
nothing about how well a model rewrites; experiments/filter.py and experiments/rewriter.py are for that.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence

from alignment import files
from alignment.errors import within
from alignment.filtering import pipeline
from alignment.filtering.duplicates import minhash
from alignment.filtering.rules import language, locales
from data.toys import toyweb, toyweb_probes

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
    within("[0, 1]", **{"toy.missed": missed})
    folder = pathlib.Path(folder)
    done = folder / "counts.json"
    if done.is_file():
        return json.loads(done.read_text())
    raw = toyweb.documents(num, seed)
    corpora = {"raw": raw}
    for name, harm in HARM.items():
        corpora[name], decisions = cleaned(raw, harm, missed=missed)
        files.write_rows(folder / f"decisions/{name}.jsonl", decisions)
    for name, records in corpora.items():
        toyweb.write(folder / name, records)
    for name in toyweb.LANGUAGES:
        clean = toyweb.documents(heldout, seed + 1_000_003, languages=(name,), shares={"clean": 1.0})
        files.write_rows(folder / f"heldout/{name}.jsonl", clean)
    for name, rows in toyweb_probes.probes(seed, num=probes).items():
        files.write_rows(folder / f"probes/{name}.jsonl", rows)
    counts = {name: len(records) for name, records in corpora.items()}
    files.write_json(done, counts)
    return counts


def cleaned(documents: Sequence[dict], harm: str, *, missed: float) -> tuple[list[dict], list[dict]]:
    """The web as the filter leaves it, and its decision on every document (see `pipeline.clean`).

    Args:
        harm: what becomes of a document that scores above 0: "keep", "drop" or "rewrite".
    """
    screening = pipeline.Screening(
        chain=("language", "gopher_repetition", "gopher_quality", "c4", "fineweb", "pii"),
        settings={"c4": {"terminal_punctuation": False}},
        packs={pack.name: pack for pack in map(locales.load, toyweb.LANGUAGES)},
        language_fn=language.identify,
        minhash=minhash.Settings(),
        exact=True,
    )
    if harm == "keep":
        return pipeline.clean(documents, screening, None, pipeline.Aligning())
    safety = {"safety": lambda texts: [float(toyweb.severity(text)) for text in texts], "language": language.identify}
    # a twin serves both kinds of request, rewriting and educating
    rewrite = lambda documents, kind: twins(documents)  # noqa: E731
    options = dict(drop_at=1) if harm == "drop" else dict(synthesise=True, rewrite=rewrite, gates=safety)
    aligning = pipeline.Aligning(score="safety.level", **options)
    scores_fn = lambda some: [{"safety.level": float(score(d, missed=missed))} for d in some]  # noqa: E731
    return pipeline.clean(documents, screening, scores_fn, aligning)


def twins(documents: Sequence[Mapping]) -> list[str]:
    """The scripted rewriter: each document's twin, with single line breaks where the rules made them single."""
    texts = [document["metadata"]["clean_twin"] for document in documents]
    return [text if "\n\n" in d["text"] else text.replace("\n\n", "\n") for d, text in zip(documents, texts)]


def score(record: Mapping, *, missed: float) -> int:
    """Planted severity, 0 to 5, but 0 for the share of documents that is missed, the same ones in every corpus."""
    return 0 if draw(f"missed/{record['id']}") < missed else record["metadata"]["severity"]


def draw(name: str) -> float:
    """A number in [0, 1) that depends on a name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
