"""The measurements of a run of focus.py: a network, a set of mosaics, and every score of them, kept in the workdir.

Dimensions: M mosaics, 4 tiles, N tiles, B mosaics of a batch, Y X rows and columns, C channels.
"""

import dataclasses
import functools
import json
import pathlib
import time
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from alignment import files
from alignment.errors import InputError, one_of
from alignment.explain import explaining, focus, randomize, rating
from alignment.models import vision
from data import loader, records
from data.pictures import images, mosaic_files, mosaics
from experiments.report import progress

Scores = dict[str, np.ndarray]  # arrays of `rating.rate`, and `rate` in mosaics a second


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained network.

    Attributes:
        arch: its name in `vision.network`.
        model, variables: the module, and its parameters and statistics.
        class_names: in order of number; () where nobody has named them.
        num_classes: width of the logits.
        images: `source`, `options`, `resize` and `crop` of its training, where these are recorded.
    """

    arch: str
    model: nn.Module
    variables: Mapping[str, Any]
    class_names: tuple[str, ...]
    num_classes: int
    images: Mapping[str, Any]

    @property
    def source(self) -> str:
        return str(self.images.get("source", ""))

    def class_name(self, label: int) -> str:
        return self.class_names[label] if self.class_names else f"class {label}"


@dataclasses.dataclass(frozen=True)
class MosaicSet:
    """Mosaics as tiles and a plan.

    Attributes:
        source: of the pictures, as `images.open` takes it.
        tiles_NYXC: uint8.
        labels_N: class of each tile.
        plan: the tiles of each mosaic and its target.
        names: of the tiles, for people.
        is_copy_N: which tiles are byte-equal to a picture that the network was trained on; None where it is not known.
    """

    source: str
    tiles_NYXC: np.ndarray
    labels_N: np.ndarray
    plan: mosaics.Plan
    names: tuple[str, ...]
    is_copy_N: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.plan)

    def picture(self, m: int) -> np.ndarray:
        """Mosaic m, uint8 [Y, X, 3]."""
        return mosaics.assemble(self.tiles_NYXC, self.plan.tile_index[m : m + 1])[0]

    @property
    def example(self) -> jax.Array:
        """An empty mosaic in the network's units, [1, Y, X, 3]."""
        return jnp.zeros((1, *(2 * side for side in self.tiles_NYXC.shape[1:3]), 3))


def ready_mosaics(path: str, net: Classifier, workdir: pathlib.Path) -> MosaicSet:
    """Mosaics from disk; those set aside and the counts go to the workdir.

    Raises:
        InputError: they cannot be read, have other classes than the network, or a size that it does not take.
    """
    ready = mosaic_files.read(path, num_classes=net.num_classes)
    records.write_bad(ready.set_aside, workdir / "mosaics_set_aside.jsonl")
    vision.check_input(net.model, ready.size)
    files.report_counts(workdir, ready.counts)
    tiles_NYXC = mosaic_files.cut(ready)
    index_M4 = np.arange(len(tiles_NYXC), dtype=np.int32).reshape(-1, 4)
    names = tuple(name for four in ready.tile_files for name in four)
    plan = mosaics.Plan(index_M4, ready.tile_label, ready.target)
    return MosaicSet(f"mosaics:{path}", tiles_NYXC, ready.tile_label.ravel(), plan, names)


def check_classes(net: Classifier, names: tuple[str, ...], source: str) -> None:
    """Refuse pictures of other classes than the network's."""
    for name in names if net.class_names else ():
        one_of(f"a class of {source}", name, net.class_names, hint="give the pictures it was trained to tell apart")
    if net.class_names and tuple(names) != net.class_names:
        raise InputError(
            f"{source} has {len(names)} classes in the order {', '.join(names[:5])}, and the network "
            f"{len(net.class_names)} in the order {', '.join(net.class_names[:5])}; give the pictures it was trained "
            "to tell apart"
        )


def copies_of_training(net: Classifier, pictures: images.Images, options: Mapping[str, Any]) -> np.ndarray | None:
    """Which pictures are byte-equal to one that the network was trained on, bool [N]; None where it is not known.

    Args:
        options: of `images.open`, under which the pictures of its training are found.
    """
    if not net.source:  # a file of weights does not say
        return None
    try:
        return images.copies(pictures, [images.open(net.source, split="train", **options)])
    except InputError as e:  # they may be gone by now
        print(f"Copies of pictures that the network was trained on are not counted: {e}", flush=True)
        return None


@dataclasses.dataclass(frozen=True)
class Study:
    """Rates attribution methods; a score that lies in the workdir is read instead of made again.

    Attributes:
        options: of each method.
        limits: most mosaics that a method explains, in any test; None is all.
        shown: numbers of the mosaics whose maps are kept, for pictures.
        save_maps: leave every map of the trained network in `maps/`, as float16.
    """

    workdir: pathlib.Path
    mesh: jax.sharding.Mesh
    net: Classifier
    mosaics: MosaicSet
    seed: int
    batch_size: int
    options: Mapping[str, Mapping[str, Any]]
    limits: Mapping[str, int | None]
    shown: tuple[int, ...] = ()
    save_maps: bool = False

    def key(self, name: str) -> jax.Array:
        """A random key for one purpose."""
        return jax.random.fold_in(jax.random.PRNGKey(self.seed), int.from_bytes(name.encode()[:4], "little"))

    @functools.cached_property
    def made_from(self) -> dict[str, str]:
        """Digests of what the scores hang on beside the config: stored scores carry them."""
        plan = self.mosaics.plan
        leaves = jax.tree.leaves(nn.meta.unbox(dict(self.net.variables)))
        return {
            "mosaics": loader.digest(self.mosaics.tiles_NYXC, plan.tile_index, plan.tile_label, plan.target),
            "weights": loader.digest(*map(np.asarray, leaves)),
        }

    @functools.cached_property
    def absent_M(self) -> np.ndarray | None:
        """A class for each mosaic that none of its tiles shows; None where too few classes are known for that."""
        try:
            return randomize.absent_targets(self.mosaics.plan.tile_label, self.net.num_classes, self.seed)
        except InputError as e:
            print(f"R3 is left out: {e}", flush=True)
            return None

    def num_explained(self, method: str, limit: int | None = None) -> int:
        """Mosaics that a test with this limit explains."""
        return min(n for n in (limit, self.limits.get(method), len(self.mosaics)) if n is not None)

    def rate(
        self,
        method: str,
        ids: np.ndarray,
        *,
        variables: Mapping[str, Any] | None = None,
        explained_M: np.ndarray | None = None,
        label: str = "",
        **more: Any,
    ) -> tuple[Scores, float]:
        """`rating.rate` of these mosaics, under a progress bar."""
        plan, apply_fn = self.mosaics.plan, self.net.model.apply
        explained_M = plan.target if explained_M is None else explained_M
        variables = self.net.variables if variables is None else variables
        options = self.options.get(method, {})
        bar = progress.Progress(label or method, len(ids), items="mosaics")
        rated = rating.rate(
            explaining.build(apply_fn, variables, method=method, key=self.key("noise"), **options),
            self.mosaics.tiles_NYXC,
            plan.tile_index[ids],
            plan.tile_label[ids] == plan.target[ids, None],
            explained_M[ids],
            self.mesh,
            batch_size=self.batch_size,
            ids_M=ids,
            advance_fn=lambda num: bar.advance(num, items=num),
            **more,
        )
        bar.erase()
        return rated

    def scored(
        self,
        test: str,
        method: str,
        *,
        limit: int | None = None,
        variables: Mapping[str, Any] | None = None,
        explained_M: np.ndarray | None = None,
    ) -> Scores:
        """The scores of one method in one test, from `scores/` where an earlier start left them there."""
        path = self.workdir / "scores" / f"{test}_{method}.npz"
        if path.is_file():
            return stored_scores(path, self.made_from)
        ids = rating.spread(len(self.mosaics), self.num_explained(method, limit))
        is_plain = test == "trained"
        more: dict[str, Any] = {"keep": self.shown} if is_plain else {}
        if is_plain and self.save_maps:
            more["on_maps_fn"] = functools.partial(self._save_maps, method)
        started = time.perf_counter()
        label = f"{test} {method}"
        scores, rate = self.rate(method, ids, variables=variables, explained_M=explained_M, label=label, **more)
        scores["rate"] = np.asarray(rate, np.float64)
        stored = scores | {"made_from": np.array(json.dumps(self.made_from))}
        files.write(path, lambda f: np.savez_compressed(f, **stored))
        median = focus.summary(scores["focus"])["median"]
        seconds = time.perf_counter() - started
        print(f"{label}: median Focus {median:.3f} over {len(ids)} mosaics, {seconds:.1f} s", flush=True)
        return scores

    def _save_maps(self, method: str, ids: np.ndarray, maps_BYX: np.ndarray) -> None:
        path = self.workdir / "maps" / method / f"{ids[0]:06d}.npz"
        files.write(path, lambda f: np.savez_compressed(f, mosaic=ids, maps=maps_BYX.astype(np.float16)))

    def maps(self, method: str, ids: np.ndarray) -> dict[int, np.ndarray]:
        """The maps of some mosaics by number, [Y, X] each."""
        rated, _ = self.rate(method, ids, keep=set(ids.tolist()))
        return dict(zip(rated["kept"].tolist(), rated["kept_maps"]))

    def cascade(
        self, methods: tuple[str, ...], num_redrawn: list[int], limit: int | None
    ) -> dict[str, dict[int, Scores]]:
        """R2: {method: {layers redrawn from the top: scores}}."""
        order = randomize.layers(self.net.model.apply, self.net.variables, self.mosaics.example)
        curves: dict[str, dict[int, Scores]] = {method: {} for method in methods}
        for num in num_redrawn if methods else ():
            variables = randomize.cascade(self.net.variables, num, self.key("R2"), order=order)
            for method in methods:
                curves[method][num] = self.scored(f"R2_{num:03d}", method, variables=variables, limit=limit)
        return curves

    def predict(self) -> np.ndarray:
        """The class that the network gives each tile alone, [N]."""
        side, scale = self.mosaics.tiles_NYXC.shape[1], 1
        try:
            vision.check_input(self.net.model, (side, side))
        except InputError:  # the network takes one size only, the mosaic's, so tiles are enlarged to it
            scale = 2
        tiles_NYXC, batch_size = self.mosaics.tiles_NYXC, self.batch_size * 4  # a tile has a quarter of the pixels
        apply_fn = self.net.model.apply
        return rating.predict(apply_fn, self.net.variables, tiles_NYXC, self.mesh, batch_size=batch_size, scale=scale)


def stored_scores(path: pathlib.Path, made_from: Mapping[str, str]) -> Scores:
    """The scores that an earlier start of this run stored.

    Args:
        made_from: digests of the mosaics and the weights as they are now; scores of older versions have none.

    Raises:
        InputError: the file is damaged, or mosaics or weights have changed since.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            scores = dict(stored)
        earlier = json.loads(str(scores.pop("made_from", json.dumps(dict(made_from)))))
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as e:
        raise InputError(f"{path} is damaged ({e}); remove it, and it is computed again") from e
    if changed := [name for name, digest in made_from.items() if earlier.get(name) != digest]:
        raise InputError(
            f"{path} was computed from other {' and '.join(changed)} than this run has now. Put them back as they "
            "were, or start over in another --workdir"
        )
    return scores


def announce(c: ml_collections.ConfigDict, study: Study, num_cascade: int) -> None:
    """Print for each method how many mosaics it will explain, in all tests."""
    absent = c.random.methods if study.absent_M is not None else ()
    tests = [("", c.methods, None, 1), ("with random weights", c.random.methods, c.random.limit, 1)]
    tests += [("for absent classes", absent, c.random.limit, 1)]
    tests += [("in the cascade", c.cascade.methods, c.cascade.limit, num_cascade)]
    for method in dict.fromkeys((*c.methods, *c.random.methods, *c.cascade.methods)):
        parts = [
            f"{f'{times} x ' if times > 1 else ''}{study.num_explained(method, limit):,} {words}".strip()
            for words, methods, limit, times in tests
            if method in methods
        ]
        options = study.options[method]
        extra = (
            f" ({options['segmenter']}, {options['num_samples']:,} perturbations of each)" if method == "lime" else ""
        )
        print(f"{method} explains {', '.join(parts)} mosaics{extra}; limit.{method} takes fewer", flush=True)
