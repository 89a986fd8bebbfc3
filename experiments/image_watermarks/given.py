"""Marks and measures by name: those of any machine, the one that is trained here, and those over a user's own weights.

Published decoders read pictures that were marked elsewhere, so their user gives the pictures and the message as well.
Tree-Ring's user gives a Python file with two functions, `encode` and `decode`, of a diffusion model. In the same way
the attacks that end in -Own take a user's auto-encoder or diffusion model.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from alignment.errors import InputError, one_of
from alignment.watermark import marks
from alignment.watermark.marks import Mark
from experiments.image_watermarks import attacks, networks

TRAINED = "encoder_decoder"  # the mark that a run trains
TRAINED_FILE = f"{TRAINED}.safetensors"
DECODERS = ("stable_signature", "stegastamp")
TREE_RING = "tree_ring"
MARKS = (*marks.MARKS, TRAINED, *attacks.MISSING_MARKS)
SCORES = ("rating", "artifacts")  # over one CLIP; the first is the measure `aesthetics`
OTHERS = ("network.calls", "resnet18")  # that attacks read
MEASURES = ("lpips", "fid", "clip_fid", "aesthetics", "artifacts")  # of a user's weights


def settings() -> dict[str, Any]:
    """The group of a config that names a user's own weights; "" leaves each out."""
    return dict(
        stable_signature=dict(
            weights="",  # of the decoder, safetensors
            pictures="",  # marked ones, as many as `images`: a glob or a folder
            message="",  # that they bear, in zeros and ones
        ),
        stegastamp=dict(weights="", pictures="", message=""),
        tree_ring=dict(calls=""),  # a Python file with `encode` and `decode`
        network=dict(calls=""),  # the same, or `regenerate`: for the attacks that end in -Own
        resnet18="",  # torchvision's, safetensors: for AdvEmbB-RN18
        lpips="",  # the lpips package's network over AlexNet, safetensors: a column, and what Q4 needs
        fid="",  # pytorch-fid's Inception, safetensors: a column
        clip_fid="",  # OpenAI's CLIP ViT-B/32 in transformers' layout, safetensors: a column
        aesthetics=dict(
            clip="",  # LAION's CLIP ViT-H/14 in transformers' layout, safetensors; both scores read it
            rating="",  # the aesthetics-scorer project's head for it, safetensors: the column `aesthetics`
            artifacts="",  # its head for artifacts: a column
        ),
    )


def check(c: Any) -> None:
    """Refuse marks whose weights are not there, files that are not there, and settings that nothing reads.

    Raises:
        InputError: a value, what is needed, and a way out.
    """
    for name in c.marks:
        one_of("marks", name, MARKS)
    for name in attacks.MISSING_MARKS:
        group = c.given[name]
        empty = [key for key, value in group.items() if not value]
        if name in c.marks and empty:
            raise InputError(
                f"marks: {name} needs trained weights that are not there; set given.{name}.{', '.join(empty)}, or "
                "leave the mark out"
            )
        if name not in c.marks and len(empty) < len(group):
            raise InputError(f"given.{name} is set and not read, as marks={tuple(c.marks)} lacks {name}")
    for key, readers in (("network.calls", attacks.OWN), ("resnet18", (attacks.RN18,))):
        reading = [name for name in c.attacks if name in readers]
        if reading and not _leaf(c, key):
            raise InputError(f"attacks: {', '.join(reading)} needs a network of yours; set given.{key}")
        if _leaf(c, key) and not reading:
            raise InputError(f"given.{key} is set and not read; add one of {', '.join(readers)} to attacks")
    heads = [name for name in SCORES if c.given.aesthetics[name]]
    if bool(heads) != bool(c.given.aesthetics.clip):
        missing = f"aesthetics.{' or .'.join(SCORES)}" if c.given.aesthetics.clip else "aesthetics.clip"
        raise InputError(f"given.aesthetics needs a network and a head over it; set given.{missing}")
    for key in _files():
        path = _leaf(c, key)
        if path and not pathlib.Path(path).expanduser().is_file():
            raise InputError(f"given.{key}={path!r} is not there; give a file")
    for name in set(DECODERS) & set(c.marks):
        from alignment.watermark import decoders  # imports JAX, which a grid of distortions does not need

        decoders.read_message(c.given[name].message, name)


def _files() -> list[str]:
    more = (f"aesthetics.{name}" for name in ("clip", *SCORES))
    return [*(f"{name}.weights" for name in DECODERS), f"{TREE_RING}.calls", *OTHERS, "lpips", "fid", "clip_fid", *more]


def measured(given: Mapping[str, Any]) -> list[str]:
    """The measures whose weights are given, of `MEASURES`."""
    heads = {"aesthetics": given["aesthetics"]["rating"], "artifacts": given["aesthetics"]["artifacts"]}
    return [name for name in MEASURES if (heads[name] if name in heads else given[name])]


def _leaf(c: Any, key: str) -> str:
    return functools.reduce(lambda group, name: group[name], key.split("."), c.given)


def plain(c: Any) -> dict[str, Any]:
    """The group with absolute paths, for workers that may stand elsewhere, and the digests of the files."""
    from data import loader  # imports grain, which the workers of a grid need not

    out = c.given.to_dict()
    for key in _files():
        *groups, name = key.split(".")
        path = _leaf(c, key)
        if path:
            inside = functools.reduce(lambda group, part: group[part], groups, out)
            inside[name] = str(pathlib.Path(path).expanduser().absolute())
            out.setdefault("digests", {})[key] = loader.digest_files([inside[name]])
    return out


def is_informed(name: str) -> bool:
    """Whether detection needs the unmarked picture."""
    return name in marks.MARKS and marks.MARKS[name].is_informed


def mark_of(name: str, prepared: pathlib.Path, given: Mapping[str, Any]) -> Mark:
    """A mark by its name; networks are read once in a process.

    Args:
        prepared: the folder with what the run trained.
        given: of `plain`.
    """
    if name in marks.MARKS:
        return marks.MARKS[name]
    if name == TRAINED:
        return _trained(str(prepared / TRAINED_FILE))
    if name == TREE_RING:
        return _tree_ring(given[name]["calls"])
    return _decoder(name, given[name]["weights"], given[name]["message"])


@functools.lru_cache(maxsize=2)
def _trained(path: str) -> Mark:
    from alignment.watermark import hidden, learned

    return hidden.mark(learned.load(path, hidden.EncoderDecoder()))


@functools.lru_cache(maxsize=4)
def _decoder(name: str, path: str, message: str) -> Mark:
    from alignment.watermark import decoders

    return decoders.mark(name, path, decoders.read_message(message, name))


@functools.lru_cache(maxsize=1)
def _tree_ring(path: str) -> Mark:
    from alignment.watermark import tree_ring

    need = "Tree-Ring needs encode and decode"
    calls = [networks.function(path, name, "given.tree_ring.calls", need) for name in ("encode", "decode")]
    return tree_ring.mark(*calls)


def measures(given: Mapping[str, Any]) -> dict[str, Callable[[np.ndarray, np.ndarray], Any]]:
    """{name: measure of pictures before and after} of those whose weights are given."""
    out: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {}
    if given.get("lpips"):
        from alignment.watermark import lpips

        out["lpips"] = lpips.opened(given["lpips"])
    if given.get("fid"):
        from alignment.watermark import inception

        out["fid"] = inception.opened(given["fid"])
    if given.get("clip_fid"):
        from alignment.watermark import clip

        out["clip_fid"] = clip.opened(given["clip_fid"])
    scores = given.get("aesthetics", {})
    for name, head in (("aesthetics", scores.get("rating")), ("artifacts", scores.get("artifacts"))):
        if head:
            from alignment.watermark import clip

            out[name] = clip.opened_score(scores["clip"], head)
    return out
