import numpy as np
import pytest

from alignment.errors import InputError
from data import records, sources
from data.texts import preferences
from data.tokens import tokenizer

tfds = pytest.importorskip("tensorflow_datasets")


class TinyPairs(tfds.core.GeneratorBasedBuilder):
    """Pairs with a nested message list, as a user's builder would have them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        turn = {"role": tfds.features.Text(), "content": tfds.features.Text()}
        features = {"prompt": tfds.features.Text(), "chosen": tfds.features.Text(), "rejected": tfds.features.Text()}
        features |= {"scores": tfds.features.Sequence(np.float32), "turns": tfds.features.Sequence(turn)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(8), "test": self._generate_examples(2)}

    def _generate_examples(self, num=0):
        for i in range(num):
            turns = [{"role": "user", "content": f"é {i}"}]
            yield i, {"prompt": f"Q{i}? ", "chosen": "yes é", "rejected": "no", "scores": [1.0, 0.5], "turns": turns}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    builder = TinyPairs(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_path)


def test_text_arrives_as_str_and_sequences_as_lists(folder):
    source = sources.open_source(folder, "train")
    assert len(source) == 8
    row = next(r for r in source if r["prompt"] == "Q3? ")
    assert row["chosen"] == "yes é" and row["scores"] == [1.0, 0.5]
    assert row["turns"] in ([{"role": "user", "content": "é 3"}], {"role": ["user"], "content": ["é 3"]})


def test_a_prepared_builder_serves_as_preference_data(folder):
    tok = tokenizer.load("bytes")
    train, heldout, report = preferences.load(path=f"tfds:{folder}", heldout_split="test", tokenizer=tok)
    assert (len(train), len(heldout), report["records"]) == (8, 2, 10)
    assert tok.decode(train.sequence(0, 0)).endswith("? yes é")


def test_mocked_builders_open_without_tensorflow():
    with tfds.testing.mock_data(num_examples=3):
        rows, bad = records.read("tfds:imdb_reviews", split="train")
    assert (
        len(rows) == 3
        and isinstance(rows[0].value["text"], str)
        and isinstance(rows[0].value["label"], int)
        and not bad
    )
    assert "tensorflow" not in __import__("sys").modules


def test_unknown_builders_and_splits_are_refused(folder):
    with pytest.raises(InputError, match="tfds:no_such_builder"):
        sources.open_source("no_such_builder", "train")
    with pytest.raises(InputError, match=r"split 'dev'.*splits: test, train"):
        sources.open_source(folder, "dev")


def test_plain_keeps_pictures_and_undecodable_bytes():
    picture = np.zeros((2, 2, 3), np.uint8)
    assert sources.plain({"a": picture})["a"] is picture
    assert sources.plain(b"\xff\xd8") == b"\xff\xd8"
    assert sources.plain({"a": np.array([b"x", b"y"], object), "b": np.int64(3)}) == {"a": ["x", "y"], "b": 3}
