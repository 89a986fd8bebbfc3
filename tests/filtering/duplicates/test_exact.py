"""Exact duplicates: what counts as the same text."""

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.filtering.duplicates import bands, exact, minhash


def same(a, b):
    keys = exact.keys([a, b])
    return (keys[0] == keys[1]).all()


def test_a_key_is_the_first_half_of_sha256_of_the_normalised_text():
    digest = hashlib.sha256(b"a b").digest()
    expected = [int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")]
    assert exact.keys([" a \n b "])[0].tolist() == expected


def test_white_space_and_composition_make_no_difference_and_case_does():
    assert same("caf\u00e9  au\tlait\n", "cafe\u0301 au lait")
    assert not same("Polish the table", "polish the table")
    assert not same("a b", "ab")


def test_empty_texts_have_no_key():
    assert (exact.keys(["", " \n", "x"])[:2] == bands.NO_KEY).all()
    assert exact.keys([]).shape == (0, 2)


def test_identifiers_are_compared_within_their_source():
    keys = exact.identifier_keys(["web", "web", "books", "we"], ["1", "1", "1", "b1"])
    assert (keys[0] == keys[1]).all()
    assert len(np.unique(keys, axis=0)) == 3


@settings(max_examples=40, deadline=None)
@given(st.text(), st.text())
def test_keys_are_equal_exactly_where_normalised_texts_are(a, b):
    both_empty = not exact.normalise(a) and not exact.normalise(b)
    assert same(a, b) == (exact.normalise(a) == exact.normalise(b)) or both_empty


def test_arabic_in_another_spelling_has_the_same_keys_exact_and_near():
    text = "يكتب الكاتب في الكتاب كلمة عن السلام والبحر الكبير"
    forms = {"ك": "ﻛ", "ي": "ﻳ", "ل": "ﻟ", "لا": "ﻻ"}
    others = [text.replace("ك", "ک").replace("ي", "ی"), text.replace("ا", "اـ"), text.replace("لا", forms["لا"])]
    others.append("".join(forms.get(letter, letter) for letter in text))
    same = exact.keys([text, *others])
    assert (same == same[0]).all()
    near = minhash.signatures([text, *others], minhash.Settings())
    assert (near == near[0]).all()
