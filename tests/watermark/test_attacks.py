import numpy as np
import pytest

from alignment.errors import InputError
from alignment.watermark import attacks

RNG = np.random.default_rng
IDS = list(range(100, 200))


def test_a_cut_is_a_piece_of_the_text():
    piece = attacks.cut(IDS, 30, RNG(0))
    assert piece == IDS[piece[0] - 100 :][:30] and len(piece) == 30
    assert attacks.cut(IDS, 500, RNG(0)) == IDS


def test_a_mix_replaces_the_share_it_says():
    mixed = attacks.mix(IDS, list(range(50)), 0.4, RNG(0))
    assert 25 < sum(x < 100 for x in mixed) < 55
    assert all(x in (y, i % 50) for i, (x, y) in enumerate(zip(mixed, IDS)))
    assert attacks.mix(IDS, [1], 0.0, RNG(0)) == IDS
    with pytest.raises(InputError, match=r"share=1\.5"):
        attacks.mix(IDS, [1], 1.5, RNG(0))
    with pytest.raises(InputError, match="empty"):
        attacks.mix(IDS, [], 0.5, RNG(0))


def test_pasted_pieces_keep_their_order_inside_the_other_text():
    other = list(range(300))
    other = [x + 1_000 for x in other]
    out = attacks.paste(IDS, other, 3, RNG(1))
    assert [x for x in out if x < 1_000] == IDS and [x for x in out if x >= 1_000] == other


def test_words_are_swapped_for_the_lists_synonyms_and_keep_a_capital():
    synonyms = attacks.read_synonyms(
        [{"word": "Big", "synonyms": "large, great"}, {"word": "cat", "synonyms": ["tom"]}]
    )
    out = (
        attacks.swap("Big dogs; a big cat.", synonyms, 1.0, RNG(0)).replace("great", "large").replace("Great", "Large")
    )
    assert out == "Large dogs; a large tom."
    assert attacks.swap("Big cat", synonyms, 0.0, RNG(0)) == "Big cat"
    for row in ({"word": "big"}, {"word": "big", "synonyms": "large,,great"}, {"word": " ", "synonyms": ["a"]}):
        with pytest.raises(InputError, match="record 1"):
            attacks.read_synonyms([row])


def test_a_paraphrase_is_the_models_answer_and_an_empty_one_changes_nothing():
    asked = []

    def ask(prompts):
        asked.extend(prompts)
        return [" other words ", ""]

    assert attacks.paraphrase(["one", "two"], ask) == ["other words", "two"]
    assert asked[0].endswith("one")
