"""Recipes: what is merged from what, in the YAML of merge tools; everything that is not understood is refused.

merge_method: ties
base_model: base
models:
- model: medical
parameters: {weight: 0.5, density: [0.9, 0.5]}    # from the first layer to the last
- model: chat
parameters:
weight:
- filter: mlp                                  # tensors whose names hold this
value: 0.3
- value: 0.5                                   # all others
dtype: bfloat16
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from alignment.errors import InputError, one_of
from alignment.merging import methods
from alignment.merging.methods import ALWAYS, NEVER, Method

KEYS = (
    *("merge_method", "base_model", "models", "slices", "parameters", "dtype"),
    *("tokenizer_source", "tokenizer", "chat_template"),
)
DTYPES = ("float32", "bfloat16", "float16")
NO_EFFECT = "int8_mask"  # it saves other tools memory; masks here take none
BOOLEANS = ("normalize", "filter_wise", "nuslerp_flatten", "nuslerp_row_wise", NO_EFFECT)
HAS_SIGNS = ("ties", "dare_ties", "della", "breadcrumbs_ties")  # methods that elect signs, and may say NO_EFFECT
OWN_TEMPLATE = "auto"

Value = Any  # a number or a boolean, a list of numbers over the layers, or a list of {filter, value}
Settings = Mapping[str, Value]


@dataclasses.dataclass(frozen=True)
class Source:
    """A model of a slice: its name as the recipe writes it, its layers [first, last), and its own settings."""

    model: str
    layers: tuple[int, int] | None = None
    settings: Settings = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Slice:
    """Layers that follow each other in the merged model."""

    sources: tuple[Source, ...]
    settings: Settings = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A merge.

    Attributes:
        name: of the method, a key of `methods.METHODS`.
        base: the model that differences are taken from; None where the recipe has none.
        slices: one, with all layers, where the recipe lists `models`.
        settings: those that stand for all slices.
        dtype: of the merged weights; None: that of the models'.
        tokenizer: the model whose tokenizer is taken; None: the base, or the first model.
        chat_template: jinja source, or `auto`: the one that most models have; None: that of the tokenizer.
    """

    name: str
    base: str | None
    slices: tuple[Slice, ...]
    settings: Settings
    dtype: str | None
    tokenizer: str | None
    chat_template: str | None

    @property
    def method(self) -> Method:
        return methods.METHODS[self.name]

    @property
    def models(self) -> list[str]:
        """All models, the base first, each once."""
        names = [self.base] if self.base else []
        return list(dict.fromkeys(names + [source.model for part in self.slices for source in part.sources]))

    def merged(self, part: Slice) -> list[Source]:
        """The models of a slice that are merged: all but the base, if differences from it are taken."""
        if self.takes_differences:
            return [source for source in part.sources if source.model != self.base]
        if self.name == "slerp":
            return sorted(part.sources, key=lambda source: source.model != self.base)  # t = 0 is the base
        return list(part.sources)

    @property
    def takes_differences(self) -> bool:
        return self.method.base != NEVER and self.base is not None

    def each(self, part: Slice, tensor: str, place: float) -> dict[str, np.ndarray]:
        """The settings of a tensor that every model may have a value of its own for, `[K]`.

        Args:
            tensor: its name.
            place: of its layer among those of the slice, in [0, 1].
        """
        out = {}
        for key, default in self.method.each.items():
            values = []
            for source in self.merged(part):
                chain = (source.settings, part.settings, self.settings)
                values.append(_lookup(key, default, chain, tensor, place, f"{source.model}: {tensor}"))
            out[key] = np.array(values, np.float64)
        return out

    def settings_of(self, part: Slice, tensor: str, place: float) -> dict[str, Any]:
        """The settings of a tensor that hold for all models together."""
        chain = (part.settings, self.settings)
        return {
            key: _lookup(key, default, chain, tensor, place, tensor) for key, default in self.method.settings.items()
        }


def _lookup(key: str, default: Any, chain: Sequence[Settings], tensor: str, place: float, where: str) -> Any:
    """The value of the nearest settings that have one for this tensor."""
    for settings in chain:
        if key in settings:
            value = _conditional(settings[key], tensor)
            if value is not None:
                return _over_layers(value, place)
    if default is None:
        raise InputError(f"{where} has no {key}; add it to the parameters of this model or of the recipe")
    return default


def _conditional(value: Value, tensor: str) -> Value:
    """The first of several values whose filter the tensor's name holds; None where none does."""
    if not (isinstance(value, list) and value and isinstance(value[0], Mapping)):
        return value
    for entry in value:
        pattern = entry.get("filter")
        if pattern is None or pattern == "*" or pattern in tensor:
            return entry["value"]
    return None


def _over_layers(value: Value, place: float) -> Any:
    """A list runs evenly from the first layer to the last, on straight lines between its numbers."""
    if isinstance(value, list):
        return float(np.interp(place, np.linspace(0, 1, len(value)), value))
    return value


def load(file: str | pathlib.Path) -> Recipe:
    """Read a recipe.

    Raises:
        InputError: no such file, no YAML, or something in it that is not understood, by name.
    """
    path = pathlib.Path(file)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"recipe {file}: {e.strerror}; give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise InputError(f"recipe {file} is not YAML: {e}") from None
    return parse(content, where=str(file))


def parse(content: Any, *, where: str = "recipe") -> Recipe:
    """A recipe from what its YAML holds; see `load`."""
    _mapping(content, where, KEYS)
    name = one_of(f"{where}: merge_method", content.get("merge_method"), methods.METHODS)
    method = methods.METHODS[name]
    if ("models" in content) == ("slices" in content):
        raise InputError(f"{where} has {'both' if 'models' in content else 'neither'} models and slices; give one")
    base = content.get("base_model")
    base = None if base is None else _model(base, f"{where}: base_model")
    own = (*method.settings, *((NO_EFFECT,) if name in HAS_SIGNS else ()))
    read_fn = _Reader(where, own, tuple(method.each))
    slices = read_fn.slices(content)
    recipe = Recipe(
        name=name,
        base=base,
        slices=tuple(_with_base(part, base, method) for part in slices),
        settings=read_fn.settings(content, where, (*own, *method.each)),
        dtype=content.get("dtype"),
        tokenizer=_tokenizer(content, base, where),
        chat_template=content.get("chat_template"),
    )
    if recipe.dtype is not None:
        one_of(f"{where}: dtype", recipe.dtype, DTYPES)
    if not isinstance(recipe.chat_template, (str, type(None))):
        raise InputError(f"{where}: chat_template={recipe.chat_template!r} must be a template in jinja, or auto")
    _check(recipe, where)
    return recipe


def _with_base(part: Slice, base: str | None, method: Method) -> Slice:
    """slerp may leave its base, which is one of the two, out of `models`."""
    is_short = method.models == (2, 2) and method.base == NEVER and len(part.sources) == 1
    if is_short and base is not None and part.sources[0].model != base:
        return dataclasses.replace(part, sources=(Source(base, part.sources[0].layers), *part.sources))
    return part


def _check(recipe: Recipe, where: str) -> None:
    """Refuse a base or a number of models that the method cannot do with."""
    name, method = recipe.name, recipe.method
    if method.base == ALWAYS and recipe.base is None:
        raise InputError(f"{where}: {name} merges differences from a base; add base_model")
    if name == "slerp" and recipe.base is None:
        raise InputError(f"{where}: slerp goes from base_model (t=0) to the other model (t=1); add base_model")
    least, most = method.models
    for part in recipe.slices:
        num = len(recipe.merged(part))
        if num < least or (most is not None and num > most):
            need = f"exactly {least}" if most == least else f"at least {least}"
            beside = " beside the base" if recipe.takes_differences else ""
            listed = ", ".join(source.model for source in recipe.merged(part)) or "none"
            raise InputError(
                f"{where}: {name} takes {need} model{'s' * (least > 1)}{beside}, and this has {num}: {listed}"
            )
        if name == "slerp" and recipe.base not in [source.model for source in part.sources]:
            raise InputError(
                f"{where}: slerp takes base_model={recipe.base} and one more model, and this has two others"
            )
        for source in part.sources:
            if recipe.takes_differences and source.model == recipe.base and source.settings:
                raise InputError(
                    f"{where}: {source.model} is the base, and its parameters {', '.join(source.settings)} are not read"
                )
        names = [source.model for source in part.sources]
        if twice := next((model for model in names if names.count(model) > 1), None):
            raise InputError(f"{where}: {twice} stands in a list of models twice; leave one out")


def _tokenizer(content: Mapping[str, Any], base: str | None, where: str) -> str | None:
    if "tokenizer" in content and "tokenizer_source" in content:
        raise InputError(f"{where} has both tokenizer and tokenizer_source; give one")
    source = content.get("tokenizer_source")
    if "tokenizer" in content:
        _mapping(content["tokenizer"], f"{where}: tokenizer", ("source",))
        source = content["tokenizer"].get("source")
    if source == "union":
        raise InputError(
            f"{where}: the tokenizer source union, which makes a vocabulary of all models', is not offered; give base, "
            "or a model's name"
        )
    if source is None or source == "base":
        if source == "base" and base is None:
            raise InputError(f"{where}: the tokenizer is that of the base, and there is no base_model; name a model")
        return base
    return _model(source, f"{where}: tokenizer")


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads the parts of a recipe whose keys depend on the method."""

    where: str
    merge_keys: tuple[str, ...]
    model_keys: tuple[str, ...]

    def slices(self, content: Mapping[str, Any]) -> tuple[Slice, ...]:
        if "models" in content:
            sources = self._list(content["models"], "models", ("model", "parameters"))
            return (Slice(tuple(self._source(entry, place) for place, entry in sources)),)
        out = []
        for place, entry in self._list(content["slices"], "slices", ("sources", "parameters")):
            sources = self._list(entry.get("sources"), f"{place}: sources", ("model", "layer_range", "parameters"))
            settings = self.settings(entry, place, (*self.merge_keys, *self.model_keys))
            out.append(Slice(tuple(self._source(one, where) for where, one in sources), settings))
            lengths = {last - first for first, last in (source.layers for source in out[-1].sources if source.layers)}
            if len(lengths) > 1 or any(source.layers is None for source in out[-1].sources):
                raise InputError(f"{place}: every source needs a layer_range, all of the same length")
        return tuple(out)

    def _list(self, value: Any, name: str, keys: Sequence[str]) -> list[tuple[str, Mapping[str, Any]]]:
        where = name if name.startswith(self.where) else f"{self.where}: {name}"
        if not isinstance(value, list) or not value:
            raise InputError(f"{where} must be a list with at least one entry")
        for number, entry in enumerate(value):
            _mapping(entry, f"{where}[{number}]", keys)
        return [(f"{where}[{number}]", entry) for number, entry in enumerate(value)]

    def _source(self, entry: Mapping[str, Any], where: str) -> Source:
        layers = entry.get("layer_range")
        if layers is not None:
            is_pair = isinstance(layers, list) and len(layers) == 2 and all(type(n) is int for n in layers)
            if not is_pair or not 0 <= layers[0] < layers[1]:
                raise InputError(f"{where}: layer_range={layers} must be [first, last] with 0 <= first < last")
        settings = self.settings(entry, where, self.model_keys)
        return Source(_model(entry.get("model"), where), None if layers is None else (layers[0], layers[1]), settings)

    def settings(self, entry: Mapping[str, Any], where: str, keys: Sequence[str]) -> dict[str, Value]:
        content = entry.get("parameters")
        if content is None:
            return {}
        _mapping(content, f"{where}: parameters", keys)
        for key, value in content.items():
            _check_value(key, value, f"{where}: parameters")
        return dict(content)


def _mapping(content: Any, where: str, keys: Sequence[str]) -> None:
    if not isinstance(content, Mapping):
        raise InputError(f"{where} must be a mapping of {', '.join(keys) or 'nothing'}, not {content!r:.60}")
    for key in content:
        one_of(f"{where}: key", key, keys)


def _model(value: Any, where: str) -> str:
    """A model's name: a folder, `run:<workdir>`, or an id of the hub; an adapter beside it is not offered."""
    if isinstance(value, Mapping):
        _mapping(value, where, ("model",))
        value = value.get("model")
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: model={value!r} must be a folder, run:<workdir> or a hub id")
    if "+" in value:
        raise InputError(
            f"{where}: model={value!r} adds an adapter, which is not offered; merge it into its model first"
        )
    return value


def _check_value(key: str, value: Any, where: str) -> None:
    """Refuse a value that is neither what its key takes nor a list of such."""
    is_fit: Callable[[Any], bool] = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool) and np.isfinite(x)  # noqa: E731
    if key in BOOLEANS:
        if not isinstance(value, bool):
            raise InputError(f"{where}: {key}={value!r} must be true or false")
        return
    if key == "rescale":
        if not isinstance(value, bool):
            one_of(f"{where}: rescale", value, ("density", "l1"), hint="or true (by density) and false")
        return
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        for number, entry in enumerate(value):
            _mapping(entry, f"{where}: {key}[{number}]", ("filter", "value"))
            pattern = entry.get("filter")
            if "value" not in entry or not isinstance(pattern, (str, type(None))):
                raise InputError(f"{where}: {key}[{number}] needs a value, and its filter must be text")
            _check_value(key, entry["value"], f"{where}: {key}[{number}]")
        return
    values = value if isinstance(value, list) else [value]
    if not values or not all(is_fit(x) for x in values):
        raise InputError(f"{where}: {key}={value!r} must be a number, a list of numbers, or a list of filter and value")
