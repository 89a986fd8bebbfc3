"""Where a context ends and its continuation begins, in tokens: as lm-evaluation-harness's own model `hf` decides it."""

from collections.abc import Sequence
from typing import Protocol

from alignment.errors import InputError

Pair = tuple[str, str]  # a context and its continuation


class Tokenizer(Protocol):
    """What this module reads of a tokenizer; data/tokens/tokenizer.py has one."""

    bos_id: int | None
    eos_id: int | None

    def encode_batch(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]: ...


def prefix_id(tok: Tokenizer) -> int:
    """The token that stands for an empty context: BOS, or EOS where there is no BOS.

    Raises:
        InputError: the tokenizer has neither.
    """
    id_of_prefix = tok.eos_id if tok.bos_id is None else tok.bos_id
    if id_of_prefix is None:
        raise InputError("the tokenizer has neither BOS nor EOS, from which an empty context would begin")
    return id_of_prefix


def encode_all(tok: Tokenizer, strings: Sequence[tuple[str, bool | None]], *, add_bos: bool) -> list[list[int]]:
    """Ids of many texts, each with whether special tokens are added; a BOS that begins a text is not doubled.

    Args:
        strings: texts, and False for one that gets no BOS whatever `add_bos` says.
    """
    ids_of = tok.encode_batch([string for string, _ in strings])
    bos = [tok.bos_id] if add_bos and tok.bos_id is not None else []
    return [
        ids if adds is False or ids[: len(bos)] == bos else [*bos, *ids] for (ids, _), (_, adds) in zip(ids_of, strings)
    ]


def encode_pairs(tok: Tokenizer, pairs: Sequence[Pair], *, add_bos: bool) -> list[tuple[list[int], list[int]]]:
    """Tokens of each context and of its continuation, with every text encoded once and all together.

    Blanks at a context's end belong to the continuation's first word, and the continuation's tokens are those of the
    whole text behind as many as the context alone has.

    Raises:
        InputError: a continuation without a token of its own.
    """
    moved = []
    for context, continuation in pairs:
        bare = context.rstrip()
        moved.append((bare, context[len(bare) :] + continuation))
    wanted: dict[tuple[str, bool | None], None] = {}
    for context, continuation in moved:
        wanted |= dict.fromkeys(_texts_of(context, continuation))
    ids_of = dict(zip(wanted, encode_all(tok, list(wanted), add_bos=add_bos)))
    out: list[tuple[list[int], list[int]]] = []
    for pair, (context, continuation) in zip(pairs, moved):
        whole, *before = (ids_of[text] for text in _texts_of(context, continuation))
        if not before:  # an empty context: the prefix token stands for it, unless the text has it already
            prefix = prefix_id(tok)
            encoded = (whole[:1], whole[1:]) if whole[:1] == [prefix] else ([prefix], whole)
        else:
            encoded = (before[0], whole[len(before[0]) :])
        if not encoded[1]:
            raise InputError(
                f"the continuation {pair[1]!r} has no token of its own behind the context that ends "
                f"{pair[0][-40:]!r}; it cannot be scored, so change the task's texts"
            )
        out.append(encoded)
    return out


def _texts_of(context: str, continuation: str) -> list[tuple[str, bool | None]]:
    """The texts to encode for a pair, each with whether special tokens are added: the whole, and what is before."""
    return [(context + continuation, None), (context, None)] if context else [(continuation, False)]
