r"""The formats of preference files, each read into one `Comparison`.

| format      | columns                                                       | files                               |
|-------------|---------------------------------------------------------------|-------------------------------------|
| trl         | prompt, chosen, rejected: texts or messages; without prompt,  | TRL, UltraFeedback, Argilla         |
|             | the opening that both answers share is the prompt             |                                     |
| hh          | chosen, rejected: whole dialogues, "\n\nHuman:" opens a turn   | Anthropic's hh-rlhf                 |
| sharegpt    | conversations (from, value); chosen, rejected: a turn each    | LLaMA-Factory's ShareGPT pairs      |
| two_answers | instruction, input, output_1, output_2, preference (1 or 2,   | AlpacaFarm, AlpacaEval; with words  |
|             | or what `words` says); or the outputs are whole dialogues    | Chatbot Arena                       |
| unpaired    | messages, label; or prompt, completion, label                 | TRL's and LLaMA-Factory's KTO files |

Files of answers alone, for supervised tuning, are read by text.py into the same type:

| columns                            | files                                |
|------------------------------------|--------------------------------------|
| messages                           | OpenAI's chat format, TRL            |
| conversations (from, value)        | ShareGPT                             |
| prompt, completion                 | TRL                                  |
| instruction, input, output         | Alpaca                               |

All of them may have `system` (or `system_prompt`), which becomes the first turn, and `history`, earlier turns; a prompt
is followed by the text of `input`. A text column that no reader reads is counted under its name.

Columns may have the other names of ALIASES, or names that the config gives. Messages are {role, content} or {from,
value}. Each reader takes a record's values and returns a `Comparison`, or the reason (a short text, under which such
records are counted) why the record cannot be compared. The columns decide which reader fits, or the config names it.
"""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

from alignment.errors import InputError, one_of
from data import records
from data.texts import turns, verdicts
from data.texts.turns import Message

ALIASES = {
    "prompt": ("prompt", "question", "instruction", "query"),
    "chosen": ("chosen", "chosen_answer", "chosen_response"),
    "rejected": ("rejected", "discarded", "discarded_answer", "rejected_answer", "rejected_response"),
}
MISSHAPEN = (AttributeError, IndexError, KeyError, TypeError)  # nulls, numbers, empty lists where turns should be
TURN = re.compile(r"\n\n(Human|Assistant):")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A prompt and its answers: chosen and rejected, or one answer and whether it is desirable.

    Attributes:
        prompt: a text that the answers continue directly, or the messages before the answer.
        answers: (chosen, rejected), or one text.
        label: whether a single answer is desirable; None for two.
        prefill: the opening of the answer that the prompt already has: it is read and not learned.
        tools: what a chat template is given as `tools`; None for nothing.
        answer_keys: what the last turn has beside role and content, such as a call of a tool or a weight.
        is_chat: whether a text prompt is a question to a chat model rather than text to continue. A column that the
            file calls `prompt` holds text to continue, as in TRL; a column of any other name holds questions.
        source: the record's own `source` or `dataset`, for metrics by source.
        group: records with equal groups stay on one side of the train and held-out split; '' stands for the prompt.
        file, line: the record's place, for messages.
    """

    prompt: str | list[Message]
    answers: tuple[str, ...]
    label: bool | None = None
    prefill: str = ""
    tools: Any = None
    answer_keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_chat: bool = False
    source: str = ""
    group: str = ""
    file: str = ""
    line: int = 0

    def prompt_text(self) -> str:
        """The prompt as one string, for splitting and tables."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in self.prompt)


def row_of(item: Comparison, uuid: str) -> dict[str, Any]:
    """A pair as `uuid`, `prompt`, `chosen` and `rejected`."""
    chosen, rejected = item.answers
    return {"uuid": uuid, "prompt": item.prompt, "chosen": chosen.strip(), "rejected": rejected.strip()}


def check_pairs(items: Sequence[Comparison], path: str) -> None:
    """Refuse single answers with labels where pairs are needed.

    Raises:
        InputError: with the first one's file and line.
    """
    if single := next((item for item in items if len(item.answers) != 2), None):
        raise InputError(
            f"{single.file}:{single.line}: a single answer with a label, and {path} must hold pairs: chosen, rejected"
        )


def read(
    rows: Sequence[records.Record],
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    words: Mapping[str, str] | None = None,
    group_column: str = "",
    limit: int | None = None,
    counts: dict[str, int],
) -> list[Comparison]:
    """Records to comparisons.

    Args:
        format: 'auto', or a key of FORMATS.
        columns: our name of a column to the file's.
        words: what the file's preferences and labels mean; see `verdicts.of`.
        group_column: the column that becomes `Comparison.group`; '' leaves it empty.
        limit: stop after so many comparisons; None reads all.
        counts: receives the number of records that cannot be compared, under the reason.

    Raises:
        InputError: an unknown format or column; columns missing in a record; preferences or labels of unknown meaning.
    """
    columns, meanings = dict(columns or {}), verdicts.of(words)
    unknown = sorted(set(columns) - _KEYS)
    if unknown:
        raise InputError(f"data.columns has {unknown}; it may name {sorted(_KEYS)}")
    one_of("data.format", format, ("auto", *FORMATS))
    items: list[Comparison] = []
    judged: Counter[str] = Counter()  # records by the column that judges their answers
    without_meaning: list[tuple[records.Record, str, Any]] = []
    for number, row in enumerate(rows):
        if limit is not None and len(items) >= limit:
            counts["records beyond data.limit"] = counts.get("records beyond data.limit", 0) + len(rows) - number
            break
        value = renamed(row.value, columns)
        name = detect(value, row, columns) if format == "auto" else format
        _require(value, row, name, columns)
        if column := JUDGED_BY.get(name):
            judged[column] += 1
            value = {**value, column: meanings.meaning(column, raw := value[column])}
            if value[column] is None and verdicts.word(raw) not in verdicts.EMPTY:
                without_meaning.append((row, column, raw))
                continue
        try:
            item = FORMATS[name](value)
            if isinstance(item, Comparison):
                item = _cleaned(complete(item, value))
        except turns.SetAside as reason:
            item = str(reason)
        except MISSHAPEN:
            item = "record of another shape"
        if isinstance(item, str):
            counts[item] = counts.get(item, 0) + 1
            continue
        used = {*columns.values(), group_column, *_READS[name]}
        count_unread(value, item, used, counts, aliases=ALIASES, known=KNOWN)
        source = value.get("source") or value.get("dataset") or ""
        group = str(value.get(group_column) or "") if group_column else ""
        source = source if isinstance(source, str) else ""
        items.append(dataclasses.replace(item, source=source, group=group, file=row.file, line=row.line))
    meanings.check_read(set(judged))
    verdicts.set_aside(without_meaning, judged.total(), counts)
    return items


def renamed(value: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The record with our names for its columns; a prompt that the file calls otherwise is a question."""
    out = {**value, **{ours: value[theirs] for ours, theirs in columns.items() if theirs in value}}
    if columns.get("prompt", "prompt") != "prompt" and "prompt" in out:
        out["question"] = out.pop("prompt")
    return out


def count_unread(
    value: Mapping[str, Any],
    item: Comparison,
    used: Collection[str],
    counts: dict[str, int],
    *,
    aliases: Mapping[str, Sequence[str]],
    known: Collection[str],
) -> None:
    """Count a record under each of its columns with texts that are not read, and under each such key of its messages.

    A column of a name that no reader knows is not read. Of the others several may stand in one record, such as `prompt`
    and `messages`; one is read where all of its texts have reached the comparison.

    Args:
        value: the record, by our names.
        item: what it became.
        used: columns that are read without standing in there as they are; of those with aliases the first not null.
        known: names of columns that some reader knows.
    """
    used = {next((alias for alias in aliases.get(name, ()) if value.get(alias) is not None), name) for name in used}
    full_text = "\n".join((item.prompt_text(), *(item.prefill + answer for answer in item.answers)))
    for name, content in value.items():
        if name in used or name in NOT_SHOWN:
            continue
        if any(name not in known or text not in full_text for text in turns.texts_in(content)):
            turns.count_column(name, counts)
    for key in turns.unknown_keys(value):
        what = f"records with the key {key!r} in a message, which is not read"
        counts[what] = counts.get(what, 0) + 1


def complete(item: Comparison, value: Mapping[str, Any]) -> Comparison:
    """The comparison with the record's system turn, history, tools and a prefilled answer.

    Raises:
        turns.SetAside: the record has pictures, two system turns, or a prompt that already ends with an answer.
    """
    prompt = turns.with_context(turns.context(value), item.prompt)
    tools = turns.tools_of(value)
    item = dataclasses.replace(item, prompt=prompt, tools=tools)
    if isinstance(prompt, str) or not prompt or prompt[-1]["role"] != "assistant":
        return item
    opening = prompt[-1]["content"]
    if not opening.strip() or any(answer.strip() == opening.strip() for answer in item.answers):
        raise turns.SetAside("prompt that already ends with the answer")
    whole = [answer.startswith(opening) for answer in item.answers]  # some files write the opening out again
    answers = tuple(a.removeprefix(opening) if is_whole else a for a, is_whole in zip(item.answers, whole))
    return dataclasses.replace(item, prompt=prompt[:-1], answers=answers, prefill=opening)


def filled(value: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that are not empty: tables have all columns in every record."""
    return {k: v for k, v in value.items() if v is not None and not (isinstance(v, (str, list)) and not v)}


def detect(value: Mapping[str, Any], row: records.Record, columns: Mapping[str, str]) -> str:
    """The format's name, from the columns of a record that are not empty, or else from all of them."""
    name = _detect(filled(value), columns) or _detect(value, columns)
    if not name:
        _fail(row, "prompt, chosen, rejected (or an alias); output_1, output_2, preference; or messages, label")
    return name


def _detect(value: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    if {"output_1", "output_2", "preference"} <= set(value):
        return "two_answers"
    chosen = _pick(value, "chosen")
    if any(name in value for key in ("chosen", "rejected") for name in ALIASES[key]) or "chosen" in columns:
        if "conversations" in value:
            return "sharegpt"
        if _pick(value, "prompt") is None and isinstance(chosen, str) and TURN.search(chosen):
            return "hh"
        return "trl"
    is_labelled = "label" in value and {"messages", "completion", "conversations"} & set(value)
    return "unpaired" if is_labelled else ""


def trl(value: Mapping[str, Any]) -> Comparison | str:
    """`prompt`, `chosen`, `rejected`: texts or message lists; without `prompt`, the opening that both answers share."""
    prompt, chosen, rejected = (turns.parsed(_pick(value, name)) for name in ("prompt", "chosen", "rejected"))
    if chosen is None or rejected is None:
        return "no answer"
    if prompt is None and value.get("messages") and not _has_question(chosen):
        prompt = value["messages"]
    prompt = turns.question(prompt, value)
    if isinstance(chosen, str) != isinstance(rejected, str):
        return "answers of two kinds"
    if isinstance(chosen, str):
        if prompt is None:
            k = _shared_opening(chosen, rejected)
            return Comparison(chosen[:k], (chosen[k:], rejected[k:]))
        if isinstance(prompt, str):
            return Comparison(prompt, (chosen, rejected), is_chat=value.get("prompt") is None)
        return Comparison(turns.messages_of(prompt), (chosen, rejected))
    before = turns.messages_of(prompt) if prompt is not None else []
    chosen, rejected = turns.messages_of(chosen), turns.messages_of(rejected)
    k = 0  # turns that both have, before the answers
    while k < min(len(chosen), len(rejected)) - 1 and chosen[k] == rejected[k]:
        k += 1
    if len(chosen) != k + 1 or len(rejected) != k + 1:
        return "answers differ over several turns"
    if {chosen[-1]["role"], rejected[-1]["role"]} != {"assistant"}:
        return "answer is not the assistant's"
    answers = (_text_of(chosen[-1]), _text_of(rejected[-1]))
    return Comparison(turns.joined(before, chosen[:k]), answers)


def _text_of(turn: Message) -> str:
    """The text of an answer.

    Raises:
        turns.SetAside: the answer has more than its text, or is not to be learned.
    """
    if turn.get("tool_calls"):
        raise turns.SetAside("answer that calls a tool")
    if turn.get("reasoning_content") or turn.get("thinking"):
        raise turns.SetAside("answer with a reasoning beside its text")
    if turn.get("weight") == 0:
        raise turns.SetAside("answer of weight 0")
    return turn["content"]


def _has_question(answer: Any) -> bool:
    return not isinstance(answer, str) and any(m["role"] == "user" for m in turns.messages_of(answer))


def hh(value: Mapping[str, Any]) -> Comparison | str:
    """Whole dialogues in `chosen` and `rejected`; "Human:" and "Assistant:" after a blank line open the turns."""
    chosen, rejected = (_dialogue(_pick(value, name)) for name in ("chosen", "rejected"))
    if not chosen or not rejected or chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        return "dialogue does not end with the assistant"
    if chosen[:-1] != rejected[:-1]:
        return "dialogues have different prompts"
    return Comparison(chosen[:-1], (chosen[-1]["content"], rejected[-1]["content"]))


def sharegpt(value: Mapping[str, Any]) -> Comparison | str:
    """`conversations` of {from, value}; `chosen` and `rejected` one such turn each (or a text)."""
    answers = []
    for name in ("chosen", "rejected"):
        answer = turns.parsed(_pick(value, name))
        messages = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else turns.messages_of(answer)
        if len(messages) > 1:
            return "answers of several turns"
        answers.append(_text_of(messages[0]))
    return Comparison(turns.messages_of(turns.parsed(value["conversations"])), tuple(answers))


def two_answers(value: Mapping[str, Any]) -> Comparison | str:
    """`instruction` (and `input`), `output_1`, `output_2`; `preference` is output_1, output_2 or tie.

    The outputs may be message lists, with the prompt in their opening.
    """
    if value["preference"] == "tie":
        return "tie"
    first, second = turns.parsed(value["output_1"]), turns.parsed(value["output_2"])
    answers = (first, second) if value["preference"] == "output_1" else (second, first)
    if isinstance(first, list) and isinstance(second, list):
        return trl({**value, "chosen": answers[0], "rejected": answers[1]})
    prompt = turns.question(turns.parsed(_pick(value, "prompt")), value)
    return Comparison(prompt if isinstance(prompt, str) else turns.messages_of(prompt), answers, is_chat=True)


def unpaired(value: Mapping[str, Any]) -> Comparison | str:
    """`messages` (the last is the answer), or `prompt` and `completion`; `label` is desirable, undesirable or tie."""
    if value["label"] in (None, "tie"):
        return "no label" if value["label"] is None else "label for neither side"
    label = value["label"] == "desirable"
    if turns_given := turns.parsed(value.get("messages") or value.get("conversations")):
        messages = turns.messages_of(turns_given)
        if messages[-1]["role"] != "assistant":
            return "conversation does not end with the assistant"
        return Comparison(messages[:-1], (_text_of(messages[-1]),), label=label)
    prompt, answer = turns.question(turns.parsed(_pick(value, "prompt")), value), turns.parsed(value["completion"])
    if isinstance(prompt, str) and isinstance(answer, str):
        return Comparison(prompt, (answer,), label=label, is_chat=value.get("prompt") is None)
    answered = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else turns.messages_of(answer)
    if len(answered) > 1:
        return "answers of several turns"
    return Comparison(turns.messages_of(prompt), (_text_of(answered[0]),), label=label)


FORMATS: dict[str, Callable[[Mapping[str, Any]], Comparison | str]] = {
    "trl": trl,
    "hh": hh,
    "sharegpt": sharegpt,
    "two_answers": two_answers,
    "unpaired": unpaired,
}
JUDGED_BY = {"two_answers": "preference", "unpaired": "label"}
_NEEDS = {
    "trl": ("chosen", "rejected"),
    "hh": ("chosen", "rejected"),
    "sharegpt": ("conversations", "chosen", "rejected"),
    "two_answers": ("prompt", "output_1", "output_2", "preference"),
    "unpaired": ("label",),
}
_KEYS = frozenset(
    ("prompt", "chosen", "rejected", "conversations", "output_1", "output_2", "preference")
    + ("messages", "completion", "label", "input", "system", "history", "tools", "source")
)  # the columns that the config may rename
NOT_SHOWN = ("label", "preference", "tools", "source", "dataset")  # columns that are read and are not texts of a turn
COLUMNS = (*_KEYS, "instruction", "output", *turns.SYSTEM, *turns.HISTORY)  # names that some reader knows
KNOWN = frozenset((*COLUMNS, *itertools.chain(*ALIASES.values())))
_READS = {
    "trl": ("chosen", "rejected"),
    "hh": ("chosen", "rejected"),
    "sharegpt": ("chosen", "rejected"),
    "two_answers": ("output_1", "output_2"),
    "unpaired": (),
}  # columns that a reader takes apart


def _require(value: Mapping[str, Any], row: records.Record, format: str, columns: Mapping[str, str]) -> None:
    needed = [*_NEEDS[format], *(k for k in columns if k not in _NEEDS[format])]
    if format == "two_answers" and isinstance(turns.parsed(value.get("output_1")), list):
        needed.remove("prompt")  # whole dialogues open with it
    if format == "unpaired" and not {"messages", "conversations"} & set(value):
        needed += ["prompt", "completion"]
    missing = [k for k in needed if not any(name in value for name in ALIASES.get(k, (k,)))]
    missing += [k for k, name in columns.items() if name not in row.value and k not in missing]
    if missing:
        wanted = [
            f"{k} (config says {columns[k]!r})" if k in columns else " or ".join(ALIASES.get(k, (k,))) for k in missing
        ]
        _fail(row, "; ".join(wanted))


def _fail(row: records.Record, wanted: str) -> NoReturn:
    raise InputError(
        f"{row.file}:{row.line}: columns missing: {wanted}. Columns found: "
        f"{', '.join(sorted(map(str, row.value))) or 'none'}. "
        "Name them with data.columns, such as prompt=question, chosen=good, rejected=bad"
    )


def _pick(value: Mapping[str, Any], key: str) -> Any:
    """The first column that holds `key` under any of its names; None where there is none."""
    return next((value[name] for name in ALIASES.get(key, (key,)) if value.get(name) is not None), None)


def _cleaned(item: Comparison) -> Comparison | str:
    """The comparison, or the reason why nothing can be learned from it."""
    if not all(isinstance(a, str) for a in item.answers):
        return "answer is not a text"
    if not all(a.strip() for a in item.answers):
        return "empty answer"
    if not item.prompt_text().strip() or (isinstance(item.prompt, list) and not item.prompt[-1]["content"].strip()):
        return "empty prompt"
    if len(item.answers) == 2 and item.answers[0].strip() == item.answers[1].strip():
        return "identical answers"
    return item


def _dialogue(text: Any) -> list[Message]:
    if not isinstance(text, str):
        return []
    parts = TURN.split("\n\n" + text.lstrip("\n"))
    roles = ["user" if name == "Human" else "assistant" for name in parts[1::2]]
    return [{"role": r, "content": c.strip()} for r, c in zip(roles, parts[2::2])]


def _shared_opening(a: str, b: str) -> int:
    """Length of the common prefix, taken back to the start of a word."""
    k = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    while k and not a[k - 1].isspace():
        k -= 1
    return k - 1 if k and a[k - 1] == " " else k
