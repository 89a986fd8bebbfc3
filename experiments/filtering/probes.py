"""What is measured of a pretrained language model: harmlessness, facts known, bits per byte, answers that it writes.

Probes are rows of two files: `harmlessness` (a harmless and a harmful answer to a prompt and its paraphrases) and
`helpfulness` (a right answer and wrong ones).

Dimensions: P probes, K wordings of a prompt, 2 = harmless and harmful answer.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from alignment import files
from alignment.decoding import engine, scoring
from alignment.errors import InputError
from alignment.models import decoder
from alignment.safety import harmlessness
from alignment.train import loop, sharding, step, train_state
from data import records
from data.texts import text
from data.tokens import tokenizer

NEEDED = {  # file -> the columns of its rows
    "harmlessness": ("prompt", "harmful", "harmless", "paraphrases"),
    "helpfulness": ("prompt", "answer", "wrong"),
}
Rows = Mapping[str, Sequence[Mapping[str, Any]]]  # by file


class Heldout(NamedTuple):
    """Held-out text of a language: its evaluator, the tokens that count in the loss, and its bytes of UTF-8."""

    evaluate: loop.Evaluator
    num_tokens: int
    num_bytes: int


def read(folder: pathlib.Path) -> Rows:
    """The rows of both files of a folder.

    Raises:
        InputError: a file is missing or empty, a row lacks a column, or rows differ in their number of paraphrases.
    """
    rows = {name: _read(folder / f"{name}.jsonl", needed) for name, needed in NEEDED.items()}
    if len({len(row["paraphrases"]) for row in rows["harmlessness"]}) > 1:
        raise InputError(f"{folder / 'harmlessness.jsonl'}: every probe needs the same number of paraphrases")
    return rows


def _read(path: pathlib.Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"{path} is not there; it holds a row a probe with {', '.join(needed)}")
    rows = files.read_rows(path)
    if not rows:
        raise InputError(f"{path} is empty; it holds a row a probe with {', '.join(needed)}")
    for n, row in enumerate(rows, 1):
        lacking = [key for key in needed if not row.get(key)]
        if lacking:
            raise InputError(f"{path}:{n} lacks {', '.join(lacking)}; a probe has {', '.join(needed)}")
    return rows


def heldout(
    folder: pathlib.Path, loss_fn: step.LossFn, mesh: Mesh, *, batch_size: int, **reading: Any
) -> dict[str, Heldout]:
    """Language -> its held-out text, a .jsonl file each, called by the language.

    Args:
        reading: keyword arguments of `text.load`.
    """
    by_language = {}
    for path in sorted(folder.glob("*.jsonl*")):
        texts, _, _ = text.load(path=str(path), heldout_fraction=0, **reading)
        num_bytes = sum(len(record.value["text"].encode()) for record in records.read(str(path))[0])
        batches = text.batches(texts, batch_size=batch_size, endless=False, **sharding.row_share(mesh))
        num_tokens = int(sum(stop - first - 1 for row in texts.rows for _, first, stop in row))
        by_language[path.name.partition(".")[0]] = Heldout(loop.evaluator(loss_fn, batches), num_tokens, num_bytes)
    if not by_language:
        raise InputError(f"{folder} has no .jsonl file; it holds one of clean text a language")
    return by_language


class Probes:
    """The measurements of one network, with its probes as tokens, for any number of sets of parameters."""

    def __init__(
        self,
        model: decoder.DecoderLM,
        tok: tokenizer.Tokenizer,
        mesh: Mesh,
        rows: Rows,
        heldout: Mapping[str, Heldout],
        *,
        num: int,
        max_new_tokens: int,
        temperature: float,
        keeps_answers: bool = False,
        more_fn: Callable[[Any], Mapping[str, Any]] = lambda params: {},
    ):
        """
        Args:
            more_fn: parameters -> what else is measured of them.
            keeps_answers: it answers as many questions for facts too, and all that it writes is among the measurements.
            num: harmlessness prompts that the model answers in its own words; 0 for none.
            max_new_tokens, temperature: of these answers.
        """
        self.model, self.tok, self.mesh, self.rows, self.heldout = model, tok, mesh, rows, heldout
        self.more_fn = more_fn
        self.asked, self.keeps_answers = rows["harmlessness"][:num], keeps_answers
        self.asked_facts = rows["helpfulness"][:num] if keeps_answers else []
        self.writing = dict(max_new_tokens=max_new_tokens, temperature=temperature)
        facts = [(row["prompt"], (row["answer"], *row["wrong"])) for row in rows["helpfulness"]]
        harms = [
            (prompt, (row["harmless"], row["harmful"]))
            for row in rows["harmlessness"]
            for prompt in (row["prompt"], *row["paraphrases"])
        ]
        self.pairs = {
            name: [pair for prompt, answers in some for pair in self._pairs(prompt, answers)]
            for name, some in (("harmlessness", harms), ("helpfulness", facts))
        }

    def _pairs(self, prompt: str, answers: Sequence[str]) -> list[scoring.Pair]:
        """Prompt and continuation of each answer, as tokens."""
        ids = self.tok.encode(prompt, add_bos=self.tok.adds_bos)
        return [(ids, self.tok.encode(answer)) for answer in answers]

    def measure(self, params: Any, seed: int) -> dict[str, Any]:
        """Lists over probes, and bits per byte of each language.

        Returns:
            harmless [P], paraphrased [P, K - 1] and right [P]: 1 where the harmless (the right) answer is the likelier
            one; bits_per_byte by language; harmful_written, written and perhaps answers, see `_write`.
        """
        scores = {name: scoring.score(self.model, params, pairs, mesh=self.mesh) for name, pairs in self.pairs.items()}
        harms, num_probes = scores["harmlessness"], len(self.rows["harmlessness"])
        total_PK2, length_PK2 = (x.reshape(num_probes, -1, 2) for x in (harms.total_N, harms.length_N))
        harmless_PK = harmlessness.preferred(
            total_PK2[..., 0], length_PK2[..., 0], total_PK2[..., 1], length_PK2[..., 1]
        )
        return {
            "harmless": harmless_PK[:, 0].tolist(),
            "paraphrased": harmless_PK[:, 1:].tolist(),
            "right": self._right(scores["helpfulness"]),
            "bits_per_byte": self._bits(params),
            **self._write(params, seed),
            **self.more_fn(params),
        }

    def _right(self, scores: scoring.Scores) -> list[int]:
        """Whether the first answer of each fact, which is the right one, is the likeliest by the mean of its tokens."""
        ends = np.cumsum([1 + len(row["wrong"]) for row in self.rows["helpfulness"]])[:-1]
        means = np.split(scores.total_N / scores.length_N, ends)  # facts differ in how many answers they have
        return [int(np.argmax(mean) == 0) for mean in means]

    def _bits(self, params: Any) -> dict[str, float]:
        """The loss on held-out text in bits a byte, which compares models of different tokenizers."""
        state = train_state.TrainState(step=0, params=params, opt_state=(), rng=None, frozen={})
        with sharding.activations(self.mesh):
            losses = {language: text.evaluate(state, self.mesh)["loss"] for language, text in self.heldout.items()}
        return {
            language: float(losses[language] * text.num_tokens / text.num_bytes / np.log(2))
            for language, text in self.heldout.items()
        }

    def _write(self, params: Any, seed: int) -> dict[str, Any]:
        """Whether answers that the model writes itself bear a mark of harm, four of these answers, or all of them."""
        if not self.asked:
            return {"harmful_written": [], "written": []}
        prompts = [
            self.tok.encode(row["prompt"], add_bos=self.tok.adds_bos) for row in (*self.asked, *self.asked_facts)
        ]
        ids = engine.write(self.model, params, prompts, seed=seed, stop_ids=self.tok.stop_ids, **self.writing)
        texts = [self.tok.decode(one) for one in ids]
        answers, of_facts = texts[: len(self.asked)], texts[len(self.asked) :]
        marked = [harmlessness.is_marked(answer, row.get("marks", ())) for answer, row in zip(answers, self.asked)]
        out = {"harmful_written": list(map(int, marked)), "written": answers[:: max(1, len(answers) // 4)][:4]}
        return out | ({"answers": {"harmlessness": answers, "helpfulness": of_facts}} if self.keeps_answers else {})
