"""What a mark costs while text is written: tokens a second of each scheme, in turns with the same writing unmarked."""

import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

from alignment.decoding.engine import Engine
from alignment.decoding.requests import Request
from alignment.watermark import processors
from experiments.decoding import answering, models
from experiments.text_watermarks.kept import kept
from experiments.text_watermarks.writing import UNMARKED, Point

STORED = "speed.json"


def settings() -> dict[str, Any]:
    """The group of a config that says how much is written to take the time."""
    return dict(
        num=16,  # answers of a round, to the first prompts
        max_new_tokens=48,  # of each, whatever would end it
        rounds=3,  # of a scheme and of unmarked writing, in turns; medians count
    )


def lines(
    c: Any, model: models.Model, points: Sequence[Point], prompts: Sequence[Sequence[int]], folder: pathlib.Path
) -> list[dict[str, Any]]:
    """A line for each scheme, the unmarked writing first: tokens a second, and its cost in times of unmarked writing.

    All strengths of a scheme run one program, so the first stands for them. Every engine writes once uncounted. Nothing
    ends an answer early: all rounds are of equal length. What was measured lies in speed.json and is read again by a
    later start of the same model and settings; with that file and DONE removed, a start takes the time anew.
    """
    timed = list({point.scheme: point for point in reversed(points) if point.mark is not None}.values())[::-1]
    made_from = {"weights": model.digest, "prompts": prompts[: c.speed.num], "temperature": c.write.temperature}
    made_from |= {"marks": [point.mark.to_dict() for point in timed if point.mark]}
    made_from |= {"speed": c.speed.to_dict(), "engine": c.engine.to_dict()}
    return kept(folder / STORED, made_from, lambda: _measured(c, model, timed, prompts))


def _measured(
    c: Any, model: models.Model, timed: Sequence[Point], prompts: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """The lines of `lines`, of one point a scheme."""
    plain = _writing(c, model, None, prompts)
    tokens = c.speed.num * c.speed.max_new_tokens
    unmarked: list[float] = []
    out = []
    for point in timed:
        print(f"timing {c.speed.rounds} rounds of {tokens} tokens: {point.scheme}", flush=True)
        marked = _writing(c, model, point, prompts)
        rounds = [(_seconds(*plain), _seconds(*marked)) for _ in range(c.speed.rounds)]
        unmarked += [before for before, _ in rounds]
        line = {"scheme": point.scheme, "tokens_per_second": tokens / statistics.median(own for _, own in rounds)}
        out.append(line | {"cost": statistics.median(own / before for before, own in rounds)})
    base = {"scheme": UNMARKED, "tokens_per_second": tokens / statistics.median(unmarked), "cost": 1.0}
    shared = {"rounds": c.speed.rounds, "tokens": tokens}
    return [line | shared for line in [base, *out]]


def _writing(
    c: Any, model: models.Model, point: Point | None, prompts: Sequence[Sequence[int]]
) -> tuple[Engine, list[Request]]:
    """An engine that has written once, and the requests of a round."""
    num_slots = min(c.engine.num_slots, c.speed.num)
    options: dict[str, Any] = dict(max_new_tokens=c.speed.max_new_tokens, temperature=c.write.temperature, seed=c.seed)
    state: dict[str, Any] = {}
    if point is not None and point.mark is not None:
        fn, row = processors.build(point.mark, temperature=c.write.temperature)
        state = dict(processors=(fn,), processor_states=(processors.stack(row, num_slots),))
        options |= dict(processor_rows=(row,), temperature=processors.draws_at(point.mark, c.write.temperature))
    engine = models.engine(model, c, num_slots=num_slots, stop_ids=(), **state)
    requests = [Request(prompts[i % len(prompts)], sample=i, **options) for i in range(c.speed.num)]
    answering.compile_programs(engine)
    engine.answers(requests[:num_slots])
    return engine, requests


def _seconds(engine: Engine, requests: Sequence[Request]) -> float:
    start = time.perf_counter()
    engine.answers(requests)
    return time.perf_counter() - start
