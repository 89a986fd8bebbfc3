"""The checkpoints of a recipe: compared before anything is merged, and planned tensor by tensor."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from alignment import files
from alignment.errors import InputError, few
from alignment.merging import blocks, methods
from alignment.merging.recipes import Recipe, Slice, Source
from alignment.models import tensors

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
IGNORED = ("rotary_emb.inv_freq",)  # computed from the config, and stored by old checkpoints only
EMBEDDING, HEAD = "embed", "lm_head"  # parts of the names of the tensors whose rows are a vocabulary
MUST_AGREE = ("model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act")
MAY_DIFFER = ("rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "tie_word_embeddings")


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint folder: its tensors by name, and config.json."""

    name: str
    folder: pathlib.Path
    tensors: Mapping[str, tensors.Stored]
    config: Mapping[str, Any]

    @property
    def num_layers(self) -> int:
        numbers = [layer for layer in (split(name)[1] for name in self.tensors) if layer is not None]
        return max(numbers, default=-1) + 1


@dataclasses.dataclass(frozen=True)
class Job:
    """One merged tensor.

    Attributes:
        shape: of the merged tensor; sources may have more rows.
        sources: (model, name of its tensor) of those that are merged, in the recipe's order.
        base: the same of the tensor that differences are taken from.
        each, settings: of `methods.Tensor`.
        layer: of the merged model; None beside the layers.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[tuple[str, str], ...]
    base: tuple[str, str] | None
    each: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]
    layer: int | None


def open_model(name: str, folder: pathlib.Path) -> Model:
    """A checkpoint by its headers; no weights are read.

    Raises:
        InputError: files are missing, cut short or of a kind that is not read.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{name}: {file} does not exist; a checkpoint has config.json and *.safetensors")
    config = files.read_object(file, "download it again")
    stored = {key: place for key, place in tensors.index(folder).items() if not key.endswith(IGNORED)}
    for key, place in stored.items():
        tensors.view(key, place)  # refuses types that cannot be computed with
    return Model(name, folder, _without_copy(stored) if config.get("tie_word_embeddings") else stored, config)


def _without_copy(stored: dict[str, tensors.Stored]) -> dict[str, tensors.Stored]:
    """Without an output matrix that repeats the embedding, which some tools store for a tied model."""
    head = next((key for key in stored if key.endswith("lm_head.weight")), None)
    rows = next((key for key in stored if key.endswith("embed_tokens.weight")), None)
    if head and rows and tensors.same_values(head, stored[head], stored[rows]):
        return {key: place for key, place in stored.items() if key != head}
    return stored


def split(name: str) -> tuple[str, int | None]:
    """A tensor's name with a gap for the layer's number, and the number; the name itself beside the layers."""
    match = LAYER.search(name)
    if match is None:
        return name, None
    return f"{name[: match.start(1)]}{{}}{name[match.end(1) :]}", int(match[1])


SayFn = Callable[[str], None]


def plan(
    recipe: Recipe, models: Mapping[str, Model], *, allow_submatrix: bool = False, say_fn: SayFn = print
) -> list[Job]:
    """All merged tensors in their order: before the layers, the layers, behind them.

    Args:
        models: every one that the recipe names.
        allow_submatrix: cut embeddings with more rows than the base's (or the first model's) to its number of rows.
        say_fn: called with what a person should know of a merge that goes on all the same.

    Raises:
        InputError: models that differ in architecture, names or shapes, or settings that cannot be, by name.
    """
    for one in list(models.values())[1:]:
        check_config(models[recipe.models[0]], one, say_fn)
    before: list[Job] = []
    behind: list[Job] = []
    layers: list[Job] = []
    num_layers = 0
    rows = Rows(allow_submatrix, say_fn)
    for number, part in enumerate(recipe.slices):
        part = _with_layers(recipe, part, models)
        check_names(part, models)
        first = models[part.sources[0].model]
        (start, stop) = part.sources[0].layers or (0, 0)
        outer = [name for name in first.tensors if split(name)[1] is None]
        if number == 0:
            before = [_job(recipe, part, models, name, None, 0, rows) for name in outer if EMBEDDING in name]
        for i in range(stop - start):
            inner = [template for template, layer in map(split, first.tensors) if layer == start + i]
            layers += [_job(recipe, part, models, name, i, num_layers, rows) for name in inner]
        num_layers += stop - start
        if number == len(recipe.slices) - 1:
            behind = [_job(recipe, part, models, name, None, 0, rows) for name in outer if EMBEDDING not in name]
    jobs = [*before, *layers, *behind]
    _say_small(recipe, jobs, say_fn)
    return jobs


@dataclasses.dataclass(frozen=True)
class Rows:
    """What happens where a vocabulary has more rows than the base's."""

    allow_submatrix: bool
    say_fn: SayFn


def _say_small(recipe: Recipe, jobs: Sequence[Job], say_fn: SayFn) -> None:
    """Of tensors so small that the share which stays is less than one entry."""
    small = [
        job.name
        for job in jobs
        if recipe.method.prune is methods.prune_by_size and (job.each["density"] * math.prod(job.shape) < 1).any()
    ]
    if small:
        say_fn(f"note: density times size is below 1 for {few(small)}; one entry of each model stays")


def _with_layers(recipe: Recipe, part: Slice, models: Mapping[str, Model]) -> Slice:
    """The slice with its base among the sources, and layers for each."""
    sources = part.sources
    if recipe.takes_differences and recipe.base not in [source.model for source in sources]:
        assert recipe.base is not None
        sources = (Source(recipe.base, sources[0].layers), *sources)
    out = []
    for source in sources:
        has = models[source.model].num_layers
        layers = source.layers or (0, has)
        if layers[1] > has:
            raise InputError(f"{source.model} has {has} layers, and layer_range asks for {list(layers)}")
        out.append(dataclasses.replace(source, layers=layers))
    # the base leads, so that its names and shapes are what the others are compared with
    return dataclasses.replace(part, sources=tuple(sorted(out, key=lambda source: source.model != recipe.base)))


def check_config(first: Model, other: Model, say_fn: SayFn) -> None:
    """Refuse another architecture; say where numbers of the network differ that its shapes do not show."""
    for key in MUST_AGREE:
        if first.config.get(key) != other.config.get(key):
            raise InputError(
                f"{other.name} has {key}={other.config.get(key)!r} and {first.name} {first.config.get(key)!r}; only "
                "models of one architecture can be merged"
            )
    for key in MAY_DIFFER:
        if first.config.get(key) != other.config.get(key):
            say_fn(
                f"note: {other.name} has {key}={other.config.get(key)!r} and {first.name} {first.config.get(key)!r}; "
                "the merged model gets the latter"
            )


def check_names(part: Slice, models: Mapping[str, Model]) -> None:
    """Refuse models whose tensors have other names, listing those that differ."""
    first = part.sources[0]
    names = _names(first, models)
    for source in part.sources[1:]:
        others = _names(source, models)
        lacks, has = [n for n in names if n not in others], [n for n in others if n not in names]
        if lacks or has:
            words = [f"lacks {few(lacks)}"] * bool(lacks) + [f"has {few(has)} besides"] * bool(has)
            raise InputError(f"{source.model}, beside {first.model}, {' and '.join(words)}; their architectures differ")


def _names(source: Source, models: Mapping[str, Model]) -> dict[str, None]:
    """Names with layers counted from the first of the slice."""
    start, stop = source.layers or (0, 0)
    out: dict[str, None] = {}
    for name in models[source.model].tensors:
        template, layer = split(name)
        if layer is None:
            out[name] = None
        elif start <= layer < stop:
            out[template.format(layer - start)] = None
    return out


def _job(
    recipe: Recipe,
    part: Slice,
    models: Mapping[str, Model],
    template: str,
    layer: int | None,
    offset: int,
    rows: Rows,
) -> Job:
    """The merged tensor of a name, at a layer counted from the slice's first."""
    own = {
        source.model: template.format((source.layers or (0, 0))[0] + layer) if layer is not None else template
        for source in part.sources
    }
    name = template if layer is None else template.format(offset + layer)
    first = part.sources[0].model
    shape = models[first].tensors[own[first]].shape
    for model, tensor in own.items():
        _check_shape(model, tensor, models[model].tensors[tensor].shape, first, shape, rows)
    num = part.sources[0].layers[1] - part.sources[0].layers[0] if part.sources[0].layers else 1
    place = (0.0 if EMBEDDING in template else 1.0) if layer is None else layer / max(num - 1, 1)
    each, settings = recipe.each(part, name, place), recipe.settings_of(part, name, place)
    methods.check(recipe.method, each, settings, name)
    return Job(
        name,
        shape,
        tuple((source.model, own[source.model]) for source in recipe.merged(part)),
        (recipe.base, own[recipe.base]) if recipe.takes_differences and recipe.base else None,
        each,
        settings,
        None if layer is None else offset + layer,
    )


def _check_shape(
    model: str, tensor: str, shape: tuple[int, ...], first: str, wanted: tuple[int, ...], rows: Rows
) -> None:
    if shape == wanted:
        return
    is_vocabulary = (EMBEDDING in tensor or HEAD in tensor) and len(shape) == 2 and shape[1:] == wanted[1:]
    if is_vocabulary and rows.allow_submatrix and shape[0] > wanted[0]:
        rows.say_fn(f"note: {tensor} of {model} is cut from {shape[0]} rows to the {wanted[0]} of {first}")
        return
    hint = ""
    if is_vocabulary and shape[0] > wanted[0]:
        hint = "; --config.allow_submatrix=True cuts it to that many rows"
    raise InputError(f"{tensor} of {model} has shape {list(shape)}, and {list(wanted)} in {first}{hint}")


def dtype_of(recipe: Recipe, models: Mapping[str, Model]) -> np.dtype:
    """The type of the merged weights: the recipe's, or that of the base (the first model)."""
    if recipe.dtype is not None:
        return np.dtype({"bfloat16": blocks.BFLOAT16}.get(recipe.dtype, recipe.dtype))
    first = models[recipe.models[0]]
    kinds = sorted({place.dtype for place in first.tensors.values()})
    if len(kinds) > 1:
        raise InputError(f"{first.name} holds tensors of {', '.join(kinds)}; add dtype: bfloat16, say, to the recipe")
    return tensors.DTYPES[kinds[0]]


def config_of(recipe: Recipe, models: Mapping[str, Model], dtype: np.dtype) -> dict[str, Any]:
    """config.json of the merged model: the base's (the first model's) with its own number of layers."""
    first = models[recipe.models[0]]
    config = dict(first.config)
    kind = "dtype" if "dtype" in config and "torch_dtype" not in config else "torch_dtype"
    config[kind] = str(dtype)
    if recipe.slices[0].sources[0].layers is not None:
        parts = [(models[part.sources[0].model], part.sources[0].layers or (0, 0)) for part in recipe.slices]
        config["num_hidden_layers"] = sum(stop - start for _, (start, stop) in parts)
        if config.get("layer_types"):
            types = [kind for model, (start, stop) in parts for kind in model.config["layer_types"][start:stop]]
            config["layer_types"] = types
    return config


def check_finite(models: Mapping[str, Model], jobs: Sequence[Job], pool: Executor) -> None:
    """Read every tensor that is merged once, and refuse infinities and what is not a number.

    Raises:
        InputError: with the first tensor's name.
    """
    used = {place for job in jobs for place in (*job.sources, *([job.base] if job.base else []))}

    def bad(place: tuple[str, str]) -> bool:
        model, name = place
        flat = tensors.view(name, models[model].tensors[name]).reshape(-1)
        return not all(
            blocks.is_finite(flat[start : start + blocks.BLOCK]) for start in range(0, flat.size, blocks.BLOCK)
        )

    places = sorted(used)
    for (model, name), is_bad in zip(places, pool.map(bad, places)):
        if is_bad:
            raise InputError(f"{name} of {model} holds NaN or infinity; that model cannot be merged")
