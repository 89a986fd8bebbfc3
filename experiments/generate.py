"""Answers to a file of prompts: prompts or conversations in, generations.jsonl out, resumable at any kill.

Run:     python -m experiments.run --config experiments/generate.py --config.prompts=FILE --config.init_from=hf:DIR
Laptop:  python -m experiments.run --config experiments/generate.py:laptop   (CPU, minutes; `tiny`: seconds)
Expect:  laptop, 64 answers of 3,268 tokens together, and every answer ends by itself; smol, over the first 100 prompts
         of XSTest, 100 answers of 6,374 tokens, of which 99 are cut at 64
Smol:    make models, then the same with generate.py:smol --config.prompts=FILE

A row of generations.jsonl has id, prompt, response, model, sampling, seed, finish_reason, num_prompt_tokens and
num_tokens; with n > 1 sample, with logprobs tokens, logprobs and top_logprobs. With guides (see
experiments/decoding/guides.py) it has their weights as guidance, and with logprobs each token's log-probability under
every model as by_model. Rows are in the prompts' order, n of them for each, whatever order they were written in.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import ml_collections
from ml_collections import config_dict

from alignment import files
from alignment.decoding.requests import Answer
from alignment.errors import within
from alignment.train import writers
from data import records
from experiments.decoding import answering, guides, models, options, prompts
from experiments.decoding.journal import ROWS, Journal, Key
from experiments.decoding.models import Model
from experiments.decoding.prompts import Prompt
from experiments.pages import generate as page

SETTINGS = ("", "laptop", "smol", "tiny")
TOO_MANY_BAD = 3  # exit code


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict(models.settings(arg) | options.settings() | guides.settings())
    c.seed = 0  # of the draws; each record draws by this seed and its id
    c.prompts = "prompts.jsonl"  # JSONL, JSON, CSV, parquet, or .txt with a prompt a line; several with commas between
    c.columns = dict(id="", prompt="", messages="", system="")  # "" takes the column of that name
    c.limit = config_dict.placeholder(int)  # records; None takes all
    c.chat = False  # True puts prompts through the chat template, as a user's turn; messages always go through it
    c.system = ""  # a system turn for conversations without one
    if arg in ("tiny", "laptop"):
        c.prompts = prompts.EMBEDDED
        c.chat = True
        c.max_new_tokens = 96
    if arg == "tiny":
        c.limit = 8
        c.max_new_tokens = 12
    elif arg == "smol":
        c.chat = True
        c.max_new_tokens = 64
    return c


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither records, weights nor devices to be seen."""
    options.of_run(c)
    models.check(c)
    guides.parse(c)
    prompts.check(c.prompts)
    models.check_room(c)
    within("[1, inf)", limit=c.limit, hint=", or None for all records")


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    check(c)
    folder = pathlib.Path(workdir)
    model = models.open_model(c, folder)
    models.warn_of_length(model, c.engine.max_len)
    size = model.network.vocab_size
    led_by = guides.open_guides(guides.parse(c), model)
    if led_by.all or c.draft_from:  # they read the prompts too, and all of them have the tokenizer's tokens
        size = min(size, model.tok.vocab_size)
    base = options.of_run(c, vocab_size=size)
    todo, bad = prompts.load(
        c.prompts,
        model.tok,
        base,
        vocab_size=size,
        max_len=c.engine.max_len,
        is_chat=c.chat,
        system=c.system,
        columns=c.columns,
        limit=c.limit,
        seed=c.seed,
        guides=led_by,
    )
    report(folder, c, model, todo, bad)
    summary = {"prompts": len(todo), "bad_records": len(bad), "bad_share": len(bad) / (len(todo) + len(bad))}
    if not todo:
        files.write_rows(folder / ROWS, [])
        return summary
    model = models.with_weights(model, c)
    led_by = guides.load(led_by, model)
    made_from = {"weights": model.digest, "model settings": models.settings_digest(model), "prompts": digest(todo)}
    made_from |= {"guides": led_by.digest} if led_by.all else {}
    keys = [(number, sample) for number, prompt in enumerate(todo) for sample in range(prompt.options.n)]
    journal = Journal(folder, made_from, keys)
    if len(journal) < len(keys):
        engine = models.engine(model, c, guides=led_by.members, frees_params=True)
        led_by = dataclasses.replace(led_by, members=())
        model = dataclasses.replace(model, params=None, draft=None)  # only the engine reads weights from here on
        work = [
            ((number, sample), request)
            for number, prompt in enumerate(todo)
            for sample, request in enumerate(prompt.requests())
        ]
        answering.write_all(engine, work, journal, folder, row_fn=functools.partial(row_of, todo, model, led_by.names))
    journal.sort()
    summary |= page.write(folder, journal)
    seconds = journal.seconds or writers.last_value(folder, "seconds") or 0.0
    journal.close()
    return summary | {"seconds": seconds, "tokens_per_second": summary["generated_tokens"] / max(seconds, 1e-9)}


def report(
    folder: pathlib.Path, c: ml_collections.ConfigDict, model: Model, todo: list[Prompt], bad: list[records.BadRecord]
) -> None:
    """Say what was read and set aside, and how prompts reach the model."""
    if bad:
        records.write_bad(bad, folder / "bad_records.jsonl")
        for item in bad[:3]:
            print(f"set aside: {item.file}:{item.line}: {item.reason}", flush=True)
    files.report_counts(folder, {"records": len(todo) + len(bad), "records set aside": len(bad)})
    plain = sum(not prompt.is_chat for prompt in todo)
    if plain and model.tok.has_own_template and not c.chat:
        print(f"{plain} prompts are texts to go on with; --config.chat=True puts them as questions", flush=True)


def digest(todo: list[Prompt]) -> str:
    """Of everything in the prompts that an answer depends on."""
    content = hashlib.sha256()
    for prompt in todo:
        own = dict(prompt.options.request, n=prompt.options.n, echo=prompt.options.echo)
        fields = [prompt.id, prompt.shown, list(prompt.ids), prompt.is_chat, prompt.seed, own]
        fields += [dict(prompt.guidance)] if prompt.guidance else []
        content.update(json.dumps(fields, sort_keys=True, default=str).encode())
    return content.hexdigest()[:16]


def row_of(
    todo: list[Prompt], model: Model, guide_names: tuple[str, ...], key: Key, answer: Answer
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A line of generations.jsonl, and what the page needs beside it."""
    number, sample = key
    prompt = todo[number]
    own = prompt.options
    text = model.text(answer.text, is_alone=prompt.is_chat and not own.echo)
    if own.echo:
        is_text = isinstance(prompt.shown, str) and not prompt.is_chat
        text = (prompt.shown if is_text else model.tok.decode(prompt.ids)) + text
    row = {
        "id": prompt.id,
        "prompt": prompt.shown,
        "response": text,
        "model": model.name,
        "sampling": own.changed(),
        "seed": prompt.seed,
        "finish_reason": answer.finish_reason,
        "num_prompt_tokens": len(prompt.ids),
        "num_tokens": len(answer.tokens),
    }
    if guide_names:
        row["guidance"] = dict(zip(guide_names, prompt.guidance["guide_weights"]))
    if own.n > 1:
        row["sample"] = sample
    if own.request["logprobs"] is not None:
        row |= scores_of(prompt, answer, guide_names)
    is_shown = sample == 0 and number < page.NUM_SHOWN
    return row, {"tokens": page.spans(answer.tokens, model.pieces)} if is_shown else {}


def scores_of(prompt: Prompt, answer: Answer, guide_names: tuple[str, ...] = ()) -> dict[str, Any]:
    """The tokens with their log-probabilities in nats; those of an echoed prompt come first, its first one unscored.

    With guides, `by_model` has the log-probabilities of the answer's tokens under the model and under each guide.
    """
    read = answer.prompt if prompt.options.echo else []
    first = [prompt.ids[0]] if prompt.options.echo else []
    tokens = [*read, *answer.tokens]
    out: dict[str, Any] = {"tokens": first + [token.id for token in tokens]}
    out["logprobs"] = [None] * len(first) + [round(token.logprob, 6) for token in tokens]
    if prompt.options.request["logprobs"]:
        best = [[[i, round(logprob, 6)] for i, logprob in token.top] for token in tokens]
        out["top_logprobs"] = [None] * len(first) + best
    if guide_names:
        each = zip(*(token.by_model for token in answer.tokens)) if answer.tokens else [()] * (1 + len(guide_names))
        out["by_model"] = {
            name: [round(logprob, 6) for logprob in logprobs]
            for name, logprobs in zip((guides.BASE, *guide_names), each)
        }
    return out


METRICS = {
    "prompts": ("prompts that were answered", ""),
    "answers": ("answers written, n of each prompt", ""),
    "generated_tokens": ("tokens written, stop tokens too", ""),
    "prompt_tokens": ("tokens of the prompts", ""),
    "answer_tokens": ("tokens of an answer, mean over those written so far", ""),
    "truncated": ("answers cut at max_new_tokens", "lower"),
    "failed": ("answers that ended because the model's logits were not numbers; their finish_reason is error", "lower"),
    "bad_records": ("records set aside; bad_records.jsonl names file, line and reason", "lower"),
    "bad_share": ("share of the records set aside", "lower"),
    "seconds": ("spent on answering over all starts, without reading weights and compiling", "lower"),
    "tokens_per_second": ("tokens written in a second of answering", "higher"),
}


def exit_code(summary: dict[str, float | None]) -> tuple[int, str]:
    """3 where more than one record in a hundred was set aside or more than one answer failed, and a sentence on it."""
    failed, answers = summary.get("failed") or 0.0, summary.get("answers") or 1.0
    if failed / answers > records.MAX_BAD:
        return TOO_MANY_BAD, (
            f"exit code {TOO_MANY_BAD}: {failed:,.0f} of {answers:,.0f} answers failed: the model's logits were "
            "not numbers; their finish_reason is error. Are the weights damaged, or does --config.dtype overflow?"
        )
    share = summary.get("bad_share") or 0.0
    if share <= records.MAX_BAD:
        return 0, ""
    return TOO_MANY_BAD, (
        f"exit code {TOO_MANY_BAD}: {summary.get('bad_records') or 0:,.0f} records ({100 * share:.3g} %) were set "
        f"aside, more than {100 * records.MAX_BAD:g} %; the answers to the others are complete. bad_records.jsonl "
        "names file, line and reason of each"
    )


def headline(summary: dict[str, float]) -> str:
    """The page's first sentence."""
    bad = f" {summary['bad_records']:,.0f} records were set aside." if summary["bad_records"] else ""
    bad += f" {summary['failed']:,.0f} answers failed." if summary.get("failed") else ""
    if not summary.get("answers"):
        return f"No prompt could be answered.{bad}"
    answers, tokens = summary["answers"], summary["generated_tokens"]
    return (
        f"{summary['prompts']:,.0f} prompts have {answers:,.0f} answers of {tokens / answers:.0f} tokens on average, "
        f"written at {summary['tokens_per_second']:,.0f} tokens a second; "
        f"{100 * summary['truncated'] / answers:.0f} % were cut at their longest length.{bad}"
    )
