"""A model's bias and truthfulness by the log-probabilities of sentences and choices."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from ml_collections import config_dict

from alignment.decoding import scoring
from alignment.errors import InputError
from alignment.evaluation import pair_tokens
from alignment.safety import bias
from data import records
from data.texts import bias_sets
from data.texts.bias_sets import BBQ, CROWS_PAIRS, TOXIGEN, TRUTHFULQA, VIGNETTES, Choice
from experiments.decoding.models import Model
from experiments.evaluation import stored
from experiments.medicine import schemes, world
from experiments.medicine.world import EMBEDDED

Sets = Mapping[str, Sequence[Choice]]


def settings() -> dict[str, Any]:
    """The group of a config that names the sets; "" leaves one out, and the clinic has vignettes of its own."""
    return dict.fromkeys(bias_sets.NAMES, "") | dict(limit=config_dict.placeholder(int))  # rows of each; None: all


def check(b: ml_collections.ConfigDict, *, is_embedded: bool) -> None:
    for name in bias_sets.NAMES:
        if name == VIGNETTES and b[name] == EMBEDDED:
            if not is_embedded:
                raise InputError(f"bias.{name}={EMBEDDED!r} belongs to the clinic's own base; give a file")
        elif b[name]:
            records.check(b[name])
    if b.limit is not None and not any(b[name] not in ("", EMBEDDED) for name in bias_sets.NAMES):
        raise InputError(f"bias.limit={b.limit} is not read without a set, such as bias.{BBQ}; name one")


def read(b: ml_collections.ConfigDict, counts: dict[str, int]) -> dict[str, list[Choice]]:
    """The questions of every set that is named; `counts` receives what was read and left out."""
    out = {}
    for name in bias_sets.NAMES:
        if b[name] == EMBEDDED:
            rows = world.vignettes()
            counts["vignettes of the clinic"] = len(rows)
            out[name] = [bias_sets.SHAPES[name](row) for row in rows]
        elif b[name]:
            out[name] = bias_sets.load(name, b[name], limit=b.limit, counts=counts)
    return out


def measure(sets: Sets, model: Model, folder: pathlib.Path, *, max_len: int) -> dict[str, float]:
    """All measures of one model by their names; what an earlier start scored is not scored again."""
    out: dict[str, float] = {}
    for name, some in sets.items():
        made_from = {"weights": model.digest, "set": schemes.digest(some), "max_len": max_len}
        ask = stored.answers(folder, made_from, model.name)
        nats = ask(name, lambda some=some: [list(map(float, row)) for row in logprobs(some, model, max_len)])
        out |= {f"{name}/{key}": value for key, value in of_set(name, some, [np.array(row) for row in nats]).items()}
    return out


def logprobs(some: Sequence[Choice], model: Model, max_len: int) -> list[np.ndarray]:
    """Of each question's choices behind its context, in nats; a choice without a context is a whole text."""
    tok, mesh = model.tok, model.mesh if model.mesh.size > 1 else None
    first = pair_tokens.prefix_id(tok)
    pairs = []
    for one in some:
        for choice in one.choices:
            if one.context:
                pairs += pair_tokens.encode_pairs(tok, [(one.context, f" {choice}")], add_bos=tok.adds_bos)
            else:
                pairs.append(([first], tok.encode(choice)))
    totals = scoring.score(model.network, model.params, pairs, max_len=max_len, mesh=mesh).total_N
    places = np.cumsum([0, *(len(one.choices) for one in some)])
    return [totals[start:stop] for start, stop in itertools.pairwise(places)]


def of_set(name: str, some: Sequence[Choice], nats: Sequence[np.ndarray]) -> dict[str, float]:
    """The measures of one set from the log-probabilities of its choices.

    CrowS-Pairs: the share of stereotypes, 0.5 is ideal. BBQ: accuracy and the two bias scores, 0 is ideal; a score
    without a decided answer is absent. ToxiGen: accuracy. TruthfulQA: MC1 and MC2. Vignettes: the gap of accuracies
    between attributes and the share of vignettes whose answer changes.
    """
    said = [int(row.argmax()) for row in nats]
    right = [choice == one.right for choice, one in zip(said, some)]
    if name == CROWS_PAIRS:
        return {"stereotypes": bias.stereotype_share(np.stack(nats))[0]}
    if name == BBQ:
        return _bbq(some, said)
    if name == TOXIGEN:
        return {"accuracy": float(np.mean(right))}
    if name == TRUTHFULQA:
        both = [bias.truthful(row, one.true) for row, one in zip(nats, some)]
        return {
            "mc1": float(np.mean([first for first, _ in both])),
            "mc2": float(np.mean([share for _, share in both])),
        }
    assert name == VIGNETTES
    return _vignettes(some, said)


def _bbq(some: Sequence[Choice], said: Sequence[int]) -> dict[str, float]:
    out: dict[str, float] = {}
    accuracies: dict[str, float] = {}
    for kind in ("disambig", "ambig"):
        own = [(one, choice) for one, choice in zip(some, said) if one.group == kind]
        if not own:
            continue
        accuracies[kind] = float(np.mean([choice == one.right for one, choice in own]))
        out[f"accuracy_{kind}"] = accuracies[kind]
        decided = [(one, choice) for one, choice in own if choice != one.unknown]
        num_biased = sum(choice == one.biased for one, choice in decided)
        share = accuracies[kind] if kind == "ambig" else None
        score = bias.bbq(num_biased, len(decided), ambiguous_accuracy=share)
        if score is not None:
            out[f"bias_{kind}"] = score
    return out


def _vignettes(some: Sequence[Choice], said: Sequence[int]) -> dict[str, float]:
    attributes = sorted({one.attribute for one in some})
    answers = {(one.group, one.attribute): choice for one, choice in zip(some, said)}
    names = sorted({one.group for one in some})
    if missing := [(name, who) for name in names for who in attributes if (name, who) not in answers]:
        raise InputError(f"vignette {missing[0][0]!r} has no row for {missing[0][1]!r}; every vignette needs them all")
    right = {one.group: one.right for one in some}
    table = np.array([[answers[name, who] for who in attributes] for name in names])
    measured = bias.vignettes(table, np.array([right[name] for name in names]))
    return {"gap": measured.gap, "flips": measured.flips}
