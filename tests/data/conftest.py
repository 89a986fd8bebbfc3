import pytest

from data.tokens import tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer():
    return tokenizer.load("bytes")


@pytest.fixture(scope="session")
def real_tokenizers(shared_data):
    """The six real tokenizers, by file name."""
    files = sorted(p for p in (shared_data / "tokenizers").iterdir() if p.suffix in (".json", ".model"))
    return {p.name: tokenizer.load(str(p)) for p in files}
