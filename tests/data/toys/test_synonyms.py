from data.toys import synonyms


def test_every_common_word_has_others_than_itself_and_they_lead_back():
    words = synonyms.english()
    assert len(words) > 300 and words["big"] == ["large", "great"]
    for word, others in words.items():
        assert word.isalpha() and word.islower() and others and word not in others
        assert len(set(others)) == len(others) and all(word in words[other] for other in others)
