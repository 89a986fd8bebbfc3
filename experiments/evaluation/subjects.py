"""The models that an evaluation asks: checkpoints in this process, services, and toys of growing training."""

import functools
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from alignment import errors, files
from alignment.decoding import backends, scoring
from alignment.decoding.engine import Engine
from alignment.decoding.requests import Request
from alignment.errors import InputError
from alignment.evaluation import pair_tokens, prompting, relaxed_perplexity
from alignment.train import language_model, loop, optimizer
from data.texts import text
from data.tokens import tokenizer
from data.toys import remedies
from experiments.decoding import models
from experiments.evaluation import services
from experiments.evaluation.services import Sampling
from experiments.launch import text_training

ENDPOINT, TOY = services.ENDPOINT, "toy"
TOY_STEPS = (20, 60, 120, 200, 320)  # of training, after each of which a toy is left
TOYS = tuple(f"{TOY}:{steps}" for steps in TOY_STEPS)
TOY_ROWS = 8  # of a batch of their training
NUM_DOCUMENTS = 4_000
TURN = "\n\n### "  # what begins a turn of a conversation where no chat template is wanted
TURNS = {"user": "Question", "assistant": "Solution"}


def check(c: ml_collections.ConfigDict, more: Sequence[str] = ()) -> None:
    """Refuse models that are not there, a service without an address, and settings that nothing reads.

    Args:
        more: models that a run opens beside c.models, such as a judge.

    Raises:
        InputError: a value, what is needed, and a way out.
    """
    if not isinstance(c.models, tuple) or not c.models or not all(isinstance(m, str) and m for m in c.models):
        raise InputError(f"models={c.models!r} must be a tuple, such as ('hf:models/smollm2', 'run:runs/sft')")
    for spec in (*c.models, *more):
        kind, _, name = spec.partition(":")
        if kind == TOY:
            errors.one_of("models", spec, TOYS)
        elif kind == ENDPOINT:
            if not name or not c.endpoint.url:
                raise InputError(f"{spec!r} is to be asked, which needs endpoint.url and a name behind the colon")
            backends.openai(c.endpoint.url, name, **services.options(c))
        else:
            models.check(one(c, spec))
    if c.endpoint.url and not any(spec.startswith(f"{ENDPOINT}:") for spec in (*c.models, *more)):
        raise InputError(f"endpoint.url={c.endpoint.url!r} is not read, as no model is endpoint:<name>")


def one(c: ml_collections.ConfigDict, spec: str) -> ml_collections.ConfigDict:
    """The config of `experiments.decoding.models` for one of the models."""
    own = ml_collections.ConfigDict(c.to_dict(preserve_field_references=False))
    with own.unlocked():
        own.update(init_from=spec, draft_from="", tokenizer="")
    return own


def engine_settings(arg: str = "") -> dict[str, Any]:
    """The group of `models.settings`, but for what says which model it is, which the config's `models` lists."""
    return {name: v for name, v in models.settings(arg).items() if name not in ("init_from", "draft_from", "tokenizer")}


def names(specs: Sequence[str]) -> list[str]:
    """A short name of each: the last part of its folder or name, numbered where it occurs again."""
    counts: Counter[str] = Counter()
    out = []
    for spec in specs:
        kind, _, rest = spec.partition(":")
        last = f"{TOY}-{rest}" if kind == TOY else (rest or spec).rstrip("/").rsplit("/", 1)[-1]
        counts[last] += 1
        out.append(last if counts[last] == 1 else f"{last}-{counts[last]}")
    return out


class Local:
    """A checkpoint in this process.

    Attributes:
        digest: of its weights and of what they are computed in.
        num_cut: contexts that were longer than the model reads and lost their beginning.
    """

    has_logprobs = True

    def __init__(self, name: str, spec: str, c: ml_collections.ConfigDict, folder: pathlib.Path, *, is_chat: bool):
        self.name, self.spec, self.c, self.is_chat, self.num_cut = name, spec, one(c, spec), is_chat, 0
        if spec.startswith(f"{TOY}:"):
            self.c.init_from = f"hf:{train_toys(folder / 'toys', int(spec.partition(':')[2]))}"
        opened = models.open_model(self.c, folder)
        if is_chat and not opened.tok.has_own_template:
            print(f"{name}: its checkpoint has no chat template, so the plain one is used", flush=True)
        self.model = models.with_weights(opened, self.c)
        self.tok, self.digest = self.model.tok, self.model.digest
        self.max_len = self.c.engine.max_len

    @functools.cached_property
    def engine(self) -> Engine:
        return models.engine(self.model, self.c, order="longest", seed=self.c.seed)

    @property
    def mesh(self) -> Any:
        """The mesh that the model is split over; None on one device."""
        return self.model.mesh if self.model.mesh.size > 1 else None

    @property
    def delimiter(self) -> str:
        """What parts a prompt from an answer: a blank, and nothing in a chat, whose template has parted them."""
        return "" if self.is_chat else " "

    def prompt(self, question: str) -> str:
        """The text that the model goes on with."""
        if not self.is_chat:
            return question
        return self.tok.render([{"role": "user", "content": question}], add_generation_prompt=True)

    def nats(self, pairs: Sequence[tuple[str, str]]) -> scoring.Scores:
        """Log-probability of each answer after its prompt; both texts as they are."""
        encoded = pair_tokens.encode_pairs(self.tok, pairs, add_bos=self.tok.adds_bos)
        scores = scoring.score(self.model.network, self.model.params, encoded, max_len=self.max_len, mesh=self.mesh)
        self.num_cut += scores.num_cut
        return scores

    def rolling(self, texts: Sequence[str]) -> np.ndarray:
        """Log-probability of whole texts without any context but BOS."""
        ids = pair_tokens.encode_all(self.tok, [(one_text, None) for one_text in texts], add_bos=self.tok.adds_bos)
        options: dict[str, Any] = dict(prefix_id=pair_tokens.prefix_id(self.tok), max_len=self.max_len, mesh=self.mesh)
        return scoring.rolling(self.model.network, self.model.params, ids, **options).total_N

    def ids(self, prompts: Sequence[str]) -> list[list[int]]:
        return pair_tokens.encode_all(self.tok, [(prompt, None) for prompt in prompts], add_bos=self.tok.adds_bos)

    def write(self, prompts: Sequence[str], how: Sampling) -> list[list[str]]:
        """`how.num` answers to each prompt."""
        room = self.max_len - how.max_new_tokens
        work: list[Request] = []
        for ids in self.ids(prompts):
            self.num_cut += len(ids) > room
            request = Request(
                ids[-room:],
                how.max_new_tokens,
                temperature=how.temperature,
                top_p=how.top_p,
                stop=how.stop,
                seed=how.seed,
            )
            work += request.samples(how.num)
        written = [self.model.text(answer.text, is_alone=self.is_chat) for answer in self.engine.answers(work)]
        return [written[i * how.num : (i + 1) * how.num] for i in range(len(prompts))]

    def conversation(self, messages: prompting.Messages) -> str:
        """The text of a conversation, up to where the model's turn begins."""
        if self.is_chat:
            return self.tok.render(messages, add_generation_prompt=True)
        turns = [f"{TURN}{TURNS[message['role']]}\n{message['content']}" for message in messages]
        return "".join([*turns, f"{TURN}{TURNS['assistant']}\n"]).lstrip()

    def fits(self, messages: prompting.Messages, max_new_tokens: int) -> bool:
        """Whether a conversation and so many tokens more fit into what the model reads."""
        return len(self.ids([self.conversation(messages)])[0]) + max_new_tokens <= self.max_len

    def respond(self, requests: Sequence[prompting.Request]) -> Sequence[prompting.Reply]:
        """Replies to conversations; all of them are written together."""
        write = prompting.responder(
            self.engine,
            lambda messages: self.ids([self.conversation(messages)])[0],
            lambda answer: self.model.text(answer.text, is_alone=self.is_chat),
            stop=() if self.is_chat else (TURN.strip(),),
        )
        return write(requests)

    def fitting(self, questions: Sequence[str], answers: Sequence[str], more: int) -> list[int]:
        """The numbers of the prompts that the model can read whole, with the answer and so many tokens more."""
        prompts = self.ids([self.prompt(text) for text in questions])
        lengths = [len(ids) for ids, _ in self.tok.encode_batch([f" {answer}" for answer in answers])]
        return [i for i, ids in enumerate(prompts) if lengths[i] and len(ids) + lengths[i] + more <= self.max_len]

    def curves(
        self, questions: Sequence[str], answers: Sequence[Sequence[str]], *, with_variants: bool, **options: Any
    ) -> list[relaxed_perplexity.Curve]:
        """Relaxed Perplexity's curve of each prompt; the options are those of `relaxed_perplexity.curves`, and `seed`.

        Args:
            answers: accepted ones of each prompt.
            with_variants: whether an answer counts with and without a blank and a capital before it.
        """
        seed, temperature = options.pop("seed", 0), options.pop("temperature", 1.0)
        prompts = [self.prompt(text) for text in questions]
        items = []
        for prompt_ids, accepted in zip(self.ids(prompts), answers, strict=True):
            spelt = [_variants(answer, self.delimiter, with_variants) for answer in accepted]
            encoded = [[ids for ids, _ in self.tok.encode_batch(forms)] for forms in spelt]
            items.append(relaxed_perplexity.Item(prompt_ids, [list(dict.fromkeys(map(tuple, e))) for e in encoded]))

        def sample(some: Sequence[Sequence[int]], num: int, n_max: int) -> list[list[list[int]]]:
            if not n_max:
                return [[[] for _ in range(num)] for _ in some]
            work = [
                request
                for ids in some
                for request in Request(ids, n_max, temperature=temperature, seed=seed).samples(num)
            ]
            written = [answer.answer_ids for answer in self.engine.answers(work)]
            return [written[i * num : (i + 1) * num] for i in range(len(some))]

        def score(rows: Sequence[Sequence[int]], targets: Sequence[Any]) -> np.ndarray:
            return scoring.score_within(self.model.network, self.model.params, rows, targets, mesh=self.mesh).total_N

        return relaxed_perplexity.curves(items, sample, score, **options)


def open_all(c: ml_collections.ConfigDict, folder: pathlib.Path, *, is_chat: bool) -> Mapping[str, Any]:
    """Name -> a function that opens the model, so that only one is in memory at a time."""
    return {
        name: functools.partial(services.Service, name, spec, c, folder)
        if spec.startswith(f"{ENDPOINT}:")
        else functools.partial(Local, name, spec, c, folder, is_chat=is_chat)
        for name, spec in zip(names(c.models), c.models)
    }


def _variants(answer: str, delimiter: str, with_variants: bool) -> list[str]:
    usual = f"{delimiter}{answer}"
    if not with_variants:
        return [usual]
    other = answer[:1].swapcase() + answer[1:]
    return list(dict.fromkeys([usual, answer, f" {answer}", other, f" {other}"]))


def train_toys(folder: pathlib.Path, steps: int) -> pathlib.Path:
    """A small byte-level model after so many steps on the embedded remedies, as a Hugging Face folder.

    One training serves all of TOY_STEPS: it goes on from the last one that is here, also after a kill.
    """
    if (folder / f"{TOY}-{steps}" / "config.json").is_file():
        return folder / f"{TOY}-{steps}"
    tok = tokenizer.load("bytes")
    if not (folder / "documents.jsonl").is_file():
        files.write_rows(folder / "documents.jsonl", remedies.documents(NUM_DOCUMENTS))
    compute = dict(dtype="float32", remat="none", attention="blocked", unroll=2)
    net = language_model.build("", tok, model=models.TOY_SIZES, compute=compute, rows_are_plain=False, workdir=folder)
    for stage in TOY_STEPS[: TOY_STEPS.index(steps) + 1]:
        place = folder / f"{TOY}-{stage}"
        if (place / "config.json").is_file():
            continue
        state, _ = text_training.fit(
            net,
            None,
            _toy_texts(folder / "documents.jsonl"),
            models.one_device(),
            folder,
            tx=optimizer.adamw(peak_lr=3e-3, warmup_steps=20, total_steps=TOY_STEPS[-1]),
            seed=0,
            steps=stage,
            batch_size=TOY_ROWS,
            pace=loop.Pace(save_every=40),
            logging=loop.Logging(sinks=()),
        )
        language_model.export(place, state.params, net, tok, dtype="float32")
    return folder / f"{TOY}-{steps}"


@functools.lru_cache(maxsize=1)  # one run trains several toys, and reading the documents takes seconds
def _toy_texts(path: pathlib.Path) -> tuple[text.Texts, text.Texts]:
    options: dict[str, Any] = dict(tokenizer=tokenizer.load("bytes"), max_len=256, heldout_fraction=0.01)
    train, heldout, _ = text.load(kind="documents", path=str(path), **options)
    return train, heldout
