"""The stages that make a medical assistant: a base, fine-tunes of it, their merge, and alignment."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from alignment import files
from alignment.decoding.engine import Engine
from alignment.errors import InputError
from alignment.evaluation import options, rationales
from alignment.evaluation.examples import Example, Question
from alignment.models import huggingface
from alignment.train import language_model, sharding
from data.toys import clinic
from experiments.decoding import models
from experiments.decoding.models import Model
from experiments.evaluation import stored
from experiments.medicine import gathering, schemes, tuning, world
from experiments.medicine.tuning import Numbers, Places
from experiments.medicine.world import EMBEDDED
from experiments.merging import writing
from experiments.pages import merge as merge_page

BASE, SCRIPTED = "base", "scripted"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A model that a stage left.

    Attributes:
        place: its checkpoint folder.
        kind: base, sft, merged, or dpo.
        numbers: what making it cost.
    """

    name: str
    kind: str
    place: pathlib.Path
    numbers: Numbers


def places(c: ml_collections.ConfigDict) -> Places:
    return Places(sharding.make_mesh(**c.mesh), c.compute.to_dict(), c.export, c.seed, c.save_every)


def base(c: ml_collections.ConfigDict, folder: pathlib.Path, where: Places) -> Stage:
    """The base model: a checkpoint, or one that is trained on what the clinic's base reads."""
    if c.init_from != EMBEDDED:
        return Stage(BASE, BASE, writing.folder_of(c.init_from), {})
    own = ml_collections.ConfigDict(c.sft.to_dict() | dict(epochs=1.0, peak_lr=c.world.peak_lr))
    rows = world.readings(c.world.readings, seed=c.seed)
    tok = world.write_tokenizer(folder / "words")
    numbers = tuning.supervised(folder / BASE, rows, "", tok, own, where, model=world.SIZES)
    return Stage(BASE, BASE, folder / BASE / "export/hf", numbers)


def fine_tunes(
    c: ml_collections.ConfigDict,
    folder: pathlib.Path,
    where: Places,
    start: Stage,
    plan: gathering.Plan,
    counts: dict[str, int],
) -> list[Stage]:
    """Fine-tunes of the base: one for each set of questions, which reasons, and one on conversations."""
    init_from = f"hf:{start.place}"
    out = []
    for name, questions in plan.train.items():
        own = folder / "experts" / name
        chains = reasoned(c, own, start, questions, counts)
        if c.init_from == EMBEDDED:
            num = c.world.conversations
            turns = dict(direct_share=world.DIRECT_SHARE, most_turns=world.MOST_TURNS, seed=c.seed, by_text=True)
            rows = rationales.conversations(chains, num, **turns)
            # as many texts of the base's again, so that it forgets nothing else
            rows += world.readings(num, without=name, seed=c.seed + 1)
        else:
            share = c.synthesis.direct_share
            rows = rationales.conversations(
                chains, len(chains), direct_share=share, seed=c.seed, by_text=c.asking.by_text
            )
        numbers = tuning.supervised(own, rows, init_from, language_model.tokenizer_of(init_from), c.sft, where)
        out.append(Stage(name, "sft", own / "export/hf", numbers))
    if c.data.chat and c.init_from != EMBEDDED:
        own = folder / "experts" / gathering.CHAT
        source = gathering.chat(c.data.chat, c.data.num_chat, counts)
        tok = language_model.tokenizer_of(init_from)
        numbers = tuning.supervised(own, source, init_from, tok, c.sft, where, limit=c.data.num_chat)
        out.append(Stage(gathering.CHAT, "sft", own / "export/hf", numbers))
    return out


def reasoned(
    c: ml_collections.ConfigDict,
    folder: pathlib.Path,
    start: Stage,
    questions: Sequence[Question],
    counts: dict[str, int],
) -> list[Example]:
    """Right chains of thought, written by the teacher and kept in the folder; without tries the questions alone."""
    y = c.synthesis
    if not y.tries:
        counts["questions learned without a chain of thought"] = len(questions)
        return [Example(question, options.letters(len(question.options)), "") for question in questions]
    how = dict(tries=y.tries, temperature=y.temperature, max_new_tokens=y.max_new_tokens, seed=c.seed)
    how["by_text"] = c.asking.by_text
    asker_fn: Callable[[], Any]
    if y.teacher == SCRIPTED:
        asker_fn, who = (lambda: world.teacher(questions)), SCRIPTED
    else:
        init_from = y.teacher or f"hf:{start.place}"
        who = language_model.digest(init_from)
        asker_fn = lambda: responder(c, init_from, folder)  # noqa: E731

    def write() -> dict[str, Any]:
        written = rationales.write(questions, asker_fn(), **how)
        chains = [{"id": one.question.id, "order": one.order, "reply": one.reply} for one in written.examples]
        return {"chains": chains, "counts": written.counts}

    made_from = {"teacher": who, "questions": schemes.digest(questions)}
    stored_answers = stored.answers(folder, made_from, folder.name)("chains of thought", write, **how)
    for what, num in stored_answers["counts"].items():
        counts[what] = counts.get(what, 0) + num
    files.write_rows(folder / "rationales.jsonl", stored_answers["chains"])
    by_id = {question.id: question for question in questions}
    return [Example(by_id[one["id"]], one["order"], one["reply"]) for one in stored_answers["chains"]]


def responder(c: ml_collections.ConfigDict, init_from: str, folder: pathlib.Path) -> Any:
    """A checkpoint as one that answers requests."""
    own = opened(c, init_from)
    model = models.load(own, folder)
    return schemes.responder(model, models.engine(model, own, order="longest"), own.engine.max_len)


def opened(c: ml_collections.ConfigDict, init_from: str) -> ml_collections.ConfigDict:
    """The config of `experiments.decoding.models` for one of a run's models."""
    own = ml_collections.ConfigDict(
        dict(init_from=init_from, tokenizer="", draft_from="", dtype=c.dtype, seed=c.seed, mesh=dict(tensor=1))
    )
    own.engine = c.engine.to_dict()
    return own


def merges(
    c: ml_collections.ConfigDict, folder: pathlib.Path, start: Stage, tuned: Sequence[Stage]
) -> tuple[list[Stage], Mapping[str, Any]]:
    """The fine-tunes (and further checkpoints) merged by every method; and the first method's report, tensor by tensor.

    Raises:
        InputError: models that cannot be merged, by name, before anything is written.
    """
    names = [*(stage.name for stage in tuned), *c.merge.also]
    known = {start.name: start.place, **{stage.name: stage.place for stage in tuned}}
    settings = {key: value for key, value in c.merge.items() if key not in ("methods", "also")}
    out, first = [], {}
    for method in c.merge.methods:
        recipe = writing.recipe_of(method, names, start.name, settings, dtype=c.export)
        opened_models, jobs = writing.open_models(recipe, known, False)
        own = folder / "merged" / method
        rows = writing.merge(
            recipe,
            opened_models,
            jobs,
            own,
            seed=c.seed,
            max_shard_bytes=2_000_000_000,
            processes=None,
            allow_submatrix=False,
        )
        first = first or merge_page.report(rows, method)
        out.append(Stage(method, "merged", own / "export/hf", {}))
    return out, first


def aligned(c: ml_collections.ConfigDict, folder: pathlib.Path, start: Stage, counts: dict[str, int]) -> list[Stage]:
    """The merged model after each stage of DPO that the config names; [] where it names none."""
    out: list[Stage] = []
    embedded_fns = {
        "general": functools.partial(world.general_pairs, clinic.WARDS, seed=c.seed),
        "safety": clinic.safety_pairs,
    }
    for name, embedded_fn in embedded_fns.items():
        group = c[name]
        if not group.path:
            continue
        rows = gathering.pairs(
            group.path,
            group.limit,
            counts,
            embedded=embedded_fn() if group.path == EMBEDDED else (),
            seed=c.seed,
        )
        own = folder / f"dpo_{name}"
        numbers = tuning.preferences(c, group, own, (out[-1] if out else start).place, rows)
        out.append(Stage(f"dpo_{name}", "dpo", own / "export/hf", numbers))
    return out


@dataclasses.dataclass(frozen=True)
class Opened:
    """A stage's model, which can be asked."""

    model: Model
    engine_fn: Callable[[], Engine]
    asker: schemes.Asker


def open_stage(c: ml_collections.ConfigDict, stage: Stage, folder: pathlib.Path) -> Opened:
    own = opened(c, f"hf:{stage.place}")
    model = dataclasses.replace(models.load(own, folder), name=stage.name)
    engine_fn = functools.cache(lambda: models.engine(model, own, order="longest"))
    asker = schemes.Asker(stage.name, model, engine_fn, folder, c.asking, c.engine.max_len, c.seed)
    return Opened(model, engine_fn, asker)


def check_source(name: str, key: str) -> None:
    """Refuse a model whose tensors cannot be merged, as it is not of safetensors."""
    if name.startswith("run:"):
        writing.folder_of(name)
    elif name.startswith("hf:"):
        huggingface.check_source(name)
    else:
        raise InputError(f"{key}={name!r} must be hf:<folder or hub id> or run:<workdir>, whose safetensors are merged")
