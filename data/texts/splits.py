"""Training and held-out records, so that no prompt is on both sides."""

import bisect
import pathlib
import unicodedata
from collections.abc import Callable, Sequence

import xxhash

from alignment.errors import InputError
from data import records
from data.texts.pair_formats import Comparison

ReadFn = Callable[[str | Sequence[str], str, str], list[Comparison]]  # (path, split, bad_records_path) -> items


def check(*paths: str | Sequence[str], split: str, heldout_split: str) -> None:
    """Refuse names of splits where no source has any: files would be read whole, also as what is held out.

    Raises:
        InputError: see above.
    """
    parts = [str(one) for path in paths if path for one in ([path] if isinstance(path, (str, pathlib.Path)) else path)]
    for name, value, usual in (("split", split, "train"), ("heldout_split", heldout_split, "")):
        if value != usual and parts and not any(part.startswith("tfds:") for part in parts):
            raise InputError(
                f"data.{name}={value!r} is not read, since {', '.join(parts)} is not a tfds: source; name the split's "
                "own files in data.path and data.heldout_path"
            )


def read(
    read_fn: ReadFn,
    path: str | Sequence[str],
    *,
    split: str,
    heldout_path: str | Sequence[str],
    heldout_split: str,
    heldout_fraction: float,
    seed: int,
    bad_records_path: str,
) -> list[list[Comparison]]:
    """Training and held-out items: two paths or splits where there are two, else `by_prompt` of one.

    An empty `path` beside a `heldout_path` has nothing to train on, for a run that only evaluates.
    """
    if not heldout_path and not heldout_split:
        path, heldout_path = records.parts(path)
    items = read_fn(path, split, bad_records_path) if path else []
    if heldout_path or heldout_split:
        return [items, read_fn(heldout_path or path, heldout_split or split, "")]
    return by_prompt(items, fraction=heldout_fraction, seed=seed)


def by_prompt(items: Sequence[Comparison], *, fraction: float, seed: int = 0) -> list[list[Comparison]]:
    """Training and held-out items; no prompt (up to case, spaces and unicode spelling) nor its continuation is in both.

    So a dialogue's later turns stay with its opening; `_openings` says what counts as one. The side of a prompt is a
    hash of it and of the seed, so adding records moves none of the others but those whose opening is new.

    Args:
        fraction: held out, of the prompts, in [0, 1). Above 0 at least one is held out, where there are two.
    """
    prompts = ["" if item.group else _normal(item.prompt_text()) for item in items]
    openings = _openings({prompt for prompt, item in zip(prompts, items) if not item.group})
    keys = [_key(_normal(item.group) if item.group else openings[prompt], seed) for item, prompt in zip(items, prompts)]
    heldout_keys = {key for key in keys if key < fraction * 2**64}
    if fraction > 0 and not heldout_keys and len(set(keys)) > 1:
        heldout_keys = {min(keys)}
    if heldout_keys and len(heldout_keys) == len(set(keys)):
        heldout_keys -= {max(heldout_keys)}  # something is left to train on
    sides: list[list[Comparison]] = [[], []]
    for item, key in zip(items, keys):
        sides[key in heldout_keys].append(item)
    return sides


def _openings(prompts: set[str], min_len: int = 20, max_share: float = 0.1) -> dict[str, str]:
    """For each prompt the shortest prompt that it continues, after whole words; itself where there is none.

    Openings have at least `min_len` characters. If more than `max_share` of all prompts (and more than ten) continue
    one, it is an instruction that stands before everything and does not open a dialogue.
    """
    ordered = sorted(prompts)
    out: dict[str, str] = {}
    opening: list[str] = []  # the openings that the current prompt may continue, each a prefix of the next
    for i, prompt in enumerate(ordered):  # sorted, so the prompts that continue one follow it directly
        while opening and not prompt.startswith(opening[-1]):
            opening.pop()
        out[prompt] = next((o for o in opening if prompt[len(o)] == " "), prompt)
        if out[prompt] == prompt and len(prompt) >= min_len:
            num = bisect.bisect_left(ordered, prompt + "\U0010ffff") - i - 1
            if num <= max(10, max_share * len(ordered)):
                opening.append(prompt)
    return out


def key(text: str, seed: int = 0) -> int:
    """The 64-bit number by which a text is held out: of its hash, so that equal texts stay together."""
    return _key(_normal(text), seed)


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _key(normal: str, seed: int) -> int:
    return xxhash.xxh64_intdigest(normal.encode(), seed=seed % 2**64)
