"""`--plan=TOPOLOGY`: what an experiment's training would need on hardware that is not there, as a table.

An experiment that trains a decoder has `plan(c, wanted) -> list[Training]`, a stage each; `rows` and `pairs` here make
one from the groups of a config. No data is read: rows are as long as the config lets them be.
"""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from alignment import errors
from alignment.errors import InputError
from alignment.models import decoder, tree_attention
from alignment.preference import losses
from alignment.preference import pairs as preference
from alignment.train import adapters, hardware, language_model, next_token, optimizer, planning, sharding
from alignment.train.planning import Choice, Found, Plan, Training
from data.texts import preferences, text, trees
from experiments.launch import checks, groups, lm
from experiments.launch import config as configs

_LLAMA = dict(rope_theta=5e5, norm_eps=1e-5, vocab_size=128_256, tie_embeddings=False)
_QWEN = dict(rope_theta=1e6, norm_eps=1e-6, vocab_size=152_064, tie_embeddings=False, qkv_bias=True)
ARCHITECTURES: dict[str, dict[str, Any]] = {  # keyword arguments of DecoderLM, from the models' config.json
    "llama-3.1-8b": _LLAMA | dict(num_layers=32, model_dim=4_096, num_heads=32, num_kv_heads=8, ffn_dim=14_336),
    "llama-3.1-70b": _LLAMA | dict(num_layers=80, model_dim=8_192, num_heads=64, num_kv_heads=8, ffn_dim=28_672),
    "qwen2.5-7b": _QWEN | dict(num_layers=28, model_dim=3_584, num_heads=28, num_kv_heads=4, ffn_dim=18_944),
    "qwen2.5-72b": _QWEN | dict(num_layers=80, model_dim=8_192, num_heads=64, num_kv_heads=8, ffn_dim=29_568),
}
LARGEST = 64  # times as many chips are tried, where nothing fits
RANK = 16  # of the adapter that is tried then


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a stage is planned with.

    Args:
        architecture: keyword arguments of DecoderLM in place of the config's own network; None takes that.
        kind: of `hardware.Chip`, which decides the attention kernel.
    """

    architecture: Mapping[str, Any] | None = None
    kind: str = "cpu"

    def network(self, c: ml_collections.ConfigDict, *, rows_are_plain: bool) -> decoder.DecoderLM:
        """The network of `c.init_from`, `c.model`, `c.compute` and `c.tokenizer`, or the architecture's."""
        if self.architecture is not None or c.init_from:
            return self.checkpoint(c.init_from, c.compute, rows_are_plain=rows_are_plain)
        vocab_size = lm.load_tokenizer(c).vocab_size
        settings = language_model.settings("", c.model, c.compute, vocab_size=vocab_size)
        return self.decoder(settings, rows_are_plain=rows_are_plain)

    def checkpoint(
        self, init_from: str | None, compute: Mapping[str, Any], *, rows_are_plain: bool
    ) -> decoder.DecoderLM:
        """The architecture's network, or that of a checkpoint that lies on disk.

        Raises:
            InputError: the experiment makes the weights that it begins with, so nobody knows their network yet.
        """
        if self.architecture is not None:
            return self.decoder({**self.architecture, **compute}, rows_are_plain=rows_are_plain)
        if (init_from or "").partition(":")[0] not in ("hf", "gguf", "run"):
            raise InputError(
                f"--plan: init_from={init_from!r} names no checkpoint whose network could be planned for; give "
                "--config.init_from=hf:<folder>, or --plan_model=NAME"
            )
        settings = language_model.settings(init_from, {}, compute, vocab_size=0)
        return self.decoder(settings, rows_are_plain=rows_are_plain)

    def decoder(self, settings: Mapping[str, Any], *, rows_are_plain: bool) -> decoder.DecoderLM:
        """The network of these settings, with the attention kernel that a run would take on that hardware."""
        settings = dict(settings)
        if settings.get("attention") == "auto":
            is_fused = self.kind == "gpu" and rows_are_plain and settings.get("dtype") == "bfloat16"
            settings["attention"] = "cudnn" if is_fused and not settings.get("sliding_window") else "blocked"
        return decoder.DecoderLM(**settings)


def rows(
    name: str,
    model: decoder.DecoderLM,
    *,
    tx: optax.GradientTransformation,
    batch_size: int,
    max_len: int,
    steps: int | None,
    accumulate: int = 1,
    accumulate_key: str | None = "accumulate",
    adapter: adapters.Options | None = None,
) -> Training:
    """Training on the next tokens of rows of text."""
    one = text.Texts(*(np.zeros(0, np.int32) for _ in range(3)), rows=((),), max_len=max_len, pad_id=0, samples=())
    batch = _repeated(text.assemble(one, np.zeros(1, np.int32)), batch_size)
    return Training(
        name,
        model,
        lambda model, mesh: next_token.loss_fn(model, mesh),
        lambda _rows, _parts: batch,
        tx,
        steps,
        batch_size,
        "rows",
        accumulate,
        adapter or adapters.Options(),
        accumulate_key=accumulate_key,
    )


def of_config(c: ml_collections.ConfigDict, wanted: Wanted, *, rows_are_plain: bool) -> Training:
    """The training of `lm.run`, under the experiment's groups."""
    return rows(
        "training",
        wanted.network(c, rows_are_plain=rows_are_plain),
        tx=optimizer.adamw(**c.optimizer),
        batch_size=c.batch_size,
        max_len=c.data.max_len,
        steps=c.steps,
        accumulate=c.accumulate,
        adapter=lm.adapter_options(c),
    )


def pairs(
    name: str,
    model: decoder.DecoderLM,
    *,
    loss: str,
    objective: Mapping[str, Any],
    tx: optax.GradientTransformation,
    batch_size: int,
    max_len: int,
    steps: int | None,
    max_prompt_len: int | None = None,
    layout: str = "separate",
    accumulate: int = 1,
    accumulate_key: str | None = "accumulate",
    adapter: adapters.Options | None = None,
    reference: str = "stored",
    **more: Any,
) -> Training:
    """Training on pairs whose prompts take `max_prompt_len` tokens, or half of `max_len`, and whose answers the rest.

    Args:
        reference: "stored" log-probabilities come with the batch; "online" ones are computed in each step.
        more: keyword arguments of `pairs.loss_fn`.
    """
    adapter = adapter or adapters.Options()
    reads = loss not in losses.REFERENCE_FREE
    answer = preferences.round_up(max(max_len - (max_prompt_len or max_len // 2), 1))
    pair_len = max_len + answer  # a prompt and both answers

    def batch_of(num_rows: int, parts: int) -> planning.Shapes:
        if layout == "tree":
            num_rows *= parts
            time_T = trees.round_up(math.ceil(batch_size / num_rows) * pair_len)
            empty = trees.Row([], trees.lay_out([]), [])
            of_pairs = {"index": np.zeros(0, np.int32)}
            if loss in losses.UNPAIRED:
                of_pairs["labels"] = np.zeros(0, np.float32)
            batch = trees.fill([empty], num_time=time_T, num_pairs=batch_size, pad_id=0, of_pairs=of_pairs)
            batch = _repeated(batch, num_rows)
            like = batch["mask"]
        else:
            time_T = preferences.round_up(pair_len if layout == "shared" else max_len)
            one = _one_pair(loss in losses.UNPAIRED)
            assembled = preferences.assemble(
                one, np.zeros(1, np.int32), layout=layout, num_time=time_T, num_answer=answer
            )
            batch = _repeated(assembled, batch_size)
            like = batch["mask"]
        return batch | ({"reference": like} if reads and reference == "stored" else {})

    def block_pairs(num_rows: int) -> int:
        trunk, branch = (math.ceil(n / tree_attention.BLOCK) for n in (max_len - answer, answer))
        of_one = trunk * (trunk + 1) // 2 + 2 * branch * trunk + branch * (branch + 1)
        return math.ceil(batch_size / num_rows) * of_one

    def phases_of(model: decoder.DecoderLM, mesh: Any) -> tuple[Any, Any]:
        return preference.phases(preference.loss_fn(model, loss, mesh=mesh, **objective, **more))

    return Training(
        name,
        model,
        lambda model, mesh: preference.loss_fn(model, loss, mesh=mesh, **objective, **more),
        batch_of,
        tx,
        steps,
        batch_size,
        "pairs",
        accumulate,
        adapter,
        has_reference=reads and reference == "online",
        layout=layout,
        loss=loss,
        objective=tuple(sorted(objective.items())),
        has_anchor=bool(more.get("sft_weight")),
        accumulate_key=accumulate_key,
        block_pairs=block_pairs if layout == "tree" else None,
        phases_of=phases_of if loss in losses.NON_SEPARABLE else None,
    )


def _one_pair(has_label: bool) -> preferences.Pairs:
    """Two sequences of two tokens, which give a batch its arrays; their lengths do not count."""
    return preferences.of_tokens([[np.zeros(1, np.int32)] * 3], [False] if has_label else None)


def _repeated(batch: Mapping[str, np.ndarray], times: int) -> planning.Shapes:
    return {
        name: jax.ShapeDtypeStruct((times * value.shape[0], *value.shape[1:]), value.dtype)
        for name, value in batch.items()
    }


def show(experiment: configs.Experiment, config: ml_collections.ConfigDict, options: Any) -> None:
    """Plan every stage of an experiment's training and print a table of each.

    Raises:
        InputError: the experiment trains no decoder, or a stage fits no choice of the search.
    """
    if not hasattr(experiment.module, "plan"):
        raise InputError(f"--plan: {experiment.name} has no training of a decoder to plan; {able()}")
    topology = hardware.topology(options.plan)
    errors.within("(0, 1]", **{"--plan_utilisation": options.plan_utilisation})
    if options.plan_model:
        errors.one_of("--plan_model", options.plan_model, ARCHITECTURES)
    _start_jax(topology)
    with errors.files_may_be_absent():  # they are on the machine that will run it
        checks.check_config(experiment, config)
    wanted = Wanted(ARCHITECTURES.get(options.plan_model), topology.chip.kind)
    missing, best = [], []
    for training in experiment.module.plan(config, wanted):
        result = planning.search(
            training,
            topology,
            planning.choices(training, topology, meshes=_meshes(config, topology)),
            utilisation=options.plan_utilisation,
            most=options.plan_programs,
            say_fn=_say,
        )
        price = topology.chip.price if options.plan_price is None else options.plan_price
        model_name = options.plan_model or str(config.get("init_from", "")) or "the config's network"
        for line in table(training, result, topology, model_name, options.plan_utilisation, price):
            _say(line)
        if result.best is None:
            missing.append(_short_of(training, result, topology))
        else:
            best.append(result.best.choice)
    if len({(choice.mesh, choice.remat) for choice in best}) > 1:
        _say(
            "\nThe stages were searched one by one, and a run has one mesh and one compute.remat for all of them: set "
            "--config.mesh and --config.compute.remat as the stage that needs most memory has them."
        )
    if missing:
        raise InputError("; ".join(missing))


def able() -> str:
    """Which experiments have a training of a decoder, in words."""
    names = configs.experiments_in(configs.HOME)
    have = [name for name in names if "\ndef plan(" in (configs.HOME / f"{name}.py").read_text(encoding="utf-8")]
    return f"these have: {', '.join(have)}"


def _start_jax(topology: hardware.Topology) -> None:
    """This process computes nothing, so it takes its CPU alone, with as many devices as the topology has there."""
    # With libtpu installed JAX would look for chips of this machine first, and wait for them.
    jax.config.update("jax_platforms", "cpu")
    if topology.chip.kind == "cpu":
        with contextlib.suppress(RuntimeError):  # JAX has started: `hardware.devices` counts what there is
            jax.config.update("jax_num_cpu_devices", topology.num_devices)


def _meshes(config: ml_collections.ConfigDict, topology: hardware.Topology) -> list[tuple[int, int, int]] | None:
    """The mesh that the config sets; None where it is the default one, so that the search chooses."""
    sizes = {axis: size for axis, size in config.get("mesh", groups.mesh()).items() if axis in sharding.AXES}
    if sizes == groups.mesh():
        return None
    known = math.prod(n for n in sizes.values() if n != -1)
    if topology.num_devices % known:
        raise InputError(f"mesh={sizes} does not split over the {topology.num_devices} devices of {topology.name}")
    data, fsdp, tensor = (topology.num_devices // known if n == -1 else n for n in sizes.values())
    if data * fsdp * tensor != topology.num_devices:
        raise InputError(f"mesh={sizes} is of {known} devices, and {topology.name} has {topology.num_devices}")
    return [(data, fsdp, tensor)]


def table(
    training: Training,
    result: Found,
    topology: hardware.Topology,
    model_name: str,
    utilisation: float,
    price: float | None,
) -> list[str]:
    """The lines of a stage's plan."""
    plan = result.best or result.closest
    batch = training.batch_of(math.prod(plan.choice.mesh[:2]), plan.choice.accumulate)
    num_rows, time_T = batch["tokens"].shape
    flags = plan.choice.flags(training.accumulate_key)
    how = "analytic: reckoned by formula, nothing was compiled"
    if plan.how == "compiled":
        tool = "libtpu" if topology.chip.kind == "tpu" else "XLA"
        how = f"compiled ahead of time with {tool} in {plan.seconds:.0f} s, program {len(result.tried)} of the search"
    lines = [
        "",
        f"{training.name} on {topology.name}: {topology.num_devices} devices"
        + (f" of {hardware.gib(topology.chip.memory)}" if math.isfinite(topology.chip.memory) else ""),
        f"  {model_name}, {training.num_params:,} parameters, {training.model.dtype}",
        f"  {training.units} {training.unit} a step in {num_rows} rows of {time_T:,} places",
        f"  {how}",
        f"  {'the fastest that fits' if result.best else 'what needs least, and does not fit'}: {flags}",
        "  bytes a device:",
        *(f"    {kind:36} {hardware.gib(size):>12}" for kind, size in plan.kinds.items() if size),
        f"    {'in all':36} {hardware.gib(plan.total):>12}",
    ]
    if plan.moved:
        slow = f"; beyond a box at {topology.link / 1e9:g} GB/s (assumed)" if topology.link < topology.chip.link else ""
        lines.append(f"  collectives of a step (calls, bytes that a device sends{slow}):")
        lines += [f"    {sort:22} {calls:>8,} {hardware.gib(size):>12}" for sort, (calls, size) in plan.moved.items()]
    lines += _time_lines(training, planning.step_flops(training, plan.choice), plan, topology, utilisation, price)
    return lines


def _time_lines(training, flops, plan, topology, utilisation, price):
    seconds = planning.step_seconds(flops, plan, topology, utilisation)
    lines = [
        f"  {flops:.3g} operations of matrix products a step; at {utilisation:.0%} of the peak (assumed) "
        f"{seconds:.3g} s, {training.units / seconds:.3g} {training.unit} a second"
    ]
    if training.steps is None:
        return [*lines, "  how many steps the data make is not known before they are read"]
    hours = training.steps * seconds * topology.num_devices / 3_600
    cost = "" if price is None else f", {hours * price:,.2f} dollars at {price:g} a device and hour (assumed)"
    return [*lines, f"  {training.steps:,} steps: {hours:,.3g} device-hours{cost}"]


def _short_of(training: Training, result: Found, topology: hardware.Topology) -> str:
    """By how much the closest plan does not fit, and what would."""
    plan = result.closest
    over = plan.total - topology.chip.memory
    ways = []
    scale = 1.0
    if plan.how == "compiled":
        base = planning.reckon(training, plan.choice, topology)
        scale = max(planning.rest(plan) / max(planning.rest(base), 1.0), 1.0)
    if larger := _larger(training, topology, scale):
        ways.append(f"{larger} would hold it (reckoned)")
    if not training.adapter.is_on():
        small = dataclasses.replace(training, adapter=adapters.Options(rank=RANK), has_reference=False)
        if least := _least(small, topology, scale):
            ways.append(
                f"an adapter, --config.adapter.rank={RANK}, would take {hardware.gib(least.total)} (reckoned)"
                if least.fits
                else f"an adapter of rank {RANK} would still take {hardware.gib(least.total)} (reckoned)"
            )
    return (
        f"{training.name} does not fit on {topology.name}: it needs at least {hardware.gib(plan.total)} a device "
        f"({plan.how}) and there are {hardware.gib(topology.chip.memory)}, {hardware.gib(over)} too little"
        + (f"; {', and '.join(ways)}" if ways else "")
    )


def _larger(training: Training, topology: hardware.Topology, scale: float) -> str:
    """The smallest topology of the same chips that holds the training by formula; "" where none that is tried does."""
    times = 2
    while times <= LARGEST:
        more = topology.larger(times)
        if (least := _least(training, more, scale)) and least.fits:
            return more.name
        times *= 2
    return ""


def _least(training: Training, topology: hardware.Topology, scale: float) -> Plan | None:
    try:
        candidates: Sequence[Choice] = planning.choices(training, topology)
    except InputError:  # the batch does not split over so many devices
        return None
    plans = [planning.reckon(training, one, topology, scale=scale) for one in candidates]
    return min(plans, key=lambda plan: plan.total)


def _say(line: str) -> None:
    print(line, flush=True)
