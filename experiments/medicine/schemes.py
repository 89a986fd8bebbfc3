"""A model asked under several schemes: what it answers is kept, and an example database is built of what it solves."""

import dataclasses
import functools
import hashlib
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from alignment.decoding.engine import Engine
from alignment.evaluation import examples, options, prompting
from alignment.evaluation.examples import Database, EmbedFn, Example, Question
from alignment.evaluation.prompting import Messages, Reply, Request, RespondFn, Scheme
from alignment.models import bert
from experiments.decoding.models import Model
from experiments.evaluation import stored

Row = Mapping[str, Any]
ZERO_SHOT, FEW_SHOT, SC_COT, MEDPROMPT = NAMES = tuple(prompting.SCHEMES)
NEAREST = (MEDPROMPT,)  # schemes whose examples are the nearest of the database; the others have the same for all


def settings() -> dict[str, Any]:
    """The group of a config that says how questions are asked; None leaves the scheme's own value."""
    return dict(
        schemes=(FEW_SHOT, SC_COT, MEDPROMPT),  # of the last model; all models are asked without examples
        num_examples=config_dict.placeholder(int),  # solved questions in a prompt
        num_draws=config_dict.placeholder(int),  # replies that vote, of sc_cot and medprompt
        temperature=config_dict.placeholder(float),  # of draws that vote
        retries=10,  # of a reply that names no option
        ties=options.FIRST_SEEN,  # first_seen, first_reached, likeliest
        by_text=False,  # replies name an option by its text and not by its letter, which tiny models do not learn
        compatible=False,  # parse and reuse orders as the authors' code does
        max_new_tokens=512,  # of a chain of thought
        max_new_tokens_direct=16,  # of an answer alone
        solving_draws=5,  # chains of thought for each question of the example database
        encoder="",  # folder of a BERT-like encoder for the nearest questions; "": by their letters
    )


def of_config(a: ml_collections.ConfigDict) -> dict[str, Scheme]:
    """The schemes of a config's group, zero-shot first.

    Raises:
        InputError: a value out of its range.
    """
    out = {}
    for name in (ZERO_SHOT, *a.schemes):
        own = prompting.SCHEMES[name]
        changes: dict[str, Any] = {key: a[key] for key in ("retries", "ties", "compatible", "by_text")}
        if name != ZERO_SHOT and a.num_examples is not None:
            changes["num_examples"] = a.num_examples
        if own.num_draws > 1:
            changes |= {key: a[key] for key in ("num_draws", "temperature") if a[key] is not None}
        out[name] = dataclasses.replace(own, **changes)
    return out


def responder(model: Model, server: Engine, max_len: int) -> RespondFn:
    """A responder of `prompting.responder` whose retries, which are longer each time, end at the row's length."""

    def encode(messages: Messages) -> list[int]:
        return model.tok.encode(model.tok.render(messages, add_generation_prompt=True))

    write = prompting.responder(server, encode, lambda answer: model.tok.decode(answer.answer_ids).strip())

    def respond(requests: Sequence[Request]) -> Sequence[Reply]:
        fitted = []
        for request in requests:
            room = max_len - len(encode(request.messages))
            fitted.append(dataclasses.replace(request, max_new_tokens=max(1, min(request.max_new_tokens, room))))
        return write(fitted)

    return respond


@dataclasses.dataclass(frozen=True)
class Asker:
    """A model that is asked; its answers stay in the run's folder under its weights.

    Attributes:
        engine_fn: makes its engine, where something was not asked before.
        a: the group of `settings`.
    """

    name: str
    model: Model
    engine_fn: Callable[[], Engine]
    folder: pathlib.Path
    a: ml_collections.ConfigDict
    max_len: int
    seed: int

    def ask(
        self, what: str, questions: Sequence[Question], scheme: Scheme, database: Database | None, embed_fn: EmbedFn
    ) -> dict[str, Any]:
        """`summary` and `rows` of `prompting` for questions asked under a scheme, and the `seconds` that it took.

        What an earlier start asked of the same weights is not asked again.

        Args:
            what: of the scheme; medprompt's examples are each question's nearest.
            database: of examples; None: there are none.
        """
        max_new_tokens = self.a.max_new_tokens if scheme.reasons else self.a.max_new_tokens_direct
        made_from = {"weights": self.model.digest, "questions": digest(questions)}
        settings = dataclasses.asdict(scheme) | {"max_new_tokens": max_new_tokens, "seed": self.seed}
        settings |= {"max_len": self.max_len, "examples": digest(database.examples) if database else ""}
        # the database's digest has no embeddings, and another encoder finds other neighbours
        settings |= {"encoder": self.a.encoder if database and what in NEAREST else ""}

        def fits(messages: Messages) -> bool:
            rendered = self.model.tok.render(messages, add_generation_prompt=True)
            return len(self.model.tok.encode(rendered)) + max_new_tokens <= self.max_len

        def answer() -> dict[str, Any]:
            begin = time.perf_counter()
            answers = prompting.ask(
                questions,
                scheme,
                responder(self.model, self.engine_fn(), self.max_len),
                examples_fn=_examples_fn(what, questions, scheme, database, embed_fn),
                fits_fn=fits,
                max_new_tokens=max_new_tokens,
                seed=self.seed,
            )
            seconds = time.perf_counter() - begin
            return {"summary": prompting.summary(answers), "rows": prompting.rows(answers), "seconds": seconds}

        return stored.answers(self.folder, made_from, self.name)(what, answer, **settings)


def _examples_fn(
    what: str, questions: Sequence[Question], scheme: Scheme, database: Database | None, embed_fn: EmbedFn
) -> Callable[[Question], tuple[Sequence[Example], float]]:
    if database is None or not scheme.num_examples:
        return lambda question: ((), float("nan"))
    if what not in NEAREST or not len(database.rows_ND):
        same = database.examples[: scheme.num_examples]
        return lambda question: (same, float("nan"))
    return examples.finder(questions, database, embed_fn, scheme.num_examples)


def digest(values: Sequence[Any]) -> str:
    """Of questions or examples, all that a model reads of them."""
    return hashlib.sha256(repr(list(values)).encode()).hexdigest()[:16]


def solved(rows: Sequence[Row], questions: Sequence[Question]) -> dict[str, list[Example]]:
    """The right replies of each question among the rows that `Asker.ask` returns."""
    by_id = {question.id: question for question in questions}
    return {
        row["id"]: [
            Example(by_id[row["id"]], one["order"], one["response"])
            for one in row["generations"]
            if one["answer"] == row["original_answer"]
        ]
        for row in rows
    }


def database(
    asker: Asker, questions: Sequence[Question], tested: Sequence[Question], embed_fn: EmbedFn
) -> tuple[Database, list[str]]:
    """What the model solves of some questions, by chains of thought in shuffled orders, and what is to be said of it.

    A model that solves nothing gets the first questions with their answers alone, the same for every question.
    """
    scheme = Scheme(
        num_draws=asker.a.solving_draws,
        shuffles=True,
        temperature=0.7,
        reasons=True,
        retries=min(3, asker.a.retries),
        by_text=asker.a.by_text,
    )
    answers = asker.ask("solving", questions, scheme, None, embed_fn)
    right = solved(answers["rows"], questions)
    made = examples.build(questions, right, embed_fn, seed=asker.seed, not_from=tested)
    said = [
        f"The example database has {len(made.examples)} of {len(questions)} questions; {made.unsolved} were never "
        f"solved and {made.excluded} are tested."
    ]
    if not made.examples:
        most = max(one.num_examples for one in of_config(asker.a).values())
        fixed = static(questions, tested, most, by_text=asker.a.by_text)
        said.append("No question was solved: all prompts have the same examples, with their answers alone.")
        return dataclasses.replace(made, examples=fixed, rows_ND=made.rows_ND[:0]), said
    return made, said


def static(
    questions: Sequence[Question], tested: Sequence[Question], num: int, *, by_text: bool
) -> tuple[Example, ...]:
    """The first questions that are not tested, each with its answer alone."""
    texts, ids = {examples.normalise(one.text) for one in tested}, {one.id for one in tested}
    own = [one for one in questions if one.id not in ids and examples.normalise(one.text) not in texts]
    orders = [options.letters(len(one.options)) for one in own[:num]]
    return tuple(
        Example(one, order, prompting.answer_alone(one, order, by_text=by_text)) for one, order in zip(own, orders)
    )


def embedder(folder: str, texts: Sequence[str]) -> EmbedFn:
    """An encoder's embeddings, or those by three to five letters where the config names none."""
    if not folder:
        return examples.character_ngrams(texts)
    encoder_fn = functools.cache(lambda: bert.load(folder))
    return lambda some: encoder_fn().embed(some)


def by_votes(rows: Sequence[Row], ties: str) -> list[tuple[int, float]]:
    """(N, accuracy of the first N draws' vote) for a scheme with several draws."""
    num = len(rows[0]["generations"])
    out = []
    for n in range(1, num + 1):
        right = []
        for row in rows:
            drawn = row["generations"][:n]
            logprobs = [-math.inf if one["logprob"] is None else one["logprob"] for one in drawn]
            vote, _ = options.vote([one["answer"] for one in drawn], ties=ties, logprobs=logprobs)
            right.append(vote == row["original_answer"])
        out.append((n, sum(right) / len(right)))
    return out
