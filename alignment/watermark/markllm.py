"""MarkLLM's two calls over the decoding engine."""

from collections.abc import Callable, Sequence
from typing import Any

from alignment.decoding.engine import Engine
from alignment.decoding.requests import Request
from alignment.watermark import detect, processors
from alignment.watermark.text_marks import Mark


def generate_watermarked_text(
    prompt: str,
    mark: Mark,
    engine: Engine,
    encode_fn: Callable[[str], Sequence[int]],
    decode_fn: Callable[[Sequence[int]], str],
    *,
    temperature: float = 1.0,
    **options: Any,
) -> str:
    """The continuation under the mark, without the prompt, which MarkLLM repeats before it.

    Args:
        engine: with the processor of `processors.build(mark)`. options: more of `Request`'s.
    """
    _, row = processors.build(mark, temperature=temperature)
    options |= {"temperature": processors.draws_at(mark, temperature), "processor_rows": (row,)}
    return decode_fn(engine.answers([Request(encode_fn(prompt), **options)])[0].answer_ids)


def detect_watermark(
    text: str, mark: Mark, encode_fn: Callable[[str], Sequence[int]], *, z_threshold: float = 4.0
) -> dict[str, Any]:
    """`is_watermarked` and `score` (z) as there, and the exact `p_value`."""
    read = detect.detect(mark, encode_fn(text))
    return {"is_watermarked": read.z > z_threshold, "score": read.z, "p_value": read.p_value}
