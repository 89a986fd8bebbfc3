"""Files around a tokenizer in a Hugging Face folder: which special tokens, which template, whether BOS comes first."""

import dataclasses
import json
import pathlib

import tokenizers

from alignment.errors import InputError
from data.tokens import encoders

SAVED = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TEMPLATE = "chat_template.jinja"
GUESSES = {  # names of special tokens where no configuration says them
    "bos_token": ("<s>", "<|begin_of_text|>", "<bos>", "<|bos|>"),
    "eos_token": ("</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>", "<|eos|>"),
    "pad_token": ("<pad>", "<|pad|>", "<|padding|>", "[PAD]", "<|finetune_right_pad_id|>"),
    "unk_token": ("<unk>", "[UNK]"),
}


@dataclasses.dataclass(frozen=True)
class Files:
    """What a folder says about its tokenizer; `content` is what will be saved again, byte for byte."""

    content: dict[str, bytes]
    config: dict
    generation: dict
    template: str | None
    guessed: dict[str, str]
    seen: tuple[str, ...] = ()

    def special_tokens(self) -> dict[str, str]:
        """`bos_token`, `eos_token`, ... as text; a null in the configuration means there is none."""
        named = {k: v for k, v in self.config.items() if k.endswith("_token") and not isinstance(v, bool)}
        tokens = {**self.guessed, **{k: _text(v) for k, v in named.items()}}
        return {k: v for k, v in tokens.items() if isinstance(v, str)}

    def chat_template(self) -> str | None:
        return self.template

    def generation_eos(self) -> list[int]:
        ids = self.generation.get("eos_token_id")
        return [] if ids is None else [int(i) for i in (ids if isinstance(ids, list) else [ids])]

    def adds_bos(self, encoder, bos_id: int) -> bool:
        """The configuration's word if it has one, then the file's own post-processor, then sentencepiece's custom."""
        if isinstance(self.config.get("add_bos_token"), bool):
            return self.config["add_bos_token"]
        if isinstance(encoder, encoders.Json):
            return encoder.first_ids[:1] == [bos_id]
        return True

    def added_tokens(self) -> dict[int, str]:
        added = self.config.get("added_tokens_decoder") or {}
        return {int(i): _text(token) for i, token in added.items()}

    def legacy(self) -> bool:
        return bool(self.config.get("legacy", False))


def locate(spec: str) -> str:
    """A local path for a spec; `hf:<hub id>` downloads the tokenizer's files."""
    name = spec.removeprefix("hf:")
    if pathlib.Path(name).expanduser().exists():
        return name
    if not spec.startswith("hf:") or name.startswith(("/", ".", "~")):
        raise InputError(f"tokenizer {spec!r}: no such file or folder; for a hub id write 'hf:owner/name'")
    try:
        import huggingface_hub
    except ImportError as e:
        raise InputError(
            f"{spec!r} is not a local folder; to fetch it from the hub: pip install huggingface_hub"
        ) from e
    wanted = [*SAVED, TEMPLATE, "generation_config.json"]
    try:
        return huggingface_hub.snapshot_download(name, allow_patterns=wanted)
    except Exception as e:  # network, permission and naming errors of several libraries
        raise InputError(f"cannot fetch {name!r} from the hub ({type(e).__name__}: {e}); give a local folder") from e


def read(folder: pathlib.Path) -> Files:
    """Everything about the tokenizer that a folder holds."""
    seen = tuple(p.name for p in folder.iterdir())
    content = {name: read_bytes(folder / name) for name in SAVED if name in seen}
    config = {**_json(content, "special_tokens_map.json", folder), **_json(content, "tokenizer_config.json", folder)}
    generation = {}
    if "generation_config.json" in seen:
        generation = _parse(read_bytes(folder / "generation_config.json"), folder / "generation_config.json")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {t["name"]: t["template"] for t in template}
        template = named.get("default", next(iter(named.values()), None))
    if TEMPLATE in seen:
        content[TEMPLATE] = read_bytes(folder / TEMPLATE)
        template = content[TEMPLATE].decode("utf-8")
    return Files(content, config, generation, template, _guess_missing(content, config), seen)


def for_bytes() -> Files:
    """The byte tokenizer as a folder: byte-level BPE without a single merge, so that other libraries read it."""
    letters = _byte_letters()
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


def for_bare_file(encoder, suffix: str, content: bytes) -> Files:
    """A tokenizer.json or a .model alone: special tokens are known by their usual names."""
    tokens = {}
    for key, names in GUESSES.items():
        found = next((name for name in names if name in encoder.special_tokens), None)
        tokens |= {key: found} if found else {}
    if suffix == ".json":
        return Files({"tokenizer.json": content, "tokenizer_config.json": _config(tokens)}, tokens, {}, None, {})
    processor = encoder.processor
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
    try:
        return path.read_bytes()
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e


def _guess_missing(content, config) -> dict[str, str]:
    """Without a tokenizer_config.json, the usual names that the vocabulary has."""
    if "tokenizer_config.json" in content or "special_tokens_map.json" in content:
        return {}
    if "tokenizer.json" in content:
        return for_bare_file(encoders.Json(content["tokenizer.json"], "tokenizer.json"), ".json", b"").special_tokens()
    if "tokenizer.model" in content:
        encoder = encoders.SentencePiece(content["tokenizer.model"], "tokenizer.model")
        return for_bare_file(encoder, ".model", b"").special_tokens()
    return {}


def _config(values: dict) -> bytes:
    base = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return json.dumps({**base, **values}, indent=2, ensure_ascii=False).encode()


def _json(content: dict[str, bytes], name: str, folder: pathlib.Path) -> dict:
    return _parse(content[name], folder / name) if name in content else {}


def _parse(content: bytes, path: pathlib.Path) -> dict:
    try:
        value = json.loads(content)
    except ValueError as e:
        raise InputError(f"{path} is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}; a JSON object is needed")
    return value


def _text(token) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _byte_letters() -> str:
    """The printable letter that byte-level BPE writes for each byte (GPT-2's table)."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = iter(range(256, 512))
    return "".join(chr(b) if b in kept else chr(next(moved)) for b in range(256))
