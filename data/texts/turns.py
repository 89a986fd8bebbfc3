"""Conversations in the spellings that files have, as lists of {role, content}.

What the readers of pairs and of answers share: message lists of any spelling, system prompts and history that stand in
columns of their own, a prompt that the answers repeat, and what no text model can read.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]  # role and content, and what else of PASSED the file gives
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant"}
ROLES |= {"function_call": "assistant", "observation": "tool"}
SYSTEM = ("system", "system_prompt", "system_message")  # columns with the text of a system turn
HISTORY = ("history",)  # columns with earlier turns: [question, answer] pairs, or messages
PICTURES = ("images", "image", "videos", "audios")  # columns of what a text model cannot read
PASSED = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")  # keys that reach the chat template
WEIGHTS = ("weight", "train", "training", "loss")  # keys by which files switch the learning of a turn off


class SetAside(Exception):
    """A record that cannot be learned from; the text is the reason under which it is counted."""


def messages_of(turns: Any) -> list[Message]:
    """A message list in any of the usual spellings, as {role, content}; a text is one user turn.

    A content of parts is the text of its parts; a part whose text is null has none. `weight` is 0 or 1 where the file
    says whether a turn is to be learned.

    Raises:
        SetAside: a part holds a picture or a sound.
    """
    if isinstance(turns, str):
        return [{"role": "user", "content": turns}]
    out = []
    for turn in [turns] if isinstance(turns, Mapping) else turns or []:
        if not isinstance(turn, Mapping):
            out.append({"role": "user", "content": str(turn)})
            continue
        role = str(turn.get("role") or turn.get("from") or "user").lower()
        content = turn.get("content", turn.get("value"))
        if isinstance(content, list):
            content = "".join(_text_of(part) for part in content)
        message: Message = {"role": ROLES.get(role, role), "content": content if isinstance(content, str) else ""}
        message |= {key: turn[key] for key in PASSED if turn.get(key)}
        switches = [turn[key] for key in WEIGHTS if isinstance(turn.get(key), (bool, int, float))]
        out.append(message | ({"weight": int(all(switches))} if switches else {}))
    return out


def _text_of(part: Any) -> str:
    if not isinstance(part, Mapping):
        return part if isinstance(part, str) else ""
    media = [key for key in ("image", "image_url", "video", "audio", "input_audio") if part.get(key)]
    if media:
        raise SetAside(f"a turn with {media[0]}, which no text model reads")
    text = part.get("text")
    return text if isinstance(text, str) else ""


def parsed(value: Any) -> Any:
    """A value, or the messages whose JSON text it is; some tables store lists as text."""
    if isinstance(value, str) and value.lstrip()[:2] in ("[{", "[ ", "[\n") and value.rstrip()[-1:] == "]":
        try:
            turns = json.loads(value)
        except ValueError:
            return value
        if turns and all(isinstance(t, dict) and ("content" in t or "value" in t) for t in turns):
            return turns
    return value


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
    system = next((value[name] for name in SYSTEM if isinstance(value.get(name), str) and value[name].strip()), None)
    if system is not None:
        turns.append({"role": "system", "content": system})
    for past in next((value[name] for name in HISTORY if value.get(name)), []):
        if isinstance(past, Mapping):
            turns += messages_of(past)
        elif isinstance(past, Sequence) and not isinstance(past, str) and len(past) == 2:
            asked, answered = past
            turns += [{"role": "user", "content": str(asked)}, {"role": "assistant", "content": str(answered)}]
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
