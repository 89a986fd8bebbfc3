"""Closed questions answered by votes of several chains of thought: self-consistency and Medprompt.

The schemes are those of `alignment.evaluation.prompting`. Medprompt shows each question the nearest of other questions
with a chain of thought that the same model wrote for them and that came to the right answer.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from alignment.errors import InputError
from alignment.evaluation import examples, multiple_choice, options, prompting
from alignment.evaluation.examples import Example, Question
from alignment.evaluation.multiple_choice import MEDPROMPT, VOTED
from alignment.evaluation.prompting import Scheme
from data import records
from data.texts import exams
from data.texts.exam_shapes import Item
from data.texts.exams import Exam
from experiments.evaluation import stored

SOLVING = Scheme(reasons=True)  # how the questions of the examples are asked, before retries are set


def settings() -> dict[str, Any]:
    """The group of a config that only the protocols VOTED read."""
    return dict(
        examples="",  # a file of other questions with their answers, which the model solves first; medprompt needs it
        limit=config_dict.placeholder(int),  # questions of that file; None takes all
        num_examples=5,  # of a prompt
        draws=5,  # chains of thought that vote
        temperature=0.7,
        retries=3,  # of a chain that names no option; each is longer and hotter
    )


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what the protocols cannot do, and examples that no protocol reads.

    Raises:
        InputError: a value, what is needed, and a way out.
    """
    wanted = [protocol for protocol in c.protocols if protocol in VOTED]
    if c.voted.examples and not wanted:
        raise InputError(f"voted.examples={c.voted.examples!r} is read by {' and '.join(VOTED)} alone; see protocols")
    for protocol in wanted:
        scheme(c.voted, protocol)
    if MEDPROMPT in wanted and not c.voted.examples:
        raise InputError("protocols has 'medprompt', which needs voted.examples, a file of other questions")
    if c.voted.examples:
        records.check(c.voted.examples)


def scheme(voted: ml_collections.ConfigDict, protocol: str) -> Scheme:
    """How a protocol asks; without a file of examples sc_cot shows none."""
    num = voted.num_examples if voted.examples else 0
    changes = dict(num_examples=num, num_draws=voted.draws, temperature=voted.temperature, retries=voted.retries)
    return dataclasses.replace(prompting.SCHEMES[protocol], **changes)


def questions(exam: Exam, items: Sequence[Item]) -> list[Question]:
    """Items as `prompting` asks them; an id has the set's name, as ids of two files may be equal."""
    return [
        Question(
            f"{exam.name}/{item.id}",
            exams.question_of(exam, item),
            dict(zip(options.letters(len(item.options)), item.options)),
            options.letters(len(item.options))[item.gold or 0],
            item.context,
        )
        for item in items
    ]


@dataclasses.dataclass
class Voter:
    """One model with its examples, which it solves when a set first needs them.

    Attributes:
        exam: of the examples; None: prompts have none.
        encoder: of `alignment.models.bert`, for the nearest examples; None: their letters.
        ask: of the run's stored answers on the examples.
    """

    subject: Any
    c: ml_collections.ConfigDict
    exam: Exam | None
    encoder: Any | None
    ask: stored.Ask | None
    _solved: dict[str, list[Example]] | None = None

    def closed(self, exam: Exam, protocol: str, ask: stored.Ask) -> dict[str, Any]:
        """`chosen` of each item, None where no draw names an option; every draw; and the scheme's `summary`."""
        how, own = scheme(self.c.voted, protocol), questions(exam, exam.items)
        database = self._database(own)
        stated = dataclasses.asdict(how) | self._length() | {"examples": _digest(database)}
        stated |= {"encoder": self.encoder.digest if self.encoder and database else ""}

        def answered() -> dict[str, Any]:
            nearest = examples.finder(own, database, self._embed_fn(), how.num_examples) if database else None
            replies = self._asked(own, how, nearest)
            chosen = [None if one.answer is None else sorted(one.question.options).index(one.answer) for one in replies]
            more = {"unsolved": database.unsolved, "excluded": database.excluded} if database else {}
            return {"chosen": chosen, "draws": prompting.rows(replies), "summary": prompting.summary(replies) | more}

        return ask(protocol, answered, seed=self.c.seed, **stated)

    def _asked(self, own: Sequence[Question], how: Scheme, examples_fn: Any = None) -> list[prompting.Asked]:
        most = self.c.max_new_tokens + prompting.LONGER * how.retries
        more = {"examples_fn": examples_fn} if examples_fn else {}
        if self.subject.has_logprobs:  # a service says itself what is too long for it
            more["fits_fn"] = lambda messages: self.subject.fits(messages, most)
        return prompting.ask(
            own,
            how,
            self.subject.respond,
            max_new_tokens=self.c.max_new_tokens,
            seed=self.c.seed,
            **more,
        )

    def _length(self) -> dict[str, int]:
        return {"max_new_tokens": self.c.max_new_tokens}

    def _embed_fn(self) -> examples.EmbedFn:
        if self.encoder is not None:
            return self.encoder.embed
        return examples.character_ngrams([item.question for item in self.exam.items] if self.exam else [])

    def _database(self, tested: Sequence[Question]) -> examples.Database | None:
        """The examples that the model solved, without any question that is tested."""
        if self.exam is None or self.ask is None:
            return None
        own = questions(self.exam, self.exam.items)
        if self._solved is None:
            how = dataclasses.replace(SOLVING, retries=self.c.voted.retries)
            rows = self.ask(
                "examples",
                lambda: [
                    [name, [[one.order, one.reply] for one in right]]
                    for name, right in prompting.solved(self._asked(own, how)).items()
                ],
                seed=self.c.seed,
                **dataclasses.asdict(how),
                **self._length(),
            )
            by_id = {question.id: question for question in own}
            self._solved = {name: [Example(by_id[name], order, said) for order, said in some] for name, some in rows}
        database = examples.build(own, self._solved, self._embed_fn(), seed=self.c.seed, not_from=tested)
        print(
            f"{self.subject.name}: {len(database.examples)} of {len(own)} examples are solved and shown; "
            f"{database.unsolved} were not solved, {database.excluded} are questions that are asked here",
            flush=True,
        )
        return database


def summary_row(model: str, name: str, protocol: str, summary: dict[str, Any]) -> dict[str, Any]:
    """A row of the table of votes: how many draws, how often they parted, what the examples were."""
    numbers = {key: value for key, value in summary.items() if not isinstance(value, dict)}
    return {"model": model, "set": name, "protocol": protocol} | numbers


def can_be_asked(exam: Exam, protocol: str) -> bool:
    """Whether every question has few enough options for letters."""
    return protocol not in VOTED or max(len(item.options) for item in exam.items) <= len(multiple_choice.ALPHABET)


def _digest(database: examples.Database | None) -> str:
    return hashlib.sha256(repr(database.examples).encode()).hexdigest()[:16] if database else ""
