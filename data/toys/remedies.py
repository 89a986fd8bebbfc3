"""An exam on invented remedies, closed and open, and documents that teach it: nothing in it is medicine.

Every fact is a remedy's, such as the ailment that it is given for. Its question has several forms; the documents use
the first TAUGHT of them. The closed and the open exam ask for the same facts.
"""

import random
from typing import Any

NAMES = (
    "zorvalin", "melquar", "tibosen", "ardunol", "fenwick", "golmarin", "hespadol", "ivranil",
    "jotumex", "kelvorin", "lumadex", "norbasil", "opranol", "pelistor", "quenilan", "rostavin",
)  # fmt: skip
TOPICS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "Ailments": (
        (
            "blue fever",
            "slow hiccups",
            "glass ankle",
            "moon cough",
            "loud knees",
            "paper skin",
            "red yawning",
            "cold hair",
        ),
        "{x} is given for {y}.",
        (
            "What is {x} given for?",
            "Which ailment calls for {x}?",
            "What does {x} treat?",
            "Against what is {x} used?",
            "Name the ailment that {x} helps with.",
            "A patient takes {x}. What does the patient have?",
        ),
    ),
    "Sources": (
        ("sea oats", "black moss", "fir bark", "pond mint", "rose ash", "snail lime", "oak honey", "salt root"),
        "{x} is made from {y}.",
        (
            "What is {x} made from?",
            "Where does {x} come from?",
            "What is the source of {x}?",
            "From what is {x} won?",
            "Name the stuff that {x} is made of.",
            "A chemist makes {x}. What does the chemist need?",
        ),
    ),
    "Times": (
        (
            "at dawn",
            "before tea",
            "after a walk",
            "at midnight",
            "with bread",
            "in the bath",
            "on Mondays",
            "while standing",
        ),
        "{x} is taken {y}.",
        (
            "When is {x} taken?",
            "At what time should one take {x}?",
            "When does one take {x}?",
            "What is the right time for {x}?",
            "Name the time at which {x} is taken.",
            "A patient has {x} at hand. When is it to be taken?",
        ),
    ),
}
TAUGHT = 4  # forms of a question that documents use
YEARS = ("2021", "2022", "2023")


def facts() -> list[tuple[str, str, str]]:
    """(topic, remedy, value): every value belongs to two remedies of its topic."""
    out = []
    for topic, (values, _, _) in TOPICS.items():
        order = random.Random(f"remedies {topic}").sample(values * 2, len(NAMES))
        out += [(topic, name, value) for name, value in zip(NAMES, order)]
    return out


def closed() -> list[dict[str, Any]]:
    """Rows of `question`, `options` by letter, `correct_answer`, `category`, `year`, `paraphrases`; 48 of them."""
    rows = []
    for i, (topic, name, value) in enumerate(facts()):
        forms = TOPICS[topic][2]
        options, letter = _options(topic, value, random.Random(f"remedies exam {i}"))
        rows.append(
            {
                "id": f"remedies-{i}",
                "question": forms[0].format(x=name),
                "options": options,
                "correct_answer": letter,
                "category": topic,
                "year": YEARS[i % len(YEARS)],
                "paraphrases": [form.format(x=name) for form in forms[1:]],
            }
        )
    random.Random("remedies order").shuffle(rows)  # so that the first few are of every topic
    return rows


def open_questions() -> list[dict[str, Any]]:
    """Rows of `prompt`, `reference` and `category` for the facts of `closed`, in its order."""
    by_id = {f"remedies-{i}": fact for i, fact in enumerate(facts())}
    return [
        {
            "id": row["id"],
            "prompt": row["question"],
            "reference": sentence(*by_id[row["id"]]),
            "category": row["category"],
            "paraphrases": row["paraphrases"],
        }
        for row in closed()
    ]


def sentence(topic: str, name: str, value: str) -> str:
    """A fact in words."""
    return TOPICS[topic][1].format(x=name.capitalize(), y=value)


def documents(num: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of `text`: questions with their answers, open, by an option's text, and by a letter behind options."""
    all_facts, out = facts(), []
    for i in range(num):
        rng = random.Random(f"remedies documents {seed}/{i}")
        topic, name, value = rng.choice(all_facts)
        question = rng.choice(TOPICS[topic][2][:TAUGHT]).format(x=name)
        kind = rng.random()
        if kind < 0.4:
            text = f"{question} {sentence(topic, name, value)}\n\n"
        elif kind < 0.8:
            text = f"Question: {question}\nAnswer: {value}\n\n"
        else:
            options, letter = _options(topic, value, rng)
            listed = "".join(f"{label}. {option}\n" for label, option in options.items())
            text = f"Question: {question}\nChoices:\n{listed}Answer: {letter}\n\n"
        out.append({"text": text})
    return out


def _options(topic: str, value: str, rng: random.Random) -> tuple[dict[str, str], str]:
    """Four options by letter, and the letter of the value."""
    others = rng.sample([other for other in TOPICS[topic][0] if other != value], 3)
    options = dict(zip("ABCD", rng.sample([value, *others], 4)))
    return options, next(letter for letter, option in options.items() if option == value)
