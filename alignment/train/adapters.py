"""A run that trains an adapter: its state, what a later run must know of it, and where the first adapter comes from.

The state's parameters are the adapter's, so the optimizer and the checkpoints hold nothing else; the base weights are
its `frozen.tree`, which checkpoints leave out. `adapter.json` in the workdir says which base the adapter belongs to.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from alignment import errors, files
from alignment.errors import InputError
from alignment.models import decoder, lora, peft_adapters
from alignment.train import checkpoint, sharding, train_state

NOTE = "adapter.json"


@dataclasses.dataclass(frozen=True)
class Options:
    """The group `adapter` of a config.

    Args:
        rank: 0 trains all weights, unless `init_from` brings an adapter.
        alpha, targets, use_rslora: see `lora.Settings`; targets is "all-linear", names with commas between, or a
            regular expression. None: the default there.
        rank_pattern, alpha_pattern: see `lora.Settings`, written `expression=number`, with commas between.
        init_from: `peft:<folder>` or `run:<workdir>` of an adapter that training goes on with; "": a fresh one.
        merge: leave the merged weights in `export/hf` beside the adapter in `export/peft`.

    Raises:
        InputError: an option that would not be read, or an adapter that is not there.
    """

    rank: int = 0
    alpha: float | None = None
    targets: str | None = None
    use_rslora: bool | None = None
    rank_pattern: str = ""
    alpha_pattern: str = ""
    init_from: str = ""
    merge: bool = False

    def __post_init__(self) -> None:
        shape = ("alpha", "targets", "use_rslora", "rank_pattern", "alpha_pattern")
        unread = [name for name in shape if getattr(self, name) not in (None, "")]
        if self.init_from:
            unread = [name for name in ("rank", *unread) if getattr(self, name)]
            if unread:
                raise InputError(
                    f"adapter.{unread[0]} is not read, because adapter.init_from brings it; leave it unset"
                )
            check_source(self.init_from)
        elif not self.rank and (unread or self.merge):
            name = unread[0] if unread else "merge"
            raise InputError(f"adapter.{name} is not read with adapter.rank=0, which trains all weights; set a rank")
        elif self.rank:
            self.settings()

    def is_on(self) -> bool:
        return bool(self.rank or self.init_from)

    def settings(self) -> lora.Settings:
        """The settings of a fresh adapter, or of that which `init_from` brings."""
        kind, _, name = self.init_from.partition(":")
        if kind == "peft":
            return peft_adapters.settings(name)
        if kind == "run" and (note := read_note(name)):
            return peft_adapters.of_config(note["config"], str(pathlib.Path(name) / NOTE))
        return lora.Settings(
            rank=self.rank,
            alpha=self.alpha,
            targets=_targets(self.targets or lora.ALL_LINEAR),
            use_rslora=bool(self.use_rslora),
            rank_pattern=tuple((name, int(number)) for name, number in _numbers("rank_pattern", self.rank_pattern)),
            alpha_pattern=_numbers("alpha_pattern", self.alpha_pattern),
        )


def check_source(init_from: str) -> None:
    """Refuse an adapter that is not there.

    Raises:
        InputError: another spelling than peft: or run:, or no adapter in the folder.
    """
    kind, _, name = init_from.partition(":")
    if kind not in ("peft", "run") or not name:
        raise InputError(f"adapter.init_from={init_from!r} must be '', peft:<folder> or run:<workdir>")
    if not errors.files_needed():
        return
    if kind == "peft":
        peft_adapters.check(name)
    elif read_note(name) is None:
        raise InputError(
            f"adapter.init_from={init_from!r}: {pathlib.Path(name) / NOTE} is not there; name the workdir of a run "
            "that trained an adapter"
        )


def begin(options: Options, model: decoder.DecoderLM, mesh: Mesh) -> tuple[lora.Adapter, Any]:
    """The adapter of a run, and the parameters that it begins with; None for fresh ones. Prints which layers it has."""
    kind, _, name = options.init_from.partition(":")
    params = None
    if kind == "peft":
        adapter, params = peft_adapters.load(name, model)
        params = jax.tree.map(jnp.asarray, params)
    elif kind == "run":
        adapter, params = load(name, model, mesh)
    else:
        adapter = lora.lay_out(options.settings(), model)
    if files.is_first_process():
        print(adapter.describe(), flush=True)
    return adapter, params


def create(
    adapter: lora.Adapter, tx: optax.GradientTransformation, base: Any, *, seed: int, mesh: Mesh, params: Any = None
) -> train_state.TrainState:
    """A state at step 0 whose parameters are the adapter's.

    Args:
        base: the weights that stay; the state takes them over, and its update donates them.
        params: an adapter's parameters, donated; None: a fresh one, drawn from `seed`.
    """
    example_BT = jnp.zeros((1, 4), jnp.int32)
    state = train_state.create(adapter, tx, example_BT, seed=seed, mesh=mesh, params=params)
    base = jax.device_put(base, train_state.param_shardings(adapter.model, example_BT, mesh))  # often there already
    return dataclasses.replace(state, frozen=train_state.Unsaved(base))


def policy(adapter: lora.Adapter | None, state: train_state.TrainState) -> Any:
    """What a decoder computes with: the state's parameters, or its base with the adapter beside it."""
    return state.params if adapter is None else adapter.attach(state.frozen.tree, state.params)


def write_note(workdir: str | pathlib.Path, adapter: lora.Adapter, **where_from: Any) -> None:
    """Leave adapter.json, or compare it with the one that an earlier start of this run left.

    Args:
        where_from: `base`, the base's `init_from`; `weights`, their digest; `seed`, which drew them where `base` is "";
            and what else must not change.

    Raises:
        InputError: the adapter is another one, or its base has changed.
    """
    config = peft_adapters.config_for(adapter.settings)
    note = {**where_from, "tie_embeddings": adapter.model.tie_embeddings, "config": config}
    before = _stored_note(workdir)  # as it was written: where this process finds the base may be another path
    if before is None:
        files.write_json(pathlib.Path(workdir) / NOTE, note)
    elif changed := [name for name in note if before.get(name) != json.loads(json.dumps(note[name]))]:
        raise InputError(
            f"{pathlib.Path(workdir) / NOTE} was written for another adapter or base ({', '.join(changed)} differ: "
            f"{before.get(changed[0])!r} then, {note[changed[0]]!r} now). Put them back as they were, or start over in "
            "another --workdir"
        )


def read_note(workdir: str | pathlib.Path) -> dict[str, Any] | None:
    """adapter.json of a workdir, with `base` as this process finds it; None where a run trained all weights."""
    note = _stored_note(workdir)
    if note is None:
        return None
    kind, _, name = note["base"].partition(":")
    if kind == "run" and (pathlib.Path(workdir) / name).is_dir():  # the run's own pretraining moves with its workdir
        note["base"] = f"run:{pathlib.Path(workdir) / name}"
    return note


def _stored_note(workdir: str | pathlib.Path) -> dict[str, Any] | None:
    """adapter.json as it was written; None where there is none."""
    file = pathlib.Path(workdir) / NOTE
    if not file.is_file():
        return None
    try:
        note = json.loads(file.read_text())
        note["base"].partition(":")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f"{file} is damaged ({e!r}); copy it again") from None
    return note


def has_head(note: dict[str, Any]) -> bool:
    """Whether the adapter of a note changes the head, so that its merged weights are untied."""
    return peft_adapters.of_config(note["config"], NOTE).hits(lora.HEAD)


def load(workdir: str | pathlib.Path, model: decoder.DecoderLM, mesh: Mesh) -> tuple[lora.Adapter, Any]:
    """The adapter of another run's newest checkpoint, the best one where it keeps that.

    Args:
        model: the base's network.
    """
    note = read_note(workdir)
    assert note is not None
    adapter = lora.lay_out(peft_adapters.of_config(note["config"], str(pathlib.Path(workdir) / NOTE)), model)
    boxed = jax.eval_shape(lambda: adapter.init(jax.random.PRNGKey(0))["params"])
    like = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        adapter.form(),
        sharding.of(boxed, mesh),
    )
    return adapter, checkpoint.load_params(workdir, like)


def _targets(words: str) -> str | tuple[str, ...]:
    """A text of names with commas between is a list; anything else an expression."""
    if words == lora.ALL_LINEAR or any(letter in words for letter in "*+?()[]{}|^$\\"):
        return words
    return tuple(word.strip() for word in words.split(","))


def _numbers(name: str, text: str) -> tuple[tuple[str, float], ...]:
    pairs = []
    for part in filter(None, text.split(",")):
        pattern, _, number = part.rpartition("=")
        try:
            pairs.append((pattern.strip(), float(number)))
        except ValueError:
            pattern = ""
        if not pattern:
            raise InputError(f"adapter.{name}={text!r}: {part!r} must be <expression>=<number>, such as q_proj=8")
    return tuple(pairs)
