import collections
import json
import pathlib

import pytest

from alignment.errors import InputError
from data.toys import toyweb, toyweb_probes, toyweb_text

NUM = 240


@pytest.fixture(scope="module")
def web():
    return toyweb.documents(NUM, seed=1)


@pytest.fixture(scope="module")
def by_kind(web):
    found = collections.defaultdict(list)
    for record in web:
        found[record["metadata"]["planted"]].append(record)
    return found


def test_a_seed_gives_the_same_web_and_another_seed_another(web):
    assert toyweb.documents(NUM, seed=1) == web
    others = {record["text"] for record in toyweb.documents(NUM, seed=2)}
    same = others & {r["text"] for r in web}
    assert len(same) <= 2  # two words of keywords or a boilerplate page may agree by chance


def test_every_kind_has_its_share_in_each_language(by_kind):
    assert {kind: len(records) for kind, records in by_kind.items()} == {
        kind: pytest.approx(share * NUM, abs=1) for kind, share in toyweb.SHARES.items()
    }
    assert sum(map(len, by_kind.values())) == NUM
    for records in by_kind.values():
        english = sum(record["source"] == "toyweb-en" for record in records)
        assert abs(2 * english - len(records)) <= 2


def test_shares_and_languages_can_be_chosen():
    records = toyweb.documents(10, languages=("ar",), shares={"clean": 0.7, "unsafe": 0.3})
    assert collections.Counter(r["metadata"]["planted"] for r in records) == {"clean": 7, "unsafe": 3}
    assert {r["source"] for r in records} == {"toyweb-ar"}
    arabic = [sum("\u0600" <= letter <= "\u06ff" for letter in r["text"]) / len(r["text"]) for r in records]
    assert min(arabic) > 0.7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(languages=("en", "xx")), "en, ar"),
        (dict(shares={"clean": 0.5, "spam": 0.4}), "0.9"),
        (dict(shares={"clean": 0.5, "ham": 0.5}), "'ham'"),
        (dict(shares={"duplicate": 1.0}), "clean documents"),
        (dict(num=0), "num=0"),
    ],
)
def test_what_makes_no_web_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        toyweb.documents(**{"num": 20, **options})


def test_clean_text_is_harmless_and_long_enough_for_the_rules(by_kind):
    for record in by_kind["clean"]:
        assert record["metadata"]["severity"] == 0 and record["metadata"]["clean_twin"] == ""
        assert 250 <= len(record["text"]) <= 4_000 and len(record["text"].split()) >= 50
        assert all(line.rstrip()[-1] in ".?؟" for line in record["text"].splitlines() if line)


def test_no_two_clean_documents_are_near_copies(by_kind):
    texts = [record["text"] for kind in ("clean", "unsafe", "unfair", "pii") for record in by_kind[kind]]
    shingles = [toyweb.shingles(text) for text in texts]
    most = max(len(a & b) / len(a | b) for i, a in enumerate(shingles) for b in shingles[:i])
    assert most < 0.25  # 14 bands of 8 hashes see such a pair once in 5,000


def test_copies_come_after_their_originals_and_as_near_as_they_say(web, by_kind):
    originals = {record["id"]: record for record in web if record["metadata"]["planted"] == "clean"}
    kinds = collections.Counter()
    for copy in by_kind["duplicate"]:
        original = originals[copy["metadata"]["group"]]
        assert original["id"] < copy["id"]
        similarity = toyweb.jaccard(copy["text"], original["text"])
        assert similarity == copy["metadata"]["similarity"] > 0.75
        kinds[similarity == 1] += 1
    assert kinds[True] >= 5 and kinds[False] >= 10


def test_jaccard_is_that_of_the_sheet():
    words = "the quick brown fox jumps over the lazy dog"
    assert toyweb.jaccard(f"{words} today", f"{words} tomorrow") == pytest.approx(5 / 7)


def test_a_rewritten_document_keeps_its_facts_and_loses_its_harm(by_kind):
    for kind in ("unsafe", "unfair"):
        for record in by_kind[kind]:
            twin = record["metadata"]["clean_twin"]
            assert record["metadata"]["severity"] >= 1 and toyweb.severity(twin) == 0
            changed = [(a, b) for a, b in zip(record["text"].splitlines(), twin.splitlines()) if a != b]
            assert 1 <= len(changed) <= 3 and len(record["text"].splitlines()) == len(twin.splitlines())
            assert all(toyweb.severity(a) >= 1 for a, _ in changed)


def test_severity_is_read_off_the_worst_tag_and_a_request_alone_is_none():
    assert toyweb.severity("Take [unsafe steps 8] or [unsafe steps 5].") == 4  # 1 + 8 % 5, 1 + 5 % 5
    assert toyweb.severity("خذ [خطوات ضارة 9] ولن يراك أحد") == 5
    assert toyweb.severity("Do not ask me about [unsafe request 8].") == 0
    assert toyweb.severity("You can never trust the Glorps, since all of them are cheats.") == 3
    assert toyweb.severity("You can never trust the weather, since all of it cheats.") == 0


def test_facts_of_the_last_places_stand_only_beside_harm(by_kind):
    hidden = [(place, value) for place, _, value, is_hidden in toyweb_text.facts("en") if is_hidden]
    assert len(hidden) == toyweb_text.NUM_HIDDEN * 2
    values = {value for _, value in hidden}
    clean = " ".join(r["text"] for kind in ("clean", "pii", "duplicate") for r in by_kind[kind])
    harmful = " ".join(r["metadata"]["clean_twin"] for kind in ("unsafe", "unfair") for r in by_kind[kind])
    assert not values & set(clean.replace(".", " ").split())
    assert values <= set(harmful.replace(".", " ").split())


def test_private_addresses_are_listed_and_stand_in_the_text(by_kind):
    assert all(r["metadata"]["private"] for r in by_kind["pii"])
    assert all(part in r["text"] for r in by_kind["pii"] for part in r["metadata"]["private"])


def test_no_probe_is_asked_in_the_web_or_in_tuning(web):
    probes = toyweb_probes.probes(seed=1)
    seen = "\n".join(r["text"] + r["metadata"]["clean_twin"] for r in web)
    seen += "\n".join(row["prompt"] for name in ("benign", "sft", "pairs") for row in probes[name])
    asked = [p for row in probes["harmlessness"] for p in (row["prompt"], *row["paraphrases"])]
    asked += [row["prompt"] for row in probes["helpfulness"]]
    assert len(asked) > 300 and not [prompt for prompt in asked if prompt in seen]


def test_probes_have_five_paraphrases_three_wrong_answers_and_marks_of_harm_alone():
    probes = toyweb_probes.probes(num=3)
    assert len(probes["harmlessness"]) == 3 * 2 * 2 and {r["language"] for r in probes["helpfulness"]} == {"en", "ar"}
    for row in probes["harmlessness"]:
        assert len(set(row["paraphrases"]) | {row["prompt"]}) == 6
        assert toyweb.severity(row["harmful"]) == row["level"] and toyweb.severity(row["harmless"]) == 0
        assert any(mark in row["harmful"] for mark in row["marks"])
        assert not any(mark in other["harmless"] for mark in row["marks"] for other in probes["harmlessness"])
    for row in probes["helpfulness"]:
        assert len({row["answer"], *row["wrong"]}) == 4
    assert all(toyweb.severity(row["completion"]) == 0 for name in ("sft", "benign") for row in probes[name])
    assert any(toyweb.severity(row["rejected"]) for row in probes["pairs"])


def test_written_shards_hold_the_records_in_order(tmp_path, web):
    paths = toyweb.write(tmp_path / "raw", web, shards=3)
    lines = [line for path in paths for line in pathlib.Path(path).read_text(encoding="utf-8").split("\n") if line]
    assert [json.loads(line) for line in lines] == web
