"""Which chunks of which prompts the slots' caches hold, so that a prompt that begins alike is not computed again.

Only chunks that prefill has written are taken over, whole and from position 0 on. The tokens of an answer are never
among them: decode steps wrote their keys, in products of another shape, whose last bits may differ.
"""

from collections.abc import Sequence

from alignment.decoding import network
from alignment.decoding.programs import Plan

Chunk = tuple[int, ...]


class Prefixes:
    """The host's record; it says what the device may copy, and holds no arrays.

    Args:
        ring_lengths: for each network and layer, the number of its cache's blocks.
    """

    def __init__(self, plan: Plan, ring_lengths: Sequence[Sequence[int]]) -> None:
        self.plan = plan
        rings = [
            [(window, ring) for window, ring in zip(network.windows(model), lengths) if window is not None]
            for model, lengths in zip(plan.all_models, ring_lengths)
        ]
        self._rings = [rings[place.model] for place in plan.places]
        num_models = len(plan.places)
        self._chunks: list[list[list[Chunk]]] = [[[] for _ in range(num_models)] for _ in range(plan.num_slots)]
        # The positions before this one have been written, in this slot or in the one that its blocks were copied from.
        self._frontiers = [[0] * num_models for _ in range(plan.num_slots)]

    def whole_chunks(self, prompt: Sequence[int]) -> list[Chunk]:
        """The chunks of a prompt that other requests may take over: those before the one with its last token."""
        C = self.plan.chunk
        return [tuple(prompt[at : at + C]) for at in range(0, (len(prompt) - 1) // C * C, C)]

    def num_shared(self, slot: int, model: int, wanted: Sequence[Chunk]) -> int:
        """How many of these chunks a slot still holds, from the first on."""
        num = 0
        for present, chunk in zip(self._chunks[slot][model], wanted):
            if present != chunk:
                break
            num += 1
        return num if self._is_intact(slot, model, num) else 0

    def start(self, slot: int, model: int, chunks: Sequence[Chunk], source: int) -> None:
        """A new request begins in a slot, behind these chunks, which the slot `source` held; it may be the same one."""
        self._chunks[slot][model] = list(chunks)
        # What the source's ring had forgotten is missing in the copy as well: a request that shares fewer of these
        # chunks may need blocks that the source overwrote before. So its frontier comes along.
        self._frontiers[slot][model] = self._frontiers[source][model] if chunks else 0

    def add(self, slot: int, model: int, chunk: Sequence[int]) -> None:
        """The next chunk was prefilled; one that is not whole ends the prompt."""
        C, chunks = self.plan.chunk, self._chunks[slot][model]
        self.wrote(slot, model, (len(chunks) + 1) * C)
        if len(chunk) == C:
            chunks.append(tuple(chunk))

    def wrote(self, slot: int, model: int, end: int) -> None:
        """The positions before `end` have been written."""
        self._frontiers[slot][model] = max(self._frontiers[slot][model], end)

    def forget(self) -> None:
        """Share nothing that was computed before, as if all requests so far had never been."""
        self._chunks = [[[] for _ in models] for models in self._chunks]

    def _is_intact(self, slot: int, model: int, num_chunks: int) -> bool:
        """Whether all layers still have what a row needs that goes on behind these chunks; a ring forgets."""
        C, block = self.plan.chunk, self.plan.block
        # the row's next positions may have been written too, by a step whose result nobody read
        end = self._frontiers[slot][model] + 1 + self.plan.num_draft
        return all(
            end <= (max(0, num_chunks * C - window + 1) // block + ring) * block for window, ring in self._rings[model]
        )
