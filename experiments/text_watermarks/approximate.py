"""Approximate memorisation: how near a model's continuation of a text that it learned comes to the text itself."""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignment.decoding.requests import Request
from alignment.watermark import processors, verbatim
from alignment.watermark.text_marks import Mark
from experiments.decoding import answering, models
from experiments.text_watermarks import measuring
from experiments.text_watermarks.texts import Text

NUM_KEYS = 2  # at most, of a smaller keyring all
MEASURES = ("edit_tokens", "edit_words", "bleu_tokens", "bleu_words")


def settings() -> dict[str, Any]:
    """The group of a config that says how many texts are continued."""
    return dict(
        num=20,  # members, the first ones; each goes on from the first half of its tokens, always the likeliest token
        num_keys=NUM_KEYS,  # of mark.keyring, at each of mark.deltas and under the first of mark.schemes
    )


def lines(c: Any, model: models.Model, all_texts: Sequence[Text], folder: pathlib.Path) -> list[dict[str, Any]]:
    """A line without a mark (delta 0) and one for each strength: means over texts and keys, all from 0 to 1.

    The answers lie in `folder`, and a later start takes them up.

    Args:
        model: that learned the members.
    """
    members = [text for text in all_texts if text.is_member][: c.approximate.num]
    prompts = [text.ids[: len(text.ids) // 2] for text in members]
    gold = [text.ids[len(text.ids) // 2 :] for text in members]
    points: list[tuple[float, Mark | None]] = [(0.0, None)]
    ring = {"gamma": c.mark.gamma, "keyring": c.mark.keyring[: c.approximate.num_keys]}
    for delta in c.mark.deltas:
        marks = measuring.marks_of(ring, c.mark.schemes[0], model.network.vocab_size, delta, model.name)
        points += [(float(delta), mark) for mark in marks]
    content = json.dumps([prompts, [mark.to_dict() if mark else None for _, mark in points]])
    made_from = {"weights": model.digest, "prompts": hashlib.sha256(content.encode()).hexdigest()[:16]}
    fn, row = processors.build(next(mark for _, mark in points if mark is not None))
    state = dict(processors=(fn,), processor_states=(processors.stack(row, c.engine.num_slots),))
    work = [
        ((i, k), Request(prompt, max_new_tokens=len(gold[i]), processor_rows=(_row(mark, row),)))
        for k, (_, mark) in enumerate(points)
        for i, prompt in enumerate(prompts)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    written = answering.rows(
        folder,
        made_from,
        work,
        lambda: models.engine(model, c, stop_ids=(), **state),
        lambda key, answer: {"text": members[key[0]].id, "delta": points[key[1]][0], "ids": answer.ids},
    )
    by_delta: dict[float, list[list[float]]] = {}
    for (i, k), answer in written.items():
        by_delta.setdefault(points[k][0], []).append(likeness(answer["ids"], gold[i], model.tok.decode))
    scheme = c.mark.schemes[0]
    return [
        {"scheme": scheme, "delta": delta, "n": len(values)} | dict(zip(MEASURES, np.mean(values, axis=0).tolist()))
        for delta, values in by_delta.items()
    ]


def _row(mark: Mark | None, row: processors.Row) -> processors.Row:
    return processors.off(row) if mark is None else processors.build(mark)[1]


def likeness(ids: Sequence[int], gold: Sequence[int], decode_fn: Any) -> list[float]:
    """Edit similarity of tokens and of words, BLEU of tokens and of words."""
    words, gold_words = (decode_fn(list(x)).split() for x in (ids, gold))
    numbers: dict[str, int] = {}
    numbered, gold_numbered = ([numbers.setdefault(w, len(numbers)) for w in x] for x in (words, gold_words))
    return [
        verbatim.edit_similarity(list(ids), list(gold)),
        verbatim.edit_similarity(numbered, gold_numbered),
        verbatim.bleu(list(ids), list(gold)),
        verbatim.bleu(words, gold_words),
    ]
