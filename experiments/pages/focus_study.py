"""What experiments/focus.py rates: one network, one set of mosaics, and every score made of them so far."""

import dataclasses
import functools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from alignment import files
from alignment.errors import InputError
from alignment.explain import explaining, focus, randomize, rating, steps
from alignment.models import vision
from data.pictures import mosaics
from experiments.report import progress

SMALL_TILE = 100  # pixels; quickshift takes a smaller tile for one super-pixel


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained network, and what is known of it."""

    arch: str
    model: Any
    variables: dict[str, Any]
    class_names: tuple[str, ...]  # () where nobody has named them
    num_classes: int
    images: dict[str, Any]  # how it was trained: `source`, and `resize` and `crop` of squares

    @property
    def source(self) -> str:
        return str(self.images.get("source", ""))


def options(c: ml_collections.ConfigDict, method: str) -> dict[str, Any]:
    return dict(c.options[method]) if method in c.options else {}


@dataclasses.dataclass(frozen=True)
class Study:
    """One network, one set of mosaics, and every score made of them so far."""

    c: ml_collections.ConfigDict
    workdir: pathlib.Path
    mesh: Any
    net: Classifier
    tiles_NYXC: np.ndarray
    labels_N: np.ndarray
    plan: mosaics.Plan
    names: tuple[str, ...]
    groups: dict[str, np.ndarray]

    def key(self, name: str) -> jax.Array:
        return jax.random.fold_in(jax.random.PRNGKey(self.c.seed), int.from_bytes(name.encode()[:4], "little"))

    @functools.cached_property
    def absent_M(self) -> np.ndarray | None:
        """A class for each mosaic that it does not show; None where too few classes are known for that."""
        try:
            return randomize.absent_targets(self.plan.tile_label, self.net.num_classes, self.c.seed)
        except InputError as e:
            print(f"R3 is left out: {e}", flush=True)
            return None

    @functools.cached_property
    def shown(self) -> list[int]:
        """Mosaics whose maps become pictures: of different targets, and among those that every method rates."""
        if not self.c.pictures:
            return []
        fewest = min((self.c.limit[m] for m in self.c.methods if self.c.limit[m]), default=0)
        ids = rating.spread(len(self.plan), fewest)
        return [int(m) for m in ids[rating.spread(len(ids), self.c.pictures)]]

    @functools.cached_property
    def example(self) -> jax.Array:
        """An empty mosaic."""
        return jnp.zeros((1, *(2 * n for n in self.tiles_NYXC.shape[1:3]), 3))

    @functools.cached_property
    def layers(self) -> list[randomize.Path]:
        return randomize.layers(self.net.model.apply, self.net.variables, self.example)

    @property
    def dataset(self) -> str:
        return self.c.data.source or self.net.source or self.c.fallback.source

    def class_name(self, label: int) -> str:
        return self.net.class_names[label] if self.net.class_names else f"class {label}"

    def options(self, method: str) -> dict[str, Any]:
        """The config's, with what it leaves open."""
        own = options(self.c, method)
        if method == "lime" and not own.get("segmenter"):
            own["segmenter"] = "slic" if max(self.tiles_NYXC.shape[1:3]) < SMALL_TILE else "quickshift"
        return own

    def num_explained(self, method: str, limit: int = 0) -> int:
        """Mosaics that a test with this limit explains."""
        return min(filter(None, (limit, self.c.limit[method], len(self.plan))))

    def explain_fn(self, method: str, variables=None):
        found = self.net.variables if variables is None else variables
        own = self.options(method)
        return explaining.build(self.net.model.apply, found, method=method, key=self.key("noise"), **own)

    def rate(self, method: str, ids: np.ndarray, *, variables=None, explained_M=None, label: str = "", **more):
        """`rating.rate` of these mosaics, with a line now and then of how far it is."""
        explained_M = self.plan.target if explained_M is None else explained_M
        bar = progress.Progress(label or method, len(ids), items="mosaics")
        found = rating.rate(
            watched(self.explain_fn(method, variables), bar, len(ids), self.c.batch_size),
            self.tiles_NYXC,
            self.plan.tile_index[ids],
            self.plan.tile_label[ids] == self.plan.target[ids, None],
            explained_M[ids],
            self.mesh,
            batch_size=self.c.batch_size,
            ids_M=ids,
            **more,
        )
        bar.erase()
        return found

    def scored(self, test: str, method: str, *, limit=0, variables=None, explained_M=None) -> dict[str, np.ndarray]:
        """All that was measured of a method; kept in the workdir, so that a later start does not make it again."""
        path = self.workdir / "scores" / f"{test}_{method}.npz"
        if path.is_file():
            with np.load(path) as kept:
                return dict(kept)
        ids = rating.spread(len(self.plan), self.num_explained(method, limit))
        is_plain = test == "trained"
        more = {"keep": self.shown} if is_plain else {}
        if is_plain and self.c.save_maps:
            more["on_maps_fn"] = functools.partial(self.save_maps, method)
        started = time.perf_counter()
        label = f"{test} {method}"
        found, rate = self.rate(method, ids, variables=variables, explained_M=explained_M, label=label, **more)
        found["rate"] = np.float64(rate)
        files.write(path, lambda f: np.savez_compressed(f, **found))
        median = focus.summary(found["focus"])["median"]
        seconds = time.perf_counter() - started
        print(f"{label}: median Focus {median:.3f} over {len(ids)} mosaics, {seconds:.1f} s", flush=True)
        return found

    def save_maps(self, method: str, ids: np.ndarray, maps_BYX: np.ndarray) -> None:
        path = self.workdir / "maps" / method / f"{ids[0]:06d}.npz"
        files.write(path, lambda f: np.savez_compressed(f, mosaic=ids, maps=maps_BYX.astype(np.float16)))

    def predict(self) -> np.ndarray:
        """What the network takes each tile for, alone."""
        size = self.tiles_NYXC.shape[1]
        scale = 1
        try:
            vision.check_input(self.net.model, (size, size))
        except InputError:  # one fixed size: the mosaic's
            scale = 2
        return rating.predict(
            self.net.model.apply,
            self.net.variables,
            self.tiles_NYXC,
            self.mesh,
            batch_size=self.c.batch_size * 4,
            scale=scale,
        )

    def mosaic(self, m: int) -> np.ndarray:
        return mosaics.assemble(self.tiles_NYXC, self.plan.tile_index[m : m + 1])[0]


def watched(explain_fn, bar: progress.Progress, num: int, batch_size: int):
    """`explain_fn`, called for batches of `num` mosaics one after another, that moves the bar."""
    left = num

    def fn(x_BYXC, targets_BK, ids_B):
        nonlocal left
        count, told = min(batch_size, left), 0.0
        left -= count

        def advance(share: float) -> None:
            nonlocal told
            share = min(share, 1 - told)
            told += share
            bar.advance(share * count, items=share * count)

        with steps.listening(advance):
            maps_BKYX = explain_fn(x_BYXC, targets_BK, ids_B)
        advance(1.0)
        return maps_BKYX

    return fn


def announce(study: Study) -> None:
    """A line a method of how many mosaics it will explain, in all tests."""
    c = study.c
    absent = c.random.methods if study.absent_M is not None else ()
    tests = [("", c.methods, 0, 1), ("with random weights", c.random.methods, c.random.limit, 1)]
    tests += [("for absent classes", absent, c.random.limit, 1)]
    tests += [("in the cascade", c.cascade.methods, c.cascade.limit, len(cascade_counts(study)))]
    for method in dict.fromkeys((*c.methods, *c.random.methods, *c.cascade.methods)):
        parts = [
            f"{f'{times} x ' if times > 1 else ''}{study.num_explained(method, limit):,} {words}".strip()
            for words, methods, limit, times in tests
            if method in methods
        ]
        own = study.options(method)
        extra = f" ({own['segmenter']}, {own['num_samples']:,} perturbations of each)" if method == "lime" else ""
        print(f"{method} explains {', '.join(parts)} mosaics{extra}; limit.{method} takes fewer", flush=True)


def cascade_counts(study: Study) -> list[int]:
    """How many layers from the top are redrawn at each point."""
    num_layers = randomize.num_weight_layers(study.net.variables)
    return sorted({round(k) for k in np.linspace(0, num_layers, max(study.c.cascade.points, 2))})


def cascade(study: Study) -> dict[str, dict[int, dict[str, np.ndarray]]]:
    """R2: {method: {layers redrawn from the top: what was measured}}."""
    c = study.c.cascade
    if not c.methods:
        return {}
    order = study.layers
    found = {method: {} for method in c.methods}
    for k in cascade_counts(study):
        variables = randomize.cascade(study.net.variables, k, study.key("R2"), order=order)
        for method in c.methods:
            found[method][k] = study.scored(f"R2_{k:03d}", method, variables=variables, limit=c.limit)
    return found
