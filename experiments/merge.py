"""Several fine-tunes of one model merged into one, tensor by tensor.

Paper:   Yu et al. 2023, arXiv:2311.03099 (DARE); Yadav et al. 2023, arXiv:2306.01708 (TIES); Gururajan et al. 2024,
         arXiv:2405.01886 (Aloe); the others stand beside their method in alignment/merging
Run:     python -m experiments.run --config experiments/merge.py --config.recipe=FILE.yaml
Laptop:  python -m experiments.run --config experiments/merge.py:laptop   (CPU, minutes; `tiny`: seconds)
Expect:  laptop, questions on herbs and on beasts answered: base 0.14 and 0.09, each expert 1.00 of its own, merged by
         TIES 0.86 and 0.70

The recipe is the YAML of merge tools; alignment/merging/recipes.py has an example. The merged model lies in export/hf
of the workdir, with config, tokenizer and chat template; merge_report.json has what was measured of each tensor.
`tiny` and `laptop` first train a base and two experts of an embedded herbal, and ask all of them and the merged model.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from ml_collections import config_dict

from alignment import errors, files
from alignment.errors import InputError
from alignment.merging import checkpoints, methods, recipes, streaming
from alignment.merging.recipes import Recipe
from alignment.models import huggingface
from alignment.train import language_model, writers
from data.tokens import checkpoint_files, tokenizer
from experiments.launch import checks
from experiments.merging import toy
from experiments.pages import merge as page
from experiments.report import progress

SETTINGS = ("", "laptop", "tiny")
STAGING = "merging"  # the folder of the workdir that files are written into until all are there
LEAST = {"max_shard_bytes": (1, ""), "threads": (1, "None takes all cores")}
TOY_ONLY = ("steps", "expert_steps")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0  # of random masks, which depend on it and on the tensor's name alone
    c.recipe = "recipe.yaml"  # a file; synthetic:<method> merges two embedded experts
    c.allow_submatrix = False  # True cuts embeddings with more rows than the base's
    c.max_shard_bytes = 2_000_000_000  # of a file of the export; a killed merge goes on with the file that is missing
    c.threads = config_dict.placeholder(int)  # None takes all cores
    c.toy = dict(  # of synthetic:<method>
        steps=config_dict.placeholder(int),  # updates of the base
        expert_steps=config_dict.placeholder(int),  # of each expert
    )
    if arg:
        c.recipe = toy.PREFIX + "ties"
    if arg == "tiny":
        c.max_shard_bytes = 100_000
        c.toy.steps = 2
        c.toy.expert_steps = 2
    elif arg == "laptop":
        c.toy.steps = 200
        c.toy.expert_steps = 300
    return c


def sweep() -> Iterator[dict[str, str]]:
    for name in methods.METHODS:
        yield {"recipe": toy.PREFIX + name}


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what no weights have to be read for: the recipe, its models, their tensors' names and shapes."""
    checks.check_least(c, LEAST)
    is_toy = c.recipe.startswith(toy.PREFIX)
    for name in TOY_ONLY:
        if (c.toy[name] is not None) != is_toy:
            need = "needs a number of updates" if is_toy else "trains nothing and does not read it"
            raise InputError(f"toy.{name}={c.toy[name]}: recipe={c.recipe!r} {need}; set --config.toy.{name}")
    if is_toy:
        checks.check_least(c, {f"toy.{name}": (1, "") for name in TOY_ONLY})
        errors.one_of("recipe", c.recipe, [toy.PREFIX + name for name in methods.METHODS])
        return
    recipe = recipes.load(c.recipe)
    names = [*recipe.models, *([recipe.tokenizer] if recipe.tokenizer else [])]
    if all(is_here(name) for name in names):  # models of the hub are fetched by the run
        open_models(recipe, {}, c.allow_submatrix, say_fn=lambda note: None)


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    check(c)
    folder = pathlib.Path(workdir)
    if jax.process_count() > 1:
        raise InputError("a merge runs in one process: start it without --distributed")
    places: dict[str, pathlib.Path] = {}
    if c.recipe.startswith(toy.PREFIX):
        recipe = toy.recipe(c.recipe.removeprefix(toy.PREFIX))
        places = toy.train(folder, steps=c.toy.steps, expert_steps=c.toy.expert_steps, seed=c.seed)
    else:
        recipe = recipes.load(c.recipe)
    models, jobs = open_models(recipe, places, c.allow_submatrix)
    begin = time.perf_counter()
    rows = merge(c, recipe, models, jobs, folder)
    seconds = time.perf_counter() - begin
    files.write_json(folder / "merge_report.json", page.report(rows, recipe.name))
    for note in notes(rows):
        print(note, flush=True)
    summary = page.write(folder, rows) | {"seconds": seconds}
    if places:
        summary |= of_experts({**places, "merged": folder / "export/hf"}, folder)
    return summary


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
    c: ml_collections.ConfigDict,
    recipe: Recipe,
    models: Mapping[str, checkpoints.Model],
    jobs: list[checkpoints.Job],
    folder: pathlib.Path,
) -> list[streaming.Row]:
    """Write export/hf, and return the rows of all tensors; what an earlier start wrote of the same merge stays."""
    staging, result = folder / STAGING, folder / "export/hf"
    dtype = checkpoints.dtype_of(recipe, models)
    note = made_from(c, recipe, models, dtype)
    if result.is_dir() and read_note(folder) == note:  # killed behind the merge
        return files.read_rows(folder / "rows.jsonl")
    with concurrent.futures.ThreadPoolExecutor(c.threads or os.cpu_count()) as pool:
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
                max_shard_bytes=c.max_shard_bytes,
                seed=c.seed,
                pool=pool,
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
    c: ml_collections.ConfigDict, recipe: Recipe, models: Mapping[str, checkpoints.Model], dtype: np.dtype
) -> dict[str, Any]:
    """What files that lie in the staging folder depend on."""
    return {
        "recipe": repr(recipe),
        "models": {name: language_model.digest(f"hf:{model.folder}") for name, model in models.items()},
        "options": [c.seed, c.max_shard_bytes, c.allow_submatrix, str(dtype)],
    }


def read_note(folder: pathlib.Path) -> Any:
    path = folder / "made_from.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


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


def of_experts(places: Mapping[str, pathlib.Path], folder: pathlib.Path) -> dict[str, float]:
    """What base, experts and the merged model know of each subject, as a table, and in short."""
    right = {name: toy.accuracies(place) for name, place in places.items()}
    files.write_rows(folder / "tables/accuracy.jsonl", [{"model": name, **shares} for name, shares in right.items()])
    mean = {name: sum(shares.values()) / len(shares) for name, shares in right.items()}
    out = {"accuracy/base": mean[toy.BASE], "accuracy/merged": mean["merged"]}
    for subject in right[toy.BASE]:
        out[f"accuracy/expert/{subject}"] = right[subject][subject]
        out[f"kept/{subject}"] = right["merged"][subject] / max(right[subject][subject], 1e-9)
    return out


METRICS = page.METRICS
headline = page.headline
