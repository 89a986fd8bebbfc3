"""The sandbox chat templates run in: jinja2's immutable one with a meter on steps, lengths and integer arguments."""

import contextvars
import functools
import json
import re
from collections.abc import Mapping

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.visitor

MAX_STEPS = 200_000  # loop iterations and calls in one rendering
MAX_CHARS = 20_000_000  # of any string a template builds
MAX_INT = 1_000_000  # in an argument of a filter or a call
steps: contextvars.ContextVar[list[int]] = contextvars.ContextVar("steps")  # what is left, in a list of one
marks: contextvars.ContextVar[tuple[str, str] | None] = contextvars.ContextVar("marks", default=None)


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` around what the model writes."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_wrap"), [], [], body).set_lineno(line)

    def _wrap(self, caller):
        pair = marks.get()
        return pair[0] + caller() + pair[1] if pair else caller()


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
            bounded_format(left)
        return super().call_binop(context, operator, left, right)

    def call(self, context, obj, *args, **kwargs):
        _tick()
        _bounded_arguments(args, kwargs)
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            name = getattr(obj, "__name__", "")
            if name in ("format", "format_map"):
                bounded_format(owner)
            if name == "replace" and len(args) > 1:
                _bounded_replace(owner, str(args[0]), str(args[1]))
            if name == "join" and args and hasattr(args[0], "__len__"):
                _bounded(len(owner) * len(args[0]))
        return _bounded_value(super().call(context, obj, *args, **kwargs))


def _tick():
    budget = steps.get()
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


def bounded_format(pattern: str) -> str:
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
            bounded_format(*texts[:1])
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


def plain(value, keep=lambda value: False):
    """Only plain JSON types reach a template."""
    if value is None or type(value) in (str, int, float, bool) or keep(value):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v, keep) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v, keep) for v in value]
    return str(value)


@functools.lru_cache(maxsize=16)
def compile_template(template: str) -> jinja2.Template:
    env = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    env.filters = {name: _guarded(name, fn) for name, fn in env.filters.items()}
    env.filters.update(_metered=_metered, _concat=_concat, tojson=_guarded("tojson", _tojson))
    del env.globals["lipsum"]
    env.globals["raise_exception"] = _fail
    return env.from_string(template)
