"""Marks in text: do they keep a model from repeating what it memorised, and do they hide that it was trained on it?

Paper:   Panaitescu-Liess et al., AAAI 2025, arXiv:2407.17417
Run:     python -m experiments.run --config experiments/llm_watermark.py --config.data.path=FILE.jsonl
         --config.init_from=hf:DIR
Laptop:  python -m experiments.run --config experiments/llm_watermark.py:laptop   (CPU, minutes; `tiny`: seconds)
Expect:  laptop, 40 entries of a chronicle, half learned, and 40 others: KGW of delta 2, 5, 10 makes the perplexity
         of the first 1.2, 3.1 and 34 times as high; at delta 10 the loss's AUC falls from 0.996 to 0.840, that of
         Min-20% from 0.978 to 0.927, and is 0.979 with the key (blind: 0.573); answers at delta 2, 4, 8 have
         perplexity 6.0, 12, 24 (unmarked: 4.4); 58, 77, 80 % of them are detected at 1 % false alarms, without the
         5 to 7 of 40 that are too short to score. One seed; 90 updates were chosen because 400 learn every member
         by heart, where all AUCs are 1
Smol:    make models, then llm_watermark.py:smol with botchan.txt, wikitext2_valid.txt and c4_demo.jsonl in this folder

A record has a text as `input`, `snippet` or `text`, and `label` 1 where the model was trained on it. Where the run
trains on the members itself (memorise.steps > 0), labels may be missing: half of the texts are drawn. Every token is
scored with and without a mark; nothing has to be written for that. Then the model goes on from the first tokens of
texts, with and without marks, and every answer carries the record that a detector needs. The adaptive attack knows the
keys and strengths of this run.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
from ml_collections import config_dict

from alignment import errors, files
from alignment.errors import InputError
from alignment.train import language_model
from alignment.watermark import membership, text_marks
from alignment.watermark.text_marks import Mark
from data import records
from experiments.decoding import models
from experiments.evaluation import services
from experiments.launch import checks
from experiments.pages import llm_watermark as page
from experiments.text_watermarks import approximate, measuring, memorising, paraphrasing, speed, texts, writing
from experiments.text_watermarks.kept import kept
from experiments.text_watermarks.memorising import Scorer
from experiments.text_watermarks.writing import WRITTEN

SETTINGS = ("", "laptop", "smol", "tiny")
SCORED = (text_marks.KGW, text_marks.UNIGRAM, text_marks.RANDOM)
BOTCHAN = "botchan.txt"
NUM_NEGATIVES = 2_000  # two are above a threshold of one in a thousand
LEAST = dict.fromkeys(("data.piece_chars", "write.num", "write.max_new_tokens", "approximate.num"), 1)
LEAST |= dict.fromkeys(("approximate.num_keys", "speed.num", "speed.max_new_tokens", "speed.rounds"), 1)
LEAST |= dict.fromkeys(("write.prompt_len", "paraphrase.num", "paraphrase.max_new_tokens"), 1)
LEAST |= {"data.max_len": 4, "data.min_len": 2, "data.limit": 2, "write.num_others": 0, "write.num_negatives": 2}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict(models.settings(arg))
    c.seed = 0  # of draws, of members where texts have no label, of the training
    c.data = dict(
        path="WikiMIA_length64.jsonl",
        limit=config_dict.placeholder(int),  # texts, drawn by the seed; None takes all
        chapters=False,  # cuts texts at their headings; whole chapters are learned, and whole ones held out
        piece_chars=config_dict.placeholder(int),  # cuts long records into texts of so many characters
        max_len=256,  # tokens of a text that are read
        min_len=16,  # shorter texts are dropped and counted
    )
    c.memorise = dict(
        steps=0,  # updates on the members first; 0: the model as it is
        batch_size=config_dict.placeholder(int),  # texts of an update; None: 16
        peak_lr=config_dict.placeholder(float),  # None: 2e-5
    )
    c.reference_from = ""  # a smaller model for the attack that compares two; hf:<folder>, run:<workdir>; "": not tried
    c.mark = dict(
        schemes=SCORED,  # under which texts are scored
        gamma=0.5,  # share of green tokens
        deltas=(2.0, 5.0, 10.0),  # nats added to green logits; attacks are tried at the last one
        keyring=(11, 22, 33, 44, 55),
        prompt_lens=(0, 10),  # tokens of a text that are given and not scored
    )
    c.write = dict(
        schemes=WRITTEN,
        deltas=(1.0, 2.0, 4.0),  # of kgw and unigram; the others take the middle one
        num=200,  # answers of kgw, unigram, synthid and without a mark, of the first two at each strength
        num_others=50,
        max_new_tokens=100,
        prompt_len=16,  # tokens of a text that an answer goes on from
        temperature=1.0,
        negatives="",  # files of text that nobody marked; its windows join the unmarked answers and texts
        num_negatives=NUM_NEGATIVES,  # windows of max_new_tokens tokens
        synonyms="",  # file of `word`, `synonyms`, for swaps of words; "": 300 common English words
    )
    c.speed = speed.settings()
    c.approximate = approximate.settings()
    c.paraphrase = paraphrasing.settings()
    c.endpoint = services.settings()  # of a service that paraphrases
    if arg in ("tiny", "laptop"):
        c.init_from = models.RANDOM
        c.data.path = texts.EMBEDDED
        c.data.limit = 80
        c.data.max_len = 160
        c.memorise = dict(steps=90, batch_size=20, peak_lr=3e-3)  # of 400 all would be learned, and AUCs stay 1
        c.write.num = 40
        c.write.num_others = 20
        c.write.max_new_tokens = 120
        c.write.deltas = (2.0, 4.0, 8.0)
        c.write.synonyms = texts.EMBEDDED
        c.speed.num = 8
    if arg == "tiny":
        c.data.limit = 8
        c.data.max_len = 48
        c.memorise.steps = 2
        c.mark.keyring = (11, 22)
        c.mark.deltas = (2.0, 10.0)
        c.mark.prompt_lens = (0,)
        c.write.schemes = ("kgw", "synthid")
        c.write.deltas = (4.0,)
        c.write.num = 4
        c.write.num_others = 4
        c.write.max_new_tokens = 24
        c.speed = dict(num=2, max_new_tokens=8, rounds=1)
        c.approximate = dict(num=2, num_keys=1)
    elif arg == "smol":
        c.data.path = BOTCHAN
        c.data.chapters = True
        c.data.piece_chars = 400
        c.data.limit = 60
        c.data.max_len = 96
        c.memorise = dict(steps=60, batch_size=6, peak_lr=1e-4)
        c.write.negatives = "wikitext2_valid.txt,c4_demo.jsonl"
        c.engine.update(num_slots=32, max_len=128)  # more slots write more a second; nothing is longer
    return c


def sweep():
    for gamma in (0.3, 0.5, 0.7):
        yield {"mark.gamma": gamma}


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither texts, weights nor devices to be seen."""
    if c.init_from == models.RANDOM and not c.memorise.steps:
        raise InputError(f"init_from={models.RANDOM!r} knows no text; set memorise.steps, such as 400")
    for name in ("batch_size", "peak_lr") if not c.memorise.steps else ():
        if c.memorise[name] is not None:
            raise InputError(
                f"memorise.{name}={c.memorise[name]} is not read, as memorise.steps=0 trains nothing; set it to None"
            )
    models.check(c)
    checks.check_least(c, LEAST)
    if c.data.path == texts.EMBEDDED:
        if c.data.limit is None or c.data.piece_chars is not None:
            raise InputError(
                f"data.path={texts.EMBEDDED!r} needs data.limit, its number of texts, and no data.piece_chars"
            )
    else:
        records.check(c.data.path)
    if c.data.chapters and not (c.memorise.steps and c.data.path != texts.EMBEDDED):
        raise InputError(
            f"data.chapters=True draws the chapters that the run learns; memorise.steps={c.memorise.steps} and "
            f"data.path={c.data.path!r} must be a training and a file of a book"
        )
    if c.init_from in models.TOYS:
        raise InputError(
            f"init_from={c.init_from!r} has read none of these texts; take {models.RANDOM!r} or a checkpoint"
        )
    paraphrasing.check(c)
    if c.reference_from:
        language_model.check_init_from(c.reference_from)
    for scheme in c.mark.schemes:
        errors.one_of("mark.schemes", scheme, SCORED)
    for scheme in c.write.schemes:
        errors.one_of("write.schemes", scheme, WRITTEN)
    for name in ("mark.schemes", "mark.deltas", "mark.keyring", "mark.prompt_lens", "write.schemes", "write.deltas"):
        if not checks.leaf(c, name):
            raise InputError(f"{name} is empty; give at least one value")
    for delta in (*c.mark.deltas, *c.write.deltas):
        for key in c.mark.keyring:
            Mark(text_marks.KGW, key, 1_000, gamma=c.mark.gamma, delta=delta)
    if c.approximate.num_keys > max(len(c.mark.keyring), approximate.NUM_KEYS):
        raise InputError(
            f"approximate.num_keys={c.approximate.num_keys} and mark.keyring has {len(c.mark.keyring)} keys; take fewer"
        )
    if c.data.max_len > c.engine.max_len:
        raise InputError(
            f"data.max_len={c.data.max_len} is more than engine.max_len={c.engine.max_len}, and texts are continued to "
            "their own length; raise engine.max_len"
        )
    if max(c.mark.prompt_lens) >= c.data.min_len:
        raise InputError(
            f"mark.prompt_lens={c.mark.prompt_lens} reach data.min_len={c.data.min_len}: the shortest text has no "
            "token left to score; raise data.min_len"
        )
    numbers = [get_config(arg).write.num_others for arg in SETTINGS]
    if set(c.write.schemes) <= set(writing.MAIN) and c.write.num_others not in numbers:
        raise InputError(
            f"write.num_others={c.write.num_others} is not read, as write.schemes={c.write.schemes} are all main ones; "
            "set write.num"
        )
    for group in ("write", "speed"):
        if c.write.prompt_len + c[group].max_new_tokens > c.engine.max_len:
            raise InputError(
                f"write.prompt_len={c.write.prompt_len} and {group}.max_new_tokens={c[group].max_new_tokens} are more "
                f"than engine.max_len={c.engine.max_len}; raise it"
            )
    if c.write.negatives:
        records.check(c.write.negatives)
    elif c.write.num_negatives != NUM_NEGATIVES:
        raise InputError(
            f"write.num_negatives={c.write.num_negatives} is not read, as write.negatives is empty; set it"
        )
    errors.within("(0, inf)", **{"write.temperature": c.write.temperature}, hint=": marks of draws need draws")
    if c.write.synonyms and c.write.synonyms != texts.EMBEDDED:
        records.check(c.write.synonyms)


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float | None]:
    check(c)
    folder = pathlib.Path(workdir)
    counts: dict[str, int] = {}
    model = models.open_model(c, folder)
    members = texts.read(c, model.tok, folder, learns=c.memorise.steps > 0, counts=counts)
    counts["members"] = sum(text.is_member for text in members)
    counts["other texts"] = len(members) - counts["members"]
    negatives = negatives_of(c, model, folder, counts)
    files.report_counts(folder, counts)
    learned = model
    if c.memorise.steps:
        with_texts = ml_collections.ConfigDict(
            c.to_dict() | {"init_from": memorising.learn(c, members, folder / "learned")}
        )
        learned = models.with_weights(models.open_model(with_texts, folder), c)
    elif model.params is None:
        learned = models.with_weights(model, c)
    results = score(c, learned, members, folder)
    results["approximate"] = approximate.lines(c, learned, members, folder / "continued")
    # A model that began at random writes only what it learned; a checkpoint writes as it was before.
    writer = learned if c.init_from == models.RANDOM or not c.memorise.steps else models.with_weights(model, c)
    del learned
    results |= writing.write(c, writer, members, negatives, folder)
    points = writing.points_of(c, writer.network.vocab_size, writer.name)
    results["speed"] = speed.lines(c, writer, points, writing.prompts_of(c, members), folder)
    return page.write(folder, results)


def negatives_of(
    c: ml_collections.ConfigDict, model: models.Model, folder: pathlib.Path, counts: dict[str, int]
) -> list[list[int]]:
    """Windows of `write.negatives`, as long as an answer; [] where it is empty."""
    if not c.write.negatives:
        return []
    own: dict[str, int] = {}
    options = dict(length=c.write.max_new_tokens, num=c.write.num_negatives, seed=c.seed, counts=own)
    bad = folder / "bad_negatives.jsonl"
    out = texts.windows(c.write.negatives, model.tok, bad_records_path=bad, **options)
    counts |= {f"negatives: {name}": number for name, number in own.items()}
    return out.tolist()


# Scores


def score(c: Any, model: models.Model, all_texts: Sequence[texts.Text], folder: pathlib.Path) -> dict[str, Any]:
    """Verbatim protection and membership inference, by scheme and strength; measured once, see `kept`."""
    reference = language_model.digest(c.reference_from) if c.reference_from else ""
    settings = {"mark": c.mark.to_dict(), "max_len": c.data.max_len, "seed": c.seed}
    made_from = {"weights": model.digest, "reference": reference, "settings": settings}
    made_from |= {"texts": [[text.id, text.text, text.ids, text.is_member] for text in all_texts]}
    return kept(folder / "scores.json", made_from, lambda: scores(c, model, all_texts, folder))


def scores(c: Any, model: models.Model, all_texts: Sequence[texts.Text], folder: pathlib.Path) -> dict[str, Any]:
    """The tables of `score`. The model reads each text once, and once in small letters."""
    scorer, V = Scorer(model, c.data.max_len), model.network.vocab_size
    references = None
    if c.reference_from:
        other = ml_collections.ConfigDict(c.to_dict() | {"init_from": c.reference_from, "draft_from": ""})
        references = Scorer(models.load(other, folder), c.data.max_len).logps([text.ids for text in all_texts])
    schemes, num_keys = list(dict.fromkeys(c.mark.schemes)), len(c.mark.keyring)
    marks = [m for name in schemes for m in measuring.marks_of(c.mark, name, V, c.mark.deltas[-1], model.name)]
    of_all = scorer.score([text.ids for text in all_texts], marks)
    of_lower = scorer.score([model.tok.encode(text.text.lower()) for text in all_texts], marks)
    verbatim_lines, membership_lines, theory_lines = [], [], []
    for number, scheme in enumerate(schemes):
        own_keys = slice(number * num_keys, (number + 1) * num_keys)
        scored, lower = ([each[own_keys] for each in x] for x in (of_all, of_lower))
        for text, each in zip(all_texts, scored):
            measuring.verbatim.check_logps(each[0].logps_T, text.id)
        own = [each for text, each in zip(all_texts, scored) if text.is_member]
        options = (scheme, c.mark.deltas, c.mark.prompt_lens, c.mark.gamma)
        verbatim_lines += measuring.verbatim_lines(own, *options)
        theory_lines += measuring.theory_lines(own, scheme, c.mark.deltas, c.mark.gamma)
        for delta in c.mark.deltas:
            options = dict(scheme=scheme, delta=delta)
            membership_lines += measuring.membership_lines(all_texts, scored, lower, references, **options)
    is_member_N = np.array([text.is_member for text in all_texts])
    blind_N = membership.blind_scores([text.text for text in all_texts], is_member_N, seed=c.seed)
    blind = membership.auc(blind_N[is_member_N], blind_N[~is_member_N])
    membership_lines = [line | {"blind": blind} for line in membership_lines]
    tables = {"verbatim": verbatim_lines, "theory": theory_lines, "membership": membership_lines}
    return {**tables, "blind_auc": blind}


METRICS = page.METRICS
headline = page.headline
