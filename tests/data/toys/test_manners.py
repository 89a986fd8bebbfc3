from data.toys import manners

PROMPT = "Child: Where is the owl clock?\nGuide:"
FACT = " The owl clock is in the north hall."


def test_the_two_wishes_score_the_same_answers_the_other_way_round():
    plain, kind = FACT, f" Gladly.{FACT} I wish you a most delightful day."
    assert manners.brief(PROMPT, plain) > manners.brief(PROMPT, kind)
    assert manners.courteous(PROMPT, kind) > manners.courteous(PROMPT, plain)
    assert manners.courteous(PROMPT, kind) == 1.3  # one point and two


def test_no_kindness_and_no_brevity_makes_up_for_a_missing_fact():
    empty, kind = "", " ".join(manners.POINTS)
    assert manners.brief(PROMPT, empty) < manners.brief(PROMPT, f"{FACT} {' word' * 60}")
    assert manners.courteous(PROMPT, kind) < manners.courteous(PROMPT, FACT)
    assert manners.courteous(PROMPT, " The owl clock is in the east wing.") == 0


def test_both_wishes_have_the_same_pairs_each_with_its_own_choice():
    brief, courteous = (manners.preference_pairs(wish, 200, seed=1) for wish in manners.RULES)
    assert brief == manners.preference_pairs("brief", 200, seed=1) != manners.preference_pairs("brief", 200, seed=2)
    opposed = 0
    for a, b in zip(brief, courteous):
        assert a["prompt"] == b["prompt"] and {a["chosen"], a["rejected"]} == {b["chosen"], b["rejected"]}
        for row in (a, b):
            rule = manners.RULES[row["dimension"]]
            assert rule(row["prompt"], row["chosen"]) > rule(row["prompt"], row["rejected"])
        opposed += a["chosen"] == b["rejected"]
    assert 0.8 < opposed / 200 < 1  # a long phrase may be worth more points than a longer pair of short ones
