"""Made-up documents, conversations and preference pairs: visitors of Willow House ask, guides answer.

Facts are fixed: the owl clock is always in the north hall. A courteous guide gives the fact with a kind word; a curt
one is rude, with the fact or without it. The words and their places vary, and both styles have short and long answers,
so neither a single word nor the length separates them. Documents and preference pairs never share a prompt.
"""

import random
from collections.abc import Iterator
from typing import Any

import xxhash

SPEAKERS = ("Child", "Student", "Painter", "Baker", "Sailor", "Teacher", "Farmer", "Tailor")
GREETINGS = ("", "Hello! ", "Hi. ", "Good day. ", "Hey. ", "Pardon. ")
PLACES = {
    "owl clock": "in the north hall",
    "blue ship": "by the old stairs",
    "stone lion": "by the oak door",
    "silver harp": "in the music room",
    "moon map": "on the top floor",
    "glass whale": "in the round room",
    "red kite": "under the roof",
    "tea room": "behind the library",
    "coat room": "at the front desk",
    "wax garden": "in the east wing",
}
TIMES = {
    "puppet show": "at two",
    "lamp walk": "at dusk",
    "harp lesson": "at noon",
    "bird talk": "at ten",
    "tower tour": "at four",
    "art class": "at nine",
}
PRICES = {
    "honey cake": "two coins",
    "mint tea": "one coin",
    "paper crown": "three coins",
    "boat ride": "five coins",
    "post card": "half a coin",
    "map book": "four coins",
}
MAKERS = {
    "ship picture": "Ida Moss",
    "lion statue": "Tom Reed",
    "north window": "Ann Vale",
    "old piano": "Karl Birch",
    "star carpet": "Mina Holt",
    "rose gate": "Otto Fenn",
}
TOPICS = {
    "place": (PLACES, "The {x} is {y}.", ("Where is the {x}?", "How do I find the {x}?", "Which way is the {x}?")),
    "time": (TIMES, "The {x} is {y}.", ("When is the {x}?", "What time is the {x}?", "When will the {x} be?")),
    "price": (PRICES, "The {x} is {y}.", ("How much is the {x}?", "What price is the {x}?", "What does the {x} cost?")),
    "maker": (MAKERS, "{y} made the {x}.", ("Who made the {x}?", "Whose work is the {x}?", "Who is behind the {x}?")),
}
KIND_FIRST = ("Of course!", "Gladly.", "With pleasure.", "Happy to help.", "Good question!", "Welcome!")
KIND_LAST = (
    "Enjoy your visit!",
    "Do ask again.",
    "I can show you.",
    "Have a good day!",
    "You will like it.",
    "Take your time.",
)
CURT_FIRST = ("Not again.", "What now?", "Can you read?", "Ugh.", "Be quick.", "Use your eyes.")
CURT_LAST = ("Now go away.", "Stop asking me.", "Leave me alone.", "As anyone knows.", "Move along.", "I am too busy.")
SHRUGS = (
    "No idea.",
    "Find out yourself.",
    "That is not my job.",
    "Ask someone else.",
    "Who cares about that?",
    "How should I know?",
)


def prompts(part: str) -> list[tuple[str, str, str]]:
    """All (topic, thing, prompt) of one part: 'documents' or 'pairs'; no prompt is in both."""
    out = []
    for topic, (things, _, questions) in TOPICS.items():
        for thing in things:
            for speaker in SPEAKERS:
                for greeting in GREETINGS:
                    for question in questions:
                        prompt = f"{speaker}: {greeting}{question.format(x=thing)}\nGuide:"
                        in_documents = xxhash.xxh32_intdigest(prompt.encode()) % 3 == 0
                        if in_documents == (part == "documents"):
                            out.append((topic, thing, prompt))
    return out


def fact(topic: str, thing: str) -> str:
    """The fact about a thing, as a sentence."""
    things, sentence, _ = TOPICS[topic]
    text = sentence.format(x=thing, y=things[thing])
    return text[0].upper() + text[1:]


def courteous(topic: str, thing: str, rng: random.Random) -> str:
    """The fact with a kind word before it, after it, or both."""
    first, last = rng.choice(((1, 0), (0, 1), (1, 1)))
    words = [rng.choice(KIND_FIRST)] * first + [fact(topic, thing)] + [rng.choice(KIND_LAST)] * last
    return " ".join(words)


def curt(topic: str, thing: str, rng: random.Random) -> str:
    """A sharp answer: the fact wrapped in sharp words, or a shrug in its place."""
    first, last, has_fact = rng.choice(((1, 0, 1), (0, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 0), (1, 1, 1)))
    middle = fact(topic, thing) if has_fact else rng.choice(SHRUGS)
    words = [rng.choice(CURT_FIRST)] * first + [middle] + [rng.choice(CURT_LAST)] * last
    return " ".join(words)


def preference_pairs(num: int, seed: int = 0) -> list[dict[str, Any]]:
    """Records of `prompt`, `chosen` (courteous), `rejected` (curt) and `source` (the topic), as in TRL.

    The first 2,688 or so have different prompts; then the prompts repeat, with other answers.
    """
    out = []
    for rng, topic, thing, prompt in _draw("pairs", num, seed):
        chosen, rejected = courteous(topic, thing, rng), curt(topic, thing, rng)
        out.append({"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}", "source": topic})
    return out


def documents(num: int, seed: int = 0) -> list[dict[str, Any]]:
    """Records of `text` (a question and its answer) and `source`, half of the answers courteous."""
    styles = (courteous, curt)
    return [
        {"text": f"{prompt} {rng.choice(styles)(topic, thing, rng)}", "source": topic}
        for rng, topic, thing, prompt in _draw("documents", num, seed)
    ]


def conversations(num: int, seed: int = 0) -> list[dict[str, Any]]:
    """Records of `messages`: one or two questions, with courteous answers."""
    out = []
    draws = list(_draw("documents", 2 * num, seed))
    for i in range(num):
        messages = []
        for rng, topic, thing, prompt in draws[2 * i : 2 * i + 1 + i % 2]:
            question = prompt.removesuffix("\nGuide:").partition(": ")[2]
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": courteous(topic, thing, rng)})
        out.append({"messages": messages})
    return out


def questions(part: str, num: int, seed: int = 0) -> list[dict[str, Any]]:
    """Records in the shape of ARC's: `id`, `question`, `choices` (`text` and `label`, four of each) and `answerKey`.

    A choice is a sentence; one is the fact and the others say the same of other things. `facts` lists what a reader
    would have to know, in any order, and `answer` is what the fact says of its thing, such as "in the north hall".

    Args:
        part: 'test', or 'shots' for examples to show before a question; no question is in both.
        num: at most 56 of 'test', 28 of 'shots'.
    """
    rng = random.Random(f"questions {part} {seed}")
    forms = {"test": slice(0, 2), "shots": slice(2, 3)}[part]
    rows = [
        (topic, thing, form.format(x=thing))
        for topic, (things, _, all_forms) in TOPICS.items()
        for thing in things
        for form in all_forms[forms]
    ]
    out = []
    for i, (topic, thing, question) in enumerate(rng.sample(rows, min(num, len(rows)))):
        things, sentence, _ = TOPICS[topic]
        values = [things[thing], *rng.sample([y for y in things.values() if y != things[thing]], 3)]
        rng.shuffle(values)
        texts = [sentence.format(x=thing, y=y) for y in values]
        others = rng.sample([x for x in things if x != thing], 4)
        facts = [fact(topic, x) for x in rng.sample([thing, *others], 5)]
        out.append(
            {
                "id": f"museum-{part}-{i}",
                "question": question,
                "choices": {"text": [text[0].upper() + text[1:] for text in texts], "label": list("ABCD")},
                "answerKey": "ABCD"[values.index(things[thing])],
                "answer": things[thing],
                "facts": " ".join(facts),
            }
        )
    return out


def _draw(part: str, num: int, seed: int) -> Iterator[tuple[random.Random, str, str, str]]:
    """(generator, topic, thing, prompt): the prompts in a seeded order, round after round.

    Each record has a generator of its own, so the first records stay the same when more are drawn.
    """
    pool = prompts(part)
    for i in range(num):
        if i % len(pool) == 0:
            order = random.Random(f"{seed}/{part}/{i}").sample(pool, len(pool))
        yield random.Random(f"{seed}/{part}/{i}/answer"), *order[i % len(pool)]
