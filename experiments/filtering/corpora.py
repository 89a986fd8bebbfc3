"""The corpora of native_alignment.py's arms: the folders that they read, their mixtures, and the tokenizer."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from alignment import files
from alignment.errors import InputError
from alignment.train import language_model
from data import loader, records
from data.texts import text
from data.tokens import learning, tokenizer
from experiments.filtering import toy_corpora

TOY = "synthetic:toyweb"
ARMS = {  # arm -> (the corpora it reads, share of the documents that were aligned where it mixes two)
    "raw": (("raw",), None),
    "rules": (("rules",), None),
    "dropped": (("dropped",), None),
    "aligned_25": (("raw", "aligned"), 0.25),
    "aligned_50": (("raw", "aligned"), 0.50),
    "aligned": (("aligned",), None),
    "both": (("raw", "aligned"), None),
}


def prepared(c: ml_collections.ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
    """The folder of corpora, held-out text and probes; the toy's is made first.

    Raises:
        InputError: a corpus of one of the arms, held-out text or probes are missing.
    """
    if c.data.path == TOY:
        counts = toy_corpora.prepare(workdir / "toyweb", seed=c.seed, **c.toy)
        files.report_counts(workdir, {f"documents of {name}": n for name, n in counts.items()})
        return workdir / "toyweb"
    check_folders(c)
    folder = pathlib.Path(c.data.path)
    digests = digests_of([folder / name for name in needed_folders(c)])
    check_unchanged(workdir / "made_from.json", digests, made="tokenizer, mixtures and members")
    return folder


def needed_folders(c: ml_collections.ConfigDict) -> list[str]:
    """The folders of data.path that the arms read."""
    return sorted({name for arm in records.listed(c.arms) for name in ARMS[arm][0]} | {"heldout", "probes"})


def digests_of(folders: Sequence[pathlib.Path]) -> dict[str, str]:
    return {folder.name: loader.digest_files(records.find(str(folder))) for folder in folders}


def check_unchanged(path: pathlib.Path, digests: Mapping[str, str], *, made: str) -> None:
    """Refuse inputs that are not as they were when this run began: what lies in the workdir was made from them.

    Args:
        path: of the digests, which the first start of a run leaves there.
        made: what was made from the inputs.
    """
    earlier = files.read_note(path) if path.is_file() else digests
    if changed := [name for name in digests if earlier.get(name) != digests[name]]:
        raise InputError(
            f"{', '.join(changed)} changed since this run began, and its {made} are of what it held then. Put it back "
            "as it was, or start over in another --workdir"
        )
    if files.is_first_process():
        files.write_json(path, digests)


def check_folders(c: ml_collections.ConfigDict) -> None:
    """Refuse a folder that lacks a corpus of one of the arms, held-out text or probes."""
    needed = needed_folders(c)
    missing = [name for name in needed if not pathlib.Path(c.data.path, name).is_dir()]
    if missing:
        raise InputError(
            f"data.path={c.data.path!r} has no folder {', '.join(missing)}; arms={c.arms!r} read "
            f"{', '.join(needed)} in it: shards of experiments/filter.py, heldout/ and probes/ as "
            f"experiments/filtering/toy_corpora.py writes them; or take {TOY!r}"
        )


def tokenizer_of(c: ml_collections.ConfigDict, folder: pathlib.Path, workdir: pathlib.Path) -> tokenizer.Tokenizer:
    """The config's tokenizer; one to be learned is learned from the raw corpus, and kept in the workdir."""
    kind, _, size = c.tokenizer.partition(":")
    if kind != "learn":
        return tokenizer.load(c.tokenizer or language_model.tokenizer_of(c.init_from))
    path = workdir / "learned/tokenizer.json"
    if not path.is_file():
        raw, _ = records.read(str(folder / "raw"))
        files.write_text(path, learning.byte_pairs([record.value["text"] for record in raw], int(size)))
    return tokenizer.load(str(path))


def of_arm(arm: str, folder: pathlib.Path, workdir: pathlib.Path, reading: Mapping[str, Any]) -> text.Texts:
    """The arm's training text; `reading`: keyword arguments of `text.load`."""
    sources, share = ARMS[arm]
    paths = [str(folder / name) for name in sources]
    if share is not None:
        paths = [str(mixed(workdir / f"mixed/{arm}.jsonl", paths, share))]
    texts, _, counts = text.load(path=paths, heldout_fraction=0, kind="documents", **reading)
    print(f"{arm}: " + ", ".join(f"{number} {what}" for what, number in counts.items()), flush=True)
    return texts


def mixed(path: pathlib.Path, folders: list[str], share: float) -> pathlib.Path:
    """A file of the raw documents, a share of them as the aligned corpus has them, or left out where it dropped them.

    Which documents is drawn from their ids, so that a larger share holds all that a smaller one does.
    """
    if path.is_file():
        return path
    raw, aligned = ([record.value for record in records.read(folder)[0]] for folder in folders)
    by_id = {str(value["id"]): value for value in aligned if "id" in value}
    if not by_id:
        raise InputError(f"{folders[1]}: its documents have no `id`, so none can stand in for a raw one")
    rows = []
    for value in raw:
        name = str(value.get("id", ""))
        row = by_id.get(name) if toy_corpora.draw(name) < share else value
        if row is not None:
            rows.append(row)
    files.write_rows(path, rows)
    return path
