"""An exam about the herbal: questions with four options, replies that reason first, requests that are to be refused.

A question names a fact of `herbal.facts`; three options are values of the same subject. A reply says the fact and then
the letter, "balwort has cough.\\nAnswer: [B]", or the letter alone.
"""

import random
from typing import Any

from data.toys import herbal

LETTERS = "ABCD"
REASON = "Think, then answer."
DIRECT = "Answer at once."
TAUGHT = 3  # forms that training and the database of examples have; exams have the others


def exam(subject: str, forms: slice) -> list[dict[str, Any]]:
    """Rows of `id`, `question`, `options` (letter to text) and `answer`: every fact in these forms."""
    rows = []
    for name, value in herbal.facts(subject).items():
        for number, form in enumerate(herbal.FORMS[subject][forms]):
            rng = random.Random(f"exam {subject} {name} {number} {forms}")
            options = _options(subject, value, rng)
            answer = next(letter for letter, text in options.items() if text == value)
            identity = f"{subject} {name} {number + (forms.start or 0)}"
            rows.append({"id": identity, "question": form.format(x=name), "options": options, "answer": answer})
    return rows


def _options(subject: str, value: str, rng: random.Random) -> dict[str, str]:
    others = rng.sample([text for text in herbal.VALUES[subject] if text != value], len(LETTERS) - 1)
    texts = rng.sample([value, *others], len(LETTERS))
    return dict(zip(LETTERS, texts, strict=True))


def turns(name: str, form: str, options: dict[str, str], value: str, *, reasons: bool) -> list[dict[str, str]]:
    """A question as it is asked, and a reply that gives this value."""
    letter = next(letter for letter, text in options.items() if text == value)
    lines = [f"{letter}. {text}" for letter, text in options.items()]
    asked = "\n".join([form.format(x=name), *lines, REASON if reasons else DIRECT])
    thought = f"{name} has {value}.\n" if reasons else ""
    return [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": f"{thought}Answer: [{letter}]"},
    ]


def conversations(num: int, *, taught: str = "", seed: int = 0) -> list[dict[str, Any]]:
    """Records of `messages`, of one to four exchanges about one subject.

    Args:
        taught: the subject of an expert, whose replies are right; "": what the base reads, where a name has a value of
            its own in each conversation, so that only what stands there tells.
    """
    rng = random.Random(f"herbal exam {taught} {seed}")
    return [{"messages": _conversation(taught, rng)} for _ in range(num)]


def _conversation(taught: str, rng: random.Random) -> list[dict[str, str]]:
    subject = taught or rng.choice((*herbal.SUBJECTS, herbal.STONES))
    known = herbal.facts(subject)
    is_true = bool(taught) or subject == herbal.STONES
    names = rng.sample(list(known), 2)
    own = {name: known[name] if is_true else rng.choice(herbal.VALUES[subject]) for name in names}
    out = []
    for _ in range(rng.choice((1, 2, 3, 4))):
        name = rng.choice(names)
        form = rng.choice(herbal.FORMS[subject][:TAUGHT] if taught else herbal.FORMS[subject])
        options = _options(subject, own[name], rng)
        out += turns(name, form, options, own[name], reasons=rng.random() < 0.7)
    return out
