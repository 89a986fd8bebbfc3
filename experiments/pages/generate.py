"""What a run of generate.py adds to its page: samples coloured by log-probability, lengths, how answers ended."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment import files
from alignment.decoding.requests import Token
from experiments.decoding.journal import Journal
from experiments.report import markup, pictures

NUM_SHOWN = 20  # answers in the table
NUM_BINS = 24


def spans(tokens: Sequence[Token], pieces: Sequence[bytes]) -> list[tuple[str, float]]:
    """Text and log-probability of an answer's parts; tokens that spell one letter together are one part."""
    out: list[tuple[str, float]] = []
    raw, logprob = b"", 0.0
    for token in tokens:
        raw, logprob = raw + (pieces[token.id] if token.id < len(pieces) else b""), logprob + token.logprob
        try:
            out.append((raw.decode("utf-8"), round(logprob, 4)))
        except UnicodeDecodeError as e:
            if e.reason == "unexpected end of data" and len(raw) < 4:
                continue  # the next token may complete the letter
            out.append((raw.decode("utf-8", "replace"), round(logprob, 4)))
        raw, logprob = b"", 0.0
    return [*out, (raw.decode("utf-8", "replace"), round(logprob, 4))] if raw else out


def write(workdir: pathlib.Path, journal: Journal) -> dict[str, float]:
    """Leave the tables and the figure; what the answers add up to, for the summary."""
    samples: list[dict[str, Any]] = []
    lengths: dict[str, list[int]] = {}
    num_read = 0
    for (_, sample), row, more in journal.entries():
        lengths.setdefault(row["finish_reason"], []).append(row["num_tokens"])
        num_read += 0 if sample else row["num_prompt_tokens"]
        if "tokens" in more and len(samples) < NUM_SHOWN:
            answer = {markup.TOKENS: more["tokens"]}
            samples.append({"id": row["id"], "prompt": _text(row["prompt"]), "answer": answer} | _end(row))
    if samples:
        files.write_rows(workdir / "tables/samples.jsonl", samples)
    files.write_rows(workdir / "tables/ends.jsonl", [_line(why, lengths[why]) for why in sorted(lengths)])
    _draw(workdir / "figures/lengths.png", lengths)
    all_lengths = [num for some in lengths.values() for num in some]
    return {
        "answers": len(all_lengths),
        "generated_tokens": sum(all_lengths),
        "prompt_tokens": num_read,
        "truncated": len(lengths.get("length", ())),
        "failed": len(lengths.get("error", ())),
    }


def _end(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"finish_reason": row["finish_reason"], "num_tokens": row["num_tokens"]}


def _text(prompt: Any) -> str:
    """A prompt for reading: of a conversation every turn on a line of its own."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
        return "\n".join(f"{turn.get('role', turn.get('from', ''))}: {turn.get('content', '')}" for turn in prompt)
    return str(prompt)


def _line(why: str, lengths: Sequence[int]) -> dict[str, Any]:
    low, middle, high = (float(x) for x in np.quantile(lengths, (0.05, 0.5, 0.95)))
    return {
        "finish_reason": why,
        "answers": len(lengths),
        "tokens_5_%": low,
        "tokens_median": middle,
        "tokens_95_%": high,
    }


def _draw(path: pathlib.Path, lengths: Mapping[str, Sequence[int]]) -> None:
    highest = max((num for some in lengths.values() for num in some), default=0)
    if not highest:
        return
    edges = np.linspace(0, highest, min(NUM_BINS, highest) + 1)
    groups = {
        why: {"low": 0, "high": highest, "counts": np.histogram(some, edges)[0]}
        for why, some in sorted(lengths.items())
    }
    caption = "Lengths of the answers by how they ended: stop, at a stop token or text; length, cut at max_new_tokens."
    pictures.histograms(path, groups, caption=caption, label="tokens of an answer", of="answers")
