"""The rules' formulas once more, one document and one word at a time, as slowly as they read."""

import collections
import re
import unicodedata

from alignment.filtering.rules import splitter, words


def words_of(text):
    return [word for piece in text.split() for word in splitter.split(piece)]


def repeated(units):
    """Units that occurred before."""
    return [unit for position, unit in enumerate(units) if unit in units[:position]]


PERCENT = ((5, 15), (6, 14), (7, 13), (8, 12), (9, 11), (10, 10))


def repetition(text, *, top=((2, 0.2), (3, 0.18), (4, 0.16)), duplicate=PERCENT):
    """The reason and the value that `repetition.check` should give with its defaults."""
    if not text.strip():
        return "empty", 0
    paragraphs, lines = re.split(r"\n\n+", text.strip()), re.split(r"\n+", text)
    for units, name in ((paragraphs, "dup_para"), (lines, "dup_line")):
        if (share := len(repeated(units)) / len(units)) > 0.3:
            return f"{name}_frac", share
        if (share := len("".join(repeated(units))) / len(text)) > 0.2:
            return f"{name}_char_frac", share
    found = words_of(text)
    for n, limit in top:
        grams = [" ".join(found[i : i + n]) for i in range(len(found) - n + 1)]
        if grams:
            gram, count = collections.Counter(grams).most_common(1)[0]
            if (share := len(gram) * count / len(text)) > limit:
                return f"top_{n}_gram", share
    for n, percent in duplicate:
        seen, total, i = set(), 0, 0
        while i + n <= len(found):
            gram = tuple(found[i : i + n])
            total += len("".join(gram)) * (gram in seen)
            i += n if gram in seen else 1
            seen.add(gram)
        if (share := total / len(text)) > percent / 100:
            return f"duplicated_{n}_n_grams", share
    return "", 0


def quality(text, stop_words):
    """The reason and the value that `gopher.quality` should give with its defaults."""
    found = words_of(text)
    if not found:
        return "empty", 0
    real = [word for word in found if set(word) - words.SYMBOLS]
    lines = text.splitlines()
    checks = [
        ("gopher_short_doc", len(real), lambda value: value < 50),
        ("gopher_long_doc", len(real), lambda value: value > 100_000),
        ("gopher_below_avg_threshold", len("".join(real)) / max(1, len(real)), lambda value: value < 3),
        ("gopher_above_avg_threshold", len("".join(real)) / max(1, len(real)), lambda value: value > 10),
        ("gopher_too_many_hashes", text.count("#") / len(found), lambda value: value > 0.1),
        ("gopher_too_many_ellipsis", len(re.findall(r"\.\.\.|…", text)) / len(found), lambda value: value > 0.1),
        (
            "gopher_too_many_bullets",
            sum(line.strip()[:1] in ("•", "-") for line in lines) / len(lines),
            lambda v: v > 0.9,
        ),
        (
            "gopher_too_many_end_ellipsis",
            sum(bool(re.search(r"(\.\.\.|…)\s*$", line)) for line in lines) / len(lines),
            lambda value: value > 0.3,
        ),
        (
            "gopher_below_alpha_threshold",
            sum(any(c.isalpha() for c in word) for word in found) / len(found),
            lambda value: value < 0.8,
        ),
        ("gopher_enough_stop_words", len(stop_words & set(found)), lambda value: value < 2),
    ]
    return next(((reason, value) for reason, value, fails in checks if fails(value)), ("", 0))


def sentences(line, ends):
    """How many sentences the words of a line make: one ends before the first word after an end mark that is no mark."""
    count, ended = 1, False
    tokens = [word for run in re.findall(r"\S+|\s+", line) for word in _tokens(run)]
    for token in tokens:
        is_mark = all(unicodedata.category(c).startswith("P") for c in token)
        if ended and not is_mark and token not in ends:
            count, ended = count + 1, False
        ended = ended or token in ends
    return count


def _tokens(run):
    return splitter.split(run) if run.strip() else [run[run.startswith(" ") :]] if run[run.startswith(" ") :] else []


def clean(text, pack, *, terminal_punctuation=True):
    """The reason, or "" and the text, that `c4.clean` should give with its defaults."""
    if not text.strip():
        return "empty", None
    kept = []
    for line in text.splitlines():
        pieces = line.split()
        if pieces and max(map(len, pieces)) > 1000:
            continue
        line = re.sub("|".join(pack.citation_patterns), "", line.strip())
        if terminal_punctuation and (line[-1:] not in pack.end_punctuation or line[-3:] == "..."):
            continue
        if len(pieces) < 3:
            continue
        if "lorem ipsum" in line.lower():
            return "lorem_ipsum", None
        if "javascript" in line.lower():
            continue
        if "{" in line:
            return "curly_bracket", None
        if not any(phrase in line.lower() for phrase in pack.policy_phrases):
            kept.append(line)
    if sum(sentences(line, pack.sentence_end) for line in kept) < 5:
        return "too_few_sentences", None
    return "", "\n".join(kept).strip()


def fineweb(text, ends):
    """The reason and the value that `fineweb.check` should give with its defaults."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "empty", 0
    if (share := sum(line[-1] in ends for line in lines) / len(lines)) < 0.12:
        return "line_punct_ratio", share
    if (share := sum(len(line) < 31 for line in lines) / len(lines)) > 0.67:
        return "short_line_ratio", share
    if (share := len("".join(repeated(lines))) / len(text.replace("\n", ""))) > 0.01:
        return "char_dup_ratio", share
    if (share := text.count("\n") / len(words_of(text))) > 0.3:
        return "list_ratio", share
    return "", 0
