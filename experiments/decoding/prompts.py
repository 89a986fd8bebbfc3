"""Files of prompts or conversations, as token ids with the options of their answers; the unusable is set aside."""

import dataclasses
import difflib
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment.decoding import requests
from alignment.decoding.requests import Request
from alignment.errors import InputError
from data import lines, records
from data.records import BadRecord, Record
from data.texts import turns
from data.tokens.tokenizer import Tokenizer
from data.toys import synthetic
from experiments.decoding import options
from experiments.decoding.guides import Guides
from experiments.decoding.options import Options

COLUMNS = ("id", "prompt", "messages", "system")
EMBEDDED = "synthetic:questions"
NUM_EMBEDDED = 64


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        id: the record's, or its number among all records from 0.
        shown: what the record has: a text, a list of messages, or token ids.
        ids: what the model reads.
        is_chat: whether the answer is a turn of a chat, and not the rest of its prompt.
        seed: of the answer's draws. It depends on the run's seed and the id alone, and not on the prompt's place.
        guidance: arguments of `Request` for the guides' prompts and weights.
    """

    id: Any
    shown: Any
    ids: tuple[int, ...]
    is_chat: bool
    options: Options
    seed: int
    guidance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def requests(self) -> list[Request]:
        """One for each of its answers."""
        wanted = self.options.request
        scored = self.options.echo and wanted["logprobs"] is not None
        request = Request(self.ids, **wanted, **self.guidance, seed=self.seed, prompt_logprobs=scored)
        return request.samples(self.options.n)


def check(path: str | Sequence[str]) -> None:
    """Refuse a path where nothing lies; no record is read."""
    if path != EMBEDDED:
        records.check(path)


def load(
    path: str | Sequence[str],
    tok: Tokenizer,
    base: Options,
    *,
    vocab_size: int,
    max_len: int,
    is_chat: bool,
    system: str = "",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    guides: Guides | None = None,
) -> tuple[list[Prompt], list[BadRecord]]:
    """The prompts of files in their order, and the records set aside.

    Args:
        path: JSONL, JSON, CSV, TSV, parquet, .gz, .zst; of .txt files every line is a prompt. `hub:` and `tfds:` as in
            `records.read`. Or EMBEDDED.
        base: options of records without their own.
        max_len: tokens of a prompt and its answer.
        is_chat: whether prompts go through the chat template as a user's turn; messages always do.
        system: a system turn for conversations without one.
        columns: our names to the file's; "" stands for the usual one.
        limit: use the first so many records; None uses all.
        seed: of the draws.
        guides: that steer the answers, by the config's weights; each reads the prompt in its own template.

    Raises:
        InputError: no record at all, a column that no record has, or a system prompt that nothing reads.
    """
    names = {name: (columns or {}).get(name) or name for name in COLUMNS}
    is_named = {name for name in COLUMNS if (columns or {}).get(name)}
    items = list(itertools.islice(_read(path), limit))
    if not items:
        raise InputError(f"prompts={path} has no records")
    _check_columns(items, names, is_named)
    guides = guides or Guides()
    prompts: list[Prompt] = []
    bad: list[BadRecord] = []
    num_same: Counter[str] = Counter()
    for number, item in enumerate(items):
        if isinstance(item, BadRecord):
            bad.append(item)
            continue
        try:
            shown = _shown(item.value, names, is_named)
            ids, as_chat, guidance = _encode(
                shown, item.value, tok, names, is_chat=is_chat, system=system, guides=guides
            )
            own = options.of_record(base, item.value, vocab_size=vocab_size)
            request = Request(ids, **own.request, **guidance)
            requests.check(request, vocab_size=vocab_size, max_len=max_len, num_guides=len(guides.all))
        except (InputError, turns.SetAside) as e:
            bad.append(BadRecord(item.file, item.line, str(e)))
            continue
        name = item.value.get(names["id"])
        name = number if name in (None, "") else name
        key = json.dumps(name, sort_keys=True, default=str)
        num_same[key] += 1
        drawn = _seed(seed, key, num_same[key]) if own.seed is None else own.seed
        prompts.append(Prompt(name, shown, tuple(ids), as_chat, own, drawn, guidance))
    if system and prompts and not any(prompt.is_chat for prompt in prompts):
        raise InputError(
            "system is set and no prompt goes through a chat template; set --config.chat=True, or leave it out"
        )
    return prompts, bad


def _read(path: str | Sequence[str]) -> Iterator[Record | BadRecord]:
    if path == EMBEDDED:
        rows = [{"prompt": c["messages"][0]["content"]} for c in synthetic.conversations(NUM_EMBEDDED, seed=1)]
        yield from records.numbered(rows, EMBEDDED, counts={})
        return
    if isinstance(path, str) and path.startswith("tfds:"):
        yield from records.read(path)[0]
        return
    for line in records.left_out(path):
        print(f"prompts: not read: {line}", flush=True)
    for file in records.find(path):
        is_text = lines.unpacked(file).endswith(".txt")
        yield from _text_lines(file) if is_text else records.read_file(file)


def _text_lines(file: str) -> Iterator[Record | BadRecord]:
    """Every line that is not blank is a prompt."""
    lines.check_opening(file)
    try:
        for number, (_, raw) in enumerate(lines.split(lines.chunks(file)), 1):
            assert isinstance(raw, bytes)  # without a limit no length stands for a line
            raw = raw.removeprefix(records.BOM) if number == 1 else raw
            if not raw.strip():
                continue
            try:
                yield Record({"prompt": raw.rstrip(b"\r").decode("utf-8")}, file, number)
            except UnicodeDecodeError:
                yield BadRecord(file, number, "not UTF-8")
    except lines.Damaged as e:
        raise InputError(f"{file} is damaged or cut short: {e}. Fetch or pack it again") from e


def _check_columns(items: Sequence[Record | BadRecord], names: Mapping[str, str], is_named: set[str]) -> None:
    """Refuse columns that no record has; a single record without one is set aside later."""
    there = dict.fromkeys(key for item in items if isinstance(item, Record) for key in item.value)
    if not there:
        return
    for name in sorted(is_named):
        if names[name] not in there:
            raise InputError(f"columns.{name}={names[name]!r}: no record has it; columns found: {', '.join(there)}")
    known = [*options.NAMES, *options.MORE]
    for column in there:  # others are the user's own, but one that is nearly an option's name may be meant as one
        near = difflib.get_close_matches(column, known, 1, cutoff=0.8)
        if near and column not in known and column not in names.values():
            print(f"the records' column {column!r} is not read; an option is called {near[0]!r}", flush=True)
    if names["prompt"] not in there and names["messages"] not in there:
        raise InputError(
            f"no record has prompt or messages; columns found: {', '.join(there)}. Name one, as in "
            "--config.columns.prompt=Request"
        )


def _shown(value: Mapping[str, Any], names: Mapping[str, str], is_named: set[str]) -> Any:
    """The record's prompt as it stands there: text, messages or ids; a named column comes before the usual ones."""
    order = ("prompt", "messages") if "prompt" in is_named else ("messages", "prompt")
    shown = next((value[names[name]] for name in order if value.get(names[name]) not in (None, "")), None)
    shown = turns.parsed(shown)
    if shown is None or (isinstance(shown, str | list) and not shown) or (isinstance(shown, str) and not shown.strip()):
        raise InputError(f"{names['prompt']} is empty; it needs at least one token")
    if isinstance(shown, str) or (isinstance(shown, list) and _are(shown, int)) or _are(shown, Mapping):
        return shown
    raise InputError(f"{names['prompt']}={str(shown)[:80]!r} is neither a text, nor messages, nor token ids")


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)


def _encode(
    shown: Any,
    value: Mapping[str, Any],
    tok: Tokenizer,
    names: Mapping[str, str],
    *,
    is_chat: bool,
    system: str,
    guides: Guides,
) -> tuple[list[int], bool, dict[str, Any]]:
    """Token ids, whether they went through the chat template, and the guides' prompts and weights for `Request`."""
    weights = {"guide_weights": guides.weights} if guides.all else {}
    if not isinstance(shown, str) and _are(shown, int):
        return list(shown), False, weights
    before = turns.context({**value, "system": value.get(names["system"])})
    if isinstance(shown, str) and not is_chat:
        if before:
            raise InputError("the record has turns before its prompt, which needs --config.chat=True")
        ids = tok.encode(shown, add_bos=tok.adds_bos)
        return ids, False, weights | guides.prompts(shown, ids)
    messages = [*before, *turns.messages_of(shown)]
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    if messages[-1]["role"] == "assistant":
        raise InputError("the messages end with the assistant's turn, so there is nothing to answer")
    if not str(messages[-1]["content"]).strip():
        raise InputError("the last message is empty; it needs at least one token")
    tools = turns.tools_of(value)
    ids = tok.encode(tok.render(messages, add_generation_prompt=True, tools=tools))
    return ids, True, weights | guides.chats(messages, ids, tools=tools)


def _seed(seed: int, key: str, occurrence: int) -> int:
    """32 bits that depend on the run's seed and the record's id; a second record of the same id draws anew."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}/{occurrence}".encode()).digest()[:4], "big")
