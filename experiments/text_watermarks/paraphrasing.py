"""Answers in other words, by a service or a model in this process, and whether their mark is still read."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from alignment import files
from alignment.decoding import backends
from alignment.errors import InputError
from alignment.watermark import attacks
from alignment.watermark.text_marks import Mark
from experiments.decoding import models
from experiments.evaluation import services, subjects
from experiments.evaluation.services import ENDPOINT, Sampling
from experiments.text_watermarks import measuring

PROMPT_ROOM = 128  # tokens of the request around a text; an answer may be longer under the paraphraser's tokenizer


def settings() -> dict[str, Any]:
    """The group of a config that says who paraphrases."""
    return dict(
        by="",  # endpoint:<its name there>, with endpoint.url; or hf:<folder>, run:<workdir>; "": not tried
        num=50,  # answers of each mark and strength
        max_new_tokens=200,  # of a paraphrase
    )


def check(c: Any) -> None:
    """Refuse a model that is not there, and settings that nothing reads.

    Raises:
        InputError: a value, what is needed, and a way out.
    """
    by, defaults = c.paraphrase.by, settings()
    kind, _, name = by.partition(":")
    if c.endpoint.url and kind != ENDPOINT:
        raise InputError(f"endpoint.url={c.endpoint.url!r} is not read, as paraphrase.by={by!r} is not endpoint:<name>")
    for key in ("num", "max_new_tokens") if not by else ():
        if c.paraphrase[key] != defaults[key]:
            raise InputError(
                f"paraphrase.{key}={c.paraphrase[key]} is not read, as paraphrase.by is empty; leave it out"
            )
    if kind == ENDPOINT:
        if not name or not c.endpoint.url:
            raise InputError(f"paraphrase.by={by!r} needs endpoint.url, and a name behind the colon")
        backends.openai(c.endpoint.url, name, **services.options(c))
    elif by in models.OWN:
        raise InputError(f"paraphrase.by={by!r} cannot say a text in other words; take a checkpoint or a service")
    elif by:
        models.check(subjects.one(c, by))
        needed = c.write.max_new_tokens + c.paraphrase.max_new_tokens + PROMPT_ROOM
        if needed > c.engine.max_len:
            raise InputError(
                f"engine.max_len={c.engine.max_len} is too short for a paraphrase: write.max_new_tokens, "
                f"paraphrase.max_new_tokens and {PROMPT_ROOM} for the request are {needed}; raise it"
            )


def writer_of(c: Any, folder: pathlib.Path) -> Any:
    """The service or the model of `c.paraphrase`, with `write` of evaluations."""
    by = c.paraphrase.by
    if by.startswith(f"{ENDPOINT}:"):
        return services.Service("paraphraser", by, c, folder)
    return subjects.Local("paraphraser", by, c, folder, is_chat=True)


def lines(
    c: Any,
    model: models.Model,
    answers: Mapping[str, tuple[Mark | None, Sequence[Sequence[int]]]],
    negatives: Sequence[Sequence[int]],
    folder: pathlib.Path,
) -> list[dict[str, Any]]:
    """Detection after a paraphrase, a line for each marked point; [] where none is asked for.

    The texts lie in paraphrases.jsonl. Unmarked texts stay as they are. An empty paraphrase leaves an answer as it
    was, and is counted as `unchanged`; `cut` are requests that lost their beginning, as they were too long to read.

    Args:
        answers: {point: (its mark, ids of its answers)}; points without a mark are left out.
    """
    if not c.paraphrase.by:
        return []
    writer, how = writer_of(c, folder), Sampling(c.paraphrase.max_new_tokens)

    def ask(prompts: Sequence[str]) -> list[str]:
        return [said for (said,) in writer.write([writer.prompt(prompt) for prompt in prompts], how)]

    out, rows = [], []
    for name, (mark, all_ids) in answers.items():
        if mark is None:
            continue
        num_cut = getattr(writer, "num_cut", 0)
        before = [model.tok.decode(ids) for ids in all_ids[: c.paraphrase.num]]
        after = attacks.paraphrase(before, ask)
        rows += [{"point": name, "before": a, "after": b} for a, b in zip(before, after)]
        line = measuring.detection_line(mark, [model.tok.encode(text) for text in after], negatives)
        unchanged = sum(a == b for a, b in zip(before, after))
        own = {"unchanged": unchanged, "cut": getattr(writer, "num_cut", 0) - num_cut}
        out.append({"point": name, "attack": "paraphrase", "strength": 1.0} | own | line)
    files.write_rows(folder / "paraphrases.jsonl", rows)
    return out
