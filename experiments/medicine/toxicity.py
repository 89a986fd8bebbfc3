"""RealToxicityPrompts: how toxic a model's ways of going on with half a sentence are, by a scorer of the user's.

A scorer is a classifier of texts with two classes that gives the probability of the toxic one, such as a run of
experiments/scorer.py leaves. The published numbers are those of a web service, which no other scorer repeats; how well
this one agrees with the file's own scores stands beside the measures. No text is printed or shown.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from ml_collections import config_dict

from alignment import errors
from alignment.decoding.engine import Engine
from alignment.decoding.requests import Answer, Request
from alignment.errors import InputError
from alignment.evaluation import pair_tokens
from alignment.filtering.scores import calibration, scorers
from alignment.safety import bias
from data import records
from data.texts import bias_sets
from data.texts.bias_sets import Beginning
from experiments.decoding import answering
from experiments.decoding.models import Model

SCORERS = ("linear", "embedding", "fasttext")  # those that give a probability
NUM_DRAWS, MAX_NEW_TOKENS, TOP_P = 25, 20, 0.9  # of the paper
ScoreFn = Callable[[Sequence[str]], np.ndarray]  # texts -> [N] in [0, 1]


def settings() -> dict[str, Any]:
    """The group of a config."""
    return dict(
        prompts="",  # a file of RealToxicityPrompts; "" leaves it out
        scorer="",  # linear:, embedding: or fasttext: before its path
        limit=config_dict.placeholder(int),  # prompts; None takes all
        num_draws=config_dict.placeholder(int),  # of each prompt; None: 25, as in the paper
        max_new_tokens=config_dict.placeholder(int),  # None: 20, as in the paper
    )


def check(t: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither prompts nor weights to be seen."""
    if not t.prompts:
        for name in ("scorer", "limit", "num_draws", "max_new_tokens"):
            if t[name]:
                raise InputError(f"toxicity.{name}={t[name]} is not read without toxicity.prompts; give a file")
        return
    records.check(t.prompts)
    kind, _, path = t.scorer.partition(":")
    if not path:
        raise InputError(
            f"toxicity.scorer={t.scorer!r}: toxicity needs a classifier, linear:, embedding: or fasttext: before its "
            "path; scorer.py trains one"
        )
    errors.one_of("toxicity.scorer", kind, SCORERS)
    if not pathlib.Path(path).exists():
        raise InputError(f"toxicity.scorer={t.scorer!r}: there is nothing at {path!r}")


def scorer(name: str) -> ScoreFn:
    """The score function of `kind:path`.

    Raises:
        InputError: a classifier of other than two classes, whose score is not a probability.
    """
    kind, _, path = name.partition(":")
    score = scorers.load(kind, path)
    about = getattr(score, "about", None)  # fastText's own model says by its label which class it takes
    if about is not None and (about.objective == "regression" or len(about.levels) != 2):
        raise InputError(
            f"toxicity.scorer={name!r} has the objective {about.objective!r} and {len(about.levels)} levels; toxicity "
            "is the probability of the second of two classes"
        )

    def values(texts: Sequence[str]) -> np.ndarray:
        return np.array([next(v for k, v in row.items() if k.endswith(".score")) for row in score(_rows(texts))])

    return values


def _rows(texts: Sequence[str]) -> list[dict[str, str]]:
    return [{"text": text} for text in texts]


def measure(
    t: ml_collections.ConfigDict,
    some: Sequence[Beginning],
    model: Model,
    engine_fn: Callable[[], Engine],
    score_fn: ScoreFn,
    folder: pathlib.Path,
    *,
    seed: int,
    max_len: int,
) -> dict[str, float]:
    """The measures of one model; what an earlier start wrote in `folder` is not written again."""
    num_draws, max_new = t.num_draws or NUM_DRAWS, t.max_new_tokens or MAX_NEW_TOKENS
    texts_NG = continuations(
        some, model, engine_fn, folder, num_draws=num_draws, max_new=max_new, seed=seed, max_len=max_len
    )
    scores_NG = np.zeros((len(some), num_draws))  # a draw without text is not toxic
    written = [(i, g) for i, texts in enumerate(texts_NG) for g, text in enumerate(texts) if text.strip()]
    if written:
        scores_NG[tuple(np.array(written).T)] = score_fn([texts_NG[i][g] for i, g in written])
    return of_scores(some, scores_NG) | _agreement(some, score_fn)


def of_scores(some: Sequence[Beginning], scores_NG: np.ndarray) -> dict[str, float]:
    """Expected maximum and probability, over all prompts and over those that the file calls toxic or not."""
    kinds = [None if one.prompt_toxicity is None else one.prompt_toxicity >= bias.TOXIC for one in some]
    out = {}
    for ending, wanted in (("", (True, False, None)), ("_toxic", (True,)), ("_nontoxic", (False,))):
        own = [i for i, kind in enumerate(kinds) if kind in wanted]
        if own and (not ending or len(own) < len(some)):
            measured = bias.toxicity(scores_NG[own])
            out |= {f"{name}{ending}": value for name, value in measured._asdict().items()}
    return out


def _agreement(some: Sequence[Beginning], score_fn: ScoreFn) -> dict[str, float]:
    """The scorer's AUC on the file's own continuations, where it has toxic ones and others."""
    own = [one for one in some if one.continuation.strip() and one.continuation_toxicity is not None]
    is_toxic = np.array([one.continuation_toxicity >= bias.TOXIC for one in own])
    if not own or is_toxic.all() or not is_toxic.any():
        return {}
    return {"scorer_auc": calibration.auc(score_fn([one.continuation for one in own]), is_toxic)}


def continuations(
    some: Sequence[Beginning],
    model: Model,
    engine_fn: Callable[[], Engine],
    folder: pathlib.Path,
    *,
    num_draws: int,
    max_new: int,
    seed: int,
    max_len: int,
) -> list[list[str]]:
    """`num_draws` texts for each prompt at temperature 1 with nucleus 0.9, without a chat template.

    Raises:
        InputError: a prompt is too long; the message has its number and not its text.
    """
    prompts = pair_tokens.encode_all(model.tok, [(one.prompt, None) for one in some], add_bos=model.tok.adds_bos)
    for i, ids in enumerate(prompts):
        if len(ids) + max_new > max_len:
            raise InputError(
                f"prompt {i} of toxicity.prompts has {len(ids)} tokens, which with {max_new} new ones is more than "
                f"engine.max_len={max_len}; set a larger one"
            )
    how = dict(temperature=1.0, top_p=TOP_P)
    work = [
        ((i, g), Request(ids, max_new, **how, seed=seed * len(prompts) + i, sample=g))
        for i, ids in enumerate(prompts)
        for g in range(num_draws)
    ]
    content = hashlib.sha256(json.dumps([prompts, num_draws, max_new, seed]).encode()).hexdigest()[:16]
    made_from = {"weights": model.digest, "prompts": content}
    rows = answering.rows(folder, made_from, work, engine_fn, lambda key, answer: _row(key, answer, model))
    return [[rows[i, g]["text"] for g in range(num_draws)] for i in range(len(some))]


def _row(key: tuple[int, int], answer: Answer, model: Model) -> Mapping[str, Any]:
    if answer.error:
        raise FloatingPointError(f"{answer.error} It is prompt {key[0]} of toxicity.prompts")
    return {"prompt": key[0], "sample": key[1], "text": model.text(answer.text, is_alone=False)}


def read(t: ml_collections.ConfigDict, counts: dict[str, int]) -> list[Beginning]:
    """The prompts; [] where the config names none."""
    return bias_sets.load_beginnings(t.prompts, limit=t.limit, counts=counts) if t.prompts else []
