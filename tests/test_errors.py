import pytest

from alignment import errors


def test_a_known_value_comes_back():
    assert errors.one_of("loss", "dpo", {"dpo": 1, "ipo": 2}) == "dpo"


def test_an_unknown_value_is_refused_with_the_nearest_name_and_the_list():
    with pytest.raises(errors.InputError) as e:
        errors.one_of("loss", "dop", ("dpo", "ipo"), hint="see --help")
    assert str(e.value) == "loss='dop' is not one of: dpo, ipo; the nearest is 'dpo'; see --help"


def test_a_value_that_is_no_text_and_an_empty_list_are_said():
    with pytest.raises(errors.InputError, match=r"^size=3 is not one of: 1, 2$"):
        errors.one_of("size", 3, (1, 2))
    with pytest.raises(errors.InputError, match=r"is not one of: nothing$"):
        errors.one_of("size", 3, ())
