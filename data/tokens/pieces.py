"""The bytes of every token, so that an answer can be read token by token while it is written.

A letter may be spread over several tokens, so a token's part of the text is bytes and not always text.
"""

from collections.abc import Sequence
from typing import Any

from data.tokens import encoders, tokenizer

MARK = "▁"  # how sentencepiece writes a space


def pieces(tok: tokenizer.Tokenizer) -> list[bytes]:
    """The bytes that each id adds to a text that has begun; b"" for special tokens and for ids that nobody has.

    The pieces of a text's ids, joined and read as UTF-8, are what `tok.decode` returns, but for a space that some
    tokenizers take off the beginning (see `drops_first_space`). Where bytes are not UTF-8, `tok.decode` may write
    another number of replacement characters.
    """
    by_kind = {encoders.Bytes: _of_bytes, encoders.Json: _of_json, encoders.SentencePiece: _of_sentencepiece}
    return by_kind[type(tok.encoder)](tok.encoder)  # type: ignore[index]  # the protocol's only three kinds


def drops_first_space(tok: tokenizer.Tokenizer, all_pieces: Sequence[bytes]) -> bool:
    """Whether `tok.decode` takes one space off the beginning of a text.

    Such tokenizers write every word with a space before it, also the first of a text. An answer that goes on from a
    prompt needs that space; an answer that stands alone, as in a chat, begins without it.
    """
    for i, piece in enumerate(all_pieces):
        if piece[:1] == b" " and piece[1:].isalnum():
            return not tok.decode([i]).startswith(" ")
    return False


def _of_bytes(encoder: encoders.Bytes) -> list[bytes]:
    return [bytes([i]) if i < 256 else b"" for i in range(encoder.num_ids)]


def _of_json(encoder: encoders.Json) -> list[bytes]:
    decoder = encoder.tokenizer.decoder
    kinds = repr(decoder)
    byte_of = {letter: bytes([i]) for i, letter in enumerate(encoders.byte_letters())} if "ByteLevel" in kinds else {}
    is_spelt = "ByteFallback" in kinds
    out = []
    for i in range(encoder.num_ids):
        token = encoder.tokenizer.id_to_token(i)
        if token is None or i in encoder.special_ids:
            out.append(b"")
        elif byte_of:
            is_plain = all(letter in byte_of for letter in token)  # an added token may be written with other letters
            out.append(b"".join(byte_of[letter] for letter in token) if is_plain else token.encode())
        elif is_spelt and (byte := _spelt_byte(token)) is not None:
            out.append(byte)
        else:
            out.append(_added_text(decoder, token).encode())
    return out


def _added_text(decoder: Any, token: str) -> str:
    """What the token adds after another; decoders treat a text's first token in a way of its own."""
    if decoder is None:
        return f" {token}"
    return decoder.decode(["a", token]).removeprefix("a")


def _spelt_byte(token: str) -> bytes | None:
    """The byte that a piece such as <0x0A> stands for."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes.fromhex(token[3:5])
        except ValueError:
            return None
    return None


def _of_sentencepiece(encoder: encoders.SentencePiece) -> list[bytes]:
    processor, out = encoder.processor, []
    for i in range(encoder.num_ids):
        if i in encoder.names:
            out.append(b"" if i in encoder.special_ids else encoder.names[i].encode())
        elif i >= encoder.size:
            out.append(b"")
        else:
            piece = processor.id_to_piece(i)
            byte = _spelt_byte(piece) if processor.is_byte(i) else None
            out.append(piece.replace(MARK, " ").encode() if byte is None else byte)
    return out
