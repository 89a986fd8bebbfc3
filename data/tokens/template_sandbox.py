"""The sandbox in which chat templates run: jinja2's immutable one with limits on steps, lengths and integers.

jinja2's sandbox keeps a template from reaching Python; it does not keep it from running for ever or filling the memory.
So every loop and call costs a step of a budget, and whatever could build a long value is refused from the sizes of its
arguments, before it is built. Methods and filters whose growth is not metered are removed.
"""

import contextvars
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox
import jinja2.visitor

MAX_STEPS = 200_000  # loop iterations and calls in one rendering
MAX_CHARS = 20_000_000  # of any string a template builds
MAX_INT = 1_000_000  # in an argument of a filter or a call, and of all widths in a format
MAX_BITS = 4096  # of a product of integers
REMOVED = ("pprint", "urlize", "wordwrap", "xmlattr")  # filters no chat template needs, each with growth of its own
WRITING = (
    "format",
    "format_map",
    "join",
    "string",
    "sum",
    "tojson",
)  # these write out all their arguments
# Compiled templates are cached and shared, so what belongs to one rendering is in context variables:
steps: contextvars.ContextVar[list[int]] = contextvars.ContextVar("steps")  # the steps left, in a list of one
marks: contextvars.ContextVar[tuple[str, str] | None] = contextvars.ContextVar(
    "marks", default=None
)  # of {% generation %}


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`, which some templates put around what the model writes."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_wrap"), [], [], body).set_lineno(line)

    def _wrap(self, caller: Any) -> str:
        pair = marks.get()
        return pair[0] + caller() + pair[1] if pair else caller()


class _Meter(jinja2.visitor.NodeTransformer):
    """Rewrite a template so that its loops and its `~` go through filters of ours, which count and check."""

    def visit_For(self, node: Any) -> Any:
        self.generic_visit(node)
        node.iter = jinja2.nodes.Filter(node.iter, "_metered", [], [], None, None).set_lineno(node.lineno)
        return node

    def visit_Concat(self, node: Any) -> Any:
        self.generic_visit(node)
        parts = jinja2.nodes.List(node.nodes).set_lineno(node.lineno)
        return jinja2.nodes.Filter(parts, "_concat", [], [], None, None).set_lineno(node.lineno)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The immutable sandbox with a meter on operators and calls."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def _parse(self, source: Any, name: Any, filename: Any) -> Any:
        return _Meter().visit(super()._parse(source, name, filename))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and (abs(left) > 1000 or abs(right) > 64):
            raise jinja2.sandbox.SecurityError(f"{left!r} ** {right!r} is too large")
        if operator == "*":
            for some, times in ((left, right), (right, left)):
                if hasattr(some, "__len__") and isinstance(times, int):
                    _bounded(len(some) * times)
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MAX_BITS:
                raise jinja2.sandbox.SecurityError(f"it builds a number of more than {MAX_BITS} bits")
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _bounded(len(left) + len(right))
        if operator == "%" and isinstance(left, str):
            _bounded_writing("format", left, [right])
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # names
        _tick()
        _bounded_arguments(args, kwargs)
        method = getattr(obj, "__wrapped__", obj)  # jinja2 wraps str.format in a function of its own
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _bounded_text(getattr(method, "__name__", ""), owner, args, kwargs)
        return _bounded_value(super().call(context, obj, *args, **kwargs))


def _tick() -> None:
    """Take a step off the budget."""
    budget = steps.get()
    budget[0] -= 1
    if budget[0] < 0:
        raise jinja2.sandbox.SecurityError(f"it takes more than {MAX_STEPS} steps")


class _Metered:
    """An iterable whose every item costs a step."""

    def __init__(self, items: Any):
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            _tick()
            yield item

    def __len__(self) -> int:
        return len(self.items)


def _metered(items: Any) -> Any:
    return items if isinstance(items, jinja2.Undefined) else _Metered(items)


def _concat(parts: list[Any]) -> str:
    _bounded(_written(parts))
    return "".join(map(str, parts))


def _bounded(length: int) -> None:
    if length > MAX_CHARS:
        raise jinja2.sandbox.SecurityError(f"it builds a value of {length} items; {MAX_CHARS} are allowed")


def _bounded_value(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        raise jinja2.sandbox.SecurityError("it makes bytes, whose methods are not metered")
    if isinstance(value, (str, list, tuple, dict)):
        _bounded(len(value))
    return value


def _written(value: Any) -> int:
    """Characters that writing out a value takes, at least; stops at a value that is too large, however nested."""
    todo, total = [value], 0
    while todo:
        value = todo.pop()
        items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        if not isinstance(items, (list, tuple)):
            total += len(items) if isinstance(items, str) else 1
            _bounded(total)
            continue
        # Numbers are counted here and not one by one through `todo`: a million of them must not take seconds.
        sized = [item for item in items if isinstance(item, (str, list, tuple, dict))]
        total += len(items) + len(items) - len(sized)
        _bounded(total)
        todo += sized
    return total


def _printed(value: Any) -> Any:
    if isinstance(value, (list, tuple, dict)):
        _written(value)
    return value


def _bounded_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > MAX_INT:
            raise jinja2.sandbox.SecurityError(f"it passes {value}; {MAX_INT} is the largest number allowed")


def _bounded_replace(text: str, old: str, new: str) -> None:
    if len(new) > len(old):
        _bounded(text.count(old) * len(new) + len(text))


def _bounded_indent(text: str, width: Any = 4, *_: Any, **__: Any) -> None:
    _bounded((text.count("\n") + 1) * (len(width) if isinstance(width, str) else width) + len(text))


def _bounded_text(name: str, text: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse a method or filter `name` of a string whose result would be too long, before it is built."""
    if name == "translate":
        raise jinja2.sandbox.SecurityError("it calls translate, which is not metered")
    if name == "replace" and len(args) > 1:
        _bounded_replace(text, str(args[0]), str(args[1]))
    if name == "indent":
        _bounded_indent(text, *args, **kwargs)
    if name == "expandtabs":
        _bounded(text.count("\t") * max([8, *args, *kwargs.values()]) + len(text))
    if name in WRITING:
        _bounded_writing(name, text, [*args, *kwargs.values()])


def _bounded_writing(name: str, text: str, values: list[Any]) -> None:
    """Refuse to write or join `values` (with `text` as separator or format) into too long a string."""
    size = _written(values)
    if name == "join":
        _bounded(size + len(text) * sum(len(value) for value in values if hasattr(value, "__len__")))
    elif name in ("format", "format_map"):
        bounded_format(text)
        _bounded(len(text) + (text.count("%") + text.count("{")) * size)


def bounded_format(pattern: str) -> str:
    """The pattern, if no field in it has a width, a nested field or a `*` that could make a long string of it."""
    fields = [pattern] if "%(" in pattern else re.findall(r"%[^a-zA-Z%]*|\{[^}]*", pattern)
    widths = sum(int(number) for field in fields for number in re.findall(r"\d+", field))
    if widths > MAX_INT or re.search(r"\{[^}]*\{|%[^a-zA-Z]*\*", pattern):
        raise jinja2.sandbox.SecurityError(f"the format {pattern[:40]!r} asks for a width that is not allowed")
    return pattern


_CONTEXTS = (jinja2.Environment, jinja2.nodes.EvalContext, jinja2.runtime.Context)


def _guarded(name: str, filter_fn: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that costs a step and checks its arguments and its result."""

    @functools.wraps(filter_fn)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _tick()
        _bounded_arguments(args, kwargs)
        if name in WRITING:  # measuring a generator would use it up, so make it a list first
            args = tuple(list(itertools.islice(a, MAX_CHARS)) if isinstance(a, Iterator) else a for a in args)
        values = [value for value in args if not isinstance(value, _CONTEXTS)]  # jinja2 hands some filters its own
        if name == "join" and values:
            separator = str(values[1] if len(values) > 1 else kwargs.get("d", ""))
            _bounded_writing(name, separator, values[:1])
        elif values and isinstance(values[0], str):
            _bounded_text(name, values[0], values[1:], kwargs)
        elif name in WRITING:
            _written(values)
        return _bounded_value(filter_fn(*args, **kwargs))

    return guarded


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Plain JSON, as transformers writes it; jinja2's own filter escapes HTML."""
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if indent is None:
        return encoder.encode(value)
    parts, length = [], 0
    for part in encoder.iterencode(value):  # every line is indented by its depth, so count while writing
        length += len(part)
        _bounded(length)
        parts.append(part)
    return "".join(parts)


def _fail(message: Any) -> NoReturn:
    raise jinja2.TemplateError(message)


def plain(value: Any, keep: Callable[[Any], bool] = lambda value: False) -> Any:
    """The value in plain JSON types, the only ones that reach a template; `keep` lets further ones through."""
    if value is None or type(value) in (str, int, float, bool) or keep(value):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v, keep) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v, keep) for v in value]
    return str(value)


@functools.lru_cache(maxsize=16)
def compile_template(template: str) -> jinja2.Template:
    """The template in the sandbox; `steps` must be set before it is rendered."""
    env = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols], finalize=_printed
    )
    env.filters = {name: _guarded(name, fn) for name, fn in env.filters.items() if name not in REMOVED}
    env.filters.update(_metered=_metered, _concat=_concat, tojson=_guarded("tojson", _tojson))
    del env.globals["lipsum"]
    env.globals["raise_exception"] = _fail
    return env.from_string(template)
