"""What the tasks of a filter run share: folder, settings, hashes, the names of files, and batches of rows."""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from data.corpus import shards
from experiments.filtering.settings import Stage

BATCH, BATCH_CHARACTERS = 512, 4 << 20  # documents that go through a stage together, and of their texts; at least one


@dataclasses.dataclass(frozen=True)
class Job:
    """What every task of a run shares.

    Args:
        outputs: folder of everything written.
        settings: {stage: what it depends on} as plain values, and "ending", that of a shard's name.
        hashes: {stage: hash of its settings and of the stages before it}.
        num_slices: of the whole input.
    """

    outputs: str
    settings: Mapping[str, Any]
    hashes: Mapping[str, str]
    num_slices: int

    def stage(self, name: str) -> Stage:
        return Stage(name, self.hashes[name], self.settings[name])

    def scoring(self) -> dict[str, Stage]:
        """The stages of the scorers by name; a scorer that only a gate measures with has no stage of its own."""
        align = self.settings["align"]
        stages = {name: self.stage(f"score.{name}") for name in align["scorers"]}
        if gate := align["gates"]["perplexity"].split(".")[0]:
            stages.setdefault(gate, Stage(f"score.{gate}", self.hashes["align"], align["perplexity"]))
        return stages

    def name(self, *parts: str | int) -> str:
        """A file below `outputs`; a number at the end is a shard's."""
        return "/".join(f"{p:05d}{self.settings['ending']}" if isinstance(p, int) else p for p in parts)

    def path(self, *parts: str | int) -> pathlib.Path:
        return pathlib.Path(self.outputs, self.name(*parts))

    def writing(self, index: int, folders: Sequence[str]):
        """A shard in each of these folders at once; see `shards.writers`."""
        return shards.writers({folder: self.path(folder, index) for folder in folders})

    def outputs_of(self, index: int, writers: Mapping[str, shards.Writer]) -> dict[str, Any]:
        """Rows, bytes and checksum of each shard of `writing`, by name, once it is closed."""
        return {self.name(folder, index): writer.summary for folder, writer in writers.items()}


def batches(rows: Iterable[Any], size: int = BATCH, most: int = BATCH_CHARACTERS) -> Iterator[list[Any]]:
    """Rows in lists of at most `size`, shorter where texts are long: rules and hashes need memory by the character."""
    batch, length = [], 0
    for row in rows:
        if isinstance(row, dict):
            length += len(row.get("document", row).get("text", ""))
        batch.append(row)
        if len(batch) == size or length >= most:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch
