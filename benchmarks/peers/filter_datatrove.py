"""datatrove's side of benchmarks/filter.py: its local executor over the same files; prints one line of JSON."""

import argparse
import importlib.metadata
import json
import pathlib
import resource
import time

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline import filters
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import split_into_words


def rules(inputs: str, out: pathlib.Path) -> list:
    """Gopher repetition and quality, C4 without the end-mark rule, FineWeb; dropped documents are written, as here."""

    def dropped(name: str) -> JsonlWriter:
        return JsonlWriter(str(out / "removed" / name), compression=None)

    return [
        JsonlReader(inputs),
        filters.GopherRepetitionFilter(exclusion_writer=dropped("repetition")),
        filters.GopherQualityFilter(exclusion_writer=dropped("quality")),
        filters.C4QualityFilter(filter_no_terminal_punct=False, exclusion_writer=dropped("c4")),
        filters.FineWebQualityFilter(exclusion_writer=dropped("fineweb")),
        JsonlWriter(str(out / "documents"), compression=None),
    ]


def signatures(inputs: str, out: pathlib.Path) -> list:
    config = MinhashConfig(hash_config=HashConfig(precision=64, hash_fc="sha1"))
    return [JsonlReader(inputs), MinhashDedupSignature(str(out / "signatures"), config=config)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=("rules", "signatures"))
    parser.add_argument("--inputs")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    split_into_words("Words are split once before the clock runs.")  # reads spaCy
    steps = {"rules": rules, "signatures": signatures}[args.part](args.inputs, args.out)
    executor = LocalPipelineExecutor(steps, tasks=1, workers=1, logging_dir=str(args.out / "logs"))
    wall, cpu = time.perf_counter(), time.process_time()
    executor.run()
    row = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row["versions"] = {name: importlib.metadata.version(name) for name in ("datatrove", "spacy", "numpy")}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
