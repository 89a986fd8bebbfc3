from data.texts import suites
from experiments.safety import asking


def test_prompts_are_drawn_by_the_seed_and_stay_in_order():
    cases = [suites.Case(str(i), "a", "harmless") for i in range(50)]
    drawn = asking.some(cases, 5, 0)
    assert list(drawn) == sorted(drawn, key=lambda case: int(case.id)) and drawn == asking.some(cases, 5, 0)
    assert drawn != asking.some(cases, 5, 1) and asking.some(cases, 5, None) == cases[:5]
