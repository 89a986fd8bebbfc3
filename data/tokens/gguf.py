"""The tokenizer in a GGUF file's metadata, as the files of a Hugging Face folder.

llama.cpp names two kinds: `gpt2`, byte-level BPE with a named way to cut text into words first, and `llama`, a
sentencepiece model's pieces and scores.
"""

import json
from collections.abc import Sequence

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors

from alignment import errors, gguf
from alignment.errors import InputError
from data.tokens import checkpoint_files

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # of tokenizer.ggml.token_type and of sentencepiece
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_MARKS_AND_SPACES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# tokenizer.ggml.pre: (pattern that cuts words, None: GPT-2's; digits one by one first; NFC; whole words before merges)
WORDS = {
    "default": (None, False, False, False),
    "gpt-2": (None, False, False, False),
    "smollm": (None, True, False, False),
    "llama-bpe": (_CONTRACTIONS + r"\p{N}{1,3}" + _MARKS_AND_SPACES, False, False, True),
    "qwen2": (_CONTRACTIONS + r"\p{N}" + _MARKS_AND_SPACES, False, True, False),
    "tekken": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        False,
        False,
        True,
    ),
}
ADDS_BOS = ("llama-bpe", "tekken")  # of gpt2's kind, where the metadata does not say


def files(path: str) -> checkpoint_files.Files:
    """The tokenizer's files; the file's own chat template and special tokens are kept.

    Raises:
        InputError: a kind of tokenizer, or a way to cut words, that is not in the lists above.
    """
    model = gguf.read(path)
    kind = errors.one_of(f"tokenizer.ggml.model of {path}", model.need("tokenizer.ggml.model"), ("gpt2", "llama"))
    pre = str(model.get("tokenizer.ggml.pre", "default"))
    pieces, types = model.need("tokenizer.ggml.tokens"), model.need("tokenizer.ggml.token_type")
    named = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    ids = {ours: model.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in named.items()}
    if outside := {name: i for name, i in ids.items() if i is not None and not 0 <= i < len(pieces)}:
        raise InputError(f"{path}: the ids {outside} are outside the vocabulary of {len(pieces)} tokens")
    tokens = {name: pieces[i] for name, i in ids.items() if i is not None}
    adds_bos = model.get("tokenizer.ggml.add_bos_token", kind == "llama" or pre in ADDS_BOS) and "bos_token" in tokens
    if kind == "gpt2":
        bos = tokens["bos_token"] if adds_bos else None
        merges = model.need("tokenizer.ggml.merges")
        content = {"tokenizer.json": _byte_level(pieces, types, merges, bos, pre=pre, path=path)}
    else:
        has_prefix = bool(model.get("tokenizer.ggml.add_space_prefix", True))
        scores = model.need("tokenizer.ggml.scores")
        content = {"tokenizer.model": _sentencepiece(pieces, types, scores, ids, has_prefix=has_prefix)}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **tokens}
    config["add_bos_token"] = bool(adds_bos)
    content["tokenizer_config.json"] = json.dumps(config, indent=2, ensure_ascii=False).encode()
    template = model.get("tokenizer.chat_template")
    if template is not None:
        content[checkpoint_files.TEMPLATE] = template.encode()
    ends = (model.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return checkpoint_files.Files(content, config, {"eos_token_id": [i for i in ends if i is not None]}, template, {})


def _byte_level(
    pieces: Sequence[str], types: Sequence[int], merges: Sequence[str], bos: str | None, *, pre: str, path: str
) -> bytes:
    """A tokenizer.json of byte-level BPE, GPT-2's kind."""
    pattern, splits_digits, is_nfc, whole_words = WORDS[errors.one_of(f"tokenizer.ggml.pre of {path}", pre, WORDS)]
    pairs = [tuple(merge.split(" ")) for merge in merges]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    out = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=whole_words))
    if is_nfc:
        out.normalizer = normalizers.NFC()
    steps = [pre_tokenizers.Digits(individual_digits=True)] if splits_digits else []
    if pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    out.pre_tokenizer = pre_tokenizers.Sequence(steps)
    out.decoder = tokenizers.decoders.ByteLevel()
    kinds = zip(pieces, types, strict=True)
    added = [AddedToken(p, normalized=False, special=t == CONTROL) for p, t in kinds if t in (CONTROL, USER_DEFINED)]
    out.add_special_tokens([token for token in added if token.special])
    out.add_tokens([token for token in added if not token.special])
    if bos is not None:
        out.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocab[bos])]
        )
    return out.to_str().encode()


def _sentencepiece(
    pieces: Sequence[str],
    types: Sequence[int],
    scores: Sequence[float],
    ids: dict[str, int | None],
    *,
    has_prefix: bool,
) -> bytes:
    """A sentencepiece BPE model with these pieces, which falls back on bytes where the vocabulary has them."""
    proto = sentencepiece_model_pb2.ModelProto()
    for piece, kind, score in zip(pieces, types, scores, strict=True):
        proto.pieces.add(piece=piece, type=kind, score=score)
    spec = proto.trainer_spec
    spec.model_type, spec.vocab_size, spec.byte_fallback = spec.BPE, len(pieces), BYTE in types
    spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id = (
        -1 if ids[name] is None else ids[name] for name in ("unk_token", "bos_token", "eos_token", "pad_token")
    )
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = has_prefix
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    return proto.SerializeToString()
