"""Our reader of fastText models against fastText itself, on small models trained for this."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

fasttext_package = pytest.importorskip("fasttext")

from alignment.models import fasttext  # noqa: E402

KINDS = {  # what train_supervised is told
    "softmax": dict(loss="softmax", wordNgrams=1),
    "n-grams": dict(loss="softmax", wordNgrams=3, minn=2, maxn=4, bucket=2_000),
    "tree": dict(loss="hs", wordNgrams=2, minn=2, maxn=4, bucket=1_000),
    "one against all": dict(loss="ova", wordNgrams=2, bucket=500),
    "negative samples": dict(loss="ns", minn=1, maxn=3, bucket=700),
}
ALPHABETS = {"en": "abcdefghij", "ar": "ابتثجحخدذر", "el": "αβγδεζηθικ", "ja": "あいうえおかきく", "em": "😀😁😂🤣😃"}


def lines(num, seed):
    """Labelled lines of made-up words, a third of them in a foreign alphabet; the labels unequally frequent."""
    rng = random.Random(seed)
    for _ in range(num):
        label = rng.choices(list(ALPHABETS), weights=(9, 5, 3, 2, 1))[0]
        own = ALPHABETS[label]
        words = [
            "".join(rng.choices(own + own + ALPHABETS["en"], k=rng.randint(1, 6))) for _ in range(rng.randint(1, 12))
        ]
        yield f"__label__{label} {' '.join(words)}"


def many(num):
    """Lines of 300 labels: the output matrix is quantised only where it has 256 rows and more."""
    rng = random.Random(0)
    for i in range(num):
        words = ["".join(rng.choices("abcdef", k=rng.randint(1, 4))) for _ in range(6)]
        yield f"__label__{i % 300} {' '.join(words)} w{i % 300}"


def texts():
    known = [line.partition(" ")[2] for line in lines(120, seed=1)]
    odd = [
        "",
        " ",
        "\u00a0",
        "</s>",
        "aaa </s> bbb",
        "__label__en abc",
        "__label__xx abc",
        "a\tb\vc\0d",
        "é",
        "<",
        "a" * 500,
    ]
    return known + odd


def compare(ours, theirs, k):
    labels, values = theirs.predict([text.replace("\n", " ") for text in texts()], k=k)
    for text, label_row, value_row, found in zip(texts(), labels, values, ours.predict(texts(), k=k)):
        assert len(found) == len(label_row), text
        np.testing.assert_allclose([value for _, value in found], value_row, atol=1e-5, err_msg=text)
        by_label = dict(found)
        for label, value in zip(label_row, value_row):  # equal values may change places
            if label in by_label:
                assert by_label[label] == pytest.approx(value, abs=1e-5), text
            else:
                assert value == pytest.approx(value_row[-1], abs=2e-5), text


TRAIN = """
import json, sys, fasttext
for job in json.load(sys.stdin):
    for attempt in range(30):
        try:
            model = fasttext.train_supervised(thread=1, verbose=0, **job["train"])
            break
        except RuntimeError:  # "Encountered NaN", which it may read where it has written nothing yet
            continue
    if "quantize" in job:
        model.quantize(input=job["train"]["input"], thread=1, **job["quantize"])
    model.save_model(job["path"])
"""
QUANTISED = {
    "quantised": {},
    "pruned": dict(cutoff=300),
    "norms apart": dict(qnorm=True, dsub=3),
    "output too": dict(qout=True, cutoff=400),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of all the models, trained in a process of their own."""
    folder = tmp_path_factory.mktemp("fasttext")
    for name, rows in {"few": lines(800, seed=0), "many": many(3_000)}.items():
        (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    shared = dict(input=str(folder / "few"), dim=10, epoch=25, lr=0.5)
    jobs = [dict(path=str(folder / f"{kind}.bin"), train={**shared, **options}) for kind, options in KINDS.items()]
    for kind, options in QUANTISED.items():
        train = {**shared, **KINDS["n-grams"], "input": str(folder / ("many" if "qout" in options else "few"))}
        jobs.append(dict(path=str(folder / f"{kind}.ftz"), train=train, quantize=options))
    # MALLOC_PERTURB_=255 hands out memory filled with zeros
    environment = {**os.environ, "MALLOC_PERTURB_": "255"}
    subprocess.run([sys.executable, "-c", TRAIN], input=json.dumps(jobs), text=True, check=True, env=environment)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_labels_and_probabilities_are_those_of_fasttext(kind, trained):
    path = trained / f"{kind}.bin"
    ours, theirs = fasttext.load(path), fasttext_package.load_model(str(path))
    assert ours.labels == theirs.get_labels() and len(ours.labels) == 5
    assert len({row[0][0] for row in ours.predict(texts()) if row}) > 1  # it has learnt something
    for k in (1, 3, 5):
        compare(ours, theirs, k)


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_and_pruned_models_predict_as_they_do_in_fasttext(kind, trained):
    path = trained / f"{kind}.ftz"
    compare(fasttext.load(path), fasttext_package.load_model(str(path)), 5)
