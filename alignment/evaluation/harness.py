"""A model class for EleutherAI's lm-evaluation-harness, which this module imports only when it is used.

Every choice of a question is a branch of one row (`decoding.scoring`), and texts are written by the decoding engine.
Where the harness's own model `hf` decides something that changes a number, such as where a context ends and its
continuation begins, this class does as `hf` does.
"""

import functools
import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import xxhash
from jax.sharding import Mesh

from alignment import errors
from alignment.decoding import scoring
from alignment.decoding.engine import Engine
from alignment.decoding.requests import Request
from alignment.errors import InputError
from alignment.evaluation import pair_tokens
from alignment.models import decoder

PIP = "pip install 'plumbline[eval]' (or 'lm_eval>=0.4.13')"
MAX_LENGTH = 2_048  # where a checkpoint says nothing of its context, as in the harness
MAX_GEN_TOKS = 256
MARK = "plumbline/fingerprint"  # the entry of a cache that says whose answers it holds
CUT = "plumbline/num_cut"  # and the one that says how many of their requests were cut
PART = 4_096  # requests between two writes to a cache
SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
GEN_KWARGS = ("until", "max_gen_toks", "do_sample", "temperature", *SAMPLING)


class Tokenizer(Protocol):
    """What this module reads of a tokenizer; data/tokens/tokenizer.py has one."""

    name: str
    bos_id: int | None
    eos_id: int | None
    pad_id: int
    stop_ids: tuple[int, ...]
    adds_bos: bool
    chat_template: str
    tokens: dict[str, str]
    files: dict[str, bytes]

    def encode_batch(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]: ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str: ...

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False) -> str: ...


def flax_lm(model: decoder.DecoderLM, params: Any, tok: Tokenizer, **options: Any) -> Any:
    """An instance of the harness's `TemplateLM`, for `lm_eval.simple_evaluate(model=...)`.

    Args:
        options: of `LanguageModel`.

    Raises:
        InputError: the harness is not installed, or the tokenizer has neither BOS nor EOS.
    """
    return lm_class()(model, params, tok, **options)


@functools.cache
def lm_class() -> type:
    """`LanguageModel` as the harness's own kind of class.

    Raises:
        InputError: the harness is not installed.
    """
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError as e:
        raise InputError(f"lm-evaluation-harness is not installed; {PIP}") from e
    # The harness resamples in forked processes, and a fork of a process with JAX's threads may hang.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    made = type("FlaxLM", (LanguageModel, TemplateLM), {"__module__": __name__, "__doc__": LanguageModel.__doc__})
    return made


class LanguageModel:
    """The harness's requests, answered by a JAX decoder.

    Args:
        engine_fn: makes an engine for rows of at least so many tokens, with the tokens' bytes; None: tasks that let the
            model write are refused.
        digest: of the weights, see `language_model.digest`; None: it is computed from `params`.
        max_length: tokens that the model reads at most; longer contexts are cut on the left and counted in `num_cut`.
        add_bos: whether texts begin with BOS; None: as the tokenizer has it.
        mesh: see `scoring.score`.
    """

    backend = "causal"

    def __init__(
        self,
        model: decoder.DecoderLM,
        params: Any,
        tok: Tokenizer,
        *,
        engine_fn: Callable[[int], Engine] | None = None,
        digest: str | None = None,
        max_length: int | None = None,
        add_bos: bool | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__()
        if tok.bos_id is None and tok.eos_id is None:
            raise InputError(f"tokenizer {tok.name!r} has neither BOS nor EOS, from which an empty context would begin")
        self.model, self.params, self.tok, self.engine_fn, self.mesh = model, params, tok, engine_fn, mesh
        self.max_length = MAX_LENGTH if max_length is None else max_length
        self.max_gen_toks = MAX_GEN_TOKS
        self.add_bos = tok.adds_bos if add_bos is None else add_bos
        self.digest = digest_of(params) if digest is None else digest
        self.num_cut, self._has_cache, self._has_dropped = 0, False, False
        self.batch_size = 1  # the harness prints it; rows are packed whatever it says
        self.tokenizer = _as_harness_reads(tok)

    # What the harness asks about the model

    @property
    def eot_token_id(self) -> int:
        return self.tok.stop_ids[0] if self.tok.eos_id is None else self.tok.eos_id

    @property
    def prefix_token_id(self) -> int:
        return pair_tokens.prefix_id(self.tok)

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's cache of requests, with a hash of the files that decide what is in there."""
        content = xxhash.xxh3_64()
        for name, value in sorted(self.tok.files.items()):
            content.update(name.encode())
            content.update(value)
        return f"{self.tok.name.replace('/', '__')}-{content.hexdigest()}"

    @property
    def fingerprint(self) -> str:
        """What answers depend on: weights, numbers' type, tokenizer, length of the context, BOS."""
        parts = (self.digest, self.model.dtype, self.tokenizer_name, self.max_length, self.add_bos)
        return xxhash.xxh3_64("|".join(map(str, parts))).hexdigest()

    def get_model_info(self) -> dict[str, Any]:
        num_params = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.params))
        return {
            "model_num_parameters": num_params,
            "model_dtype": self.model.dtype,
            "model_revision": "",
            "model_sha": self.digest,
        }

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take the harness's cache, whose keys hold nothing of a model, only where it is empty or holds our answers.

        Raises:
            InputError: the cache holds the answers of other weights.
        """
        store = cache_hook.dbdict
        if store is not None:
            stored = store.get(MARK)
            if stored != self.fingerprint and (stored is not None or len(store)):
                raise InputError(
                    f"use_cache names a cache of other weights, tokenizer or lengths ({stored or 'no mark'}, and this "
                    f"model is {self.fingerprint}); its answers would be taken for this model's: name another file"
                )
            store[MARK] = self.fingerprint
            if not self._has_cache:  # each task of a run brings the cache again
                self._has_cache, self.num_cut = True, self.num_cut + store.get(CUT, 0)
        super().set_cache_hook(cache_hook)  # type: ignore[misc]  # of LM, beside which this class stands

    def _count_cut(self, num: int, *, is_kept: bool = True) -> None:
        """Count requests that were cut; where the cache keeps their answers, another start does not get them again."""
        self.num_cut += num
        store = self.cache_hook.dbdict  # type: ignore[attr-defined]
        if num and is_kept and store is not None:
            store[CUT] = store.get(CUT, 0) + num

    # Text to tokens

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self._encode_all([(string, add_special_tokens)])[0]

    def _encode_all(self, strings: Sequence[tuple[str, bool | None]]) -> list[list[int]]:
        return pair_tokens.encode_all(self.tok, strings, add_bos=self.add_bos)

    def _encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[tuple[str, str], list[int], list[int]]]:
        """What `TemplateLM.loglikelihood` makes of each pair."""
        encoded = pair_tokens.encode_pairs(self.tok, pairs, add_bos=self.add_bos)
        return [(pair, context, rest) for pair, (context, rest) in zip(pairs, encoded)]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source; None where none is wanted."""
        return self.tok.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text; without a generation prompt it ends inside the last message, to be gone on with."""
        try:
            text = self.tok.render(chat_history, add_generation_prompt=add_generation_prompt)
        except InputError as e:  # some templates have no place for a system message
            chat_history = [message for message in chat_history if message["role"] != "system"]
            text = self.tok.render(chat_history, add_generation_prompt=add_generation_prompt)
            if not self._has_dropped:
                self._has_dropped = True
                print(f"system messages are left out, because the chat template refuses them ({e})", flush=True)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"]
        start = text.rfind(last.strip())
        if start < 0:
            raise InputError(
                f"the chat template rewrites the last message, {last[-40:]!r}, so that it cannot be gone on with; "
                "leave out the task's gen_prefix, or apply_chat_template"
            )
        is_verbatim = text[start : start + len(last.lstrip())] == last
        return text[: start + len(last.lstrip() if is_verbatim else last.strip())]

    # The three kinds of requests

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(nats, whether greedy) of each request's continuation after its context."""
        is_cached = self.cache_hook.dbdict is not None  # type: ignore[attr-defined]
        part = PART if is_cached else max(len(requests), 1)
        out: list[tuple[float, bool]] = []
        for at in range(0, len(requests), part):
            pairs = [request.args for request in requests[at : at + part]]
            out += self._loglikelihood_tokens(self._encode_pairs(pairs))
        return out

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, rest) for _, context, rest in requests]
        scores = scoring.score(self.model, self.params, pairs, max_len=self.max_length, mesh=self.mesh)
        out = [(float(total), bool(greedy)) for total, greedy in zip(scores.total_N, scores.is_greedy_N)]
        for request, answer in zip(requests, out):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], answer)  # type: ignore[attr-defined]
        self._count_cut(scores.num_cut)
        return out

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Nats of whole texts, in windows of `max_length` that do not overlap, as the harness cuts them."""
        texts = self._encode_all([(request.args[0], None) for request in requests])
        scores = scoring.rolling(
            self.model, self.params, texts, prefix_id=self.prefix_token_id, max_len=self.max_length, mesh=self.mesh
        )
        for request, total in zip(requests, scores.total_N):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, float(total))  # type: ignore[attr-defined]
        return [float(total) for total in scores.total_N]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that the model writes after each context, up to the first of the request's stop texts."""
        if self.engine_fn is None:
            raise InputError("a task lets the model write, and this model has no engine; give flax_lm an engine_fn")
        if not requests:
            return []
        prompts = self._encode_all([(request.args[0], None) for request in requests])
        engine_requests = [self._request(ids, request.args[1]) for ids, request in zip(prompts, requests)]
        engine = self.engine_fn(max(len(request.prompt) + request.max_new_tokens for request in engine_requests))
        index_of = {engine.submit(request): i for i, request in enumerate(engine_requests)}
        texts = [""] * len(requests)
        while engine.num_waiting or engine.num_busy:
            for answer in (news.answer for news in engine.advance() if news.is_done):
                if answer.error:  # a text for it would count as a wrong answer
                    raise FloatingPointError(answer.error)
                i = index_of[answer.number]
                # decoded whole and cut after, as the harness does: some tokenizers drop the first token's blank
                texts[i] = _cut_at(self.tok.decode(answer.answer_ids), engine_requests[i].stop)
                self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])  # type: ignore[attr-defined]
                is_kept = not requests[i].args[1].get("do_sample")  # the harness draws anew at every start
                self._count_cut(len(prompts[i]) > len(engine_requests[i].prompt), is_kept=is_kept)
        return texts

    def _request(self, ids: list[int], gen_kwargs: Mapping[str, Any]) -> Request:
        """A request of the harness as one of the engine's.

        Raises:
            InputError: an option that the engine does not have, or more new tokens than the model reads.
        """
        from lm_eval.models.utils import normalize_gen_kwargs

        options: dict[str, Any] = dict(normalize_gen_kwargs(dict(gen_kwargs), self.max_gen_toks))
        for name in options:
            errors.one_of("generation_kwargs", name, GEN_KWARGS)
        room = self.max_length - options["max_gen_toks"]
        if room < 1:
            raise InputError(
                f"max_gen_toks={options['max_gen_toks']} leaves no room for a prompt in max_length={self.max_length}"
            )
        temperature = float(options.get("temperature", 1.0))
        if not options["do_sample"]:
            temperature = min(temperature, 0.0)  # one below 0 goes on, for the engine to refuse
        return Request(
            prompt=ids[-room:] or [self.prefix_token_id],
            max_new_tokens=options["max_gen_toks"],
            temperature=temperature,
            stop_ids=self.tok.stop_ids,
            stop=tuple(text for text in options["until"] if text),
            **{name: options[name] for name in SAMPLING if options.get(name) is not None},
        )


def _cut_at(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0]
    return text


def digest_of(params: Any) -> str:
    """A hash of parameters in memory, for weights that came from no file."""
    content = xxhash.xxh3_64()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        content.update(jax.tree_util.keystr(path).encode())
        content.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return content.hexdigest()


def _as_harness_reads(tok: Tokenizer) -> types.SimpleNamespace:
    """The attributes of a tokenizer of `transformers` that the harness writes into its results."""
    names = {f"{kind}_token": tok.tokens.get(f"{kind}_token") for kind in ("bos", "eos", "pad")}
    ids = {"bos_token_id": tok.bos_id, "eos_token_id": tok.eos_id, "pad_token_id": tok.pad_id}
    return types.SimpleNamespace(chat_template=tok.chat_template, name_or_path=tok.name, **names, **ids)
