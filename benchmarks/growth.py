"""How our DPO step grows with pairs, answer length, vocabulary and layers: `python benchmarks/dpo_step.py --growth`.

One of the four grows at a time from a small base, the step is timed, and a line is fitted to the medians. All pairs of
a step are packed in one row, prompts and answers are of one length each, so that no place is empty but for rounding.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import machine
import numpy as np

sys.path.append(str(Path(__file__).resolve().parent / "peers"))
sys.path.append(str(Path(__file__).resolve().parents[1]))
import channel
import dpo_task

from experiments.report import charts

BASE = dict(pairs=8, answer=64, vocabulary=4_096, layers=4)
SIZES = dict(  # what each takes in turn, the base among them
    pairs=(4, 8, 12, 16, 20),
    answer=(32, 64, 96, 128, 160),
    vocabulary=(4_096, 8_192, 12_288, 16_384, 20_480),
    layers=(2, 4, 6, 8, 10),
)
UNITS = dict(
    pairs="pairs of a step", answer="tokens of an answer", vocabulary="entries of the vocabulary", layers="layers"
)
WIDTHS = dict(model_dim=192, num_heads=4, num_kv_heads=2, ffn_dim=512)
PROMPT = 64
WARMUP = 2  # uncounted steps: the first compiles


def measure(steps: int, threads: int, patience: float, *, is_quick: bool = False) -> tuple[list[dict], dict]:
    """A row for every size: what grows, its size, and the times of the steps; `is_quick`, of the first three sizes."""
    channel.limit_threads(threads)
    rows = []
    for name, sizes in SIZES.items():
        for size in sizes[: 3 if is_quick else None]:
            machine.wait_until_quiet(patience)
            before, own, start = machine.busy_cpu_seconds(), time.process_time(), time.perf_counter()
            times = seconds_of(BASE | {name: size}, steps)
            others = machine.busy_cpu_seconds() - before - (time.process_time() - own)
            others = max(others, 0.0) / (time.perf_counter() - start)
            rows.append(dict(growing=name, size=size, step_seconds=times, others_busy_cores=others))
            print(f"{name} {size}: {statistics.median(times):.3f} s", flush=True)
    return rows, {"base": BASE, "widths": WIDTHS, "prompt": PROMPT, "steps": steps, "threads": threads}


def seconds_of(sizes: dict[str, int], steps: int) -> list[float]:
    """Wall times of so many steps, the batch assembled anew for each."""
    run = stepper(sizes)
    times = []
    for _ in range(WARMUP + steps):
        start = time.perf_counter()
        next(run)
        times.append(time.perf_counter() - start)
    return times[WARMUP:]


def stepper(sizes: dict[str, int]) -> Iterator[None]:
    """Takes a step for every `next`."""
    import jax
    import jax.numpy as jnp

    from alignment.models import decoder
    from alignment.preference import pairs
    from alignment.train import optimizer, sharding, step, train_state

    model = decoder.DecoderLM(vocab_size=sizes["vocabulary"], num_layers=sizes["layers"], **WIDTHS)
    mesh, tx = sharding.make_mesh(), optimizer.adamw(1e-5, schedule="constant")
    loader = packed(sizes)
    state = train_state.create(model, tx, jnp.zeros((1, 4), jnp.int32), seed=0, mesh=mesh)
    batch = next(iter(loader()))
    score = jax.jit(lambda params, batch: pairs.token_logps(model, params, batch, mesh))
    reference = np.asarray(score(state.params, sharding.to_devices(batch, mesh)))
    loss_fn = pairs.loss_fn(model, "dpo", mesh=mesh, beta=0.1)
    update = step.compile_update(step.build(loss_fn, tx), state)
    while True:
        batch = next(iter(loader())) | {"reference": reference}
        state, _ = update(state, sharding.to_devices(batch, mesh))
        jax.block_until_ready(state)
        yield


def packed(sizes: dict[str, int]) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    """A pass over one batch of drawn pairs, packed in one row."""
    import ours_pairs

    from data.texts import preferences

    profile = dict(pairs=sizes["pairs"], prompt=PROMPT, answer=sizes["answer"])
    tokenised = ours_pairs.tokenised(dpo_task.draw(profile, sizes["vocabulary"], is_even=True))
    options = dict(batch_size=sizes["pairs"], layout="tree", endless=False, num_threads=0)
    return lambda: preferences.batches(tokenised, **options)


def fitted(sizes: list[int], seconds: list[float]) -> dict[str, float]:
    """The line of least squares: its start and slope, the share of the variance that it explains, and the greatest
    distance of a time from it as a share of that time.
    """
    slope, start = np.polyfit(sizes, seconds, 1)
    rest = np.array(seconds) - (start + slope * np.array(sizes))
    explained = 1 - np.sum(rest**2) / np.sum((np.array(seconds) - np.mean(seconds)) ** 2)
    return dict(start=start, slope=slope, explained=explained, distance=np.max(np.abs(rest) / seconds))


def medians(rows: list[dict], name: str) -> tuple[list[int], list[float]]:
    own = [row for row in rows if row["growing"] == name]
    return [row["size"] for row in own], [statistics.median(row["step_seconds"]) for row in own]


def report(rows: list[dict], facts: dict) -> str:
    head = ["what grows", "sizes", "step, s", "line", "variance explained", "greatest distance from the line"]
    cells = []
    for name in SIZES:
        sizes, seconds = medians(rows, name)
        fit = fitted(sizes, seconds)
        line = f"{fit['start']:.3f} s + {1e3 * fit['slope']:.3g} ms each"
        cells.append([UNITS[name], ", ".join(f"{size:,}" for size in sizes), ", ".join(f"{s:.3f}" for s in seconds)])
        cells[-1] += [line, f"{fit['explained']:.4f}", f"{fit['distance']:.1%}"]
    base = ", ".join(f"{number:,} {UNITS[name]}" for name, number in facts["base"].items())
    notes = {
        "Base": f"{base}, prompts of {facts['prompt']} tokens, all pairs in one row; each grows alone",
        "Model": ", ".join(f"{k} {v}" for k, v in facts["widths"].items()) + "; float32, AdamW, reference kept",
        "Command": f"`{facts['command']}`",
        "Hardware": f"{facts['hardware']}; {facts['threads']} threads; "
        + machine.noise([row["others_busy_cores"] for row in rows]),
        "When": f"{facts['date']}, commit {facts['commit']}, medians of {facts['steps']} steps",
    }
    return f"{machine.table(head, cells)}\n\n{machine.notes(notes)}"


def draw(path: Path, rows: list[dict]) -> None:
    """A picture of four panels beside the report: the medians, and the lines through them."""
    words = "Seconds of a DPO step over pairs, answer length, vocabulary and layers, with a line fitted to each"
    path.with_suffix(".svg").write_text(charts.svg(lambda: _figure(rows), words) + "\n", encoding="utf-8")


def _figure(rows):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 2.6), layout="constrained", facecolor="none")
    for axes, name, colour in zip(figure.subplots(1, len(SIZES)), SIZES, charts.PALETTE):
        sizes, seconds = medians(rows, name)
        fit = fitted(sizes, seconds)
        ends = np.array([0, max(sizes)])
        axes.plot(ends, fit["start"] + fit["slope"] * ends, color=colour, linewidth=1)
        axes.plot(sizes, seconds, "o", color=colour, markersize=4)
        axes.set_xlabel(UNITS[name], color=charts.INK, fontsize=8)
        axes.set_ylim(bottom=0)
        axes.tick_params(colors=charts.INK, labelsize=8)
        axes.set_facecolor("none")
        for side in axes.spines.values():
            side.set(color=charts.INK, alpha=0.4)
    figure.supylabel("seconds of a step", color=charts.INK, fontsize=8)
    return figure
