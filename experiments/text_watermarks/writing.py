"""Marked and unmarked answers: who writes them, what detectors say of them, and how they fare under attack."""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment.decoding.requests import Request
from alignment.watermark import attacks, processors, text_marks
from alignment.watermark.text_marks import Mark
from data import records
from data.toys import chronicle
from data.toys import synonyms as english
from experiments.decoding import answering, models
from experiments.decoding.journal import Journal
from experiments.text_watermarks import measuring, paraphrasing, texts
from experiments.text_watermarks.kept import kept

WRITTEN = ("kgw", "kgw_min", "kgw_self", "unigram", "synthid", "exp")
HAS_STRENGTH = ("kgw", "kgw_min", "kgw_self", "unigram")
MAIN = ("kgw", "unigram", "synthid")  # written `num` times at each strength they have; the others `num_others` times
SWAPS = (0.0, 0.25, 0.5, 1.0)  # of the words that have synonyms
UNMARKED = "unmarked"
READ = "read.json"


@dataclasses.dataclass(frozen=True)
class Point:
    """Answers under one mark; None: without one."""

    name: str
    scheme: str
    mark: Mark | None
    num: int


def points_of(c: Any, vocab_size: int, tokenizer: str) -> list[Point]:
    """The unmarked answers, then every scheme at its strengths."""
    key = int(c.mark.keyring[0])
    out = [Point(UNMARKED, UNMARKED, None, c.write.num)]
    for scheme in c.write.schemes:
        is_main = scheme in MAIN
        has_several = is_main and scheme in HAS_STRENGTH
        deltas = c.write.deltas if has_several else (c.write.deltas[len(c.write.deltas) // 2],)
        for delta in deltas:
            num = c.write.num if is_main else c.write.num_others
            mark = mark_of(scheme, key, vocab_size, c.mark.gamma, float(delta), tokenizer)
            name = f"{scheme} {delta:g}" if scheme in HAS_STRENGTH else scheme
            out += [Point(name, scheme, mark, num)] if num else []
    return out


def mark_of(scheme: str, key: int, vocab_size: int, gamma: float, delta: float, tokenizer: str) -> Mark:
    """The mark of a name in `WRITTEN`."""
    base: dict[str, Any] = dict(vocab_size=vocab_size, tokenizer=tokenizer)
    if scheme == "synthid":
        return Mark(text_marks.SYNTHID, tuple(key + 1_000 * i for i in range(30)), **base)
    if scheme == "exp":
        return Mark(text_marks.EXP, key, **base)
    base |= dict(gamma=gamma, delta=delta)
    if scheme == "unigram":
        return Mark(text_marks.UNIGRAM, key, **base)
    kinds = {"kgw": dict(seeding="left", width=1), "kgw_min": dict(seeding="min", width=4)}
    kinds["kgw_self"] = dict(seeding="self", width=4)
    return Mark(text_marks.KGW, key, **base, **kinds[scheme])


def prompts_of(c: Any, all_texts: Sequence[texts.Text]) -> list[list[int]]:
    """The first tokens of all texts, of those first that nobody learned."""
    return [text.ids[: c.write.prompt_len] for text in sorted(all_texts, key=lambda text: text.is_member)]


def write(
    c: Any,
    model: models.Model,
    all_texts: Sequence[texts.Text],
    negatives: Sequence[Sequence[int]],
    folder: pathlib.Path,
) -> dict[str, Any]:
    """Marked and unmarked answers, what detectors say of them, and how they fare under attack.

    Args:
        negatives: ids of unmarked texts that join the unmarked answers and the texts that nobody learned.
    """
    points, prompts = points_of(c, model.network.vocab_size, model.name), prompts_of(c, all_texts)
    content = json.dumps([prompts, [p.mark.to_dict() if p.mark else None for p in points]])
    made_from = {"weights": model.digest, "prompts": hashlib.sha256(content.encode()).hexdigest()[:16]}
    made_from |= {"columns": "nats"}  # answers of earlier versions lack it
    keys = [(number, sample) for sample, point in enumerate(points) for number in range(point.num)]
    journal = Journal(folder, made_from, keys)
    for scheme in dict.fromkeys(point.scheme for point in points):
        write_scheme(c, model, scheme, points, prompts, journal, folder)
    rows = list(journal.end().values())
    settings = {"write": c.write.to_dict(), "paraphrase": c.paraphrase.to_dict(), "gamma": c.mark.gamma, "seed": c.seed}
    others = [text.ids for text in all_texts if not text.is_member]
    made_from |= {"settings": settings, "others": others, "negatives": negatives, "synonyms": _synonyms(c)}
    return kept(folder / READ, made_from, lambda: measured(c, model, others, negatives, points, rows, folder))


def measured(
    c: Any,
    model: models.Model,
    others: Sequence[Sequence[int]],
    negatives: Sequence[Sequence[int]],
    points: Sequence[Point],
    rows: Sequence[Mapping[str, Any]],
    folder: pathlib.Path,
) -> dict[str, Any]:
    """What detectors say of the answers `rows` at `points`, and how they fare under attack.

    Args:
        others, negatives: unmarked texts; the shares of small p-values over keys are of the `others` alone.
    """
    by_point = {point.name: [row["ids"] for row in rows if row["point"] == point.name] for point in points}
    quality = {point.name: perplexity([row for row in rows if row["point"] == point.name]) for point in points}
    negatives = [*by_point[UNMARKED], *others, *negatives]
    lines, robust, null = [], [], []
    for point in points[1:]:
        assert point.mark is not None
        line = measuring.detection_line(point.mark, by_point[point.name], negatives)
        lines.append({"point": point.name, "perplexity": quality[point.name]} | line)
        robust += [
            {"point": point.name} | row
            for row in measuring.robustness_lines(point.mark, by_point[point.name], negatives, c.seed)
        ]
        robust += swapped(c, model, point, by_point[point.name], negatives)
    robust += paraphrasing.lines(c, model, {p.name: (p.mark, by_point[p.name]) for p in points}, negatives, folder)
    for scheme in ("kgw", "unigram"):
        marks = [mark_of(scheme, int(k), model.network.vocab_size, c.mark.gamma, 2.0, "") for k in range(1, 21)]
        null += measuring.null_lines(others, marks)
    return {"detection": lines, "robustness": robust, "null": null, "perplexity": quality[UNMARKED]}


def perplexity(rows: Sequence[Mapping[str, Any]]) -> float:
    """Of answers under the unmarked model that wrote them: every token counts once. The engine gave the `nats`."""
    return math.exp(-sum(row["nats"] for row in rows) / max(sum(len(row["ids"]) for row in rows), 1))


def write_scheme(
    c: Any,
    model: models.Model,
    scheme: str,
    points: Sequence[Point],
    prompts: Sequence[Sequence[int]],
    journal: Journal,
    folder: pathlib.Path,
) -> None:
    """What the journal lacks of one scheme's answers; its strengths share an engine and its programs."""
    work: list[Any] = []
    state: dict[str, Any] = {}
    for sample, point in enumerate(points):
        if point.scheme != scheme:
            continue
        options: dict[str, Any] = dict(max_new_tokens=c.write.max_new_tokens, temperature=c.write.temperature)
        if point.mark is not None:
            fn, row = processors.build(point.mark, temperature=c.write.temperature)
            state = dict(processors=(fn,), processor_states=(processors.stack(row, c.engine.num_slots),))
            options |= dict(processor_rows=(row,), temperature=processors.draws_at(point.mark, c.write.temperature))
        for number in range(point.num):
            prompt = prompts[number % len(prompts)]
            request = Request(prompt, seed=c.seed, sample=number, **options)
            work += [((number, sample), request)] if (number, sample) not in journal else []
    if not work:
        return
    print(f"writing {len(work)} answers: {scheme}", flush=True)

    def row_of(key: tuple[int, int], answer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        point = points[key[1]]
        text = model.text(answer.text, is_alone=False)
        record = point.mark.to_dict() if point.mark is not None else None
        ids = answer.answer_ids
        # the engine's log-probabilities are the model's own, before marks and temperature: nothing is read again
        nats = sum(token.logprob for token in answer.tokens[: len(ids)])
        row = {"point": point.name, "prompt": key[0], "text": text, "ids": ids, "nats": nats, "watermark": record}
        return row, {}

    answering.write_all(models.engine(model, c, **state), work, journal, folder, row_fn=row_of)


def swapped(c: Any, model: models.Model, point: Point, answers: Any, negatives: Any) -> list[dict[str, Any]]:
    """Detection after shares of the words that have synonyms were swapped; `words`: how many of all words changed.

    At 0 an answer is only read as text and cut into tokens again.
    """
    assert point.mark is not None
    synonyms = _synonyms(c)
    rng, before, out = np.random.default_rng(c.seed), [model.tok.decode(ids) for ids in answers], []
    for share in SWAPS:
        after = [attacks.swap(text, synonyms, share, rng) for text in before]
        pairs = [(a, b) for x, y in zip(before, after) for a, b in zip(x.split(), y.split())]
        line = measuring.detection_line(point.mark, [model.tok.encode(text) for text in after], negatives)
        words = {"words": sum(a != b for a, b in pairs) / max(len(pairs), 1)}
        out.append({"point": point.name, "attack": "swap", "strength": share} | line | words)
    return out


def _synonyms(c: Any) -> dict[str, list[str]]:
    if c.write.synonyms == texts.EMBEDDED:
        return chronicle.SYNONYMS
    if not c.write.synonyms:
        return english.english()
    return attacks.read_synonyms([record.value for record in records.read(c.write.synonyms)[0]])
