"""A safety scorer for the toy web, trained on other pages of it in half a minute.

It is trained as experiments/scorer.py trains one on real text; what that leaves in export/scorer goes in its place.
"""

import functools
import pathlib

import numpy as np

from alignment.filtering.scores import chunks, fitting, heads, linear, ngrams
from alignment.train import loop, optimizer, sharding
from data import loader
from data.toys import toyweb

LEVELS = ("0", "1", "2", "3", "4", "5")
FEATURES = {"words": (1, 2), "characters": (3, 4), "buckets": 1 << 16}
BATCH, PIECE = 256, 24  # pieces a step; words of a piece


def train(workdir: pathlib.Path, path: str, *, seed: int, num: int, steps: int) -> None:
    """Train on `num` pages and write the scorer to `path`; resumes like every run of `loop.fit`."""
    documents = toyweb.documents(num, seed=seed)
    pieces, _ = chunks.of_texts([document["text"] for document in documents], PIECE)  # cut as the scorer cuts a page
    levels_N = np.array([toyweb.severity(piece) for piece in pieces])
    features = ngrams.settings(FEATURES)
    about = heads.About("linear", "safety", "softmax", LEVELS, FEATURES, piece=PIECE)
    weights_N = np.where(levels_N > 0, 10.0, 1.0)  # harmful pieces are few
    width = linear.width(pieces, features, piece=PIECE)
    make = linear.batch_fn(pieces, levels_N, weights_N, chosen=features, width=width, piece=PIECE)
    mesh = sharding.make_mesh()
    batches_fn = functools.partial(loader.build, make, batch_size=BATCH, seed=seed, **sharding.row_share(mesh))
    tensors, _ = fitting.fit(
        about,
        batches_fn(num_examples=len(pieces)),
        batches_fn(num_examples=min(512, len(pieces)), endless=False),
        mesh,
        workdir,
        tx=optimizer.adamw(peak_lr=0.05, warmup_steps=10, total_steps=steps, schedule="cosine"),
        num_inputs=features.buckets,
        seed=seed,
        steps=steps,
        batch_size=BATCH,
        pace=loop.Pace(log_every=20, eval_every=steps, save_every=steps, keep=1),
        logging=loop.Logging(sinks=()),
    )
    heads.save(path, about, tensors)
