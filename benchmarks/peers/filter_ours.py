"""Our side of benchmarks/filter.py: stages of experiments/filter.py; prints one line of JSON."""

import argparse
import functools
import importlib.metadata
import json
import pathlib
import resource
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from alignment.filtering.duplicates import minhash
from data.corpus import executors, slices
from experiments import filter as experiment
from experiments.filtering import jobs
from experiments.filtering import settings as filter_settings
from experiments.filtering import stages as filter_stages
from experiments.filtering import tools as filter_tools

CHAIN = ("gopher_repetition", "gopher_quality", "c4", "fineweb")


def job_of(inputs: str, out: str, slice_mb: float, **changes) -> tuple[jobs.Job, list[slices.Slice]]:
    """The filter's own stages over files, without scorers."""
    c = experiment.get_config()
    c.skip = ("safety",)
    c.update(changes)
    settings = filter_settings.of(c)
    filter_tools.check(settings)
    pieces = slices.plan(inputs, slice_bytes=int(slice_mb * 2**20))
    pathlib.Path(out).mkdir(parents=True, exist_ok=True)
    return jobs.Job(out, settings, filter_settings.hashes(settings, pieces), len(pieces)), pieces


def rules(inputs: str, out: str) -> None:
    """The same four rules, with the same files written."""
    off = {"exact": False, "minhash": False}
    job, pieces = job_of(inputs, out, 1 << 20, packs=("en",), chain=CHAIN, dedup=off)
    for piece in pieces:
        filter_stages.screen(job, piece)


def signatures(inputs: str, out: str, mode: str) -> None:
    """Signatures and sorted bands, read and written as datatrove does."""
    job, pieces = job_of(inputs, out, 1 << 20)
    settings = minhash.Settings(mode=mode)
    for piece in pieces:
        for batch in jobs.batches(slices.read(piece, **job.settings["screen"]["read"])):
            minhash.band_keys(minhash.signatures([document["text"] for document in batch], settings), settings)


def screen(inputs: str, out: str) -> None:
    """The default chain with keys for duplicates, slice by slice, in one worker process."""
    job, pieces = job_of(inputs, out, 32)
    with executors.opened(functools.partial(filter_stages.do, job), executor="process", workers=1) as run_tasks:
        for _ in run_tasks([("screen", piece.index, piece) for piece in pieces]):
            pass


PARTS = {
    "rules": rules,
    "signatures": lambda inputs, out: signatures(inputs, out, "fast"),
    "signatures-datatrove": lambda inputs, out: signatures(inputs, out, "datatrove"),
    "screen": screen,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--inputs")
    parser.add_argument("--out")
    args = parser.parse_args()
    wall, cpu = time.perf_counter(), time.process_time()
    PARTS[args.part](args.inputs, args.out)
    row = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    who = resource.RUSAGE_CHILDREN if args.part == "screen" else resource.RUSAGE_SELF
    used = resource.getrusage(who)
    row["peak_mb"] = used.ru_maxrss / 1024
    row["cpu_seconds"] = used.ru_utime + used.ru_stime if args.part == "screen" else row["cpu_seconds"]
    row["versions"] = {name: importlib.metadata.version(name) for name in ("numpy", "orjson", "zstandard")}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
