"""Chat templates: from messages to the text that a model reads, and where the assistant's turns stand in it.

Templates come with checkpoints, so they are programs of strangers. They run in jinja2's immutable sandbox with limits
on steps, on the length of strings and on integer arguments (template_sandbox.py), so a hostile one ends in an
`InputError`. `strftime_now` returns one fixed date by default, so that the same files make the same tokens every day.
"""

import datetime
import functools
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.sandbox

from alignment.errors import InputError
from data.tokens import template_sandbox

DATE = datetime.datetime(2024, 7, 26)  # the date Llama 3.1's own template falls back to


class Refused(InputError):
    """A template that does not write this conversation; others it may write."""


def default_template(*, with_bos: bool) -> str:
    """The template of tokenizers without one: 'User: ...', a blank line, 'Assistant: ...' and EOS."""
    bos = "{{ bos_token }}" if with_bos else ""
    return (
        bos + "{% for message in messages %}"
        "{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
        "{{ message['role'] | capitalize }}: {{ message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{% if messages %}{{ '\\n\\n' }}{% endif %}Assistant:{% endif %}"
    )


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    tokens: Mapping[str, str] | None = None,
    date: datetime.datetime = DATE,
    **variables: Any,
) -> str:
    """The conversation as text.

    Args:
        template: jinja source, as in a checkpoint's `chat_template`.
        messages: `{"role": ..., "content": ...}` each; further keys reach the template.
        add_generation_prompt: end with the opening of an assistant turn.
        tokens: `bos_token`, `eos_token` and so on, as text.
        date: what `strftime_now` formats.
        **variables: anything else that the template reads, such as `tools` or `enable_thinking`.

    Raises:
        Refused: the template has an error, refuses the conversation, or goes beyond a limit.
    """
    template_sandbox.steps.set([template_sandbox.MAX_STEPS])
    names: dict[str, Any] = {
        "bos_token": "",
        "eos_token": "",
        "tools": None,
        "documents": None,
        **(tokens or {}),
        **variables,
    }
    names["strftime_now"] = lambda pattern: date.strftime(template_sandbox.bounded_format(pattern))
    parts, length = [], 0
    try:
        compiled = template_sandbox.compile_template(template)
        for part in compiled.generate(
            messages=template_sandbox.plain(messages),
            add_generation_prompt=add_generation_prompt,
            **template_sandbox.plain(names, keep=callable),
        ):
            parts.append(part)
            length += len(part)
            if length > template_sandbox.MAX_CHARS:
                raise jinja2.sandbox.SecurityError(f"it writes more than {template_sandbox.MAX_CHARS} characters")
    except (
        jinja2.TemplateError,
        ArithmeticError,
        LookupError,
        RecursionError,
        MemoryError,
        TypeError,
        ValueError,
    ) as e:
        reason = str(e) or type(e).__name__
        roles = [m.get("role") for m in messages]
        raise Refused(f"the chat template fails on a conversation with roles {roles}: {reason}") from e
    return "".join(parts)


def assistant_spans(
    template: str, messages: Sequence[Mapping[str, Any]], **options: Any
) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as text, and the characters [start, end) of every assistant turn with its end-of-turn mark.

    A template with `{% generation %}` marks its spans itself. Otherwise turn i starts where the rendering of the turns
    before it, with a generation prompt, ends.

    Raises:
        InputError: that rendering is not a prefix of the whole conversation's, so the start is unknown.
    """
    if re.search(r"\{%-?\s*generation\s*-?%\}", template):
        return _marked_spans(template, messages, **options)
    text = render(template, messages, **options)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            start = len(prefix_of(template, messages, i, text, **options))
            spans.append((start, _turn_end(template, messages, i, text, start, **options)))
    return text, spans


def prefix_of(template: str, messages: Sequence[Mapping[str, Any]], i: int, text: str, **options: Any) -> str:
    """The text before assistant turn i, with the opening of that turn.

    Args:
        text: the whole conversation, rendered.
        **options: as for `render`.

    Raises:
        InputError: the prefix does not begin `text`.
    """
    prefix = render(template, messages[:i], add_generation_prompt=True, **options)
    if not text.startswith(prefix):
        at = next((k for k, (a, b) in enumerate(zip(prefix, text)) if a != b), min(len(prefix), len(text)))
        raise Refused(
            f"the chat template rewrites earlier text: at character {at} the prompt alone has "
            f"{prefix[at : at + 40]!r} but the whole conversation has {text[at : at + 40]!r}. Where an answer starts "
            "is then unknown; use a template whose prompt (with add_generation_prompt) is a prefix of the "
            "conversation, or one with {% generation %}"
        )
    return prefix


def check_shown(text: str, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> None:
    """Refuse a rendering that left out what a model would have to see: calls of tools, and the tools themselves.

    Raises:
        Refused: the name of a tool, or of a function that a turn calls, is not in the text.
    """
    called = [call.get("function", call) for m in messages for call in m.get("tool_calls") or ()]
    offered = [tool.get("function", tool) for tool in tools or () if isinstance(tool, Mapping)]
    for what, functions in (("calls of tools", called), ("tools", offered)):
        names = [f.get("name") for f in functions if isinstance(f, Mapping)]
        if hidden := [name for name in names if name and str(name) not in text]:
            raise Refused(f"the chat template does not write {what}, such as {hidden[0]!r}")


def without_end(answer: str, ends: Sequence[str]) -> str:
    """An answer without the stop tokens that some files write out after it; one end is added again later.

    Args:
        ends: the tokens' texts, as in `Tokenizer.ends`.
    """
    while end := next((end for end in ends if answer.rstrip().endswith(end)), ""):
        answer = answer.rstrip().removesuffix(end)
    return answer


def end_of_turn(template: str, *, tokens: Mapping[str, str] | None = None) -> str:
    """The text after an assistant's last word, without trailing white space; often '' or a token."""
    return _end_of_turn(template, tuple(sorted((tokens or {}).items())))


@functools.lru_cache(maxsize=16)
def _end_of_turn(template: str, tokens: tuple[tuple[str, str], ...]) -> str:
    probe = "plumbline-probe"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": probe}]
    try:
        _, answer, after = render(template, messages, tokens=dict(tokens)).rpartition(probe)
        return after.rstrip() if answer else ""  # some templates write no answers
    except InputError:
        return ""


def _turn_end(
    template: str, messages: Sequence[Mapping[str, Any]], i: int, text: str, start: int, **options: Any
) -> int:
    until_turn = render(template, messages[: i + 1], **options).rstrip()
    if text.startswith(until_turn) and len(until_turn) > start:
        return len(until_turn)
    # Some templates write the last turn differently from earlier ones (with a reasoning block), so turn i as the last
    # turn is not what the whole conversation holds. Then look for its words and the mark after them.
    words = str(messages[i].get("content", "")).strip()
    mark = end_of_turn(template, tokens=options.get("tokens"))
    at = text.find(words + mark, start)
    if words and at >= 0 and not text[start:at].strip():
        return at + len(words + mark)
    raise Refused(
        f"cannot tell where assistant turn {i} ends: the chat template writes it differently once further turns "
        "follow. Train on the last answer only (turns='last'), or use a template with {% generation %}"
    )


def _marked_spans(
    template: str, messages: Sequence[Mapping[str, Any]], **options: Any
) -> tuple[str, list[tuple[int, int]]]:
    # The marks are random, so that no message can hold one.
    marks = (f"\x02{secrets.token_hex(12)}\x03", f"\x02{secrets.token_hex(12)}\x03")
    reset = template_sandbox.marks.set(marks)
    try:
        marked = render(template, messages, **options)
    finally:
        template_sandbox.marks.reset(reset)
    text = ""
    spans: list[tuple[int, int]] = []
    for k, part in enumerate(re.split("|".join(map(re.escape, marks)), marked)):
        if k % 2:  # between an opening and a closing mark
            spans.append((len(text), len(text) + len(part.rstrip())))
        text += part
    return text, spans
