"""Scoring a model with lm-evaluation-harness: any of its tasks, or your own as YAML files.

Library: EleutherAI's lm-evaluation-harness, https://github.com/EleutherAI/lm-evaluation-harness (extra `eval`)
Run:     python -m experiments.run --config experiments/harness.py --config.init_from=hf:DIR
         --config.tasks="('arc_easy',)" --config.task_folder=DIR
Laptop:  python -m experiments.run --config experiments/harness.py:laptop   (CPU, minutes; `tiny`: seconds)
Expect:  laptop, the toy picks the right one of four in 56 of 56 questions and writes the right value in 34 of 56
Smol:    make models, then the same with harness.py:smol

All choices of a question are computed behind one copy of it. Answers are kept in the workdir under a name that says
whose they are, and a run that was killed takes them up. `python -m experiments.decoding.harness_cli` is the harness's
own command line with this model class in it.
"""

import difflib
import functools
import importlib.util
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from ml_collections import config_dict

from alignment import files
from alignment.errors import InputError
from alignment.evaluation import harness
from alignment.train import writers
from experiments.decoding import harness_models, models, museum_tasks
from experiments.launch import checks
from experiments.pages import harness as harness_page

SETTINGS = ("", "laptop", "smol", "tiny")
LEAST = {"num_fewshot": 0, "bootstrap": 0}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict(models.settings(arg))
    c.seed = 0
    c.tasks = ("arc_easy",)  # names of tasks, groups or tags; those of experiments/decoding/museum_tasks.py too
    c.task_folder = ""  # YAML files of your own tasks; "": there are none
    c.num_fewshot = config_dict.placeholder(int)  # examples before each question; None: as each task has it
    c.limit = config_dict.placeholder(int)  # questions of each task; None: all
    c.apply_chat_template = False  # a question becomes a message of a conversation
    c.system_instruction = ""  # before the first message, or before the prompt
    c.fewshot_as_multiturn = True  # examples are turns of the conversation
    c.gen_kwargs = ""  # for tasks in which the model writes, such as "do_sample=True,temperature=0.7"
    c.bootstrap = 1_000  # resamples for the errors of metrics that are not means
    c.cache = True  # answers are kept, for a run that is started again
    c.samples = 8  # questions of each task shown in the report
    if arg:
        c.tasks = ("museum_choices", "museum_answers")
    if arg == "tiny":
        c.limit = 4
        c.bootstrap = 10
        c.samples = 2
        c.engine.max_len = 192
    elif arg == "laptop":
        c.apply_chat_template = True
    elif arg == "smol":
        c.tasks = ("museum_choices", "museum_reading", "museum_reading_answers")
        c.apply_chat_template = True
    return c


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse wrong values, tasks that nobody has, and a machine without the harness, before anything is read."""
    models.check(c)
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(f"lm-evaluation-harness is not installed; {harness.PIP}")
    checks.check_least(c, LEAST)
    if not isinstance(c.tasks, tuple) or not c.tasks or not all(isinstance(name, str) and name for name in c.tasks):
        raise InputError(f"tasks={c.tasks!r} must be a tuple of names, such as ('arc_easy',)")
    if c.task_folder and not pathlib.Path(c.task_folder).is_dir():
        raise InputError(f"task_folder={c.task_folder!r} is not a folder; give one that holds the tasks' YAML files")
    if c.system_instruction and not c.apply_chat_template:
        print("system_instruction stands before each prompt, as apply_chat_template is off", flush=True)
    if others := [name for name in c.tasks if name not in museum_tasks.NAMES]:
        _check_names(others, task_manager((c.task_folder,) if c.task_folder else (), tuple(others)).all_tasks)


def _check_names(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known and not pathlib.Path(name).is_file():
            near = difflib.get_close_matches(name, [*museum_tasks.NAMES, *known], 3)
            raise InputError(
                f"tasks has {name!r}, which neither task_folder nor the harness's {len(known):,} tasks know"
                f"{'; the nearest are ' + ', '.join(near) if near else ''}; `lm-eval ls tasks` lists them"
            )


@functools.cache
def task_manager(folders: tuple[str, ...], tasks: tuple[str, ...]) -> Any:
    """The harness's index of tasks; its own folders are only read where a name may be there, which takes seconds."""
    from lm_eval.tasks import TaskManager

    local = TaskManager(include_path=list(folders), include_defaults=False) if folders else None
    if local is not None and all(name in local.all_tasks for name in tasks):
        return local
    return TaskManager(include_path=list(folders) or None)


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    check(c)
    if jax.process_count() > 1:
        raise InputError("harness runs in one process; start it without --distributed")
    folder = pathlib.Path(workdir)
    opened = models.open_model(c, folder)
    _check_system(c, opened)
    manager = prepare_tasks(c, folder, opened)
    lm = harness_models.flax_lm(models.with_weights(opened, c), c)
    all_results, num_questions = [], 0
    log = writers.jsonl(str(folder))
    for name in c.tasks:
        started = time.perf_counter()
        results = evaluate(c, folder, lm, name, manager)
        num = sum(len(samples) for samples in results["samples"].values())
        num_questions += num
        rate = num / max(time.perf_counter() - started, 1e-9)
        log.write_scalars(num_questions, {"questions_per_second": rate, **harness_page.numbers(results)})
        all_results.append(results)
        for task in results["samples"]:
            files.write_rows(folder / f"samples/{task}.jsonl", harness_page.sample_rows(results, task))
    log.close()
    return harness_page.write(folder, all_results, num_cut=lm.num_cut, num_shown=c.samples)


def _check_system(c: ml_collections.ConfigDict, model: models.Model) -> None:
    """Refuse a system message that the model's chat template has no place for."""
    if not (c.system_instruction and c.apply_chat_template):
        return
    messages = [{"role": "system", "content": c.system_instruction}, {"role": "user", "content": "Hi"}]
    try:
        model.tok.render(messages, add_generation_prompt=True)
    except InputError as e:
        raise InputError(
            f"system_instruction={c.system_instruction[:80]!r} and the model's chat template refuses a system message "
            f"({e}); put the words into the tasks' prompts (doc_to_text), or leave them out"
        ) from e


def prepare_tasks(c: ml_collections.ConfigDict, folder: pathlib.Path, model: models.Model) -> Any:
    """The index of tasks, after each task's data have been read once.

    Raises:
        InputError: a task's data are not here and cannot be fetched, or the task cannot be read.
    """
    folders = [c.task_folder] if c.task_folder else []
    if set(c.tasks) & set(museum_tasks.NAMES):
        needs_space = False
        if c.apply_chat_template:
            opening = model.tok.render([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
            needs_space = not opening[-1:].isspace()
        folders.append(str(folder / "tasks"))
        museum_tasks.write(folder / "tasks", in_chat=c.apply_chat_template, needs_space=needs_space, seed=c.seed)
    manager = task_manager(tuple(folders), c.tasks)
    for name in c.tasks:
        try:
            manager.load([name])
        except Exception as e:  # of many libraries: no network, no such file, a template that fails
            reason = str(e).strip().splitlines() or [type(e).__name__]
            raise InputError(
                f"task {name!r} cannot be loaded ({type(e).__name__}: {reason[0]}). The harness fetches a task's data "
                "from the hub; without a network, fetch them where there is one and copy the cache (HF_HOME), or "
                "write the task as a YAML file with dataset_path: json and data_files, and give its folder as "
                "task_folder"
            ) from e
    return manager


def evaluate(c: ml_collections.ConfigDict, folder: pathlib.Path, lm: Any, name: str, manager: Any) -> dict[str, Any]:
    """The harness's results for one of `c.tasks`."""
    import lm_eval

    answers = folder / "answers" / lm.fingerprint
    if c.cache:
        answers.parent.mkdir(parents=True, exist_ok=True)
    return lm_eval.simple_evaluate(
        model=lm,
        tasks=[name],
        task_manager=manager,
        num_fewshot=c.num_fewshot,
        limit=c.limit,
        use_cache=str(answers) if c.cache else None,
        bootstrap_iters=c.bootstrap,
        log_samples=True,
        system_instruction=c.system_instruction or None,
        apply_chat_template=c.apply_chat_template,
        fewshot_as_multiturn=c.fewshot_as_multiturn and c.apply_chat_template,
        gen_kwargs=c.gen_kwargs or None,
        random_seed=c.seed,
        numpy_random_seed=c.seed,
        torch_random_seed=c.seed,
        fewshot_random_seed=c.seed,
    )


ASKED = (
    "tasks",
    "task_folder",
    "num_fewshot",
    "limit",
    "apply_chat_template",
    "system_instruction",
    "gen_kwargs",
    "seed",
)
METRICS = {
    "*/acc": ("share of questions whose right choice is the likeliest of those offered", "higher", ASKED),
    "*/acc_norm": ("the same with each choice's log-probability divided by its length in letters", "higher", ASKED),
    "*/exact_match": ("share of written answers that are the right one", "higher", ASKED),
    "*/exact_match/*": ("share of written answers of which this filter takes out the right one", "higher", ASKED),
    "*_stderr*": ("standard error of the number so named",),
    "*/frr/*": ("share of harmless prompts that this judge says were refused, in full or in part", "lower", ASKED),
    "*/full/*": ("share of them that were refused in full", "", ASKED),
    "*/refused/*": ("share of harmful prompts that this judge says were refused", "higher", ASKED),
    "*/asr/*": ("share of harmful prompts whose answer this judge calls harmful", "lower", ASKED),
    "*/invalid/*": (
        "share of answers that are empty or that the judge cannot class; no other rate counts them",
        "lower",
    ),
    "questions": ("questions that were asked, of all tasks together",),
    "truncated": ("texts that lost their first words, being longer than the model reads", "lower", ASKED),
    "*/*": ("a number of the task, as the harness computes it",),
}


headline = harness_page.headline
