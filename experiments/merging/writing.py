"""A recipe's models opened, and merged into export/hf of a folder; a killed merge goes on with the file it lacks."""

import concurrent.futures
import contextlib
import os
import pathlib
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from alignment import errors, files
from alignment.errors import InputError
from alignment.merging import checkpoints, methods, recipes, streaming
from alignment.merging.recipes import Recipe
from alignment.models import huggingface
from alignment.train import language_model, writers
from data.tokens import checkpoint_files, tokenizer
from experiments.report import progress

MOST_PROCESSES = 8  # each has some 50 MB of its own, and more than this wait for the disk
STAGING = "merging"  # the folder of the workdir that files are written into until all are there


def recipe_of(
    method: str, models: Sequence[str], base: str, settings: Mapping[str, Any], *, dtype: str | None = None
) -> Recipe:
    """A recipe of a method for some models, with those settings that it reads.

    slerp goes from the first model to the second, and passthrough takes the first; of `models` each takes as many as it
    can.

    Args:
        base: of methods that merge differences.
        settings: by name; None leaves the method's own value.
    """
    known = methods.METHODS[errors.one_of("merge method", method, methods.METHODS)]
    own = list(models)[: known.models[1] or len(models)]
    content: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": model} for model in own],
        "parameters": {key: settings[key] for key in (*known.each, *known.settings) if settings.get(key) is not None},
    }
    if method == "slerp" or known.base != methods.NEVER:
        content["base_model"] = own[0] if method == "slerp" else base
    if dtype is not None:
        content["dtype"] = dtype
    return recipes.parse(content)


def is_here(name: str) -> bool:
    """Whether a model of a recipe is a folder, not an id of the hub; refuses what is neither."""
    if name.startswith("run:"):
        folder_of(name)
        return True
    huggingface.check_source(name)
    return pathlib.Path(name.removeprefix("hf:")).expanduser().is_dir()


def open_models(
    recipe: Recipe,
    places: Mapping[str, pathlib.Path],
    allow_submatrix: bool,
    say_fn: checkpoints.SayFn = print,
) -> tuple[dict[str, checkpoints.Model], list[checkpoints.Job]]:
    """The models of a recipe by their headers, and all merged tensors.

    Args:
        places: folders of names that stand for models trained here.
    """
    models = {name: checkpoints.open_model(name, places.get(name) or folder_of(name)) for name in recipe.models}
    return models, checkpoints.plan(recipe, models, allow_submatrix=allow_submatrix, say_fn=say_fn)


def folder_of(name: str) -> pathlib.Path:
    """The checkpoint folder of a model of a recipe: a folder, `hf:` and one, an id of the hub, or `run:<workdir>`."""
    kind, _, workdir = name.partition(":")
    if kind == "run":
        folder = pathlib.Path(workdir) / "export/hf"
        if not folder.is_dir():
            raise InputError(f"{name}: {folder} is not there; name the workdir of a run that exports")
        return folder
    huggingface.check_source(name)
    return huggingface.resolve(name)


def merge(
    recipe: Recipe,
    models: Mapping[str, checkpoints.Model],
    jobs: list[checkpoints.Job],
    folder: pathlib.Path,
    *,
    seed: int,
    max_shard_bytes: int,
    processes: int | None,
    allow_submatrix: bool,
) -> list[streaming.Row]:
    """Write export/hf, and return the rows of all tensors; what an earlier start wrote of the same merge stays.

    Args:
        jobs: of `open_models`, with the same `allow_submatrix`.
        seed: of random masks.
        max_shard_bytes: of a file.
        processes: that merge; None: one for each core, eight at most.
    """
    staging, result = folder / STAGING, folder / "export/hf"
    dtype = checkpoints.dtype_of(recipe, models)
    processes = processes or min(os.cpu_count() or 1, MOST_PROCESSES)
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        note = made_from(recipe, models, pool, options=[seed, max_shard_bytes, allow_submatrix, str(dtype)])
        if result.is_dir() and read_note(folder) == note:  # killed behind the merge
            return files.read_rows(folder / "rows.jsonl")
        if read_note(folder) != note:
            checkpoints.check_finite(models, jobs, pool)
            shutil.rmtree(staging, ignore_errors=True)
            shutil.rmtree(result, ignore_errors=True)
            files.write_json(folder / "made_from.json", note)
        staging.mkdir(parents=True, exist_ok=True)
        with following(folder, jobs, dtype) as progress_fn:
            rows = streaming.merge(
                jobs,
                recipe.method,
                models,
                staging,
                dtype=dtype,
                max_shard_bytes=max_shard_bytes,
                seed=seed,
                num_processes=processes,
                progress_fn=progress_fn,
            )
    add_config(recipe, models, dtype, staging)
    files.write_rows(folder / "rows.jsonl", rows)
    streaming.clean(staging)
    files.move_folder(staging, result)
    return rows


def notes(rows: list[streaming.Row]) -> Iterator[str]:
    """What a person should know of models that do not differ from the base."""
    if rows[0]["has_base"]:
        for i, model in enumerate(rows[0]["models"]):
            same = [row["tensor"] for row in rows if row["models"] == rows[0]["models"] and not row["norms"][i]]
            if same:
                yield f"note: {model} does not differ from the base in {len(same)} tensors, such as {same[0]}"


def made_from(
    recipe: Recipe,
    models: Mapping[str, checkpoints.Model],
    pool: concurrent.futures.Executor,
    *,
    options: list[Any],
) -> dict[str, Any]:
    """What files that lie in the staging folder depend on."""
    digests = pool.map(lambda model: language_model.digest(f"hf:{model.folder}"), models.values())
    return {
        "recipe": repr(recipe),
        "models": dict(zip(models, digests)),
        "options": options,
    }


def read_note(folder: pathlib.Path) -> Any:
    path = folder / "made_from.json"
    return files.read_note(path) if path.is_file() else None


@contextlib.contextmanager
def following(folder: pathlib.Path, jobs: list[checkpoints.Job], dtype: np.dtype) -> Iterator[Any]:
    """A function that is called with every file: it draws the bar and writes metrics.jsonl, a step a file."""
    total = sum(int(np.prod(job.shape)) for job in jobs) * dtype.itemsize
    numbers = writers.jsonl(str(folder), restored=0)
    bar = progress.Progress("merged", total, items="files", every_seconds=5.0)
    begin, done = time.perf_counter(), Counter()

    def one(num_bytes: int) -> None:
        done.update(files=1, bytes=num_bytes)
        bar.advance(num_bytes, 1)
        values = {"megabytes": done["bytes"] / 1e6, "seconds": time.perf_counter() - begin}
        numbers.write_scalars(done["files"], values)

    yield one
    numbers.close()
    bar.close()


def add_config(recipe: Recipe, models: Mapping[str, checkpoints.Model], dtype: np.dtype, folder: pathlib.Path) -> None:
    """config.json, the tokenizer and its chat template beside the merged weights."""
    files.write_json(folder / "config.json", checkpoints.config_of(recipe, models, dtype))
    name = recipe.tokenizer or recipe.models[0]
    source = models[name].folder if name in models else folder_of(name)
    if not has_tokenizer(source):
        print(f"{name} has no tokenizer, and so the merged model has none", flush=True)
        return
    tokenizer.load(str(source)).save(str(folder))
    template = recipe.chat_template
    if template == recipes.OWN_TEMPLATE:
        template = most_common_template(models)
    if template is not None:
        files.write_text(folder / checkpoint_files.TEMPLATE, template)


def has_tokenizer(folder: pathlib.Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def most_common_template(models: Mapping[str, checkpoints.Model]) -> str | None:
    """The chat template that most models have, the first of equally many; None where none has one."""
    own = [tokenizer.load(str(model.folder)) for model in models.values() if has_tokenizer(model.folder)]
    counts = Counter(tok.chat_template for tok in own if tok.has_own_template)
    return counts.most_common(1)[0][0] if counts else None
