"""Data sets of the Hugging Face hub: their files are fetched into the hub's own cache and read from there.

hub:owner/name                      all data files, where the data set has them once and in one format
hub:owner/name@revision             those of a branch, a tag or a commit
hub:owner/name:data/train-*.parquet those that a glob names; `*` stands for slashes too
"""

import fnmatch
import functools
import glob
import importlib.util
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from alignment import files
from alignment.errors import InputError, few
from data import lines

PREFIX = "hub:"
CARD = "README.md"  # of a data set; the block of YAML at its head names its configurations and their files
_SPEC = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:]+))?(?::(?P<glob>.+))?")


class Spec(NamedTuple):
    """A data set of the hub, a revision (None: its main branch), and a glob of its files ("": all)."""

    name: str
    revision: str | None
    glob: str

    def __str__(self) -> str:
        revision, pattern = self.revision and f"@{self.revision}", self.glob and f":{self.glob}"
        return f"{PREFIX}{self.name}{revision or ''}{pattern}"


class Fetched(NamedTuple):
    """The folder of a data set on this disk, and the paths of the files that were asked for, sorted."""

    folder: str
    files: tuple[str, ...]


def is_spec(path: Any) -> bool:
    return isinstance(path, str) and path.startswith(PREFIX)


def parse(spec: str) -> Spec:
    """The parts of `hub:owner/name[@revision][:glob]`.

    Raises:
        InputError: it is written in another way.
    """
    match = _SPEC.fullmatch(spec)
    if match is None or ".." in spec:
        raise InputError(f"data path {spec!r} must read hub:owner/name, hub:owner/name@revision or hub:owner/name:glob")
    return Spec(match["name"], match["revision"], match["glob"] or "")


def check(spec: str) -> None:
    """Refuse a spec that is written wrongly, or that needs a package, without asking the hub."""
    parse(spec)
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(f"{spec} is fetched by huggingface_hub: pip install 'plumbline[hub]', or give files")


@functools.lru_cache(maxsize=16)
def fetch(spec: str, endings: tuple[str, ...], tables: tuple[str, ...] = ()) -> Fetched:
    """Bring the data files of a data set to this disk, or find them there where the hub does not answer.

    Args:
        endings: of the files' names that can be read.
        tables: endings of files that are taken where there is none of `endings`, or where the glob names them.

    Raises:
        InputError: there is no such data set or file; which files are meant is open; the hub does not answer and the
            cache lacks them.
    """
    check(spec)
    parsed = parse(spec)
    names, unreachable = _listing(parsed, [parsed.glob] if parsed.glob else [f"*{e}" for e in (*endings, *tables)])
    card = "" if parsed.glob or CARD not in names else _read(parsed, [CARD], offline=bool(unreachable))
    wanted = choose(parsed, names, card and pathlib.Path(card, CARD).read_text("utf-8", "replace"), endings, tables)
    folder = _read(parsed, wanted, offline=bool(unreachable))
    if files.is_first_process():
        print(f"data: {parsed} at commit {os.path.basename(folder)}: {len(wanted)} files in {folder}", flush=True)
        if unreachable:
            print(f"data: {unreachable}; these files were fetched before, and the hub may have others now", flush=True)
    return Fetched(folder, tuple(os.path.join(folder, *name.split("/")) for name in wanted))


def choose(
    spec: Spec, names: Sequence[str], card: str, endings: Sequence[str], tables: Sequence[str] = ()
) -> list[str]:
    """The files of a data set that are read, of all its `names`.

    A data set may hold the same records in several formats, or several sets in one: then a glob has to say which.

    Args:
        card: the text of its README.md, "" for none.
    """
    readable, some = (*endings, *tables), few(sorted(names), 8) or "none"
    if spec.glob:
        pattern = f"{spec.glob}*" if spec.glob.endswith("/") else spec.glob
        matching = sorted(name for name in names if fnmatch.fnmatchcase(name, pattern))
        if other := [name for name in matching if not name.endswith(readable)]:
            raise InputError(f"{spec}: {other[0]} is not of a kind that is read ({', '.join(readable)})")
        if not matching:
            raise InputError(f"{spec}: none of the {len(names)} files has such a name; there are {some}")
        return matching
    sets = configurations(card)
    if len(sets) > 1:
        ways = "; ".join(f"{name}: {spec}:{patterns[0]}" for name, patterns in list(sets.items())[:8])
        raise InputError(f"{spec} holds {len(sets)} sets; name the files of one by a glob, such as {ways}")
    visible = [name for name in sorted(names) if not any(part.startswith(".") for part in name.split("/"))]
    for patterns in sets.values():
        visible = [name for name in visible if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    candidates = [name for name in visible if name.endswith(tuple(endings))]
    candidates = candidates or [name for name in visible if name.endswith(tuple(tables))]
    formats = sorted({os.path.splitext(lines.unpacked(name))[1] for name in candidates})
    if len(formats) > 1:
        ways = " or ".join(f"{spec}:*{format}*" for format in formats)
        raise InputError(f"{spec} has files in several formats, which may be the same records twice; write {ways}")
    if not candidates:
        raise InputError(f"{spec} has no file that is read ({', '.join(readable)}); it has {some}")
    return candidates


def configurations(card: str) -> dict[str, list[str]]:
    """The sets that a README.md declares, by name, with the patterns of their files; those without files are left out.

    The block is YAML: `configs` lists `config_name` and `data_files`, which is a pattern, a list of patterns, or a list
    of `split` and `path`.
    """
    import yaml  # comes with flax

    parts = card.split("---\n", 2) if card.startswith("---\n") else []
    try:
        head = yaml.safe_load(parts[1]) if len(parts) == 3 else None
    except yaml.YAMLError:
        return {}
    sets = {}
    for entry in (head.get("configs") or []) if isinstance(head, dict) else []:
        if isinstance(entry, dict) and (patterns := _patterns(entry.get("data_files"))):
            sets[str(entry.get("config_name", "default"))] = patterns
    return sets


def _patterns(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value.removeprefix("./")]
    if isinstance(value, dict):
        return _patterns(value.get("path") if "path" in value else list(value.values()))
    return [pattern for one in value for pattern in _patterns(one)] if isinstance(value, list) else []


def _listing(spec: Spec, patterns: Sequence[str]) -> tuple[list[str], str]:
    """The names of all files and ""; where the hub does not answer, those of the cache and why it did not.

    Args:
        patterns: of the files that the cache must hold. Newer versions of huggingface_hub keep the hub's list of files
            and refuse a cache that lacks one of them, as after a fetch that was killed.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return huggingface_hub.HfApi().list_repo_files(spec.name, repo_type="dataset", revision=spec.revision), ""
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as e:  # the first has GatedRepoError below it
        raise InputError(
            f"{spec}: the hub has no such data set or revision, or this account may not read it ({_first_line(e)}); "
            "check the name, and `hf auth login` where it is not public"
        ) from None
    except Exception as e:  # offline mode, or one of the many errors of a network
        why = f"the hub cannot be reached ({type(e).__name__}: {_first_line(e)})"
    try:
        folder = huggingface_hub.snapshot_download(
            spec.name, repo_type="dataset", revision=spec.revision, local_files_only=True, allow_patterns=patterns
        )
    except Exception as e:  # the classes differ between versions; all mean that the cache lacks something
        raise InputError(
            f"{spec}: {why}, and not all of it was fetched before ({_first_line(e)}); connect this machine, or give "
            "files by their path"
        ) from None
    return [str(path.relative_to(folder)) for path in pathlib.Path(folder).rglob("*") if path.is_file()], why


def _read(spec: Spec, names: Sequence[str], *, offline: bool) -> str:
    """The folder in the cache that holds these files, after fetching those that are not there."""
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(
            spec.name,
            repo_type="dataset",
            revision=spec.revision,
            allow_patterns=[glob.escape(name) for name in names],
            local_files_only=offline,
        )
    except Exception as e:  # network, permission and disk errors of several libraries
        raise InputError(
            f"{spec} could not be fetched ({type(e).__name__}: {_first_line(e)}); start again to fetch the rest"
        ) from e


def _first_line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [""])[0][:200]
