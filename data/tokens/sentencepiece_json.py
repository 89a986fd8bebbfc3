"""A sentencepiece model written out as a tokenizer.json, so that other libraries split text exactly as we do.

Other converters order a BPE model's merges by id and then split runs of spaces differently from sentencepiece; here
merges are ordered by the pieces' scores, as in sentencepiece itself. One difference remains: unigram texts with unknown
letters or long runs of one letter, where several splits score the same.
"""

from collections.abc import Mapping
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

UNIGRAM, BPE = 1, 2  # ModelProto.TrainerSpec.ModelType
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # ModelProto.SentencePiece.Type


def tokenizer_json(content: bytes, *, bos: str | None, added: Mapping[int, AddedToken]) -> bytes | None:
    """The model as a tokenizer.json; None for word and character models.

    Args:
        content: of the .model file.
        bos: the token that the post-processor puts first; None puts none.
        added: special and added tokens by id; ids that nobody has, between the model's and theirs, get a placeholder.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]  # made at import
    build = {UNIGRAM: _unigram, BPE: _bpe}.get(proto.trainer_spec.model_type)
    if build is None:
        return None
    out = tokenizers.Tokenizer(build(proto))
    spec = proto.normalizer_spec
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        # not Strip, which takes line breaks away as well; sentencepiece takes blanks alone
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps.append(normalizers.Replace(" ", "▁"))
    out.normalizer = normalizers.Sequence(steps)
    marks: list[Any] = [pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)]
    if spec.add_dummy_prefix:
        # sentencepiece puts its space before a text that begins with one too, which Metaspace does not do where a text
        # begins with Metaspace's own mark. So blanks are ▁ already when a Metaspace whose mark is the blank puts one
        # before the text, and the next one makes that a ▁.
        scheme = "always" if spec.remove_extra_whitespaces else "first"
        marks.insert(0, pre_tokenizers.Metaspace(replacement=" ", prepend_scheme=scheme, split=False))
    out.pre_tokenizer = pre_tokenizers.Sequence(marks)
    strip = [decoders.Strip(content=" ", left=1)] if spec.add_dummy_prefix else []
    out.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    out.add_tokens([AddedToken(p.piece, normalized=False) for p in proto.pieces if p.type == USER_DEFINED])
    own = len(proto.pieces)
    for i in sorted({*added, *range(own, max(added, default=0))}):
        out.add_tokens([added.get(i) or AddedToken(f"<|no_token_{i}|>", special=True, normalized=False)])
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
