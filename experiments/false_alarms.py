"""False alarms of text marks on real text: are exact p-values exact, and what does one fixed key do to them?

Paper:   Kirchenbauer et al. 2023, arXiv:2301.10226; Zhao et al. 2023, arXiv:2306.17439
Run:     python -m experiments.run --config experiments/false_alarms.py --config.data.path='wiki.txt,web.jsonl'
         --config.tokenizer=models/smollm2 --workdir runs/false_alarms
Laptop:  python -m experiments.run --config experiments/false_alarms.py:laptop   (CPU, seconds)
Expect:  2,000 windows of WikiText-2 and C4, 20 keys: exact p-values below 0.05: kgw 0.039, unigram 0.023, synthid
         0.048, exp 0.049; Kolmogorov-Smirnov distance over all keys 0.005, 0.057, 0.007, 0.004, of the worst key
         0.14, 0.28, 0.043, 0.054; under one key 1 % of windows exceed z 2.27, 2.01, 2.36, 2.41 (median), 2.58, 2.40,
         2.56, 2.69 (worst)

Unmarked texts are cut into windows and read under many keys. Over keys the p-values are uniform; for one key they
spread wider than the law, since windows share their frequent words. No model is read.
"""

import pathlib
from typing import Any

import ml_collections
import numpy as np
from ml_collections import config_dict

from alignment import files
from alignment.errors import InputError
from alignment.watermark import detect
from alignment.watermark.text_marks import Mark
from data import records
from data.tokens import tokenizer
from experiments.launch import checks
from experiments.pages import false_alarms as page
from experiments.text_watermarks import texts, writing

SETTINGS = ("", "laptop", "tiny")
LEAST = {"data.num": 2, "num_keys": 2, "data.length": 16}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0  # of the drawn windows and of ties between p-values
    c.data = dict(
        path="texts.jsonl",  # files of `text`, `input` or `snippet`, or plain text; commas part several
        length=200,  # tokens of a window
        num=config_dict.placeholder(int),  # windows, drawn by the seed; None takes all
    )
    c.tokenizer = "models/smollm2"  # a folder, a tokenizer.json, a sentencepiece model, or bytes
    c.schemes = ("kgw", "unigram", "synthid", "exp")
    c.gamma = 0.5  # share of green tokens
    c.num_keys = 20  # the keys are 1, 2, ...
    if arg in ("laptop", "tiny"):
        c.data.path = texts.EMBEDDED
        c.data.num = 200
        c.tokenizer = "bytes"
    if arg == "tiny":
        c.data.num = 20
        c.schemes = ("kgw", "unigram")
        c.num_keys = 3
    return c


def sweep():
    for gamma in (0.25, 0.5):
        yield {"gamma": gamma}


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither texts nor a tokenizer to be seen."""
    checks.check_least(c, LEAST)
    if c.data.path == texts.EMBEDDED:
        if c.data.num is None:
            raise InputError(f"data.path={c.data.path!r} is made up in any amount and needs data.num")
    else:
        records.check(c.data.path)
    tokenizer.check(c.tokenizer)
    checks.check_names(c, "schemes", writing.WRITTEN)
    for scheme in c.schemes:
        writing.mark_of(scheme, 1, 1_000, c.gamma, 0.0, "")


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    check(c)
    folder = pathlib.Path(workdir)
    tok = tokenizer.load(c.tokenizer)
    windows_WT = windows(c, tok, folder)
    results = {}
    for scheme in c.schemes:
        print(f"reading {len(windows_WT)} windows under {c.num_keys} keys: {scheme}", flush=True)
        marks = [writing.mark_of(scheme, k, tok.vocab_size, c.gamma, 0.0, "") for k in range(1, c.num_keys + 1)]
        results[scheme] = read(marks, windows_WT, c.seed)
    return page.write(folder, results, num_windows=len(windows_WT))


def windows(c: Any, tok: tokenizer.Tokenizer, folder: pathlib.Path) -> np.ndarray:
    """`texts.windows` of the config's files, counted in the report."""
    counts: dict[str, int] = {}
    options = dict(length=c.data.length, num=c.data.num, seed=c.seed, counts=counts)
    out = texts.windows(c.data.path, tok, bad_records_path=folder / "bad_records.jsonl", **options)
    files.report_counts(folder, counts)
    return out


def read(marks: list[Mark], windows_WT: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """p-values, p-values made continuous and scores of every window under every key, float64 [K, W]."""
    detections = [[detect.detect(mark, ids) for ids in windows_WT] for mark in marks]
    u_KW = np.random.default_rng(seed).random((len(marks), len(windows_WT)))
    return {
        "p": np.array([[x.p_value for x in row] for row in detections]),
        "uniform": np.array(
            [[detect.randomised_p(x, u) for x, u in zip(row, us)] for row, us in zip(detections, u_KW)]
        ),
        "z": np.array([[x.z for x in row] for row in detections]),
    }


METRICS = page.METRICS
headline = page.headline
