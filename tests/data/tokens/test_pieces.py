import random

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from data.tokens import encoders, pieces, sentencepiece_json, tokenizer, word_bytes

TEXTS = (
    "The owl clock is in the north hall.",
    "  two spaces\n\nand\ttabs",
    "مرحبا بالعالم، كيف الحال؟",
    "😀 𓀀 a\u200bb é ﷺ",
    "don't . , ! it's x",
)


def joined(tok, table, ids):
    raw = b"".join(table[i] for i in ids)
    return raw.removeprefix(b" ") if pieces.drops_first_space(tok, table) else raw


def check(tok, texts=TEXTS, *, num_random=200):
    """Encoded texts, and random ids, read as `tok.decode` reads them; random ids where both are whole letters."""
    table, letters = pieces.pieces(tok), random.Random(0)
    assert len(table) == tok.vocab_size
    for text in texts:
        ids = tok.encode(text)
        assert joined(tok, table, ids).decode("utf-8", "replace") == tok.decode(ids), text
    start = tok.encode(texts[0])  # a text that has begun: what is dropped at its start is tested above
    usable = sorted(set(range(tok.vocab_size)) - tok.encoder.special_ids)
    num_same = 0
    for _ in range(num_random):
        ids = start + letters.choices(usable, k=letters.randint(1, 8))
        raw = joined(tok, table, ids)
        try:
            whole = raw.decode("utf-8")
        except UnicodeDecodeError:
            continue  # libraries differ in how many replacement characters stand for broken bytes
        assert whole == tok.decode(ids), ids
        num_same += 1
    assert num_same > 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two sentencepiece models trained on a few lines: unigram, and BPE with bytes for letters it does not know."""
    folder = tmp_path_factory.mktemp("sp")
    (folder / "text.txt").write_text("\n".join(f"the owl number {i} sat in hall {i % 7}" for i in range(300)))
    out = {}
    for kind, size, options in (("unigram", 60, {}), ("bpe", 330, {"byte_fallback": True})):
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "text.txt"),
            model_prefix=str(folder / kind),
            vocab_size=size,
            model_type=kind,
            minloglevel=2,
            hard_vocab_limit=False,
            **options,
        )
        out[kind] = folder / f"{kind}.model"
    return out


def test_pieces_of_bytes_are_the_bytes():
    tok = tokenizer.load("bytes")
    table = pieces.pieces(tok)
    assert table[:256] == [bytes([i]) for i in range(256)] and set(table[256:]) == {b""}
    assert not pieces.drops_first_space(tok, table)
    check(tok)


def test_pieces_of_byte_level_words_read_as_decoded(tmp_path):
    check(word_bytes.build(TEXTS, tmp_path))


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_pieces_of_sentencepiece_models_and_their_json_read_as_decoded(tmp_path, trained, kind):
    tok = tokenizer.load(str(trained[kind]))
    texts = ["the owl sat in hall", *(TEXTS[2:4] if kind == "bpe" else ())]
    check(tok, texts)
    assert pieces.drops_first_space(tok, pieces.pieces(tok))
    content = sentencepiece_json.tokenizer_json(trained[kind].read_bytes(), bos=None, added=tok.encoder.added)
    (tmp_path / "tokenizer.json").write_bytes(content)
    from_json = tokenizer.load(str(tmp_path / "tokenizer.json"))
    check(from_json, texts)
    assert pieces.pieces(from_json)[: tok.vocab_size] == pieces.pieces(tok)


def test_a_letter_spelt_in_bytes_is_whole_only_after_its_last_token(trained):
    tok = tokenizer.load(str(trained["bpe"]))
    table = pieces.pieces(tok)
    ids = tok.encode("owl 😀")
    assert b"".join(table[i] for i in ids[-4:]) == "😀".encode()
    assert [len(table[i]) for i in ids[-4:]] == [1, 1, 1, 1]


def test_pieces_of_wordpiece_hold_the_space_before_a_word(tmp_path):
    words = ["[UNK]", "owl", "##s", "the", ".", "'", "s"]
    tok = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    tok.add_special_tokens(["[UNK]"])
    tok.save(str(tmp_path / "tokenizer.json"))
    loaded = tokenizer.load(str(tmp_path / "tokenizer.json"))
    assert pieces.pieces(loaded) == [b"", b" owl", b"s", b" the", b".", b" '", b" s"]
    assert joined(loaded, pieces.pieces(loaded), loaded.encode("the owls.")) == b"the owls."


def test_pieces_of_added_tokens_are_their_text_and_of_special_ones_nothing(tmp_path):
    tok = word_bytes.build(TEXTS, tmp_path)
    json_tok = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    json_tok.add_tokens(["owl mark ✓"])
    json_tok.save(str(tmp_path / "tokenizer.json"))
    loaded = tokenizer.load(str(tmp_path))
    table = pieces.pieces(loaded)
    assert table[loaded.encoder.id_of("owl mark ✓")] == "owl mark ✓".encode()
    assert table[tok.eos_id] == b""
    check(loaded, ["the owl mark ✓ owl"])


def test_byte_letters_are_a_letter_for_every_byte():
    assert len(set(encoders.byte_letters())) == 256


def test_pieces_of_real_tokenizers_read_as_decoded(real_tokenizers):
    for name, tok in real_tokenizers.items():
        knows_all = name in ("mistral_v3.model", "gpt_neox_olmo_tokenizer.json", "aranizer_bpe_32k.json")
        check(tok, TEXTS if knows_all else TEXTS[:1], num_random=1_000)
