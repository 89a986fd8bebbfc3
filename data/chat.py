"""Chat templates: messages in, the text a model sees out.

Templates come with checkpoints, so they are strangers' programs. They run in jinja2's immutable sandbox with a budget
on steps, on the length of any string, and on integers given to functions, so that a hostile one stops with an
`InputError`. `strftime_now` gives one fixed date unless told otherwise: the same files make the same tokens on every
day.
"""

import contextvars
import datetime
import functools
import json
import re
import secrets
from collections.abc import Mapping, Sequence

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.visitor

from alignment.errors import InputError

DATE = datetime.datetime(2024, 7, 26)  # the date Llama 3.1's own template falls back to
MAX_STEPS = 200_000  # loop iterations and calls in one rendering
MAX_CHARS = 20_000_000  # of any string a template builds
MAX_INT = 1_000_000  # in an argument of a filter or a call
_steps: contextvars.ContextVar[list[int]] = contextvars.ContextVar("steps")
_marks: contextvars.ContextVar[tuple[str, str] | None] = contextvars.ContextVar("marks", default=None)


def default_template(*, with_bos: bool) -> str:
    """The plain template of tokenizers that bring none: 'User: ...', a blank line, 'Assistant: ...' and EOS."""
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
    messages: Sequence[Mapping],
    *,
    add_generation_prompt: bool = False,
    tokens: Mapping[str, str] | None = None,
    date: datetime.datetime = DATE,
    **variables,
) -> str:
    """The conversation as text.

    Args:
        template: jinja source, as in a checkpoint's `chat_template`.
        messages: `{"role": ..., "content": ...}` each; further keys reach the template.
        add_generation_prompt: end with the opening of an assistant turn.
        tokens: `bos_token`, `eos_token` and so on, as text.
        date: what `strftime_now` formats.
        **variables: anything else the template reads, such as `tools` or `enable_thinking`.
    """
    _steps.set([MAX_STEPS])
    names = {"bos_token": "", "eos_token": "", "tools": None, "documents": None, **(tokens or {}), **variables}
    names["strftime_now"] = lambda pattern: date.strftime(_bounded_format(pattern))
    parts, length = [], 0
    try:
        compiled = _compile(template)
        for part in compiled.generate(
            messages=_plain(messages), add_generation_prompt=add_generation_prompt, **_plain(names, keep=callable)
        ):
            parts.append(part)
            length += len(part)
            if length > MAX_CHARS:
                raise jinja2.sandbox.SecurityError(f"it writes more than {MAX_CHARS} characters")
    except (
        jinja2.TemplateError,
        ArithmeticError,
        LookupError,
        RecursionError,
        MemoryError,
        TypeError,
        ValueError,
    ) as e:
        what = str(e) or type(e).__name__
        roles = [m.get("role") for m in messages]
        raise InputError(f"the chat template fails on a conversation with roles {roles}: {what}") from e
    return "".join(parts)


def assistant_spans(template: str, messages: Sequence[Mapping], **options) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as text, and the character span of every assistant turn, its end-of-turn mark included.

    A template with `{% generation %}` says its spans itself. Otherwise turn i starts where the rendering of the turns
    before it, with a generation prompt, ends; a template without that prefix property is an `InputError`.
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


def prefix_of(template: str, messages: Sequence[Mapping], i: int, text: str, **options) -> str:
    """What the model has read when assistant turn i begins; must open `text`, the whole conversation."""
    prefix = render(template, messages[:i], add_generation_prompt=True, **options)
    if not text.startswith(prefix):
        at = next((k for k, (a, b) in enumerate(zip(prefix, text)) if a != b), min(len(prefix), len(text)))
        raise InputError(
            f"the chat template rewrites earlier text: at character {at} the prompt alone has "
            f"{prefix[at : at + 40]!r} but "
            f"the whole conversation has {text[at : at + 40]!r}. Where an answer starts is then unknown; use "
            f"a template "
            "whose prompt (with add_generation_prompt) is a prefix of the conversation, or one with {% generation %}"
        )
    return prefix


def end_of_turn(template: str, *, tokens: Mapping[str, str] | None = None) -> str:
    """What the template writes after an assistant's last word, without trailing white space; often '' or a token."""
    return _end_of_turn(template, tuple(sorted((tokens or {}).items())))


@functools.lru_cache(maxsize=16)
def _end_of_turn(template: str, tokens: tuple[tuple[str, str], ...]) -> str:
    probe = "plumbline-probe"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": probe}]
    try:
        return render(template, messages, tokens=dict(tokens)).rpartition(probe)[2].rstrip()
    except InputError:
        return ""


def _turn_end(template, messages, i, text, start, **options) -> int:
    upto = render(template, messages[: i + 1], **options).rstrip()
    if text.startswith(upto) and len(upto) > start:
        return len(upto)
    # a template that writes a last turn differently (reasoning blocks): find the words themselves
    words = str(messages[i].get("content", "")).strip()
    mark = end_of_turn(template, tokens=options.get("tokens"))
    at = text.find(words + mark, start)
    if words and at >= 0 and not text[start:at].strip():
        return at + len(words + mark)
    raise InputError(
        f"cannot tell where assistant turn {i} ends: the chat template writes it differently once further "
        f"turns follow. "
        "Train on the last answer only (turns='last'), or use a template with {% generation %}"
    )


def _marked_spans(template, messages, **options):
    marks = tuple(f"\x02{secrets.token_hex(12)}\x03" for _ in range(2))
    reset = _marks.set(marks)
    try:
        marked = render(template, messages, **options)
    finally:
        _marks.reset(reset)
    text, spans = "", []
    for k, part in enumerate(re.split("|".join(map(re.escape, marks)), marked)):
        if k % 2:  # between an opening and a closing mark
            spans.append((len(text), len(text) + len(part.rstrip())))
        text += part
    return text, spans


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` around what the model writes."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_wrap"), [], [], body).set_lineno(line)

    def _wrap(self, caller):
        marks = _marks.get()
        return marks[0] + caller() + marks[1] if marks else caller()


class _Meter(jinja2.visitor.NodeTransformer):
    """Rewrites a template so that its loops and its `~` go through the meter."""

    def visit_For(self, node):
        self.generic_visit(node)
        node.iter = jinja2.nodes.Filter(node.iter, "_metered", [], [], None, None).set_lineno(node.lineno)
        return node

    def visit_Concat(self, node):
        self.generic_visit(node)
        parts = jinja2.nodes.List(node.nodes).set_lineno(node.lineno)
        return jinja2.nodes.Filter(parts, "_concat", [], [], None, None).set_lineno(node.lineno)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The immutable sandbox with a meter on loops, calls, string lengths and integer arguments."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def _parse(self, source, name, filename):
        return _Meter().visit(super()._parse(source, name, filename))

    def call_binop(self, context, operator, left, right):
        if operator == "**" and (abs(left) > 1000 or abs(right) > 64):
            raise jinja2.sandbox.SecurityError(f"{left!r} ** {right!r} is too large")
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, (str, list, tuple)) and isinstance(times, int):
                    _bounded(len(text) * times)
        if operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            _bounded(len(left) + len(right))
        if operator == "%" and isinstance(left, str):
            _bounded_format(left)
        return super().call_binop(context, operator, left, right)

    def call(self, context, obj, *args, **kwargs):
        _tick()
        _bounded_arguments(args, kwargs)
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            name = getattr(obj, "__name__", "")
            if name in ("format", "format_map"):
                _bounded_format(owner)
            if name == "replace" and len(args) > 1:
                _bounded_replace(owner, str(args[0]), str(args[1]))
            if name == "join" and args and hasattr(args[0], "__len__"):
                _bounded(len(owner) * len(args[0]))
        return _bounded_value(super().call(context, obj, *args, **kwargs))


def _tick():
    budget = _steps.get()
    budget[0] -= 1
    if budget[0] < 0:
        raise jinja2.sandbox.SecurityError(f"it takes more than {MAX_STEPS} steps")


class _Metered:
    """An iterable that pays for each item."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        for item in self.items:
            _tick()
            yield item

    def __len__(self):
        return len(self.items)


def _metered(items):
    return items if isinstance(items, jinja2.Undefined) else _Metered(items)


def _concat(parts):
    texts = [str(part) for part in parts]
    _bounded(sum(map(len, texts)))
    return "".join(texts)


def _bounded(length: int):
    if length > MAX_CHARS:
        raise jinja2.sandbox.SecurityError(f"it builds a value of {length} items; {MAX_CHARS} are allowed")


def _bounded_value(value):
    if isinstance(value, (str, list, tuple, dict)):
        _bounded(len(value))
    return value


def _bounded_arguments(args, kwargs):
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > MAX_INT:
            raise jinja2.sandbox.SecurityError(f"it passes {value}; {MAX_INT} is the largest number allowed")


def _bounded_replace(text: str, old: str, new: str):
    if len(new) > len(old):
        _bounded(text.count(old) * len(new) + len(text))


def _bounded_format(pattern: str) -> str:
    if re.search(r"\d{6}|\{[^}]*\{|%[^a-zA-Z]*\*", pattern):
        raise jinja2.sandbox.SecurityError(f"the format {pattern[:40]!r} asks for a width that is not allowed")
    return pattern


def _guarded(name: str, filter_fn):
    @functools.wraps(filter_fn)
    def guarded(*args, **kwargs):
        _tick()
        _bounded_arguments(args, kwargs)
        texts = [value for value in args if isinstance(value, str)]
        if name == "format":
            _bounded_format(*texts[:1])
        if name == "replace" and len(texts) > 2:
            _bounded_replace(*texts[:3])
        if name == "join":
            items = [value for value in args if hasattr(value, "__len__") and not isinstance(value, str)]
            _bounded(sum(map(len, texts)) * sum(map(len, items)))
        return _bounded_value(filter_fn(*args, **kwargs))

    return guarded


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _fail(message):
    raise jinja2.TemplateError(message)


def _plain(value, keep=lambda value: False):
    """Only plain JSON types reach a template."""
    if value is None or type(value) in (str, int, float, bool) or keep(value):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v, keep) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, keep) for v in value]
    return str(value)


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    env = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    env.filters = {name: _guarded(name, fn) for name, fn in env.filters.items()}
    env.filters.update(_metered=_metered, _concat=_concat, tojson=_guarded("tojson", _tojson))
    del env.globals["lipsum"]
    env.globals["raise_exception"] = _fail
    return env.from_string(template)
