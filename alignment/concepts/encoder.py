"""Fine-tuning a text encoder as a classifier: many short trainings of one size, which share their compiled programs.

A training takes the parameters of the epoch or step whose held-out loss was lowest. It keeps no checkpoint: it is
deterministic and takes minutes, so that a run which was killed repeats the one training it was in.

Dimensions: B batch, T time, N texts, K labels, D width, G groups.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignment import errors
from alignment.concepts import bag, robust
from alignment.errors import InputError
from alignment.models import bert, bert_classifier
from alignment.train import sharding, step, train_state

STEP = 32  # lengths are rounded up to multiples of this, so that few programs are compiled
FINE_STEP = 16  # where texts of like length go together
WINDOW = 8  # batches whose texts are sorted by length among themselves
RATE = 0.01  # of group DRO, a batch
SPECIALS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}


@dataclasses.dataclass(frozen=True)
class Options:
    """The group `training` of a config.

    Args:
        epochs: passes over the training texts.
        batch_size: texts of an update.
        peak_lr: learning rate after the warm-up; it falls linearly to 0.
        warmup: share of the updates.
        weight_decay: of matrices.
        dropout: of what the head reads.
        pooling: of `bert_classifier.POOLINGS`.
        eval_every: updates between two looks at the held-out loss; None: an epoch.
        group_by_length: texts of like length share a batch: less filling, and batches that are not drawn evenly.

    Raises:
        InputError: a number out of range.
    """

    epochs: int = 3
    batch_size: int = 16
    peak_lr: float = 2e-5
    warmup: float = 0.0
    weight_decay: float = 0.01
    dropout: float = 0.1
    pooling: str = "mean"
    eval_every: int | None = None
    group_by_length: bool = False

    def __post_init__(self) -> None:
        errors.one_of("training.pooling", self.pooling, bert_classifier.POOLINGS)
        for bounds, *names in (
            ("[1, inf)", "epochs", "batch_size", "eval_every"),
            ("[0, 1)", "dropout", "warmup"),
            ("(0, inf)", "peak_lr"),
            ("[0, inf)", "weight_decay"),
        ):
            errors.within(bounds, **{f"training.{name}": getattr(self, name) for name in names})

    def adamw(self, steps: int) -> optax.GradientTransformation:
        """AdamW with a linear schedule; its length is in its state, so that all trainings share a program."""
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.scale_by_adam(),
            optax.add_decayed_weights(self.weight_decay, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)),
            _falling(self.peak_lr, round(self.warmup * steps), steps),
        )


class _Fall(NamedTuple):
    """Updates so far, and those of the warm-up and of the whole training."""

    done: jax.Array
    warmup: jax.Array
    total: jax.Array


def _falling(peak_lr: float, warmup: int, total: int) -> optax.GradientTransformation:
    """Updates times minus the learning rate: up to `peak_lr` over the warm-up, then linearly down to 0."""

    def update(updates, state, params=None):
        rises = jnp.minimum((state.done + 1) / jnp.maximum(state.warmup, 1), 1.0)
        falls = (state.total - state.done) / jnp.maximum(state.total - state.warmup, 1)
        rate = peak_lr * jnp.minimum(rises, falls)
        return jax.tree.map(lambda u: -rate * u, updates), state._replace(done=state.done + 1)

    return optax.GradientTransformation(
        lambda params: _Fall(*(jnp.asarray(n, jnp.int32) for n in (0, warmup, total))), update
    )


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained encoder with its head."""

    trainer: "Trainer"
    params: Any
    heldout_loss: tuple[tuple[int, float], ...]  # (update, loss)

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        return self.trainer.apply(self.params, texts)[0].argmax(axis=1)

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """What the last layer reads, [N,D]."""
        return self.trainer.apply(self.params, texts)[1]

    def vectors(self, words: Sequence[str]) -> np.ndarray:
        """The mean last hidden state of each word's pieces, [N,D], the word standing alone."""
        encoder = dataclasses.replace(self.trainer.encoder, params=self.params["trunk"])
        return np.stack([states_TD.mean(axis=0) for states_TD in encoder.hidden(words, with_special=False)])


class Trainer:
    """Trains classifiers that begin at one encoder's weights."""

    def __init__(self, encoder: bert.Encoder, num_labels: int, options: Options, mesh: Mesh) -> None:
        sharding.check_batch(options.batch_size, mesh)
        self.encoder, self.options, self.num_labels, self.mesh = encoder, options, num_labels, mesh
        self.model = bert_classifier.Classifier(encoder.model, num_labels, options.pooling, options.dropout)
        # on the host, because a training gives the memory of its first parameters away
        self._trunk = jax.tree.map(np.asarray, encoder.params)
        self._updates: dict[tuple[int, float], step.UpdateFn] = {}
        apply_fn = self.model.apply
        self._apply = jax.jit(lambda params, batch: apply_fn({"params": params}, batch["tokens"], batch["mask"]))

    def fit(
        self,
        texts: Sequence[str],
        labels_N: np.ndarray,
        *,
        heldout: tuple[Sequence[str], np.ndarray],
        seed: int,
        groups_N: np.ndarray | None = None,
        dro_rate: float = RATE,
    ) -> Fitted:
        """Train from the encoder's weights.

        Args:
            heldout: texts and labels whose loss picks the parameters; without texts the last ones are taken.
            seed: of the head, the order of the texts and dropout.
            groups_N: of `rebalance.groups`; trains against the worst one (group DRO). None: all texts count alike.

        Raises:
            InputError: texts of one label alone; a loss that is not a finite number.
        """
        bag.check_labels(labels_N)
        ids = self.encoder.encode(texts)
        per_epoch = math.ceil(len(ids) / self.options.batch_size)
        steps = self.options.epochs * per_epoch
        num_groups = 0 if groups_N is None else 2 * self.num_labels
        update = self._update(num_groups, dro_rate)
        state = self._begin(steps, num_groups, seed)
        every = self.options.eval_every or per_epoch
        losses, best, best_params = [], math.inf, None
        for number, batch in enumerate(self._epochs(ids, labels_N, groups_N, seed), 1):
            state, metrics = update(state, sharding.to_devices(batch, self.mesh))
            if number % every and number < steps:
                sharding.keep_pace(self.mesh, metrics)
                continue
            if float(step.value(metrics["nonfinite"])):
                raise InputError(f"the loss of update {number} is not a finite number; lower training.peak_lr")
            loss = self.loss(state.params, *heldout) if len(heldout[0]) else -float(number)
            losses += [(number, loss)] if len(heldout[0]) else []
            if loss < best:
                best, best_params = loss, sharding.to_host(state.params)
        return Fitted(self, best_params, tuple(losses))

    def loss(self, params: Any, texts: Sequence[str], labels_N: np.ndarray) -> float:
        """Mean cross-entropy, in nats."""
        logits_NK = self.apply(params, texts)[0].astype(np.float64)
        logits_NK -= logits_NK.max(axis=1, keepdims=True)
        logp_NK = logits_NK - np.log(np.exp(logits_NK).sum(axis=1, keepdims=True))
        return float(-logp_NK[np.arange(len(labels_N)), labels_N].mean())

    def apply(self, params: Any, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Logits [N,K] and features [N,D]; texts of like length go together."""
        ids = self.encoder.encode(texts)
        width = self.encoder.width
        logits_NK, features_ND = (
            np.zeros((len(ids), self.num_labels), np.float32),
            np.zeros((len(ids), width), np.float32),
        )
        order, num = np.argsort([len(one) for one in ids], kind="stable"), 4 * self.options.batch_size
        for at in range(0, len(order), num):
            index = order[at : at + num]
            batch = sharding.to_devices(self._batch([ids[i] for i in index], num), self.mesh)
            logits_BK, features_BD = self._apply(params, batch)
            logits_NK[index] = np.asarray(logits_BK)[: len(index)]
            features_ND[index] = np.asarray(features_BD)[: len(index)]
        return logits_NK, features_ND

    def _epochs(
        self, ids: Sequence[Sequence[int]], labels_N: np.ndarray, groups_N: np.ndarray | None, seed: int
    ) -> Iterator[dict[str, np.ndarray]]:
        rng, num = np.random.default_rng(seed), self.options.batch_size
        for _ in range(self.options.epochs):
            order = rng.permutation(len(ids))
            batches = [order[at : at + num] for at in range(0, len(order), num)]
            if self.options.group_by_length:
                batches = _of_like_length(order, [len(one) for one in ids], num, rng)
            for index in batches:
                out = self._batch([ids[i] for i in index], num)
                for name, values_N in (("labels", labels_N), ("groups", groups_N)):
                    out[name] = np.zeros(num, np.int32)
                    out[name][: len(index)] = 0 if values_N is None else values_N[index]
                yield out

    def _batch(self, ids: Sequence[Sequence[int]], num: int) -> dict[str, np.ndarray]:
        """Rows filled up on the right, and up to `num` rows; `rows` is 1 for a text."""
        longest = max(map(len, ids))
        size = FINE_STEP if self.options.group_by_length else STEP
        num_time = min(-(-longest // size) * size, self.encoder.max_len)
        tokens_BT, mask_BT = np.zeros((num, num_time), np.int32), np.zeros((num, num_time), bool)
        for row, one in enumerate(ids):
            tokens_BT[row, : len(one)], mask_BT[row, : len(one)] = one, True
        rows_B = (np.arange(num) < len(ids)).astype(np.float32)
        return {"tokens": tokens_BT, "mask": mask_BT, "rows": rows_B}

    def _begin(self, steps: int, num_groups: int, seed: int) -> train_state.TrainState:
        """The state before the first update, a copy on every device: encoders are small, and only texts are split."""
        params = bert_classifier.begin(self.model, self._trunk, seed=seed)
        place = NamedSharding(self.mesh, PartitionSpec())
        frozen = {"q": jnp.full(num_groups, 1 / num_groups)} if num_groups else {}
        opt_state, rng = self.options.adamw(steps).init(params), jax.random.PRNGKey(seed)
        state = train_state.TrainState(jnp.zeros((), jnp.int32), params, opt_state, rng, frozen)
        # No aliases: the first update gives this memory away, and the trunk's arrays on the host begin every training.
        return jax.device_put(state, place, may_alias=False)

    def _update(self, num_groups: int, rate: float) -> step.UpdateFn:
        """The compiled update, made once."""
        key = (num_groups, rate)
        if key not in self._updates:
            tx = self.options.adamw(0)  # the length of a training is in its state
            update = dro_update(self.model, tx, rate) if num_groups else step.build(loss_fn(self.model), tx)
            self._updates[key] = jax.jit(update, donate_argnums=0)
        return self._updates[key]


def _of_like_length(
    order_N: np.ndarray, lengths: Sequence[int], num: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Batches of `num` texts, sorted by length within windows of an order, the batches then in any order."""
    out = []
    for at in range(0, len(order_N), WINDOW * num):
        window = sorted(order_N[at : at + WINDOW * num], key=lambda i: lengths[i])
        out += [np.asarray(window[i : i + num]) for i in range(0, len(window), num)]
    return [out[i] for i in rng.permutation(len(out))]


def row_losses(model: nn.Module, params: Any, batch: dict[str, jax.Array], rng: jax.Array) -> jax.Array:
    """Cross-entropy of each row, in nats, with dropout."""
    logits_BK, _ = model.apply(
        {"params": params}, batch["tokens"], batch["mask"], is_training=True, rngs={"dropout": rng}
    )
    return optax.softmax_cross_entropy_with_integer_labels(logits_BK, batch["labels"])


def loss_fn(model: nn.Module) -> step.LossFn:
    """Cross-entropy averaged over the texts of a batch.

    Batches hold `tokens`, `mask` `[B,T]`, `labels` and `rows` `[B]`; `rows` is 0 for what fills the batch.
    """

    def loss(params, batch, *, rng, frozen):
        loss_B = row_losses(model, params, batch, rng)
        return step.Mean((loss_B * batch["rows"]).sum(), batch["rows"].sum()), {}

    return loss


def dro_update(model: nn.Module, tx: optax.GradientTransformation, rate: float) -> step.UpdateFn:
    """An update against the worst group; the groups' weights are `state.frozen["q"]`.

    Sagawa et al. 2020 (arXiv:1911.08731), Algorithm 1: weights move by the batch's losses first, then the parameters by
    the weighted losses. Batches hold `groups` `[B]` beside what `loss_fn` reads.
    """

    def update(state, batch):
        rng = jax.random.fold_in(state.rng, state.step)
        q_G = state.frozen["q"]

        def weighted(params):
            loss_B = row_losses(model, params, batch, rng)
            loss_G, _ = robust.group_losses(loss_B, batch["groups"], batch["rows"], len(q_G))
            new_q_G = jax.lax.stop_gradient(robust.reweighted(q_G, loss_G, rate=rate))
            return new_q_G @ loss_G, new_q_G

        (loss, new_q_G), gradient = jax.value_and_grad(weighted, has_aux=True)(state.params)
        changes, opt_state = tx.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        new = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state, frozen={"q": new_q_G})
        return new, {"loss": step.single(loss), "nonfinite": step.single(~jnp.isfinite(loss))}

    return update


def small(
    texts: Sequence[str], *, num_words: int, max_len: int, seed: int, name: str = "small", **sizes: Any
) -> bert.Encoder:
    """An encoder from nothing whose tokens are the frequent words of these texts; other words are unknown to it.

    Args:
        texts: of the training split.
        num_words: its vocabulary, without the special tokens.
        sizes: num_layers, model_dim, num_heads, ffn_dim.
    """
    normalizer, splitter = tokenizers.normalizers.BertNormalizer(), tokenizers.pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    words = sorted(counts, key=lambda word: (-counts[word], word))[:num_words]
    vocab = dict(SPECIALS) | {word: len(SPECIALS) + i for i, word in enumerate(words)}
    tok = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    tok.normalizer, tok.pre_tokenizer = normalizer, splitter
    tok.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", SPECIALS["[SEP]"]), ("[CLS]", SPECIALS["[CLS]"])
    )
    tok.add_special_tokens(list(SPECIALS))
    tok.enable_truncation(max_len)
    model = bert.Bert(vocab_size=len(vocab), max_positions=max_len, **sizes)
    tokens_BT = jnp.zeros((1, 4), jnp.int32)
    params = nn.meta.unbox(model.init(jax.random.PRNGKey(seed), tokens_BT, tokens_BT == 0)["params"])
    return bert.Encoder(model, params, tok, max_len, name, f"{name} {seed} {num_words} {sizes}")
