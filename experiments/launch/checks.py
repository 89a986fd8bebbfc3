"""What is refused before data, weights and devices: settings that every experiment has, then the experiment's own.

An experiment's `check(c)` raises InputError for what its `run` could not do; it reads no data and starts no device.
"""

import functools
import inspect
import math
import numbers
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from alignment import errors
from alignment.errors import InputError
from experiments.launch import config as configs
from experiments.launch import host

LEAST = {"steps": 0, "num_workers": 0}  # of leaves so named, in any group
LEAST |= dict.fromkeys(("batch_size", "accumulate", "log_every", "keep", "patience"), 1)
LEAST |= dict.fromkeys(("num_layers", "model_dim", "num_heads", "num_kv_heads", "ffn_dim", "unroll"), 1)
LEAST |= dict.fromkeys(
    ("limit", "max_len", "max_prompt_len", "chunk", "block", "num_slots", "num_steps", "concurrency"), 1
)
LEAST |= dict.fromkeys(("peak_lr", "lr", "warmup", "warmup_steps", "weight_decay", "clip_norm", "sft_weight"), 0)
LEAST |= dict.fromkeys(("num_draft", "retries", "temperature", "timeout_seconds", "seed", "split_seed"), 0)
LEAST |= dict.fromkeys(("full_steps", "feature_scale", "init_std", "save_every", "eval_every"), 0)
LEAST |= dict.fromkeys(("num", "num_train", "per_class", "min_count", "min_share", "num_samples", "samples"), 0)
LEAST |= dict.fromkeys(("pairs", "tiles", "min_words", "rotate", "planted_share", "probes", "heldout", "missed"), 0)
LEAST |= dict.fromkeys(("prompt_tokens", "max_new_tokens", "num_cpus", "num_gpus", "save_minutes", "error"), 0)
DTYPES = ("float32", "bfloat16", "float16")  # of leaves called dtype
BELOW_ONE = ("b1", "b2", "dropout")  # leaves so named are in [0, 1)
WHY = {"accumulate": ": the parts that a batch is taken in", "steps": ": the updates to make, 0 only evaluates"}
VERBATIM = ("stop",)  # leaves of texts that are taken letter by letter, line breaks and spaces too
ADDRESSES = ("url", "address")  # leaves that name a service, not data


def check(experiment: configs.Experiment, config: ml_collections.ConfigDict) -> None:
    """Refuse a config that cannot run on this machine.

    Raises:
        InputError: names the value, the need and a way out.
    """
    host.check_platform()
    check_config(experiment, config)


def check_config(experiment: configs.Experiment, config: ml_collections.ConfigDict) -> None:
    """`check` without a look at this machine's accelerator."""
    check_least(config, getattr(experiment.module, "LEAST", {}))
    kinds = entry_kinds(experiment)
    for key, value in leaves(config):
        name = key.rpartition(".")[2]
        check_value(key, value, kinds.get(key, set()))
        if name == "sinks":
            check_sinks(key, value)
        elif name == "mesh":
            check_mesh(key, value)
        elif name in BELOW_ONE and isinstance(value, (int, float)):
            errors.within("[0, 1)", **{key: value})
        elif name == "dtype" and isinstance(value, str) and value:
            errors.one_of(key, value, DTYPES)
        elif name not in ADDRESSES:
            check_paths(key, value)
    if hasattr(experiment.module, "check"):
        experiment.module.check(config)


def leaves(config: ml_collections.ConfigDict, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted keys and values; a mesh is one value."""
    for name in config:
        value = config[name]
        if isinstance(value, ml_collections.ConfigDict) and name != "mesh":
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def entry_kinds(experiment: configs.Experiment) -> dict[str, set[type]]:
    """The types of entries that the tuples of a config have in its settings; a tuple itself takes any."""
    kinds: dict[str, set[type]] = {}
    settings = getattr(experiment.module, "SETTINGS", (experiment.setting,))
    for config in (experiment.module.get_config(setting) for setting in settings):
        for key, value in leaves(config):
            if isinstance(value, tuple):
                kinds.setdefault(key, set()).update(map(type, value))
    return kinds


def check_value(key: str, value: Any, kinds: Collection[type] = ()) -> None:
    """Refuse numbers that no setting can mean, and texts of blanks alone, which look as if nothing were set.

    Args:
        kinds: the types of entries that a tuple has elsewhere; numbers take numbers and texts take texts.
    """
    is_numbers, is_texts = bool(kinds) and set(kinds) <= {int, float}, set(kinds) == {str}
    for one in value if isinstance(value, (tuple, list)) else ():
        is_number = isinstance(one, numbers.Real) and not isinstance(one, bool)  # NumPy's too
        if (is_numbers and not is_number) or (is_texts and not isinstance(one, str)):
            need = "numbers, such as (1,)" if is_numbers else "texts, such as ('a',)"
            raise InputError(f"{key}={value!r} has the entry {one!r} and must have {need}")
    for one in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(one, numbers.Real) and not math.isfinite(one):
            raise InputError(f"{key}={value!r} must be a finite number; leave it out for its default")
        is_verbatim = key.rpartition(".")[2] in VERBATIM
        if isinstance(one, str) and one and not one.strip() and not is_verbatim:
            raise InputError(f"{key}={value!r} is blank; leave it out, or give a text")


def check_sinks(key: str, sinks: Any) -> None:
    """Refuse a writer that does not exist or whose package is missing."""
    if not isinstance(sinks, (tuple, list)):
        raise InputError(f"{key}={sinks!r} must be a tuple of names, such as ('tensorboard',), or () for none")
    if sinks:
        from alignment.train import writers  # it takes JAX along, which an experiment without sinks may not need

        writers.check(sinks)


def check_mesh(key: str, mesh: Any) -> None:
    """Refuse sizes that no number of devices satisfies; `sharding.make_mesh` compares them with the devices."""
    sizes = dict(mesh)
    if any(n < 1 and n != -1 for n in sizes.values()) or sum(n == -1 for n in sizes.values()) > 1:
        raise InputError(f"{key}={sizes}: sizes must be positive, and at most one of them -1 (the devices left over)")


def check_paths(key: str, value: Any) -> None:
    """Refuse an object store's address, on its own or behind a prefix such as `run:`, in any text of a config."""
    for text in value if isinstance(value, (tuple, list)) else (value,):
        scheme = re.search(r"(\w+)://", text) if isinstance(text, str) else None
        if scheme is None:
            continue
        is_web = scheme[1] in ("http", "https")
        what, how = "an object store", "mount the bucket, as with gcsfuse or s3fs, and give the path there"
        if is_web:
            what, how = "a web address", "fetch it first, and give the file"
        if scheme[1] == "hf":
            how = "write hub:owner/name for a data set of the hub, hf:owner/name for a model"
        raise InputError(f"{key}={text!r}: files are read from disk, and this names {what}; {how}")


def call(check_fn: Callable[..., None], group: Mapping[str, Any], **more: Any) -> None:
    """Call a check with those values of a config's group that it reads."""
    names = inspect.signature(check_fn).parameters
    check_fn(**{name: value for name, value in group.items() if name in names}, **more)


def check_least(c: ml_collections.ConfigDict, own: Mapping[str, float]) -> None:
    """Refuse numbers that are too small; values that are None are unset.

    Args:
        own: the smallest values of an experiment's numbers by their dotted names; others are in LEAST.
    """
    for key, value in leaves(c):
        name = key.rpartition(".")[2]
        least = own.get(key, LEAST.get(name))
        if least is not None and isinstance(value, (int, float)) and value < least:
            why = WHY.get(name, "") if least == LEAST.get(name) else ""
            raise InputError(f"{key}={value} must be at least {least:g}{why}")


def within(c: ml_collections.ConfigDict, bounds: str, *names: str) -> None:
    """`errors.within` of numbers of the config, by their dotted names."""
    errors.within(bounds, **{name: leaf(c, name) for name in names})


def check_names(
    c: ml_collections.ConfigDict, name: str, known: Collection[str] = (), *, least: int = 1, unique: bool = True
) -> None:
    """Refuse what is not a tuple of names, or has too few, one that is not among `known` (if given), or one twice.

    Args:
        name: dotted, of the value in the config.
    """
    names = leaf(c, name)
    if not isinstance(names, tuple) or len(names) < least or not all(isinstance(one, str) and one for one in names):
        such = "".join(f", such as ({one!r},)" for one in [*known][:1])
        raise InputError(f"{name}={names!r} must be a tuple of names{such}")
    for one in names if known else ():
        errors.one_of(name, one, known)
    if unique and len(set(names)) < len(names):
        raise InputError(f"{name}={names!r} names one of them twice")


def check_unread(
    c: ml_collections.ConfigDict,
    defaults: Sequence[ml_collections.ConfigDict],
    unread: Iterable[tuple[str, str]],
) -> None:
    """Refuse values that somebody chose and that this run does not read.

    Args:
        defaults: the configs of all the experiment's settings; a value that stands in one of them nobody chose.
        unread: (a name, why it is not read); the name of a group stands for all that is in it.
    """
    for name, why in unread:
        for key in _names_under(c, name):
            value = leaf(c, key)
            if all(value != leaf(one, key) for one in defaults):
                raise InputError(f"{key}={value!r} is not read, as {why}; set it to {leaf(defaults[0], key)!r}")


def _names_under(c: ml_collections.ConfigDict, name: str) -> Iterator[str]:
    group = leaf(c, name)
    if not isinstance(group, ml_collections.ConfigDict):
        yield name
        return
    for key in group:
        yield from _names_under(c, f"{name}.{key}")


def leaf(c: ml_collections.ConfigDict, name: str) -> Any:
    """A value of the config by its dotted name."""
    return functools.reduce(getattr, name.split("."), c)


def check_workdir(workdir: str) -> None:
    """Refuse an object store's address, which would become a local folder of that name."""
    scheme, separator, rest = workdir.partition("://")
    if separator:
        bucket = rest.split("/")[0]
        raise InputError(
            f"--workdir={workdir}: a run needs a folder, and {scheme}:// names an object store. Mount the bucket, as "
            f"with gcsfuse or s3fs, and give the path there; --emit=jobset --bucket={bucket} does so in pods"
        )
