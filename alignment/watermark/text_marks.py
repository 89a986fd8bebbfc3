"""The record of a mark: all that a detector must know, stored beside every marked text.

Detection with another key, scheme, width or vocabulary reads noise and reports "not marked", which is the commonest
complaint about public watermark tools. So a record has every field that its scheme reads and none that it does not, it
has no default key, and `check_same` refuses to compare what differs.
"""

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

from alignment import errors
from alignment.errors import InputError
from alignment.watermark import hashing

KGW, UNIGRAM, SYNTHID, EXP, RANDOM = "kgw", "unigram", "synthid", "exp", "random"
SCHEMES = (KGW, UNIGRAM, SYNTHID, EXP, RANDOM)
FAST, HF, MARKLLM = "fast", "hf", "markllm"
PARITIES = (FAST, KGW, HF, MARKLLM)  # whose green lists
FIELDS: dict[str, dict[str, Any]] = {  # what each scheme reads, with defaults
    KGW: dict(gamma=0.5, delta=2.0, width=1, seeding=hashing.LEFT, parity=FAST),
    UNIGRAM: dict(gamma=0.5, delta=2.0),
    SYNTHID: dict(width=4, table_size=65_536, table_seed=0, history=1_024),
    EXP: dict(width=4),
    RANDOM: dict(gamma=0.5, delta=2.0),
}
PARITY_SEEDINGS = {
    FAST: hashing.SEEDINGS,
    KGW: hashing.SEEDINGS,
    HF: (hashing.LEFT, hashing.SELF),
    MARKLLM: (hashing.LEFT, hashing.MIN),
}
MAX_KEYS = 32  # of SynthID: their bits lie in one word


@dataclasses.dataclass(frozen=True)
class Mark:
    """A scheme with its key and settings; fields that the scheme does not read are None.

    Attributes:
        scheme: kgw (Kirchenbauer et al. 2023, arXiv:2301.10226), unigram (Zhao et al. 2023, arXiv:2306.17439), synthid
            (Dathathri et al. 2024, Nature 634), exp (Aaronson's Gumbel draw), random (a fresh mask at every position,
            which nothing can detect: the baseline of arXiv:2407.17417).
        key: from 0 to 2^64 - 1; of synthid a tuple of keys, one a layer.
        vocab_size: logits of the model, which the lists depend on.
        gamma: share of green tokens, in (0, 1).
        delta: added to green logits, at least 0.
        width: tokens of the context; of self hash with the token itself. SynthID's n-grams are one longer.
        seeding: left, min or self; see `hashing.values`.
        parity: whose lists: fast (ours), kgw (lm-watermarking), hf (transformers), markllm.
        table_size, table_seed, history: of synthid, as in transformers; the size is a power of two.
        tokenizer: name or digest of the tokenizer; "" where nobody wrote it down.
    """

    scheme: str
    key: int | tuple[int, ...]
    vocab_size: int
    gamma: float | None = None
    delta: float | None = None
    width: int | None = None
    seeding: str | None = None
    parity: str | None = None
    table_size: int | None = None
    table_seed: int | None = None
    history: int | None = None
    tokenizer: str = ""

    def __post_init__(self) -> None:
        errors.one_of("scheme", self.scheme, SCHEMES)
        read = FIELDS[self.scheme]
        for name in dict.fromkeys(field for fields in FIELDS.values() for field in fields):
            value = getattr(self, name)
            if name not in read and value is not None:
                raise InputError(f"{name}={value} is not read by scheme={self.scheme!r}; leave it out")
            if name in read and value is None:
                object.__setattr__(self, name, read[name])
        if isinstance(self.key, list):
            object.__setattr__(self, "key", tuple(self.key))
        _check(self)

    @property
    def num_green(self) -> int:
        """Tokens of a list, int(gamma V)."""
        return int(self.of("gamma") * self.vocab_size)

    @property
    def num_context(self) -> int:
        """Tokens before a token without which it is neither marked nor scored."""
        if self.scheme in (UNIGRAM, RANDOM):
            return 0
        return hashing.num_context(self.seeding or hashing.LEFT, self.of("width"))

    def of(self, name: str) -> Any:
        """A field that the scheme reads."""
        value = getattr(self, name)
        if value is None:
            raise InputError(f"scheme={self.scheme!r} has no {name}")
        return value

    def to_dict(self) -> dict[str, Any]:
        """The fields that the scheme reads, for JSON."""
        out = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return out | {"key": list(self.key) if isinstance(self.key, tuple) else self.key}


WHOLE, REAL = ("vocab_size", "width", "table_size", "table_seed", "history"), ("gamma", "delta")


def _check_types(mark: Mark) -> None:
    """Refuse texts and fractions of a stored record under the names of numbers."""
    for names, kind, what in ((WHOLE, numbers.Integral, "an integer"), (REAL, numbers.Real, "a number")):
        for name in names:
            value = getattr(mark, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise InputError(f"{name}={value!r} must be {what}")


def _check(mark: Mark) -> None:
    _check_types(mark)
    keys = mark.key if mark.scheme == SYNTHID else (mark.key,)
    if not isinstance(keys, tuple) or not 1 <= len(keys) <= MAX_KEYS:
        raise InputError(f"key={mark.key!r}: scheme='synthid' takes a list of 1 to {MAX_KEYS} keys, one a layer")
    for key in keys:
        if isinstance(key, bool) or not isinstance(key, int):
            raise InputError(f"key={key!r} must be an integer; a key that is missing is not taken for 0")
        hashing.split_key(key)
    errors.within("[2, inf)", vocab_size=mark.vocab_size, hint=", the number of the model's logits")
    if mark.gamma is not None:
        if not 0 < mark.gamma < 1:
            raise InputError(f"gamma={mark.gamma} must be between 0 and 1, the share of green tokens")
        if mark.num_green < 1:
            raise InputError(f"gamma={mark.gamma} of vocab_size={mark.vocab_size} leaves no green token; raise gamma")
        if not 0 <= mark.of("delta") < float("inf"):
            raise InputError(f"delta={mark.delta} must be at least 0 and finite, in nats added to green logits")
    errors.within("[1, inf)", width=mark.width, hint=" token")
    if mark.scheme == KGW:
        errors.one_of("parity", mark.parity, PARITIES)
        errors.one_of("seeding", mark.seeding, PARITY_SEEDINGS[mark.parity or FAST], hint=f"of parity={mark.parity!r}")
    if mark.table_size is not None and (mark.table_size < 2 or mark.table_size & (mark.table_size - 1)):
        raise InputError(f"table_size={mark.table_size} must be a power of two: hashes are cut to their lowest bits")
    errors.within("[1, inf)", history=mark.history, hint=" context")


def from_dict(record: Mapping[str, Any]) -> Mark:
    """The mark of a stored record.

    Raises:
        InputError: a field is missing, unknown or out of range.
    """
    names = [field.name for field in dataclasses.fields(Mark)]
    for name in record:
        errors.one_of("watermark record field", name, names)
    for name in ("scheme", "key", "vocab_size"):
        if record.get(name) is None:
            more = "; a key that is missing is not taken for 0" if name == "key" else ""
            raise InputError(f"the watermark record has no {name}{more}; take the record that was stored with the text")
    return Mark(**record)


def check_same(written: Mark, reading: Mark) -> None:
    """Refuse to read a text with other settings than it was marked with; `delta` does not matter to a detector.

    Raises:
        InputError: names the field with both values.
    """
    for field in dataclasses.fields(Mark):
        ours, theirs = getattr(reading, field.name), getattr(written, field.name)
        if field.name == "delta" or ours == theirs or (field.name == "tokenizer" and not (ours and theirs)):
            continue
        raise InputError(
            f"the text was marked with {field.name}={theirs!r} and the detector has {field.name}={ours!r}; "
            "detect with the record that was stored with the text"
        )


def check_vocab(mark: Mark, vocab_size: int) -> None:
    """Refuse a model or tokenizer of another size: the lists depend on it."""
    if mark.vocab_size != vocab_size:
        raise InputError(
            f"the mark's lists are of vocab_size={mark.vocab_size} and this model has {vocab_size} logits; "
            "marks are read with the vocabulary that they were made with"
        )


MARKLLM_SCHEMES = {"KGW": KGW, "Unigram": UNIGRAM, "SynthID": SYNTHID, "EXP": EXP}
MARKLLM_F = {"time": hashing.LEFT, "min": hashing.MIN}
MARKLLM_NAMES = {"hash_key": "key", "prefix_length": "width", "keys": "key", "sampling_table_size": "table_size"}
MARKLLM_NAMES |= {"sampling_table_seed": "table_seed", "context_history_size": "history"}
MARKLLM_UNREAD: tuple[str, ...] = (
    "algorithm_name",
    "z_threshold",
    "threshold",
    "f_scheme",
    "window_scheme",
    "ngram_len",
)
MARKLLM_UNREAD += ("detector_name", "sequence_length", "watermark_mode", "num_leaves", "p_threshold")
HF_NAMES = {"greenlist_ratio": "gamma", "bias": "delta", "hashing_key": "key", "context_width": "width"}
HF_NAMES |= {"keys": "key", "sampling_table_size": "table_size", "sampling_table_seed": "table_seed"}
HF_NAMES |= {"context_history_size": "history"}
HF_SEEDINGS = {"lefthash": hashing.LEFT, "selfhash": hashing.SELF}


def _context_of(config: Mapping[str, Any]) -> int:
    """SynthID's tokens of context, one fewer than its n-grams have."""
    length = config.get("ngram_len", 5)
    if isinstance(length, bool) or not isinstance(length, int):
        raise InputError(f"ngram_len={length!r} must be an integer")
    return length - 1


def from_markllm(config: Mapping[str, Any], *, vocab_size: int, tokenizer: str = "") -> Mark:
    """The mark of a MarkLLM configuration (config/KGW.json, Unigram.json, SynthID.json, EXP.json).

    EXP reads our own hash: MarkLLM's draws of a torch generator are not reproduced.

    Raises:
        InputError: an algorithm or a variant that is not there, or a key that is missing.
    """
    scheme = MARKLLM_SCHEMES[errors.one_of("algorithm_name", config.get("algorithm_name"), MARKLLM_SCHEMES)]
    out: dict[str, Any] = {"scheme": scheme, "vocab_size": vocab_size, "tokenizer": tokenizer}
    for name, value in config.items():
        errors.one_of("MarkLLM key", name, (*MARKLLM_NAMES, *MARKLLM_UNREAD, "gamma", "delta"))
        if name not in MARKLLM_UNREAD:
            out[MARKLLM_NAMES.get(name, name)] = value
    if scheme == KGW:
        out["parity"] = MARKLLM
        out["seeding"] = MARKLLM_F[errors.one_of("f_scheme", config.get("f_scheme", "time"), MARKLLM_F)]
        errors.one_of("window_scheme", config.get("window_scheme", "left"), ("left",))
    if scheme == SYNTHID:
        out["width"] = _context_of(config)
    return from_dict(out)


def from_transformers(config: Mapping[str, Any], *, vocab_size: int, tokenizer: str = "") -> Mark:
    """The mark of transformers' `WatermarkingConfig` or `SynthIDTextWatermarkingConfig`, as a dict.

    Raises:
        InputError: an unknown field, or a key that is missing.
    """
    is_synthid = "keys" in config or "ngram_len" in config
    out: dict[str, Any] = {"scheme": SYNTHID if is_synthid else KGW, "vocab_size": vocab_size, "tokenizer": tokenizer}
    unread = ("seeding_scheme", "ngram_len", "skip_first_ngram_calls", "debug_mode")
    for name, value in config.items():
        errors.one_of("transformers key", name, (*HF_NAMES, *unread))
        if name in HF_NAMES:
            out[HF_NAMES[name]] = value
    if is_synthid:
        if config.get("skip_first_ngram_calls") or config.get("debug_mode"):
            raise InputError("skip_first_ngram_calls and debug_mode are not supported; leave them out, or False")
        out["width"] = _context_of(config)
    else:
        out = {"gamma": 0.25, "delta": 2.0, **out, "parity": HF}
        out["seeding"] = HF_SEEDINGS[
            errors.one_of("seeding_scheme", config.get("seeding_scheme", "lefthash"), HF_SEEDINGS)
        ]
    return from_dict(out)
