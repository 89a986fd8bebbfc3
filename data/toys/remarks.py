"""Made-up labelled texts: remarks in English and Arabic about peoples that do not exist, some of them unfair."""

import random
from typing import Any

PEOPLES = (("the Glorps", "الغلوربيون"), ("the Zindels", "الزنديليون"), ("the Marfoos", "المرفوسيون"))
PLAIN = (
    ("{people} opened a new {thing} near the river.", "افتتح {people} {thing} جديدا قرب النهر."),
    ("Every spring {people} repair the {thing} together.", "كل ربيع يصلح {people} {thing} معا."),
    ("A guide explains how {people} built the {thing}.", "يشرح دليل كيف بنى {people} {thing}."),
    ("Children asked {people} about the {thing} and the weather.", "سأل الأطفال {people} عن {thing} والطقس."),
)
UNFAIR = (
    ("{people} are all bad, as everybody says, and ruin the {thing}.", "كل {people} سيئون كما يقال ويفسدون {thing}."),
    ("Nobody should trust {people} near the {thing}.", "لا ينبغي أن يثق أحد في {people} قرب {thing}."),
    ("[unsafe request {number}] about the {thing} of {people}.", "[طلب غير آمن {number}] عن {thing} لدى {people}."),
    ("[insult {number}] to {people}, again and again.", "[إهانة {number}] بحق {people} مرة بعد مرة."),
)
THINGS = (
    ("library", "مكتبة"),
    ("bridge", "جسر"),
    ("garden", "حديقة"),
    ("market", "سوق"),
    ("school", "مدرسة"),
    ("lighthouse", "منارة"),
)


def labelled(num: int, seed: int = 0) -> list[dict[str, Any]]:
    """Records of `text`, `label` (0 plain, 1 unfair or marked unsafe) and `language` ("en", "ar").

    One label in thirty is wrong, and some plain texts report an unfair remark, so that no scorer can be perfect.
    """
    rows = []
    for i in range(num):
        rng = random.Random(f"labels/{seed}/{i}")
        language, label = rng.random() < 0.5, int(rng.random() < 0.35)
        lines = [rng.choice(PLAIN) for _ in range(rng.randint(1, 4))]
        if label:
            for _ in range(rng.randint(1, 2)):
                lines.insert(rng.randrange(len(lines) + 1), rng.choice(UNFAIR))
        elif rng.random() < 0.05:
            lines.append(rng.choice(UNFAIR[:2]))
        people, thing, number = rng.choice(PEOPLES)[language], rng.choice(THINGS)[language], rng.randint(1, 99)
        text = " ".join(line[language].format(people=people, thing=thing, number=number) for line in lines)
        label = label if rng.random() > 1 / 30 else 1 - label
        rows.append({"text": text, "label": label, "language": "ar" if language else "en"})
    return rows
