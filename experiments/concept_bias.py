"""Shortcuts by concept: how far text classifiers lean on one, and training sets that take it away.

Paper:   Zhou et al. 2024, arXiv:2311.08648
Run:     python -m experiments.run --config experiments/concept_bias.py --config.data.path=FILE.jsonl
Laptop:  python -m experiments.run --config experiments/concept_bias.py:laptop   (CPU, minutes; `tiny`: seconds)
Expect:  laptop, 12,000 made-up reviews in which music means praise, price blame and food nothing, 6,000 of them for
         testing, one training: mean |Bias@C| of a bag of words 31.9 points as they are, 53.1 on the biased set, 7.8
         downsampled, 8.8 upsampled, 7.5 masked; group DRO 22.5, DFR 5.0, JTT 34.4, LEACE 27.5; of a small encoder 27.0,
         55.8, 3.3, 6.1, 10.4, and 15.5, 24.0, 31.9, 16.2
         CEBaB's 3,136 reviews with a majority, 941 for testing, food, service and ambiance, bag of words, one
         training: 6.5, 13.4, 2.4, 6.0, 5.6, and 5.8, 2.8, 6.1, 4.9; the biased set moves Bias@C by 6.0 (-3.6 to 15.7),
         7.1 (-1.1 to 15.4) and 7.4 (0.3 to 15.2) points; over twelve other splits by 9.0, 9.5 and 1.0 (aim: 8)
Smol:    make models, then concept_bias.py:smol with cebab_train_exclusive.jsonl and cebab_dev.jsonl in this folder

Bias@C is above 0 where a concept pushes predictions to larger labels, and 0 without a shortcut. A classifier is trained
on the texts as they are, on a set that makes the concept mean a label, and on sets that even it out again; peers that
rebalance by weights or by the last layer stand beside. The same test texts measure all of them.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from alignment import errors, files
from alignment.concepts import bag, encoder
from alignment.decoding import cache
from alignment.errors import InputError
from alignment.models import bert
from alignment.train import writers
from data import records
from experiments.concepts import asking, cells, classifiers, decoders, in_context, sets
from experiments.concepts.classifiers import BAG, BERT, DECODER, ENCODER, FEATURED, IN_CONTEXT, KINDS
from experiments.decoding import models
from experiments.launch import checks
from experiments.pages import concept_bias as page

SETTINGS = ("", "laptop", "smol", "tiny")
MINILM = "models/minilm"
READS = {  # group of the config -> kinds of classifiers that read it
    "bag": (BAG,),
    "encoder": (ENCODER,),
    "training": (ENCODER, BERT),
    "tuning": (DECODER,),
    "in_context": (IN_CONTEXT,),
}
OF_METHODS = {"mask": (sets.MASK,), "jtt": (cells.JTT,), "group_dro": (cells.GROUP_DRO,)}
LEAST = dict.fromkeys(("seeds", "mask.top", "mask.min_count", "jtt.factor", "encoder.num_words"), 1)
LEAST |= {"max_len": 4, "data.limit": 4, "resamples": 0}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0  # of the first training
    c.seeds = 3  # trainings of each classifier; the split stays
    c.data = sets.settings()
    c.models = (BERT,)  # of bag, encoder, bert, decoder, in_context; the first one's numbers are the summary's
    c.methods = cells.METHODS  # of all but in_context, which has biased and balanced exemplars
    c.resamples = 1_000  # of test texts, for the intervals
    c.max_len = 512  # tokens of a text that an encoder reads
    c.bert_from = "models/distilbert"  # folder of a BERT, DistilBERT or MiniLM
    c.bag = dict(ngrams=2, min_count=2, inverse_penalty=10.0)
    c.encoder = dict(num_layers=2, model_dim=64, num_heads=4, ffn_dim=128, num_words=4_000)  # from nothing
    c.training = dict(
        epochs=3,
        batch_size=16,
        peak_lr=2e-5,
        warmup=0.0,  # share of the updates
        weight_decay=0.01,
        dropout=0.1,  # before the last layer
        pooling="mean",  # first: BERT's own head, a tanh layer over the first token
        eval_every=config_dict.placeholder(int),  # updates between two looks at the held-out loss; None: an epoch
        group_by_length=False,  # texts of like length share a batch, which is faster and less evenly drawn
    )
    c.mask = dict(
        top=10,  # words with the largest PMI that are masked
        min_count=5,  # training texts that must hold a word
        mark="[MASK]",
        test=False,  # mask test texts too
    )
    c.jtt = dict(factor=5)  # how often a text that the first training got wrong counts in the second
    c.group_dro = dict(rate=config_dict.placeholder(float))  # None: 0.01 of a batch, 1 of a bag's round
    c.decoder = models.settings("smol" if arg == "smol" else "")  # of models=decoder and in_context, backend=model
    c.tuning = decoders.settings()
    c.in_context = in_context.settings()
    c.update(asking.settings())
    if arg in ("tiny", "laptop"):
        c.data.path = sets.SYNTHETIC
        c.data.concepts = ("music", "food", "price")
        c.data.negative = ("price",)
        c.models = (BAG, ENCODER)
        c.training.peak_lr = 2e-3
        c.training.dropout = 0.0
        c.max_len = 32
    if arg == "tiny":
        c.seeds = 1
        c.methods = tuple(name for name in cells.METHODS if name != cells.GROUP_DRO)  # a second program to compile
        c.data.limit = 800
        c.data.concepts = ("music", "price")
        c.encoder = dict(num_layers=1, model_dim=16, num_heads=2, ffn_dim=16, num_words=100)
        c.training.epochs = 1
        c.training.batch_size = 32
        c.resamples = 50
    elif arg == "laptop":
        c.seeds = 1
        c.data.limit = 12_000
        c.data.test = 0.5
        c.encoder = dict(num_layers=1, model_dim=32, num_heads=2, ffn_dim=64, num_words=200)
        c.training.batch_size = 64
    elif arg == "smol":
        c.models = (BAG, BERT, IN_CONTEXT)
        c.bert_from = MINILM
        c.in_context.limit = 100
        c.in_context.labels = ("terrible", "bad", "okay", "good", "great")  # digits it answers with one and the same
        c.training.epochs = 1
        c.training.group_by_length = True
        c.max_len = 64
        c.training.peak_lr = 1e-4
    return c


def sweep():
    for kind in (BAG, ENCODER, BERT):
        yield {"models": (kind,)}


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither texts, weights nor devices to be seen."""
    checks.check_least(c, LEAST)
    checks.check_names(c, "models", KINDS)
    checks.check_names(c, "methods", cells.METHODS)
    sets.check(c)
    errors.one_of("data.split", c.data.split, sets.concept_sets.SPLITS)
    errors.one_of("data.val_from", c.data.val_from, sets.VALIDATIONS)
    for path in (c.data.path, c.data.counterfactuals):
        if path and path != sets.SYNTHETIC:
            records.check(path)
    if cells.DFR in c.methods and not c.data.validation:
        raise InputError("methods has dfr, which trains its last layer on validation texts; raise data.validation")
    checks.check_unread(c, [get_config(arg) for arg in SETTINGS], _unread(c))
    asking.check(c)
    check_decoders(c)
    bag.Options(**c.bag)
    encoder.Options(**c.training)
    if c.encoder.model_dim % c.encoder.num_heads:
        raise InputError(f"encoder.model_dim={c.encoder.model_dim} does not split into {c.encoder.num_heads} heads")
    checks.within(c, "(0, inf)", "group_dro.rate")
    if BERT in c.models:
        if c.bert_from == MINILM and not pathlib.Path(MINILM).is_dir():
            raise InputError(f"bert_from={MINILM!r}: the model is not there; run: make models")
        bert.check(c.bert_from)


def check_decoders(c: ml_collections.ConfigDict) -> None:
    """Refuse what a decoder could not do."""
    unfit = sorted(set(c.methods) & {*cells.READ_FEATURES, cells.GROUP_DRO})
    if DECODER in c.models and unfit:
        raise InputError(
            f"methods has {', '.join(unfit)}, which models={DECODER} does not offer: it answers by its first token and "
            "shows no features; leave them out, or the decoder"
        )
    if DECODER in c.models:
        decoders.check(c)
    if IN_CONTEXT in c.models:
        in_context.check(c)
    if reads_decoder(c):
        models.check(c.decoder)


def reads_decoder(c: ml_collections.ConfigDict) -> bool:
    return bool({DECODER, IN_CONTEXT} & set(c.models)) or asking.MODEL in (c.annotation.backend, c.writing.backend)


def _unread(c: ml_collections.ConfigDict) -> Iterator[tuple[str, str]]:
    """Groups and settings that no classifier or method of the run reads, and why."""
    for readers, what in ((READS, "models"), (OF_METHODS, "methods")):
        for group, kinds in readers.items():
            if not set(kinds) & set(c[what]):
                yield group, f"{what}={c[what]} has no {' or '.join(kinds)}"
    if not reads_decoder(c):
        yield "decoder", f"only models={DECODER} or {IN_CONTEXT} and backend={asking.MODEL} read it"
    if BERT not in c.models:
        yield "bert_from", f"models={c.models} has no {BERT}"


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float | None]:
    check(c)
    folder = pathlib.Path(workdir)
    counts: dict[str, int] = {}
    writer = asking.Writer(c, folder)
    texts = sets.read(c, counts, str(folder / "bad_records.jsonl"))
    if IN_CONTEXT in c.models:
        in_context.names(texts.num_labels, c.in_context.labels)
    task = sets.divide(c, asking.annotated(c, texts, writer, folder, counts), counts)
    task = asking.with_counterfactuals(c, task, writer, folder, counts)
    measurers = build(c, task, folder, counts)
    files.report_counts(folder, counts)
    methods = {kind: in_context.METHODS if kind == IN_CONTEXT else tuple(c.methods) for kind in c.models}
    plan = cells.plan(methods, c.seeds, c.seed, task.concepts)
    numbers = writers.jsonl(str(folder), restored=0)
    seconds = 0.0

    def note(number: int, row: Mapping[str, Any]) -> None:
        nonlocal seconds
        seconds += row["seconds"]
        accuracy = row["right"].count("1") / max(row["right"].count("0") + row["right"].count("1"), 1)
        numbers.write_scalars(number, {"seconds": seconds, "cell_accuracy": accuracy})
        print(
            f"cell {number} of {len(plan)}: {row['model']} {row['concept']} {row['method']}, accuracy {accuracy:.3f}, "
            f"{row['seconds']:.1f} s",
            flush=True,
        )

    with cache.Cache(folder / "cells.jsonl") as cells_cache:
        rows = cells.through(plan, task, measurers, c, cells_cache, note)
    numbers.close()
    return page.write(folder, c, task, rows, measurers)


def build(
    c: ml_collections.ConfigDict, task: sets.Task, folder: pathlib.Path, counts: dict[str, int]
) -> dict[str, Any]:
    """What measures the cells of each classifier; `counts` receives how many texts an encoder does not read whole."""
    out: dict[str, Any] = {}
    for kind in c.models:
        if kind in FEATURED:
            learner = classifiers.build(kind, c, task)
            out[kind] = cells.Trained(classifiers.Once(learner))
            if isinstance(learner, classifiers.EncoderLearner):
                texts = [row.text for row in (*task.all_texts.rows, *task.all_texts.counterfactuals)]
                if num := learner.num_cut(texts):
                    counts[f"texts that {kind} reads only {learner.max_len} tokens of (max_len)"] = num
    if {DECODER, IN_CONTEXT} & set(c.models):
        model = models.load(c.decoder, folder)
        if DECODER in c.models:
            learner = decoders.DecoderLearner(c, model, task.num_labels, folder / "trainings")
            out[DECODER] = cells.Trained(classifiers.Once(learner, most=1))
        if IN_CONTEXT in c.models:
            write = in_context.of_engine(
                models.engine(model, c.decoder),
                lambda text: model.tok.encode(text, add_bos=model.tok.adds_bos),
                c.decoder.engine.max_len,
            )
            out[IN_CONTEXT] = in_context.InContext(write, model.digest, c)
    return out


METRICS = page.METRICS
headline = page.headline
