"""The files of a tokenizer in a Hugging Face folder: its special tokens, its template, whether BOS comes first."""

import dataclasses
import importlib.util
import json
import pathlib
from typing import Any

import tokenizers

from alignment.errors import InputError
from data.tokens import encoders

SAVED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
TEMPLATE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"  # a folder of templates with names, beside the one above
GUESSES = {  # the usual names of special tokens, for files without a configuration
    "bos_token": ("<s>", "<|begin_of_text|>", "<bos>", "<|bos|>"),
    "eos_token": ("</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>", "<|eos|>"),
    "pad_token": ("<pad>", "<|pad|>", "<|padding|>", "[PAD]", "<|finetune_right_pad_id|>"),
    "unk_token": ("<unk>", "[UNK]"),
}


@dataclasses.dataclass(frozen=True)
class Files:
    """A tokenizer's files, read.

    Attributes:
        content: name to content of the files that are saved again, byte for byte.
        config: tokenizer_config.json with special_tokens_map.json.
        added: added_tokens.json, token to id.
        generation: generation_config.json.
        template: the chat template in jinja, None where there is none.
        guessed: special tokens by their usual names, where no configuration names them.
        names: all files of the folder, for messages.
    """

    content: dict[str, bytes]
    config: dict[str, Any]
    generation: dict[str, Any]
    template: str | None
    guessed: dict[str, str]
    names: tuple[str, ...] = ()
    added: dict[str, int] = dataclasses.field(default_factory=dict)

    def special_tokens(self) -> dict[str, str]:
        """`bos_token`, `eos_token`, ... as text; a null in the configuration says that there is none."""
        configured = {k: v for k, v in self.config.items() if k.endswith("_token") and not isinstance(v, bool)}
        tokens = {**self.guessed, **{k: _text(v) for k, v in configured.items()}}
        return {k: v for k, v in tokens.items() if isinstance(v, str) and v}

    def named_tokens(self) -> dict[str, tokenizers.AddedToken]:
        """All special tokens that the configuration names, with how they match in a text."""
        values = [v for k, v in self.config.items() if k.endswith("_token") and not isinstance(v, bool)]
        for key in ("additional_special_tokens", "extra_special_tokens"):
            more = self.config.get(key) or []
            values += list(more.values()) if isinstance(more, dict) else list(more)
        named = [_added_token(v, is_special=True) for v in values if _text(v)]
        return {token.content: token for token in named}

    def generation_eos(self) -> list[int]:
        """The ids at which generation_config.json ends a text; it has one, several or none."""
        ids = self.generation.get("eos_token_id")
        ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
        if not all(isinstance(i, int) for i in ids):
            raise InputError(f"generation_config.json has eos_token_id={ids}; ids are whole numbers")
        return ids

    def adds_bos(self, encoder: Any, bos_id: int) -> bool:
        """Whether BOS comes first: as the configuration says, else as tokenizer.json does it, else yes.

        sentencepiece models say nothing about it, and those of checkpoints without a configuration expect BOS.
        """
        if isinstance(self.config.get("add_bos_token"), bool):
            return self.config["add_bos_token"]
        if isinstance(encoder, encoders.Json):
            return encoder.first_ids[:1] == [bos_id]
        return True

    def added_tokens(self) -> dict[int, tokenizers.AddedToken]:
        """Tokens beside the vocabulary by their ids, from added_tokens.json and `added_tokens_decoder`.

        The first says nothing on how a token matches; transformers then looks whether the configuration names it.
        """
        named = self.named_tokens()
        added = {int(i): named.get(text) or _added_token(text, is_special=False) for text, i in self.added.items()}
        for i, token in (self.config.get("added_tokens_decoder") or {}).items():
            is_special = _text(token) in named or (isinstance(token, dict) and bool(token.get("special")))
            added[int(i)] = _added_token(token, is_special=is_special)
        return added

    def legacy(self) -> bool:
        """Whether text after a special token gets a space of its own, as transformers once did for Llama."""
        return bool(self.config.get("legacy", False))


def check(spec: str) -> bool:
    """Whether a spec names a local path, not an id of the hub; neither is read.

    Raises:
        InputError: nothing lies there and it is not a hub id, or the package that asks the hub is missing.
    """
    name = spec.removeprefix("hf:")
    if pathlib.Path(name).expanduser().exists():
        return True
    if not spec.startswith("hf:") or name.startswith(("/", ".", "~")):
        raise InputError(f"tokenizer {spec!r}: no such file or folder; for a hub id write 'hf:owner/name'")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(f"{spec!r} is not a local folder; to fetch it from the hub: pip install 'plumbline[hub]'")
    return False


def locate(spec: str) -> str:
    """A local path for a spec; `hf:<hub id>` downloads the tokenizer's files."""
    name = spec.removeprefix("hf:")
    if check(spec):
        return name
    import huggingface_hub

    wanted = [*SAVED, TEMPLATE, f"{MORE_TEMPLATES}/*"]
    try:
        return huggingface_hub.snapshot_download(name, allow_patterns=wanted)
    except Exception as e:  # network, permission and naming errors of several libraries
        raise InputError(f"cannot fetch {name!r} from the hub ({type(e).__name__}: {e}); give a local folder") from e


def read(folder: pathlib.Path) -> Files:
    """The tokenizer's files in a folder.

    Raises:
        InputError: a file cannot be read, or is not the JSON object that its name says.
    """
    names = tuple(p.name for p in folder.iterdir())
    content = {name: read_bytes(folder / name) for name in SAVED if name in names}
    config, special = (_json(content, name, folder) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    # As transformers has it: the map is the older file, and speaks where added_tokens_decoder, the newer, does not.
    config = special | config if "added_tokens_decoder" in config else config | special
    _check_config(config, folder / "tokenizer_config.json")
    added = _json(content, "added_tokens.json", folder)
    if not all(isinstance(i, int) for i in added.values()):
        raise InputError(f"{folder / 'added_tokens.json'} must give each token its id, a whole number")
    named = _named_templates(config.get("chat_template"), folder)
    if TEMPLATE in names:
        content[TEMPLATE] = read_bytes(folder / TEMPLATE)
        named["default"] = _decoded(content[TEMPLATE], folder / TEMPLATE)
    for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja")):
        content[f"{MORE_TEMPLATES}/{path.name}"] = read_bytes(path)
        named.setdefault(path.stem, _decoded(content[f"{MORE_TEMPLATES}/{path.name}"], path))
    if named and "default" not in named:
        raise InputError(
            f"{folder} has chat templates named {', '.join(named)}, and none is 'default'; write the one to use into "
            f"{folder / TEMPLATE}"
        )
    generation = _json(content, "generation_config.json", folder)
    return Files(content, config, generation, named.get("default"), _guess_missing(content), names, added)


def _check_config(config: dict[str, Any], path: pathlib.Path) -> None:
    """Refuse values of another type than their key has, with the key."""
    tokens = {key: [value] for key, value in config.items() if key.endswith("_token") and not isinstance(value, bool)}
    for key in ("additional_special_tokens", "extra_special_tokens", "added_tokens_decoder"):
        more = config.get(key)
        if not isinstance(more, (list, dict, type(None))) or (key == "added_tokens_decoder" and isinstance(more, list)):
            raise InputError(f"{path} has {key}={str(more)[:80]!r}, which must be a list or an object of tokens")
        tokens[key] = list(more.values()) if isinstance(more, dict) else more or []
    if odd := [key for key in config.get("added_tokens_decoder") or {} if not key.isdecimal()]:
        raise InputError(f"{path} has {odd[0]!r} in added_tokens_decoder, whose keys are ids; download it again")
    for key, values in tokens.items():
        if odd := [value for value in values if not isinstance(_text(value), (str, type(None)))]:
            need = "a text, or an object with `content`"
            raise InputError(f"{path} has {str(odd[0])[:80]!r} under {key}, and a token is {need}; download it again")


def _named_templates(value: Any, folder: pathlib.Path) -> dict[str, str]:
    """The `chat_template` of a configuration: one, several by name in an object, or a list of names and templates."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list) and all(isinstance(t, dict) and {"name", "template"} <= set(t) for t in value):
        value = {str(t["name"]): t["template"] for t in value}
    if isinstance(value, dict) and all(isinstance(t, str) for t in value.values()):
        return dict(value)
    raise InputError(
        f"{folder / 'tokenizer_config.json'}: chat_template must be one template, or a list of objects with 'name' and "
        "'template'"
    )


def for_bytes() -> Files:
    """The byte tokenizer as a folder: byte-level BPE without a single merge, so that other libraries read it."""
    letters = encoders.byte_letters()
    out = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    out.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    out.decoder = tokenizers.decoders.ByteLevel()
    out.add_special_tokens(list(encoders.BYTE_SPECIALS))
    bos = encoders.BYTE_SPECIALS[1]
    out.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, out.token_to_id(bos))]
    )
    tokens = {"pad_token": "<|pad|>", "bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    content = {"tokenizer.json": out.to_str().encode(), "tokenizer_config.json": _config(tokens)}
    return Files(content, {**tokens, "add_bos_token": True}, {}, None, {})


def for_bare_file(encoder: Any, suffix: str, content: bytes) -> Files:
    """The files of a tokenizer.json or a .model that lies alone: special tokens go by their usual names."""
    tokens: dict[str, str] = {}
    for key, usual_names in GUESSES.items():
        name = next((name for name in usual_names if name in encoder.special_tokens), None)
        tokens |= {key: name} if name else {}
    if suffix == ".json":
        return Files({"tokenizer.json": content, "tokenizer_config.json": _config(tokens)}, tokens, {}, None, {})
    processor = encoder.processor  # a sentencepiece model says its ids itself, -1 for none
    for key, i in {
        "bos_token": processor.bos_id(),
        "eos_token": processor.eos_id(),
        "pad_token": processor.pad_id(),
    }.items():
        tokens.pop(key, None)
        tokens |= {key: processor.id_to_piece(i)} if i >= 0 else {}
    config = {**tokens, "add_bos_token": "bos_token" in tokens}
    return Files({"tokenizer.model": content, "tokenizer_config.json": _config(config)}, tokens, {}, None, {})


def read_bytes(path: pathlib.Path) -> bytes:
    """The content of a file; an `InputError` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e


def _guess_missing(content: dict[str, bytes]) -> dict[str, str]:
    """The usual names of special tokens that the vocabulary has; {} where a configuration names them."""
    if "tokenizer_config.json" in content or "special_tokens_map.json" in content:
        return {}
    if "tokenizer.json" in content:
        return for_bare_file(encoders.Json(content["tokenizer.json"], "tokenizer.json"), ".json", b"").special_tokens()
    if "tokenizer.model" in content:
        encoder = encoders.SentencePiece(content["tokenizer.model"], "tokenizer.model")
        return for_bare_file(encoder, ".model", b"").special_tokens()
    return {}


def _config(values: dict[str, Any]) -> bytes:
    base = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return json.dumps({**base, **values}, indent=2, ensure_ascii=False).encode()


def _json(content: dict[str, bytes], name: str, folder: pathlib.Path) -> dict[str, Any]:
    return _parse(content[name], folder / name) if name in content else {}


def _parse(content: bytes, path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as e:
        raise InputError(f"{path} is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}; a JSON object is needed")
    return value


def _decoded(content: bytes, path: pathlib.Path) -> str:
    try:
        return content.decode("utf-8-sig")  # a byte order mark would stand at the head of every prompt
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is not UTF-8: {e}") from e


def _added_token(token: Any, *, is_special: bool) -> tokenizers.AddedToken:
    flags = token if isinstance(token, dict) else {}
    flags = {k: bool(flags[k]) for k in ("lstrip", "rstrip", "single_word", "normalized") if k in flags}
    return tokenizers.AddedToken(_text(token) or "", special=is_special, **flags)


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token
