"""Records to documents and conversations, by the columns that they have.

Documents have `text`; conversations have `messages` (or ShareGPT's `conversations`), `prompt` and `completion`, or
Alpaca's `instruction` and `output`, with the columns of pair_formats.CONTEXT.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.errors import InputError
from data import records
from data.texts import pair_formats
from data.texts import turns as conversations
from data.texts.pair_formats import Comparison
from data.toys import guest_questions, guest_rules, house_questions, house_rules, synthetic

EMBEDDED = {
    "documents": synthetic.documents,
    "conversations": synthetic.conversations,
    "house_rules": house_rules.conversations,
    "house_questions": house_questions.conversations,
    "guest_rules": guest_rules.conversations,
    "guest_questions": guest_questions.conversations,
}
ALIASES = {
    "text": ("text", "content", "document"),
    "prompt": ("prompt", "question"),
    "completion": ("completion", "response"),
}
KNOWN = frozenset((*pair_formats.COLUMNS, *itertools.chain(*ALIASES.values())))


def read(
    path: str | Sequence[str],
    *,
    split: str,
    kind: str,
    columns: Mapping[str, str],
    limit: int | None,
    seed: int,
    report: dict[str, int],
    bad_records_path: str,
) -> list[Comparison]:
    """The records of a path as documents and conversations; `report` receives the counts. See `text.load`.

    A document is a Comparison without a prompt whose one answer is the text.

    Raises:
        InputError: a path without records, or a record that lacks the columns for `kind`.
    """
    if isinstance(path, str) and path.startswith("synthetic"):
        name = path.partition(":")[2] or "documents"
        rows = records.numbered(EMBEDDED[name](limit or 2_000, seed), path, counts=report)
    else:
        rows = records.read_counted(path, counts=report, split=split, bad_records_path=bad_records_path)
    items = (item_of(row, kind=kind, columns=columns, report=report) for row in records.first(rows, limit, report))
    return [item for item in items if item is not None]


def item_of(row: records.Record, *, kind: str, columns: Mapping[str, str], report: dict[str, int]) -> Comparison | None:
    """One record as `read` reads it; None where it is set aside, which `report` counts under the reason."""
    value = pair_formats.renamed(row.value, columns)
    is_document = _kind(value, kind, row, columns) == "documents"
    try:
        item = _document(value) if is_document else _exchange(value)
    except conversations.SetAside as reason:
        item = str(reason)
    except pair_formats.MISSHAPEN:
        item = "record of another shape"
    if isinstance(item, str):
        report[item] = report.get(item, 0) + 1
        return None
    pair_formats.count_unread(value, item, columns.values(), report, aliases=ALIASES, known=KNOWN)
    return dataclasses.replace(item, file=row.file, line=row.line)


def _kind(value: Mapping[str, Any], kind: str, row: records.Record, columns: Mapping[str, str]) -> str:
    """What the record is read as; an `InputError` where it lacks the columns for `kind`."""
    missing = sorted(f"{k} (config says {name!r})" for k, name in columns.items() if name not in row.value)
    # By the columns that hold something: a table with both `text` and `messages` fills one of them in each row.
    kinds = _kinds(pair_formats.filled(value)) or _kinds(value)  # a record may be empty in all columns that it has
    fitting = next((k for k in kinds if kind in ("auto", k)), "")
    fitting = fitting or next((k for k in _kinds(value) if k == kind), "")
    if missing or not fitting:
        need = {"documents": "text", "answers": "messages; conversations; prompt, completion; or instruction, output"}
        wanted = ", ".join(missing) or need.get(kind, f"{need['documents']}; {need['answers']}")
        raise InputError(
            f"{row.file}:{row.line}: columns missing: {wanted}. Columns found: "
            f"{', '.join(sorted(map(str, row.value))) or 'none'}. Name them with data.columns, such as text=body"
        )
    return fitting


def _kinds(value: Mapping[str, Any]) -> list[str]:
    """The kinds as which these columns can be read, the likelier first."""
    has = {key: any(name in value for name in names) for key, names in ALIASES.items()}
    is_exchange = (has["prompt"] and has["completion"]) or {"instruction", "output"} <= set(value)
    is_exchange = is_exchange or bool({"messages", "conversations"} & set(value))
    return ["answers"] * is_exchange + ["documents"] * has["text"]


def _pick(value: Mapping[str, Any], key: str) -> Any:
    """The first column that holds `key` under any of its names; None where there is none."""
    return next((value[name] for name in ALIASES[key] if value.get(name) is not None), None)


def _document(value: Mapping[str, Any]) -> Comparison | str:
    text = _pick(value, "text")
    if not isinstance(text, str) or not text.strip():
        return "empty text"
    return Comparison("", (text,), group=text)


def _exchange(value: Mapping[str, Any]) -> Comparison | str:
    """A conversation as a Comparison; everything before the last answer is its prompt."""
    turns = conversations.parsed(value.get("messages") or value.get("conversations"))
    before = conversations.context(value)
    if turns:
        messages = conversations.messages_of(turns)
    else:
        prompt, answer = _pick(value, "prompt"), _pick(value, "completion")
        is_plain = value.get("prompt") is not None
        if prompt is None or answer is None:
            prompt, answer, is_plain = value.get("instruction"), value.get("output"), False
        prompt, answer = conversations.question(conversations.parsed(prompt), value), conversations.parsed(answer)
        if not prompt or not answer:
            return "empty prompt or answer"
        if is_plain and not before and isinstance(prompt, str) and isinstance(answer, str):
            return Comparison(prompt, (answer,)) if prompt.strip() and answer.strip() else "empty prompt or answer"
        messages = [*conversations.messages_of(prompt), *_answer_turn(answer)]
    messages = conversations.messages_of(conversations.with_context(before, messages))
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()  # nothing answers a question at the end
    if not messages:
        return "no assistant turn"
    if not any(m.get("weight", 1) for m in messages if m["role"] == "assistant"):
        return "no assistant turn that is to be learned"
    if not all(m["content"].strip() or m.get("tool_calls") for m in messages if m["role"] == "assistant"):
        return "empty prompt or answer"
    last = messages[-1]
    tools = conversations.tools_of(value)
    kept_keys = {key: value for key, value in last.items() if key not in ("role", "content")}
    return Comparison(messages[:-1], (last["content"],), tools=tools, answer_keys=kept_keys)


def _answer_turn(answer: Any) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else conversations.messages_of(answer)
