"""Every method's answers to the held-out prompts, in one journal."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from alignment.decoding import engine as engines
from alignment.decoding import reranked
from alignment.decoding.requests import Answer, Request
from alignment.models import decoder
from alignment.preference import linear_reward
from data.tokens import pieces as token_pieces
from data.tokens import tokenizer
from experiments.decoding import answering
from experiments.decoding.journal import Journal, Key
from experiments.guidance import methods, training
from experiments.guidance.methods import Method
from experiments.guidance.training import Objective, Trained

SAMPLE = "sample"  # one of the draws among which best_of_n chooses


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A held-out prompt.

    Attributes:
        text: as the data has it.
        base, reward: its tokens in either template.
    """

    text: str
    base: tuple[int, ...]
    reward: tuple[int, ...]


def prompts_of(all_objectives: Sequence[Objective], limit: int) -> list[Prompt]:
    """The first `limit` prompts that are held out, of all objectives in turn, each once."""
    prompts: dict[str, Prompt] = {}
    for own in all_objectives:
        reward = {item.group: i for i, item in enumerate(own.reward[1].items)}
        for i, item in enumerate(own.base[1].items):
            if item.group in reward and item.group not in prompts:
                ids = own.base[1].prompt(i), own.reward[1].prompt(reward[item.group])
                prompts[item.group] = Prompt(item.group, *(tuple(map(int, x)) for x in ids))
    turns = sorted(prompts.values(), key=lambda prompt: hashlib.sha256(prompt.text.encode()).digest())
    return turns[:limit]


@dataclasses.dataclass(frozen=True)
class Models:
    """What writes.

    Attributes:
        base: the frozen model.
        guides: a reward model for each objective.
        plain_guide: what they were before they learned their objective.
        dpo: tuned on all pairs together; None where the run has none.
        dpo_each: on each objective's pairs.
        rewards: of whole answers, for each objective; () where no method reads them.
    """

    base: Trained
    guides: Sequence[Trained]
    plain_guide: Trained
    dpo: Trained | None
    dpo_each: Sequence[Trained]
    rewards: Sequence[linear_reward.LinearReward] = ()


def on_one_device(model: Trained, mesh: Mesh) -> Trained:
    """The model where it writes. Answers are not split over devices, unless the model itself is."""
    if mesh.size == 1 or mesh.shape["tensor"] > 1:
        return model
    params, own = jax.device_put((model.params, model.own), mesh.devices.flat[0])
    return dataclasses.replace(model, params=params, own=own)


class Writer:
    """Writes what the journal lacks.

    Args:
        names: of the objectives.
        all_methods: in the order of their numbers in the journal; draws of best_of_n come behind them.
    """

    def __init__(
        self,
        c: ml_collections.ConfigDict,
        tok: tokenizer.Tokenizer,
        models: Models,
        prompts: Sequence[Prompt],
        names: Sequence[str],
        all_methods: Sequence[Method],
        folder: pathlib.Path,
    ) -> None:
        self.c, self.tok, self.models, self.prompts, self.names, self.folder = c, tok, models, prompts, names, folder
        self.pieces = token_pieces.pieces(tok)
        networks = [models.base.network, *(guide.network for guide in models.guides)]
        self._traced = range(1 + len(names))
        self.num_ids = min(tok.vocab_size, *(network.vocab_size for network in networks))
        temperature = c.decoding.temperature
        draws = c.best_of_n if any(m.kind == methods.BEST for m in all_methods) else 0
        self.written = [m for m in all_methods if m.kind != methods.BEST]
        self.written += [Method(SAMPLE, (float(i),), temperature) for i in range(draws)]

    def keys(self) -> list[Key]:
        return [(i, n) for i, method in enumerate(self.written) for n in range(self.num_prompts(method))]

    def num_prompts(self, method: Method) -> int:
        """ARGS, of whose answers each costs a hundred others, has a limit of its own."""
        return min(len(self.prompts), self.c.args.prompts) if method.kind == methods.ARGS else len(self.prompts)

    def run(self, journal: Journal) -> None:
        """Engine by engine; one that has nothing left to write is not made."""
        for kinds, engine_fn in self._engines():
            work = [
                ((i, n), self.request(method, n))
                for i, method in enumerate(self.written)
                if method in kinds
                for n in range(len(self.prompts))
            ]
            if any(key not in journal for key, _ in work):
                answering.write_all(engine_fn(), work, journal, self.folder, row_fn=self._row_of)
        for i, method in enumerate(self.written):
            if method.kind == methods.ARGS:
                self._search(i, method, journal)

    def _engines(self) -> Iterator[tuple[list[Method], Any]]:
        """Methods that one engine serves, and a function that makes it."""
        of_kind = lambda *kinds: [m for m in self.written if m.kind in kinds]  # noqa: E731
        yield of_kind(methods.BASE, methods.GREEDY, SAMPLE), functools.partial(self.engine, self.models.base)
        guided = of_kind(methods.GENARM, methods.PROXY, methods.CONTRASTIVE)
        yield guided, functools.partial(self.engine, self.models.base, self._guides())
        if self.models.dpo is not None:
            yield of_kind(methods.DPO), functools.partial(self.engine, self.models.dpo)
        for method in of_kind(methods.SOUP):
            yield [method], functools.partial(self._soup_engine, method)

    def _guides(self) -> list[Trained]:
        """The reward models, and where a method takes its log-probabilities off, the model that they began as."""
        needs_plain = any(m.kind in methods.SMALL for m in self.written)
        return [*self.models.guides, *([self.models.plain_guide] if needs_plain else [])]

    def _soup_engine(self, method: Method) -> engines.Engine:
        return self.engine(training.soup(self.models.dpo_each, method.weights))

    def engine(self, model: Trained, guides: Sequence[Trained] = (), *, num_slots: int | None = None) -> engines.Engine:
        """An engine for these prompts and this length of answers."""
        c = self.c.decoding
        longest = max(max(len(p.base), len(p.reward)) for p in self.prompts)
        return engines.Engine(
            model.network,
            model.params,
            num_slots=num_slots or c.num_slots,
            max_len=longest + c.max_new_tokens,
            chunk=c.chunk,
            block=c.chunk,
            num_steps=c.num_steps,
            guides=[self._member(guide) for guide in guides],
            pieces=self.pieces,
            num_ids=self.num_ids,
            stop_ids=self.tok.stop_ids,
        )

    def _member(self, guide: Trained) -> tuple[Any, Any]:
        """An adapter of the base, which costs no weights of its own, or a model."""
        is_beside = guide.adapter is not None and self.models.plain_guide is self.models.base
        return (guide.adapter, guide.own) if is_beside else (guide.network, guide.params)

    def request(self, method: Method, n: int) -> Request:
        """The request for prompt `n`; the same draws for every method, so that they differ by their models alone."""
        c, prompt, k = self.c, self.prompts[n], len(self.names)
        sample = int(method.weights[0]) + 1 if method.kind == SAMPLE else 0
        request = Request(
            prompt.base, c.decoding.max_new_tokens, method.temperature, seed=c.seed * 1_000_003 + n, sample=sample
        )
        if method.kind not in (methods.GENARM, methods.PROXY, methods.CONTRASTIVE):
            return request
        has_plain = len(self._guides()) > k
        weights = {
            methods.GENARM: (*method.weights, 0.0),
            methods.PROXY: (*method.weights, -1.0),
            methods.CONTRASTIVE: (*[0.0] * k, -c.contrastive),
        }[method.kind]
        weights = weights if has_plain else weights[:k]
        return dataclasses.replace(
            request,
            guide_prompts=[prompt.reward] * len(weights),
            guide_weights=weights,
            base_weight=1.0 + c.contrastive if method.kind == methods.CONTRASTIVE else 1.0,
        )

    def _row_of(self, key: Key, answer: Answer) -> tuple[dict[str, Any], dict[str, Any]]:
        if answer.error:  # an answer that breaks off is none to compare
            raise FloatingPointError(f"{self.written[key[0]].name}, prompt {key[1]}: {answer.error}")
        ids = answer.answer_ids
        row = self._row(key, ids, answer.text.decode("utf-8", "replace"), answer.finish_reason)
        if self.written[key[0]].kind in (methods.GENARM, *methods.SMALL):
            # of the base, then of the reward models; what a baseline takes off is not part of the trace
            logps = [[round(token.by_model[w], 4) for token in answer.tokens[: len(ids)]] for w in self._traced]
            row |= {"base_logp": logps[0], "arm_logp": logps[1:]}
        return row, {}

    def _row(self, key: Key, ids: Sequence[int], text: str, reason: str) -> dict[str, Any]:
        i, n = key
        method = self.written[i]
        return {
            "uid": n,
            "prompt": self.prompts[n].text,
            "response": text,
            "method": method.name,
            "kind": method.kind,
            "weights": list(method.weights),
            "tau": method.temperature,
            "seed": self.c.seed,
            "base_id": self.models.base.source,
            "arm_ids": [guide.source for guide in self.models.guides] if method.kind == methods.GENARM else [],
            "n_new_tokens": len(ids),
            "finish_reason": reason,
            "ids": list(map(int, ids)),
        }

    def _search(self, i: int, method: Method, journal: Journal) -> None:
        """The answers of ARGS, prompt by prompt."""
        missing = [n for n in range(self.num_prompts(method)) if (i, n) not in journal]
        if not missing:
            return
        base, c = self.models.base, self.c
        reward = self.models.rewards[method.weights.index(max(method.weights))]
        all_ids = reranked.write(
            base.network,
            base.params,
            reward.weights_E,
            [self.prompts[n].base for n in missing],
            weight=c.args.weight,
            num_candidates=min(c.args.top_k, self.num_ids),
            max_new_tokens=c.decoding.max_new_tokens,
            num_ids=self.num_ids,
            stop_ids=self.tok.stop_ids,
            block=c.decoding.chunk,
        )
        for n, ids in zip(missing, all_ids):
            ended = bool(ids) and ids[-1] in self.tok.stop_ids
            ids = ids[:-1] if ended else ids
            text = b"".join(self.pieces[t] for t in ids).decode("utf-8", "replace")
            row = self._row((i, n), ids, text, "stop" if ended else "length")
            journal.add((i, n), row, more={}, seconds=journal.seconds)


def best_of_n(
    answers: Mapping[str, Mapping[int, Mapping[str, Any]]],
    method: Method,
    rewards: Sequence[linear_reward.LinearReward],
    base: Trained,
    prompts: Sequence[Prompt],
) -> dict[int, Mapping[str, Any]]:
    """Of every prompt's draws the one of the highest weighted reward."""
    draws = [name for name in answers if name.startswith(f"{SAMPLE} ")]
    rows = [answers[name][n] for n in range(len(prompts)) for name in draws]
    scores_NR = score_rows(base.network, base.params, rows, rewards, prompts)
    total_N = np.array([w * s / (s.std() + 1e-9) for w, s in zip(method.weights, scores_NR.T)]).sum(axis=0)
    best = total_N.reshape(len(prompts), len(draws)).argmax(axis=1)
    return {n: dict(answers[draws[best[n]]][n], method=method.name, kind=method.kind) for n in range(len(prompts))}


def score_rows(
    network: decoder.DecoderLM,
    params: Any,
    rows: Sequence[Mapping[str, Any]],
    rewards: Sequence[linear_reward.LinearReward],
    prompts: Sequence[Prompt],
) -> np.ndarray:
    """Rewards [N,R] of written answers by each linear reward, all of which read the same hidden states."""
    answers = [([*prompts[row["uid"]].base, *row["ids"]], len(prompts[row["uid"]].base)) for row in rows]
    features_NE = linear_reward.features(network, params, answers)
    return np.stack([reward.of(features_NE) for reward in rewards], axis=1)


def digest(prompts: Sequence[Prompt], written: Sequence[Method], c: ml_collections.ConfigDict) -> str:
    """Of all that an answer depends on beside the weights."""
    content = hashlib.sha256(json.dumps([dataclasses.asdict(m) for m in written]).encode())
    for prompt in prompts:
        content.update(json.dumps([prompt.base, prompt.reward]).encode())
    content.update(json.dumps([c.decoding.max_new_tokens, c.contrastive, c.seed, c.args.to_dict()]).encode())
    return content.hexdigest()[:16]
