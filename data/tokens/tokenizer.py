"""Strings to token ids and back, with the character offsets that say which token holds which letter.

One `Tokenizer` whatever the file: bytes (the default, nothing to download), a Hugging Face folder, a `tokenizer.json`,
a sentencepiece `.model`. Encoding adds no special token by itself; special tokens written out in a text become their
ids.
"""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from alignment import errors, files
from alignment.errors import InputError
from data.tokens import chat, checkpoint_files, encoders, gguf


class Encoder(Protocol):
    """One kind of tokenizer; encoders.py has them."""

    num_ids: int  # largest id + 1
    special_ids: frozenset[int]

    def id_of(self, token: str) -> int | None: ...

    def encode_batch(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]: ...

    def decode(self, ids: Sequence[int], skip_special: bool) -> str: ...


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer with its special tokens, its chat template and its files.

    Attributes:
        vocab_size: largest id + 1; a checkpoint's embedding may have more rows, never fewer.
        bos_id, eos_id: None where the tokenizer has no such token.
        pad_id: fills rows; always masked, so any valid id would do.
        stop_ids: generation ends at any of them: EOS, those of generation_config.json, the template's end of turn.
        adds_bos: whether plain text should begin with BOS. A rendered chat template writes its own.
        chat_template: jinja source; the plain one of chat.py where the files have none.
        has_own_template: whether the files have a template.
        tokens: `bos_token`, `eos_token`, ... as text, for the template.
        files: name to content of the files that `save` writes.
        name: the spec that it was loaded by.
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

    @functools.cached_property
    def ends(self) -> tuple[str, ...]:
        """The texts of `stop_ids`, as a file writes them out."""
        texts = (self.encoder.decode([i], False) for i in self.stop_ids)
        return tuple(text for text in texts if text.strip())

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        """Token ids of a text; `add_bos` does not double a BOS that the text already has."""
        ids = self.encoder.encode_batch([text])[0][0]
        bos = [self.bos_id] if add_bos and self.bos_id is not None and ids[:1] != [self.bos_id] else []
        return bos + ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and for each one the characters [start, end) of `text` that it covers."""
        return self.encoder.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """`encode_with_offsets` of many texts, in parallel where the library can."""
        return self.encoder.encode_batch(list(texts))

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids; bytes that are not UTF-8 become replacement characters."""
        return self.encoder.decode([int(i) for i in ids], skip_special)

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False, **variables: Any
    ) -> str:
        """A conversation as text; see `chat.render`."""
        options: dict[str, Any] = {"tokens": self.tokens, **variables}
        return chat.render(self.chat_template, messages, add_generation_prompt=add_generation_prompt, **options)

    def save(self, folder: str) -> None:
        """Write the tokenizer's files, its configuration and its template, for `transformers.AutoTokenizer` to load."""
        path = pathlib.Path(folder)
        contents = dict(self.files)
        if isinstance(self.encoder, encoders.SentencePiece) and not self.encoder.is_legacy:
            from data.tokens import sentencepiece_json  # it imports protobuf

            converted = sentencepiece_json.tokenizer_json(
                contents["tokenizer.model"],
                bos=self.tokens.get("bos_token") if self.adds_bos else None,
                added=self.encoder.added,
            )
            contents |= {"tokenizer.json": converted} if converted else {}
        for name in {*checkpoint_files.SAVED, checkpoint_files.TEMPLATE} - set(contents):
            (path / name).unlink(missing_ok=True)  # a file of another tokenizer, saved there before
        shutil.rmtree(path / checkpoint_files.MORE_TEMPLATES, ignore_errors=True)
        for name, content in contents.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(path / name) as f:
                f.write(content)


def check(spec: str) -> None:
    """Refuse the name of a tokenizer that `load` could not find, without reading it or asking the hub."""
    # a file of llama.cpp is one of `init_from` and checked there
    if errors.files_needed() and spec != "bytes" and not spec.startswith("gguf:"):
        checkpoint_files.check(spec)


def load(spec: str = "bytes") -> Tokenizer:
    """A tokenizer by name.

    Args:
        spec: 'bytes'; a folder with tokenizer.json or tokenizer.model; a `.json` or `.model` file; `hf:` and a folder
            or a hub id, such as 'hf:Qwen/Qwen2.5-0.5B-Instruct'; `gguf:` and one of llama.cpp's files.

    Raises:
        InputError: nothing lies there, or the files are not a tokenizer's.
    """
    if spec == "bytes":
        return _build(encoders.Bytes(), checkpoint_files.for_bytes(), name=spec)
    if spec.startswith("gguf:"):
        return _of_files(gguf.files(spec.removeprefix("gguf:")), spec, name=spec)
    path = pathlib.Path(checkpoint_files.locate(spec)).expanduser()
    if path.is_dir():
        return _of_files(checkpoint_files.read(path), str(path), name=spec)
    if path.suffix not in (".json", ".model"):
        raise InputError(f"tokenizer {spec!r}: give 'bytes', a folder, a tokenizer.json, a .model file or hf:<hub id>")
    raw = checkpoint_files.read_bytes(path)
    encoder = (encoders.Json if path.suffix == ".json" else encoders.SentencePiece)(raw, str(path), {})
    return _build(encoder, checkpoint_files.for_bare_file(encoder, path.suffix, raw), name=spec)


def _of_files(folder: checkpoint_files.Files, where: str, *, name: str) -> Tokenizer:
    """The tokenizer of a folder's files, wherever they came from."""
    encoder: Any
    added, named = folder.added_tokens(), folder.named_tokens()
    if "tokenizer.json" in folder.content:
        encoder = encoders.Json(folder.content["tokenizer.json"], f"{where}/tokenizer.json", added, named)
    elif "tokenizer.model" in folder.content:
        content, is_legacy = folder.content["tokenizer.model"], folder.legacy()
        encoder = encoders.SentencePiece(content, f"{where}/tokenizer.model", added, is_legacy, named)
    else:
        raise InputError(f"{where} has no tokenizer.json and no tokenizer.model; it has {sorted(folder.names)}")
    return _build(encoder, folder, name=name)


def _build(encoder: Encoder, folder: checkpoint_files.Files, *, name: str) -> Tokenizer:
    def id_of(token: str | None) -> int | None:
        return None if token is None else encoder.id_of(token)

    tokens = folder.special_tokens()
    bos_id, eos_id, pad_id = (id_of(tokens.get(k)) for k in ("bos_token", "eos_token", "pad_token"))
    adds_bos = bos_id is not None and folder.adds_bos(encoder, bos_id)
    own = folder.template
    template = own or chat.default_template(with_bos=adds_bos)
    content = dict(folder.content)
    if own is None:
        content["chat_template.jinja"] = template.encode()
    mark = chat.end_of_turn(template, tokens=tokens)
    turn_id = id_of(mark) if len(mark) > 1 else None  # a single letter, such as a full stop, occurs within answers
    stop_ids = [eos_id, *folder.generation_eos(), turn_id]
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
