"""Conversations in the spellings that files have, as lists of {role, content}.

What the readers of pairs and of answers share: message lists of any spelling, system prompts and history that stand in
columns of their own, a prompt that the answers repeat, and what no text model can read.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from data import fields

Message = dict[str, Any]  # role and content, and what else of PASSED the file gives
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant"}
ROLES |= {"function_call": "assistant", "observation": "tool", "function": "tool"}
SYSTEM = ("system", "system_prompt", "system_message")  # columns with the text of a system turn
HISTORY = ("history",)  # columns with earlier turns: [question, answer] pairs, or messages
PICTURES = ("images", "image", "videos", "audios")  # columns of what a text model cannot read
PASSED = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")  # keys that reach the chat template
WEIGHTS = ("weight", "train", "training", "loss")  # keys by which files switch the learning of a turn off
SWITCHES = {"0": 0, "0.0": 0, "false": 0, "no": 0, "1": 1, "1.0": 1, "true": 1, "yes": 1}
MEDIA = (*PICTURES, "image_url", "video", "audio", "input_audio", "file")  # keys of a turn or of a part of it
KNOWN = {"role", "from", "content", "value", "function_call", *PASSED, *WEIGHTS, *MEDIA}  # keys of a message
TEXT_PARTS = ("", "none", "text", "input_text", "output_text", "image")  # a picture's part without one is its place


class SetAside(Exception):
    """A record that cannot be learned from; the text is the reason under which it is counted."""


def messages_of(turns: Any) -> list[Message]:
    """A message list in any of the usual spellings, as {role, content}; a text is one user turn.

    A content of parts is the text of its parts; a part whose text is null has none. `weight` is 0 or 1 where the file
    says whether a turn is to be learned. OpenAI's older `function_call` becomes one of `tool_calls`.

    Raises:
        SetAside: a turn is or holds something else than text, such as a picture, or a weight between 0 and 1.
    """
    if isinstance(turns, str):
        return [{"role": "user", "content": turns}]
    out: list[Message] = []
    if not fields.is_absent(turns) and not isinstance(turns, (list, tuple, Mapping)):
        raise SetAside(f"messages of the type {type(turns).__name__}, which is not read")
    for turn in [turns] if isinstance(turns, Mapping) else () if fields.is_absent(turns) else turns:
        if isinstance(turn, str):
            out.append({"role": "user", "content": turn})
            continue
        if not isinstance(turn, Mapping):
            raise SetAside(f"a turn that is a {type(turn).__name__}, which is not read")
        if media := [key for key in MEDIA if turn.get(key)]:
            raise SetAside(f"a turn with {media[0]}, which no text model reads")
        role = str(turn.get("role") or turn.get("from") or "user").lower()
        content = turn.get("content", turn.get("value"))
        content = "" if fields.is_absent(content) else content
        content = "".join(_text_of(part) for part in (content if isinstance(content, (list, tuple)) else [content]))
        message: Message = {"role": ROLES.get(role, role), "content": content}
        message |= {key: turn[key] for key in PASSED if turn.get(key)}
        if turn.get("function_call") and not turn.get("tool_calls"):
            message["tool_calls"] = [{"type": "function", "function": turn["function_call"]}]
        out.append(message | _weight(turn))
    return out


def _weight(turn: Mapping[str, Any]) -> dict[str, int]:
    """`weight`, 0 or 1, where the turn has a switch of its learning."""
    words = {key: str(turn[key]).strip().lower() for key in WEIGHTS if turn.get(key) is not None}
    if words.get("weight", "1") not in SWITCHES:
        raise SetAside("a turn whose weight is neither 0 nor 1")
    switches = [SWITCHES[word] for word in words.values() if word in SWITCHES]
    return {"weight": min(switches)} if switches else {}


def _text_of(part: Any) -> str:
    if part is None or isinstance(part, str):
        return part or ""
    if not isinstance(part, Mapping):
        raise SetAside(f"a turn with a part that is a {type(part).__name__}, which is not read")
    if media := [key for key in MEDIA if part.get(key)]:
        raise SetAside(f"a turn with {media[0]}, which no text model reads")
    kind = str(part.get("type")).lower()
    if kind not in TEXT_PARTS:
        raise SetAside(f"a turn with a part of the type {kind!r}, which is not read")
    text = part.get("text")
    if not isinstance(text, (str, type(None))) or (text is None and "text" not in part and "type" not in part):
        raise SetAside("a turn with a part that has no text, which is not read")
    return text or ""


def parsed(value: Any) -> Any:
    """A value, or the messages that its text holds: some tables store lists as JSON, others as Python writes them."""
    if not isinstance(value, str) or not re.match(r"\s*(\[\s*)?\{", value) or value.rstrip()[-1:] not in ("]", "}"):
        return value
    if not any(key in value for key in ("role", "from")):
        return value
    turns = fields.parsed(value)
    turns = [turns] if isinstance(turns, dict) else turns
    is_messages = bool(turns) and all(isinstance(turn, dict) and _is_message(turn) for turn in turns)
    return turns if is_messages else value


def _is_message(turn: Mapping[str, Any]) -> bool:
    """Whether an object is a turn; an answer in JSON, which may have a key `value` or `content` too, is none."""
    return any(
        isinstance(turn.get(who), str) and what in turn for who, what in (("role", "content"), ("from", "value"))
    )


def texts_in(content: Any) -> Iterator[str]:
    """The texts of a column: its own, or those of the messages and lists in it."""
    content = parsed(content)
    if isinstance(content, str):
        if content.strip():
            yield content.strip()
    elif isinstance(content, Mapping):
        for key in ("content", "value", "text"):
            yield from texts_in(content.get(key))
    elif isinstance(content, (list, tuple)):
        for part in content:
            yield from texts_in(part)


def count_others(value: Mapping[str, Any], used: Collection[str], counts: dict[str, int]) -> None:
    """Count a record under each of its columns that holds texts and is not among the used ones."""
    for name, content in value.items():
        if name not in used and any(texts_in(content)):
            count_column(name, counts)


def count_column(name: str, counts: dict[str, int]) -> None:
    """Count one more record whose texts in this column are not read."""
    what = f"texts in the column {name!r} that are not read"
    counts[what] = counts.get(what, 0) + 1


def unknown_keys(value: Mapping[str, Any]) -> set[str]:
    """Keys of the messages in a record's columns that hold something and that `messages_of` does not read."""
    lists = (content if isinstance(content, list) else [content] for content in map(parsed, value.values()))
    turns = (turn for content in lists for turn in content if isinstance(turn, Mapping) and _is_message(turn))
    return {str(key) for turn in turns for key in turn.keys() - KNOWN if turn[key]}


def tools_of(value: Mapping[str, Any]) -> list[Any] | None:
    """What a chat template is given as `tools`: a list, or the list whose JSON text the column holds; None for nothing.

    Raises:
        SetAside: the column holds something else.
    """
    tools = value.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError:
            raise SetAside("tools that are not a list") from None
    if tools and not isinstance(tools, list):
        raise SetAside("tools that are not a list")
    return tools or None


def question(prompt: Any, value: Mapping[str, Any]) -> Any:
    """The prompt, followed by Alpaca's `input` after a blank line where the record has one."""
    more = value.get("input")
    if isinstance(prompt, str) and isinstance(more, str) and more.strip() and more.strip() != prompt.strip():
        return f"{prompt}\n\n{more}"
    return prompt


def context(value: Mapping[str, Any]) -> list[Message]:
    """The turns before the prompt that stand in columns of their own: a system prompt, then the history.

    Raises:
        SetAside: the record has pictures, or a history of another shape.
    """
    if media := [name for name in PICTURES if value.get(name)]:
        raise SetAside(f"records with {media[0]}, which no text model reads")
    turns: list[Message] = []
    systems = [value[name] for name in SYSTEM if value.get(name) and value[name] == value[name]]  # NaN is not itself
    if any(not isinstance(system, str) for system in systems):
        raise SetAside("system prompt that is not a text")
    if system := next(filter(str.strip, systems), ""):
        turns.append({"role": "system", "content": system})
    for past in next((value[name] for name in HISTORY if value.get(name)), []):
        if isinstance(past, Mapping):
            turns += messages_of(past)
        elif isinstance(past, Sequence) and not isinstance(past, str) and len(past) == 2:
            question, answered = past
            turns += [{"role": "user", "content": str(question)}, {"role": "assistant", "content": str(answered)}]
        else:
            raise SetAside("history that is neither pairs nor messages")
    return turns


def with_context(before: list[Message], prompt: str | list[Message]) -> str | list[Message]:
    """The prompt after the turns of `context`; its own system turn goes before theirs."""
    if not before:
        return prompt
    messages = messages_of(prompt)
    if messages and messages[0]["role"] == "system":
        if before[0]["role"] == "system" and before[0]["content"].strip() != messages[0]["content"].strip():
            raise SetAside("two different system turns")
        return messages[:1] + [m for m in before if m["role"] != "system"] + messages[1:]
    return before + messages


def joined(before: list[Message], shared: list[Message]) -> list[Message]:
    """The prompt followed by the turns that both answers share; in some files these repeat the prompt.

    Turns are compared without the white space around them. The repetition may lack the system turn, be the last turn
    alone, or be the whole dialogue where the prompt is a text that holds it.

    Raises:
        SetAside: both have user turns, and neither repeats the other.
    """
    (system, turns), (shared_system, shared_turns) = map(_system_apart, (before, shared))
    ours, theirs = _keys(turns), _keys(shared_turns)
    if theirs[: len(ours)] == ours:
        return (shared_system or system) + shared_turns
    if ours[-len(theirs) :] == theirs:
        return before
    if not any(role == "user" for role, _ in theirs):
        return before + shared
    if len(turns) == 1 and all(text in turns[0]["content"] for _, text in theirs):  # a dialogue written as one text
        return (shared_system or system) + shared_turns
    if ours and ours[-1][0] == "assistant":  # the answers go on from a finished exchange
        return before + shared
    raise SetAside("prompt and answers that open with different questions")


def _system_apart(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    k = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    return messages[:k], messages[k:]


def _keys(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(m["role"], m["content"].strip()) for m in messages]
