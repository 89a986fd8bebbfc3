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

import pathlib
import time
from collections.abc import Iterator, Mapping

import jax
import ml_collections
from ml_collections import config_dict

from alignment import errors, files
from alignment.errors import InputError
from alignment.merging import methods, recipes
from experiments.launch import checks
from experiments.merging import toy, writing
from experiments.pages import merge as page

SETTINGS = ("", "laptop", "tiny")
LEAST = {"max_shard_bytes": 1, "processes": 1}
TOY_ONLY = ("steps", "expert_steps")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0  # of random masks, which depend on it and on the tensor's name alone
    c.recipe = "recipe.yaml"  # a file; synthetic:<method> merges two embedded experts
    c.allow_submatrix = False  # True cuts embeddings with more rows than the base's
    c.max_shard_bytes = 2_000_000_000  # of a file of the export; a killed merge goes on with the file that is missing
    c.processes = config_dict.placeholder(int)  # that merge; None: one for each core, eight at most
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
        checks.within(c, "[1, inf)", *(f"toy.{name}" for name in TOY_ONLY))
        errors.one_of("recipe", c.recipe, [toy.PREFIX + name for name in methods.METHODS])
        return
    recipe = recipes.load(c.recipe)
    names = [*recipe.models, *([recipe.tokenizer] if recipe.tokenizer else [])]
    if all(writing.is_here(name) for name in names):  # models of the hub are fetched by the run
        writing.open_models(recipe, {}, c.allow_submatrix, say_fn=lambda note: None)


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
    models, jobs = writing.open_models(recipe, places, c.allow_submatrix)
    begin = time.perf_counter()
    rows = writing.merge(
        recipe,
        models,
        jobs,
        folder,
        seed=c.seed,
        max_shard_bytes=c.max_shard_bytes,
        processes=c.processes,
        allow_submatrix=c.allow_submatrix,
    )
    seconds = time.perf_counter() - begin
    files.write_json(folder / "merge_report.json", page.report(rows, recipe.name))
    for note in writing.notes(rows):
        print(note, flush=True)
    summary = page.write(folder, rows) | {"seconds": seconds}
    if places:
        summary |= of_experts({**places, "merged": folder / "export/hf"}, folder)
    return summary


def of_experts(places: Mapping[str, pathlib.Path], folder: pathlib.Path) -> dict[str, float]:
    """What base, experts and the merged model know of each subject, as a table, and in short."""
    right = {name: toy.accuracies(place) for name, place in places.items()}
    files.write_rows(folder / "tables/accuracy.jsonl", [{"model": name, **shares} for name, shares in right.items()])
    mean = {name: sum(shares.values()) / len(shares) for name, shares in right.items()}
    out = {"accuracy/base": mean[toy.BASE], "accuracy/merged": mean["merged"]}
    for subject in right[toy.BASE]:
        out[f"accuracy/expert/{subject}"] = right[subject][subject]
        if right[subject][subject]:  # of nothing, nothing can be kept
            out[f"kept/{subject}"] = right["merged"][subject] / right[subject][subject]
    return out


METRICS = page.METRICS
headline = page.headline
