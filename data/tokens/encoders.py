"""Strings to token ids by each kind of tokenizer: bytes, a tokenizer.json, a sentencepiece model."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import AddedToken

from alignment.errors import InputError

Added = Mapping[int, AddedToken]
Encoded = tuple[list[int], list[tuple[int, int]]]
BYTE_SPECIALS = ("<|pad|>", "<|bos|>", "<|eos|>", *(f"<|reserved_{i}|>" for i in range(5)))  # 264 ids: splits over 8


class Bytes:
    """UTF-8 bytes are ids 0 to 255, then eight special tokens."""

    num_ids = 256 + len(BYTE_SPECIALS)
    special_ids = frozenset(range(256, num_ids))
    adds_bos = True

    def id_of(self, token: str) -> int | None:
        return 256 + BYTE_SPECIALS.index(token) if token in BYTE_SPECIALS else None

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        return [_encode_parts(text, _BYTE_SPLIT, self.id_of, _byte_part) for text in texts]

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        pieces = [bytes([i]) if i < 256 else b"" if skip_special else BYTE_SPECIALS[i - 256].encode() for i in ids]
        return b"".join(pieces).decode("utf-8", errors="replace")


class Json:
    """A Hugging Face tokenizer.json, read by the tokenizers library."""

    def __init__(
        self, content: bytes, where: str, added: Added | None = None, named: Mapping[str, AddedToken] | None = None
    ):
        """See `_need_id` on `named`.

        Args:
            added: tokens that a configuration adds by id; the way in which they match wins over the file's own.
            named: special tokens that a configuration names.
        """
        try:
            self.full = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
            plain = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except Exception as e:  # the library raises bare Exception
            raise InputError(
                f"{where} is not a tokenizer.json that tokenizers {tokenizers.__version__} reads: {e}"
            ) from e
        for tokenizer in (self.full, plain):
            tokenizer.no_truncation()
            tokenizer.no_padding()
            own = tokenizer.get_added_tokens_decoder()
            for i, token in sorted((added or {}).items()):
                if repr(own.get(i)) != repr(token):  # AddedToken's == compares the texts alone
                    tokenizer.add_tokens([token])
                if tokenizer.token_to_id(token.content) != i:
                    raise InputError(
                        f"{where}: token {token.content!r} has id {tokenizer.token_to_id(token.content)}, "
                        f"its config says {i}"
                    )
            present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
            for text, token in (named or {}).items():
                _need_id(where, text, tokenizer.token_to_id(text))
                if text not in present:
                    tokenizer.add_special_tokens([token])
        # Without its post-processor, since some trim the offsets, and answers.py and text.py add BOS themselves.
        plain.post_processor = tokenizers.processors.Sequence([])
        self.tokenizer = plain
        self.num_ids = max(plain.get_vocab(with_added_tokens=True).values()) + 1
        added_tokens = plain.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added_tokens.items() if token.special)
        self.special_tokens = [added_tokens[i].content for i in sorted(self.special_ids)]

    def id_of(self, token: str) -> int | None:
        return self.tokenizer.token_to_id(token)

    @property
    def first_ids(self) -> list[int]:
        """The ids of one letter with the file's own post-processor, which may put BOS first."""
        return self.full.encode("a").ids

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        return [(e.ids, e.offsets) for e in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special)


class SentencePiece:
    """A sentencepiece model. Control tokens written out in a text become their ids, as in transformers."""

    def __init__(
        self,
        content: bytes,
        where: str,
        added: Added | None = None,
        legacy: bool = False,
        named: Mapping[str, AddedToken] | None = None,
    ):
        self.is_legacy = legacy
        self.processor = _processor(content, where)
        # `inner` encodes text after a special token. It puts no extra space before it, as in transformers with
        # legacy=false; in models that fold spaces it does, as at the beginning of a text. The bytes appended here are
        # a second ModelProto.normalizer_spec, which protobuf merges into the first: add_dummy_prefix (field 3) = false.
        folds = self.processor.encode("a  b") == self.processor.encode("a b")
        self.inner = self.processor if legacy or folds else _processor(content + b"\x1a\x02\x18\x00", where)
        size = self.processor.vocab_size()
        own = {i: self.processor.id_to_piece(i) for i in range(size) if self.processor.is_control(i)}
        unknown = self.processor.unk_id()
        own |= {unknown: self.processor.id_to_piece(unknown)} if unknown >= 0 else {}
        tokens = {i: AddedToken(text, special=True, normalized=False) for i, text in own.items()} | dict(added or {})
        texts = {token.content for token in tokens.values()}
        for text, token in (named or {}).items():
            if text not in texts:
                tokens[_need_id(where, text, _piece_id(self.processor, text))] = token
        self.added = tokens  # beside the model's own: control tokens, the unknown one, and those of a configuration
        names = {i: token.content for i, token in tokens.items()}
        self.names = names
        self.ids = {token: i for i, token in names.items()}
        self.special_ids = frozenset(i for i, token in tokens.items() if token.special)
        self.special_tokens = [names[i] for i in sorted(self.special_ids)]
        self.by_text = {token.content: token for token in tokens.values()}
        self.num_ids = max([size - 1, *names]) + 1
        self.size = size
        longest_first = sorted(self.by_text.values(), key=lambda token: len(token.content), reverse=True)
        self.split = re.compile("|".join(map(_pattern, longest_first)) or "(?!)")

    def id_of(self, token: str) -> int | None:
        if token in self.ids:
            return self.ids[token]
        return _piece_id(self.processor, token)

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        return [_encode_parts(text, self.split, self.id_of, self._part, self.by_text) for text in texts]

    def _part(self, text: str, start: int) -> Encoded:
        processor = self.processor if start == 0 else self.inner
        ids, offsets = _pieces(processor, text)
        return ids, [(start + a, start + b) for a, b in offsets]

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        parts: list[str] = []
        run: list[int] = []  # ids between two special tokens
        for i in [*ids, -1]:
            if 0 <= i < self.size and i not in self.names:
                run.append(i)
                continue
            if run:  # only the first run begins with the extra space, which decoding takes off
                parts.append((self.processor if not parts else self.inner).decode(run))
                run = []
            if i >= 0:
                parts.append("" if skip_special and i in self.special_ids else self.names.get(i, ""))
        return "".join(parts)


def _piece_id(processor: Any, token: str) -> int | None:
    i = processor.piece_to_id(token)  # the unknown token's for any other text
    return i if processor.id_to_piece(i) == token else None


def _need_id(where: str, token: str, i: int | None) -> int:
    """The id of a special token that a configuration names; without one, answers that end in it would never end."""
    if i is None:
        raise InputError(
            f"{where}: {token!r} is named as a special token but has no id; give added_tokens.json its id, its "
            "row of the embedding, or take the name out of tokenizer_config.json and special_tokens_map.json"
        )
    return i


def _pattern(token: AddedToken) -> str:
    text = re.escape(token.content)
    return rf"(?<!\w){text}(?!\w)" if token.single_word else text


def _processor(content: bytes, where: str) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except Exception as e:
        raise InputError(f"{where} is not a sentencepiece model: {e}") from e


def _pieces(processor: Any, text: str) -> Encoded:
    """Ids and character offsets; sentencepiece 0.2.2 renamed the call."""
    try:
        mapping = processor.encode(text, return_type="offset_mapping")
        return list(mapping["ids"]), [tuple(o) for o in mapping["offsets"]]
    except TypeError:
        proto = processor.encode(text, out_type="immutable_proto")
        return [p.id for p in proto.pieces], [(p.begin, p.end) for p in proto.pieces]


_BYTE_SPLIT = re.compile("|".join(re.escape(token) for token in BYTE_SPECIALS))


def _byte_part(text: str, start: int) -> Encoded:
    if text.isascii():
        return list(text.encode()), [(i, i + 1) for i in range(start, start + len(text))]
    offsets = [(i, i + 1) for i, letter in enumerate(text, start) for _ in letter.encode("utf-8", errors="replace")]
    return list(text.encode("utf-8", errors="replace")), offsets


def _encode_parts(
    text: str,
    split: re.Pattern[str],
    id_of: Callable[[str], int | None],
    encode_part: Callable[[str, int], Encoded],
    flags: Mapping[str, AddedToken] | None = None,
) -> Encoded:
    """Cut a text at its special tokens, and encode the parts between them.

    Args:
        encode_part: (part, the character where it starts) -> ids and offsets in the whole text.
        flags: of special tokens that take the white space on a side of them (`lstrip`, `rstrip`) as their own.
    """
    ids: list[Any] = []
    offsets: list[tuple[int, int]] = []
    at = 0
    for match in [*split.finditer(text), None]:
        start, end = match.span() if match else (len(text), len(text))
        token = flags.get(match.group()) if match and flags else None
        if token and token.lstrip:
            start = at + len(text[at:start].rstrip())
        if token and token.rstrip:
            end = _SPACE.match(text, end).end()  # type: ignore[union-attr]  # it matches the empty text
        if start > at:
            part_ids, part_offsets = encode_part(text[at:start], at)
            ids += part_ids
            offsets += part_offsets
        if match:
            ids.append(id_of(match.group()))
            offsets.append((start, end))
            at = end
    return ids, offsets


def byte_letters() -> str:
    """The printable letter that byte-level BPE writes for each byte (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = iter(range(256, 512))
    return "".join(chr(b) if b in printable else chr(next(moved)) for b in range(256))


_SPACE = re.compile(r"\s*")
