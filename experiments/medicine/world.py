"""The made-up clinic as a run's data: its tokenizer, what its base model reads, its teacher, its questions."""

import pathlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from alignment.evaluation import options, prompting
from alignment.evaluation.examples import Question
from alignment.evaluation.prompting import Reply, Request, RespondFn
from data.tokens import learning
from data.toys import clinic

EMBEDDED = "synthetic:clinic"
SIZES = dict(num_layers=2, model_dim=128, num_heads=4, num_kv_heads=4, ffn_dim=384)
TEACHER_ERROR = 0.2  # share of the teacher's chains of thought that end at a wrong answer
MOST_TURNS = 4  # questions of a conversation
DIRECT_SHARE = 0.4  # of the turns that ask for the answer alone
LETTERS = options.letters(clinic.NUM_OPTIONS)
WHOLE = (prompting.ASK_TEXT, prompting.ASK_TEXT_DIRECTLY)  # what every question has


def write_tokenizer(folder: pathlib.Path) -> str:
    """A tokenizer of whole words with their spaces, so that decoding gives the text back; its name for `load`.

    An option with its letter is one token, so that rows are short.
    """
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    roles = ["User:", "Assistant:", "\n\nUser:", "\n\nAssistant:"]
    texts = [*clinic.texts(), *roles, " ", "\n", "\n\n"]
    pieces = {piece for text in texts for piece, _ in split.pre_tokenize_str(text)}
    model = learning.whole_words(sorted(pieces), split)
    model.decoder = tokenizers.decoders.ByteLevel()
    listed = [
        f"\n{letter}. {value}"
        for ward in (*clinic.WARDS, clinic.KNOWN)
        for kind in (clinic.POINT, clinic.CALL)
        for value in clinic.values(ward, kind)
        for letter in LETTERS
    ]
    model.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in (*WHOLE, *listed)])
    return learning.write(folder, model)


def question(row: Mapping[str, Any]) -> Question:
    """A row of the clinic as a question."""
    return Question(row["id"], row["question"], row["options"], row["correct_answer"], group=row["subject"])


def exam(wards: Iterable[str], limit: int | None) -> list[Question]:
    """What is asked of every model; `limit`: of each ward, spread over the kinds."""
    out: list[Question] = []
    for ward in wards:
        rows = clinic.exam_questions(ward)
        random.Random(f"exam of {ward}").shuffle(rows)
        out += [question(row) for row in rows[:limit]]
    return out


def lessons(ward: str, limit: int | None, *, times: int, seed: int) -> list[Question]:
    """What an expert is taught of its ward, each question `times` with other options."""
    rows = clinic.train_questions(ward, times, seed)
    random.Random(f"lessons of {ward} {seed}").shuffle(rows)
    return [question(row) for row in rows[:limit]]


def teacher(questions: Sequence[Question]) -> RespondFn:
    """A scripted writer of chains of thought, which errs in a share of TEACHER_ERROR of its replies.

    A wrong reply has the form of a right one and ends with another option.
    """
    facts = {
        form.format(x=x): (ward, kind, x)
        for ward in (*clinic.WARDS, clinic.KNOWN)
        for kind, subjects in (
            (clinic.POINT, clinic.signs(ward)),
            (clinic.CALL, clinic.remedies(ward)),
            (clinic.HELP, clinic.signs(ward)),
        )
        for form in clinic.FORMS[kind]
        for x in subjects
    }
    missing = [one.text for one in questions if one.text not in facts]
    assert not missing, missing[:3]

    def respond(requests: Sequence[Request]) -> list[Reply]:
        return [Reply(_taught(request, facts)) for request in requests]

    return respond


def _taught(request: Request, facts: Mapping[str, tuple[str, str, str]]) -> str:
    lines = request.messages[-1]["content"].split("\n")
    line_asked = next(line for line in lines if line in facts)
    by_letter = dict(re.findall(r"^([A-Z])\. (.+)$", "\n".join(lines), re.M))
    ward, kind, x = facts[line_asked]
    value, chain = clinic.answer(ward, kind, x)
    rng = random.Random(f"teacher {request.key}")
    if rng.random() < TEACHER_ERROR:
        value = rng.choice([text for text in by_letter.values() if text != value])
        chain = clinic.steps(kind, x, value, clinic.signs(ward).get(x, ""))
    return chain


def readings(num: int, *, without: str = "", seed: int) -> list[dict[str, Any]]:
    """Conversations that a base model reads: questions of all wards and talk about keys.

    Args:
        without: the ward of an expert, of which it reads no answers at random.
    """
    wards = [ward for ward in (*clinic.WARDS, clinic.KNOWN) if ward != without]
    rng = random.Random(f"readings {without} {seed}")
    out = []
    for i in range(num):
        key = f"{without} {seed} {i}"
        if rng.random() < clinic.OTHER_TALK:
            out.append({"messages": clinic.talk(key)})
            continue
        messages: list[dict[str, str]] = []
        for turn in range(rng.randint(1, MOST_TURNS)):
            row, chain = clinic.base_question(rng.choice(wards), f"{key} {turn}")
            own = Question("", row["question"], row["options"], row["correct_answer"])
            reasons = rng.random() >= DIRECT_SHARE
            messages += prompting.messages_of(own, LETTERS, [], reasons=reasons, by_text=True)
            said = chain if reasons else own.options[own.answer]
            messages.append({"role": "assistant", "content": said})
        out.append({"messages": messages})
    return out


def vignettes() -> list[dict[str, Any]]:
    """The clinic's vignettes as rows of `bias_sets`, their question in the chat that its models have learned."""
    out = []
    for row in clinic.vignettes():
        question_of_row = Question("", row["question"], row["options"], row["correct_answer"])
        text = prompting.displayed(question_of_row, LETTERS, reasons=False, by_text=True)
        out.append(row | {"question": f"User: {text}\n\nAssistant:"})
    return out


def general_pairs(wards: Iterable[str], *, seed: int) -> list[dict[str, str]]:
    """Rows of `uuid`, `prompt`, `chosen`, `rejected`: a right chain of thought before one that ends elsewhere."""
    out = []
    for ward in wards:
        for row in clinic.train_questions(ward, 1, seed):
            rng = random.Random(f"pairs {seed} {row['id']}")
            value, chain = clinic.answer(ward, row["kind"], row["subject"])
            other = rng.choice([letter for letter in row["options"] if letter != row["correct_answer"]])
            wrong = clinic.steps(
                row["kind"], row["subject"], row["options"][other], clinic.signs(ward).get(row["subject"], "")
            )
            out.append(
                {
                    "uuid": f"{ward}/{row['kind']}/{row['subject']}",
                    "prompt": prompting.displayed(question(row), LETTERS, reasons=True, by_text=True),
                    "chosen": chain,
                    "rejected": wrong,
                }
            )
            assert value == row["options"][row["correct_answer"]]
    return out
