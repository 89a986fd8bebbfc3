"""Reading a corpus by number: how long its index takes once, and how long a run takes to go on in it.

python benchmarks/streams.py --output benchmarks/results/streams.md

Shards of short documents are made on the spot, 10^3 records and 10^7, in the page cache, with the byte tokenizer.
`index` reads every shard once. `open` is what each start does before training: compare the shards with their notes, and
find the held-out records by their keys. `go on` sets a position near the end of an epoch and makes the batch there,
behind a first batch, which starts what batches need; it should not grow with the corpus. Beside both stands the CPU
time of the process, which other work on the machine lengthens less. `memory` is what the process has at its end beyond
its start.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import machine

BATCH, SHARDS = 64, 100
PER_LANE = 256 * 8  # records of a window, times lanes


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="of opening and going on; the medians count")
    parser.add_argument("--sizes", default="1000,10000000", help="records of the corpora")
    parser.add_argument("--child", help="a corpus's folder; measure one start there and print it")


def write_corpus(folder: Path, num: int) -> int:
    """SHARDS files of `num` records together; returns their bytes."""
    folder.mkdir()
    for shard in range(SHARDS):
        with open(folder / f"{shard:03d}.jsonl", "w") as f:
            f.writelines(f'{{"text": "record {n} {"word " * (n % 17)}"}}\n' for n in range(shard, num, SHARDS))
    return sum(path.stat().st_size for path in folder.glob("*.jsonl"))


def peak_bytes() -> int:
    """The most memory this process has had (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def start(folder: Path) -> dict[str, float]:
    """What one start of a run takes in this process; the first one in a folder indexes it."""
    from data import record_index
    from data.texts import streams
    from data.tokens import tokenizer

    before, taken = peak_bytes(), {}
    reader = streams.Reader(tokenizer.load("bytes"), max_len=512)

    @contextlib.contextmanager
    def timed(what: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        taken[what], taken[f"{what}, CPU"] = time.perf_counter() - wall, time.process_time() - cpu

    with timed("index"):
        names = record_index.find(str(folder), "")
        record_index.build(names, folder / "index", describe_fn=reader.describe, made_by=reader.made_by)
    with timed("open"):
        index = record_index.Index(names, folder / "index", made_by=reader.made_by)
        train, _ = streams.split(index, fraction=0.001, seed=0)
        stream = streams.Stream(train, reader, batch_size=BATCH, seed=0)
    next(stream)  # the first batch also imports and starts what batches need, at any position
    state = stream.get_state()
    window = max(len(train) // PER_LANE - 1, 0)
    with timed("go on"):
        stream.set_state(state | {"lanes": [[window, 1, *lane[2:]] for lane in state["lanes"]]})
        next(stream)
    return taken | {"records": len(index), "memory": peak_bytes() - before}


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    rows = []
    for size in map(int, args.sizes.split(",")):
        corpus = folder / str(size)
        num_bytes = write_corpus(corpus, size)
        for number in range(args.rounds):
            machine.wait_until_quiet(args.patience)
            busy, wall, cpu = machine.busy_cpu_seconds(), time.perf_counter(), os.times()
            done = subprocess.run(
                [sys.executable, __file__, "--child", str(corpus)], capture_output=True, text=True, check=True
            )
            used = sum(now - then for now, then in zip(os.times()[2:4], cpu[2:4]))
            others = max(machine.busy_cpu_seconds() - busy - used, 0.0) / (time.perf_counter() - wall)
            row = json.loads(done.stdout.splitlines()[-1]) | {"round": number, "bytes": num_bytes}
            rows.append(row | {"others_busy_cores": others})
            print(f"{size} records, start {number + 1}: {row}", flush=True)
    return rows, {"batch": f"{BATCH} rows of 512 bytes", "shards": str(SHARDS)}


def report(rows: list[dict], facts: dict) -> str:
    head = ["records", "MB", "index, once, s", "open, s", "CPU, s", "go on, s", "CPU, s", "memory, MB"]
    body = []
    for size in dict.fromkeys(row["records"] for row in rows):
        mine = [row for row in rows if row["records"] == size]
        middle = {
            key: statistics.median(row[key] for row in mine) for key in mine[0] if key.startswith(("open", "go on"))
        }
        body.append(
            [
                f"{size:,}",
                f"{mine[0]['bytes'] / 1e6:,.1f}",
                f"{mine[0]['index']:.2f}",
                f"{middle['open']:.3f}",
                f"{middle['open, CPU']:.3f}",
                f"{middle['go on']:.3f}",
                f"{middle['go on, CPU']:.3f}",
                f"{max(row['memory'] for row in mine[1:] or mine) / 1e6:,.0f}",
            ]
        )
    quiet = machine.noise([row["others_busy_cores"] for row in rows])
    facts = facts | {"hardware": f"{facts['hardware']}; {quiet}"}
    return f"{machine.table(head, body)}\n\n{machine.notes(facts)}"


if __name__ == "__main__":
    if "--child" in sys.argv:
        print(json.dumps(start(Path(sys.argv[sys.argv.index("--child") + 1]))))
    else:
        machine.main(__doc__, flags, measure, report)
