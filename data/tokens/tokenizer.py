"""Strings to token ids and back, with the character offsets that say which token holds which letter.

One `Tokenizer` whatever the file: bytes (the default, nothing to download), a Hugging Face folder, a `tokenizer.json`,
a sentencepiece `.model`. Encoding adds no special token by itself; special tokens written out in a text become their
ids.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Protocol

from alignment.errors import InputError
from data.tokens import chat, checkpoint_files, encoders


class Encoder(Protocol):
    """What reads one kind of file; see encoders.py."""

    num_ids: int  # largest id + 1
    special_ids: frozenset[int]

    def encode_batch(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]: ...

    def decode(self, ids: Sequence[int], skip_special: bool) -> str: ...


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Token ids and what surrounds them.

    Attributes:
        vocab_size: largest id + 1; a checkpoint's embedding may have more rows, never fewer.
        bos_id, eos_id: None where the tokenizer has no such token.
        pad_id: fills rows; always masked, so any valid id would do.
        stop_ids: generation ends at any of them: EOS, those of generation_config.json, the template's end of turn.
        adds_bos: whether plain text is to begin with BOS. A rendered chat template writes its own.
        chat_template: jinja source, the plain one of chat.py where the files have none.
        has_own_template: whether the files brought the template.
        tokens: `bos_token`, `eos_token`, ... as text, for the template.
        files: name to content of what `save` writes.
    """

    encoder: Encoder
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int
    stop_ids: tuple[int, ...]
    adds_bos: bool
    chat_template: str
    has_own_template: bool
    tokens: dict[str, str]
    files: dict[str, bytes]
    name: str

    def encode(self, text: str, *, add_bos: bool = False, add_eos: bool = False) -> list[int]:
        """Token ids of a text; `add_bos` does not double a BOS that the text already has."""
        ids = self.encoder.encode_batch([text])[0][0]
        bos = [self.bos_id] if add_bos and self.bos_id is not None and ids[:1] != [self.bos_id] else []
        return bos + ids + ([self.eos_id] if add_eos and self.eos_id is not None else [])

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and for each the characters [start, end) of `text` that it stands for."""
        return self.encoder.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """`encode_with_offsets` of many texts, in parallel where the library can."""
        return self.encoder.encode_batch(list(texts))

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return self.encoder.decode([int(i) for i in ids], skip_special)

    def render(self, messages, *, add_generation_prompt: bool = False, **variables) -> str:
        """A conversation as text, through the chat template."""
        options = {"tokens": self.tokens, **variables}
        return chat.render(self.chat_template, messages, add_generation_prompt=add_generation_prompt, **options)

    def save(self, folder: str) -> None:
        """Write the exact tokenizer, its configuration and its template, for `transformers.AutoTokenizer` to load."""
        path = pathlib.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        files = dict(self.files)
        if isinstance(self.encoder, encoders.SentencePiece) and not self.encoder.is_legacy:
            from data.tokens import sentencepiece_json  # protobuf, only where it is needed

            written = sentencepiece_json.tokenizer_json(
                files["tokenizer.model"], bos=self.tokens.get("bos_token") if self.adds_bos else None
            )
            files |= {"tokenizer.json": written} if written else {}
        for name in (*checkpoint_files.SAVED, checkpoint_files.TEMPLATE):
            (path / name).unlink(missing_ok=True)  # of another tokenizer
        for name, content in files.items():
            (path / name).write_bytes(content)


def load(spec: str = "bytes") -> Tokenizer:
    """A tokenizer by name.

    Args:
        spec: 'bytes'; a folder with tokenizer.json or tokenizer.model; a `.json` or `.model` file; `hf:` and a folder
            or a hub id, such as 'hf:Qwen/Qwen2.5-0.5B-Instruct'.
    """
    if spec == "bytes":
        return _build(encoders.Bytes(), checkpoint_files.for_bytes(), name=spec)
    path = pathlib.Path(checkpoint_files.locate(spec)).expanduser()
    if path.is_dir():
        files = checkpoint_files.read(path)
        if "tokenizer.json" in files.content:
            encoder = encoders.Json(files.content["tokenizer.json"], str(path / "tokenizer.json"), files.added_tokens())
        elif "tokenizer.model" in files.content:
            encoder = encoders.SentencePiece(
                files.content["tokenizer.model"], str(path / "tokenizer.model"), files.added_tokens(), files.legacy()
            )
        else:
            raise InputError(f"{path} has no tokenizer.json and no tokenizer.model; it has {sorted(files.seen)}")
        return _build(encoder, files, name=spec)
    if path.suffix not in (".json", ".model"):
        raise InputError(f"tokenizer {spec!r}: give 'bytes', a folder, a tokenizer.json, a .model file or hf:<hub id>")
    content = checkpoint_files.read_bytes(path)
    encoder = (encoders.Json if path.suffix == ".json" else encoders.SentencePiece)(content, str(path), {})
    return _build(encoder, checkpoint_files.for_bare_file(encoder, path.suffix, content), name=spec)


def _build(encoder, files, *, name: str) -> Tokenizer:
    def id_of(token):
        return None if token is None else encoder.id_of(token)

    tokens = files.special_tokens()
    bos_id, eos_id, pad_id = (id_of(tokens.get(k)) for k in ("bos_token", "eos_token", "pad_token"))
    adds_bos = bos_id is not None and files.adds_bos(encoder, bos_id)
    own = files.chat_template()
    template = own or chat.default_template(with_bos=adds_bos)
    content = dict(files.content)
    if own is None:
        content["chat_template.jinja"] = template.encode()
    turn_id = id_of(chat.end_of_turn(template, tokens=tokens) or None)
    stop_ids = [eos_id, *files.generation_eos(), turn_id]
    return Tokenizer(
        encoder=encoder,
        vocab_size=encoder.num_ids,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=next(i for i in (pad_id, eos_id, 0) if i is not None),
        stop_ids=tuple(dict.fromkeys(i for i in stop_ids if i is not None)),
        adds_bos=adds_bos,
        chat_template=template,
        has_own_template=own is not None,
        tokens=tokens,
        files=content,
        name=name,
    )
