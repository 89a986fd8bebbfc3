"""One merge in a process of its own, as experiments/merge.py makes it: its time and peak of anonymous memory.

python benchmarks/peers/merge_ours.py RECIPE.yaml WORKDIR
"""

import json
import multiprocessing
import os
import resource
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from alignment.merging import recipes
from experiments.merging import writing


def anonymous_mb() -> float:
    """Memory of this process and its workers that is no file's: what mapped weights take of the page cache does not
    count."""
    total = 0
    for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return total * 1024 / 1e6


def main(recipe_file: str, workdir: str) -> None:
    peaks, is_over = [anonymous_mb()], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.005):
            peaks.append(anonymous_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin, cpu = time.perf_counter(), time.process_time()
    recipe = recipes.load(recipe_file)
    models, jobs = writing.open_models(recipe, {}, False)
    writing.merge(
        recipe,
        models,
        jobs,
        Path(workdir),
        seed=0,
        max_shard_bytes=2_000_000_000,
        processes=None,
        allow_submatrix=False,
    )
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds += workers.ru_utime + workers.ru_stime
    is_over.set()
    watcher.join()
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "before": peaks[0], "peak": max(peaks)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
