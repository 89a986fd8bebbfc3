"""A training step for hardware that is not there: compiled ahead of time for TPUs, reckoned for GPUs.

`compile_step` builds the update that a run would build, from shapes with their places on a mesh of described devices,
and lets XLA compile it; bytes and collectives are those of that program. `reckon` adds up what the same step would hold
without compiling it: the state exactly, everything else by a formula, which also orders the candidates of a search.

Dimensions: N rows and T places of a batch, L layers, D model width, F feed-forward, H heads, G key/value heads,
K head width, V vocabulary.
"""

import dataclasses
import functools
import math
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from alignment import programs
from alignment.errors import InputError
from alignment.models import decoder, lora
from alignment.train import adapters, collectives, flops, hardware, sharding, step, train_state

REMAT = ("none", "attn_mlp", "attn", "full")  # from most memory to least
OVER_TENSOR = "all-reduce over tensor"  # of a reckoned plan
CHUNK = 512  # positions of the head whose logits exist at one time, see `logprobs.selected`
Shapes = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Training:
    """What shapes a training step; its numbers, such as a learning rate, do not.

    Attributes:
        name: of the stage of its run.
        model: the network, with dtype and attention as the run has them.
        loss_of: a network and its mesh to the loss.
        batch_of: devices that carry rows, and parts that a step is taken in, to a whole batch.
        steps: None where data decide it.
        units, unit: what a step consumes.
        adapter: of `adapters.Options`; all weights are trained where it is off.
        has_reference: scored in every step: a frozen copy of the parameters, or an adapter's base.
        layout: of its rows: "rows" of text, or one of `preferences.LAYOUTS`.
        loss, objective: of pairs: its name, and names with numbers.
        has_anchor: the loss includes `losses.sft_anchor`.
        accumulate_key: of the config's number of parts; None where the run takes a batch as one, and no other is tried.
        block_pairs: of packed trees: number of rows to pairs of blocks that see each other in one row.
        phases_of: as `loss_of`, to the two computations that a loss on a batch as one is taken in parts by.
    """

    name: str
    model: decoder.DecoderLM
    loss_of: Callable[[decoder.DecoderLM, Mesh | None], step.LossFn]
    batch_of: Callable[[int, int], Shapes]
    tx: optax.GradientTransformation
    steps: int | None
    units: int
    unit: str
    accumulate: int = 1
    adapter: adapters.Options = dataclasses.field(default_factory=adapters.Options)
    has_reference: bool = False
    layout: str = "rows"
    loss: str = ""
    objective: tuple[tuple[str, Any], ...] = ()
    has_anchor: bool = False
    accumulate_key: str | None = "accumulate"
    block_pairs: Callable[[int], int] | None = None
    phases_of: Callable[[decoder.DecoderLM, Mesh | None], tuple[Any, Any]] | None = None

    def traced(self, **changes: Any) -> decoder.DecoderLM:
        """The network with changed attributes, and with a kernel that any machine can trace."""
        # JAX traces cuDNN's kernel only where that library is; parameters and products are those of `blocked`.
        kernel = "blocked" if self.model.attention == "cudnn" else self.model.attention
        return self.model.clone(attention=kernel, **changes)

    @property
    def num_params(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(decoder.boxed_params(self.traced())))


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to place a step: the sizes of `sharding.AXES`, what layers keep, and parts of a batch."""

    mesh: tuple[int, int, int]
    remat: str
    accumulate: int

    def flags(self, accumulate_key: str | None = "accumulate") -> str:
        """The choice as flags of a run; see `Training.accumulate_key`."""
        axes = " ".join(f"--config.mesh.{axis}={size}" for axis, size in zip(sharding.AXES, self.mesh))
        parts = "" if accumulate_key is None else f" --config.{accumulate_key}={self.accumulate}"
        return f"{axes} --config.compute.remat={self.remat}{parts}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step needs on each device.

    Attributes:
        how: "compiled" or "reckoned".
        kinds: bytes a device by kind, as they lie there at the step's peak.
        total: their sum; what did not fit has what the compiler asked for.
        moved: bytes that a device sends in one step, by sort of collective, and how often each is called.
        seconds: that the compiler took.
        fits: within the memory of the chip.
    """

    choice: Choice
    how: str
    kinds: Mapping[str, float]
    total: float
    fits: bool
    moved: Mapping[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0


def shapes(training: Training, choice: Choice, mesh: Mesh | AbstractMesh | None) -> tuple[Any, Shapes, Any, Any]:
    """State and batch of a step as shapes in their places (none for `mesh` None), its update, and its network."""
    model = training.traced(remat=choice.remat)
    real_mesh = mesh if isinstance(mesh, Mesh) else None
    loss_fn = training.loss_of(model, real_mesh)
    phases = training.phases_of(model, real_mesh) if training.phases_of and choice.accumulate > 1 else None
    if training.adapter.is_on():
        adapter = lora.lay_out(training.adapter.settings(), model)
        state = train_state.describe(adapter, training.tx, mesh)
        frozen = train_state.Unsaved(train_state.describe(model, optax.identity(), mesh).params)
        loss_fn = lora.loss_fn(loss_fn, adapter)
        phases = phases and (lora.loss_fn(phases[0], adapter), phases[1])
    else:
        state = train_state.describe(model, training.tx, mesh)
        frozen = state.params if training.has_reference else {}
    state = dataclasses.replace(state, frozen=frozen)
    batch = training.batch_of(math.prod(choice.mesh[:2]), choice.accumulate)
    if mesh is not None:
        rows = NamedSharding(mesh, sharding.ROWS)
        batch = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=rows) for k, v in batch.items()}
    return state, batch, step.build(loss_fn, training.tx, accumulate=choice.accumulate, phases=phases), model


@functools.lru_cache(maxsize=64)  # a search asks for each of its four ways, and to trace one takes long
def num_flops(training: Training, remat: str, parts: int = 1) -> float:
    """Operations of the matrix products of one step over all devices, what is computed twice counted twice.

    Args:
        parts: 2 counts a step in any number of parts; more operations than in one where `phases_of` is set.
    """
    choice = Choice((1, 1, 1), remat, parts)
    state, batch, update, model = shapes(training, choice, None)
    counted = flops.count(update, state, batch)
    # Loops whose length depends on data are counted once: that of the head over its chunks, and that of attention in
    # packed trees over blocks that see each other. A second turn costs what both take.
    targets = math.ceil(math.prod(batch["targets"].shape) / parts)
    is_frozen = training.adapter.is_on()
    passes = 2 if training.phases_of and parts > 1 else 1  # forward
    products = (2 if is_frozen else 6) + passes * (2 + (2 if training.has_reference else 0))
    turn = products * model.model_dim * model.vocab_size * min(CHUNK, targets)
    of_trees = 0.0
    if training.block_pairs is not None:
        both = flops.count(update, state, batch, turns=2) - counted
        of_trees = (training.block_pairs(parts) - 1) * max(both - parts * turn, 0.0)
    return counted + parts * (math.ceil(targets / CHUNK) - 1) * turn + of_trees


def step_flops(training: Training, choice: Choice) -> float:
    """`num_flops` of the step as it is placed."""
    return num_flops(training, choice.remat, 2 if training.phases_of and choice.accumulate > 1 else 1)


def compile_step(training: Training, choice: Choice, topology: hardware.Topology) -> Plan:
    """Compile the step for a topology; what does not fit comes back as a plan that says so."""
    mesh = Mesh(hardware.devices(topology).reshape(choice.mesh), sharding.AXES)
    with sharding.activations(mesh):
        state, batch, update, _ = shapes(training, choice, mesh)
        places = jax.tree.map(lambda leaf: leaf.sharding, state)
        run = programs.compiled(update, donate_argnums=(0,), out_shardings=(places, None))
        program: Any = run.func  # a jitted function
        lowered = program.lower(*run.args, state, batch)
    started = time.monotonic()
    kinds = _state_bytes(state, batch)
    with tempfile.TemporaryDirectory() as folder:
        # libtpu writes its program here; `as_text` of a jaxlib that is older than libtpu may not be able to read it.
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True} if topology.chip.kind == "tpu" else None
        try:
            program = lowered.compile(compiler_options=options)
        except Exception as e:  # JAX's own class, with the compiler's words
            used = _asked_for(str(e), sum(kinds.values()))
            if used is None:
                raise
            kinds["activations, gradients and the rest"] = used - sum(kinds.values())
            return Plan(choice, "compiled", kinds, used, False, seconds=time.monotonic() - started)
        written = sorted(pathlib.Path(folder).glob("*after_optimizations.txt"))
        text = written[0].read_text(errors="replace") if written else program.as_text()
    seconds = time.monotonic() - started
    kinds = kinds | _program_bytes(program, sum(kinds.values()))
    total = sum(kinds.values())
    return Plan(choice, "compiled", kinds, total, total <= topology.chip.memory, collectives.count(text), seconds)


def _program_bytes(program, of_state):
    memory = program.memory_analysis()
    return {
        # what tiles and small buffers add to the bytes of the arrays themselves
        "padding of arguments": max(memory.argument_size_in_bytes - of_state, 0.0),
        "outputs in memory of their own": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "activations, gradients and the rest": float(memory.temp_size_in_bytes),
        "the program itself": float(memory.generated_code_size_in_bytes),
    }


def _state_bytes(state, batch):
    of = {"parameters": state.params, "optimizer": state.opt_state, "batch": batch}
    of["frozen weights"] = state.frozen
    return {kind: _local_bytes(tree) for kind, tree in of.items()}


def _local_bytes(tree):
    def one(leaf):
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize

    return float(sum(one(leaf) for leaf in jax.tree.leaves(tree)))


def _asked_for(message: str, of_state: float) -> float | None:
    """Bytes that a program wants on a device, from the compiler's refusal; None where it says something else."""
    if hit := re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message):
        return _bytes(hit)
    if hit := re.search(r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds", message):
        return of_state + _bytes(hit)
    return None


def _bytes(hit: re.Match[str]) -> float:
    return float(hit[1]) * 1024 ** " KMGT".index(hit[2] or " ")


def reckon(training: Training, choice: Choice, topology: hardware.Topology, *, scale: float = 1.0) -> Plan:
    """The step's bytes a device by formula; nothing is compiled and no device described.

    Args:
        scale: of what is not the state, from a compiled neighbour.
    """
    mesh = AbstractMesh(choice.mesh, sharding.AXES)
    state, batch, _, model = shapes(training, choice, mesh)
    kinds = _state_bytes(state, batch)
    kinds |= {name: scale * size for name, size in _rest_bytes(training, choice, state, batch, model).items()}
    total = sum(kinds.values())
    return Plan(
        choice, "reckoned", kinds, total, total <= topology.chip.memory, _moved(training, choice, state, batch, model)
    )


def _rest_bytes(training, choice, state, batch, model):
    """Gradients, activations and work space of one device."""
    D, L, V = model.model_dim, model.num_layers, model.vocab_size
    tensor, width = choice.mesh[2], jnp.dtype(model.dtype).itemsize
    parts = math.prod(choice.mesh[:2]) * choice.accumulate
    rows, time_T = batch["tokens"].shape
    rows = max(rows / parts, 1)
    tokens = rows * time_T
    targets = math.prod(batch["targets"].shape) / parts
    layer = sum(leaf.size for leaf in jax.tree.leaves(decoder.boxed_params(model)["layers"])) / L
    gradients = _local_bytes(state.params)
    num_bytes = _kept(training.model, time_T, tensor, width, is_tree="ends" in batch)
    is_frozen = training.adapter.is_on()
    # A layer's backward pass makes everything that "none" keeps, with slopes beside it; not all at one time.
    worked = 1.2 * num_bytes["none"] * tokens
    chunk = min(CHUNK, targets)
    head = D * V / tensor * (width + (0 if is_frozen else 4)) + 3 * 4 * chunk * V / tensor + 2 * width * targets * D
    return {
        "gradients": gradients * (2 if choice.accumulate > 1 else 1),
        "activations for the backward pass": L * tokens * (num_bytes[choice.remat] + width * D),
        "work space of a layer": worked + 2 * layer / tensor * width,
        "work space of the head": head,
    }


def _kept(model, time_T, tensor, width, is_tree):
    """Bytes a token and layer that each policy keeps beside the residual stream."""
    D, H, F = model.model_dim, model.num_heads, model.ffn_dim or 8 * model.model_dim / 3
    G, K = model.num_kv_heads or H, model.head_dim or D // H
    attention = width * H * K / tensor
    wide = width * 2 * F / tensor
    if is_tree:
        # Memory is linear in the row: queries, keys, values, what they give and all gradients, in rows and in blocks,
        # and twice where a loop carries them, in float32. XLA's own count on a CPU is within a tenth of it.
        scores = 4 * 16 * (H + G) * K / tensor
    else:
        # Blocks of attention leave 5/8 of the square, in some three arrays of float32.
        scores = 0.0 if model.attention == "cudnn" else 0.625 * H / tensor * time_T * 12
    # Norms keep float32 beside their own.
    whole = attention * 3 + width * 4 * G * K / tensor + wide * 2 + (8 + width * 4) * D + scores
    return {"full": 0.0, "attn": attention, "attn_mlp": attention + wide, "none": whole}


def _moved(training, choice, state, batch, model):
    """Bytes that a device sends in one step: weights gathered twice, gradients summed once, by a ring.

    Over `tensor` what each layer's two blocks give is added up in the forward pass, in the backward pass, and where a
    layer is computed again.
    """
    data, fsdp, tensor = choice.mesh
    width = jnp.dtype(model.dtype).itemsize
    weights = sum(leaf.size for leaf in jax.tree.leaves((state.params, state.frozen))) / tensor
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params)) / tensor
    moved = {}
    if fsdp > 1:
        gathers = 2 * choice.accumulate
        moved["all-gather"] = (gathers * model.num_layers, gathers * width * weights * (fsdp - 1) / fsdp)
        moved["reduce-scatter"] = (choice.accumulate, choice.accumulate * 4 * trained * (fsdp - 1) / fsdp)
    if data > 1:
        times = choice.accumulate
        moved["all-reduce"] = (times, times * 2 * 4 * trained / fsdp * (data - 1) / data)
    if tensor > 1:
        times = 4 + (2 if choice.remat != "none" else 0) + (2 if training.has_reference else 0)
        tokens = max(math.prod(batch["tokens"].shape) / (data * fsdp), 1)
        sent = times * model.num_layers * tokens * model.model_dim * width * 2 * (tensor - 1) / tensor
        moved[OVER_TENSOR] = (times * model.num_layers * choice.accumulate, sent)
    return moved


def step_seconds(flops_of_step: float, plan: Plan, topology: hardware.Topology, utilisation: float) -> float:
    """Seconds of a step: matrix products at a share of the peak, or the collectives where those take longer."""
    computing = flops_of_step / (topology.num_devices * topology.chip.tflops * 1e12 * utilisation)
    links = {OVER_TENSOR: topology.chip.link}  # at most 8 devices, which are neighbours
    moving = sum(size / links.get(sort, topology.link) for sort, (_, size) in plan.moved.items())
    return max(computing, moving)


def choices(
    training: Training,
    topology: hardware.Topology,
    *,
    meshes: Sequence[tuple[int, int, int]] | None = None,
) -> list[Choice]:
    """Every placing that splits the batch evenly: what layers keep, parts of a batch, meshes where none is given."""
    num, out = topology.num_devices, []
    heads = training.model.num_kv_heads or training.model.num_heads
    if meshes is None:
        tensors = [t for t in (1, 2, 4, 8) if num % t == 0 and heads % t == 0 and (t == 1 or num > 8)]
        meshes = [(num // t // f, f, t) for t in tensors for f in _divisors(num // t) if f in (1, 8, num // t)]
    for mesh in meshes:
        rows = math.prod(mesh[:2])
        most = _num_items(training, rows) // rows
        for accumulate in _divisors(most) if training.accumulate_key else [1] if most else []:
            out += [Choice(mesh, remat, accumulate) for remat in REMAT]
    if not out:
        raise InputError(
            f"--plan={topology.name}: a batch of {training.units} {training.unit} does not split over {num} devices; "
            "take a larger batch, or fewer devices"
        )
    return out


def _num_items(training, rows):
    num = min(leaf.shape[0] for leaf in training.batch_of(rows, 1).values())
    if num == rows and training.units > rows:  # one row of packed trees for each device and part
        return training.units // rows * rows
    return num if num % rows == 0 else 0


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        best: the fastest plan that fits; None where nothing does.
        closest: of those that were looked at, the one that needs least.
        tried: every plan that was compiled, in order.
    """

    best: Plan | None
    closest: Plan
    tried: list[Plan]


def search(
    training: Training,
    topology: hardware.Topology,
    candidates: Sequence[Choice],
    *,
    utilisation: float,
    most: int = 4,
    say_fn: Callable[[str], None] = lambda line: None,
) -> Found:
    """The fastest of the candidates that fits: the fastest by formula is compiled first, and so on until one does.

    Args:
        most: programs to compile at most; on a GPU nothing is compiled and the formula decides.
    """
    reckoned = [reckon(training, one, topology) for one in candidates]
    reckoned.sort(key=lambda plan: _rank(plan, step_flops(training, plan.choice), topology, utilisation))
    least = min(reckoned, key=lambda plan: plan.total)
    if topology.chip.kind == "gpu":
        best = next((plan for plan in reckoned if plan.fits), None)
        return Found(best, least, [])
    tried: list[Plan] = []
    scales = dict.fromkeys(REMAT, 1.0)  # of what a formula says, from programs that did not fit
    queue = reckoned
    while queue and len(tried) < most:
        # Past the last but one there is no time to be choosy: what needs least shows whether anything fits at all.
        fitting = [plan for plan in queue if _scaled(plan, scales) <= topology.chip.memory]
        is_last = len(tried) == most - 1 or not fitting
        plan = min(queue, key=lambda plan: plan.total) if is_last else fitting[0]
        say_fn(f"compiling {plan.choice} ({hardware.gib(_scaled(plan, scales))} reckoned)")
        compiled = compile_step(training, plan.choice, topology)
        tried.append(compiled)
        if compiled.fits:
            return Found(compiled, compiled, tried)
        if is_last:
            break
        remat = plan.choice.remat
        scales[remat] = max(rest(compiled) / max(rest(plan), 1.0), scales[remat])
        queue = [one for one in queue if one is not plan]
    return Found(None, min(tried, key=lambda plan: plan.total), tried)


def _rank(plan, flops_of_step, topology, utilisation):
    # Where the links decide, fewer operations still leave more room behind them.
    return step_seconds(flops_of_step, plan, topology, utilisation), flops_of_step, plan.choice.accumulate, plan.total


def rest(plan: Plan) -> float:
    """Bytes a device that are neither state nor batch."""
    return plan.total - sum(plan.kinds[kind] for kind in ("parameters", "optimizer", "batch", "frozen weights"))


def _scaled(plan, scales):
    return plan.total + (scales[plan.choice.remat] - 1.0) * rest(plan)
