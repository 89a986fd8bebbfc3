"""A sentencepiece model written out as a tokenizer.json, so that other libraries split text exactly as we do.

Other converters order a BPE model's merges by id and then split runs of spaces differently from sentencepiece; here
merges are ordered by the pieces' scores, as in sentencepiece itself. Two differences remain: a BPE text that begins
with a space, and unigram texts with unknown letters or long runs of one letter, where several splits score the same.
"""

from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

UNIGRAM, BPE = 1, 2  # ModelProto.TrainerSpec.ModelType
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # ModelProto.SentencePiece.Type


def tokenizer_json(content: bytes, *, bos: str | None) -> bytes | None:
    """The model as a tokenizer.json; None for word and character models.

    Args:
        content: of the .model file.
        bos: the token that the post-processor puts first; None puts none.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]  # made at import
    build = {UNIGRAM: _unigram, BPE: _bpe}.get(proto.trainer_spec.model_type)
    if build is None:
        return None
    out = tokenizers.Tokenizer(build(proto))
    spec = proto.normalizer_spec
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if steps:
        out.normalizer = normalizers.Sequence(steps)
    scheme = "never" if not spec.add_dummy_prefix else "always" if spec.remove_extra_whitespaces else "first"
    out.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(content=" ", left=1)] if spec.add_dummy_prefix else []
    out.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    special = [p.piece for p in proto.pieces if p.type in (CONTROL, UNKNOWN)]
    out.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    out.add_tokens([AddedToken(p.piece, normalized=False) for p in proto.pieces if p.type == USER_DEFINED])
    if bos is not None:
        out.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, out.token_to_id(bos))]
        )
    return out.to_str().encode()


def _unigram(proto: Any) -> models.Unigram:
    vocab = [(p.piece, p.score) for p in proto.pieces]
    unknown = next(i for i, p in enumerate(proto.pieces) if p.type == UNKNOWN)
    return models.Unigram(vocab, unknown, proto.trainer_spec.byte_fallback)


def _bpe(proto: Any) -> models.BPE:
    vocab = {p.piece: i for i, p in enumerate(proto.pieces)}
    normal = {p.piece: p.score for p in proto.pieces if p.type not in (CONTROL, USER_DEFINED)}
    # sentencepiece stores pieces without merges: it joins any two neighbours that make a piece, the best score first.
    # So every split of a piece into two pieces is a merge.
    merges: list[tuple[float, int, tuple[str, str]]] = []
    for piece, score in normal.items():
        halves = ((piece[:k], piece[k:]) for k in range(1, len(piece)))
        merges += [(-score, vocab[piece], pair) for pair in halves if pair[0] in normal and pair[1] in normal]
    merges.sort(key=lambda merge: merge[:2])
    options = {"fuse_unk": True, "byte_fallback": proto.trainer_spec.byte_fallback}
    unknown = next(p.piece for p in proto.pieces if p.type == UNKNOWN)
    return models.BPE(vocab=vocab, merges=[pair for *_, pair in merges], unk_token=unknown, **options)
