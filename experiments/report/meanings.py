"""What the logged numbers mean: one plain clause for each name, whether more is better, and what changes its scale.

An experiment adds names of its own by METRICS, a dict of the same form in its file; the launcher leaves it in the
workdir (about.json), so that the page can be built again without the experiment.
"""

import fnmatch
from collections.abc import Collection, Mapping
from typing import NamedTuple

from experiments.report import charts


class Meaning(NamedTuple):
    """A clause without a verb, with its unit; `better` is "higher", "lower" or "" where neither is.

    `scaled_by` holds patterns of config keys: values of runs that differ in one of them do not compare.
    """

    text: str
    better: str = ""
    scaled_by: tuple[str, ...] = ()


LOSS = ("loss", "objective.*", "sft_weight", "length_alpha", "tokenizer")
REWARD = ("loss", "objective.*")
TOKENS = ("tokenizer",)
DATA = ("experiment", "data.path", "data.split", "data.heldout_*", "data.limit")  # other data, other quality numbers

COMMON = {
    "loss": Meaning(
        "what training makes small, mean over the batch; of a language model, in nats per token", "lower", LOSS
    ),
    "perplexity": Meaning("exponential of the loss per token: between how many tokens it wavers", "lower", TOKENS),
    "perplexity_per_byte": Meaning("the same per byte of UTF-8, so that tokenizers do not matter", "lower"),
    "bits_per_byte": Meaning("loss in bits per byte of UTF-8, so that tokenizers do not matter", "lower"),
    "num_tokens": Meaning("held-out tokens that were predicted"),
    "num_bytes": Meaning("size of their text, in bytes of UTF-8"),
    "accuracy": Meaning("share of examples given their true class", "higher"),
    "mean_class_accuracy": Meaning(
        "accuracy within each class, averaged over the classes that have pictures, rare ones too", "higher"
    ),
    "tokens": Meaning("share of a batch's positions that count in the loss; the rest is padding or a prompt"),
    "grad_norm": Meaning("length of the gradient before clipping; a jump warns of instability"),
    "lr": Meaning("learning rate of the step"),
    "steps": Meaning("updates of the parameters"),
    "step_seconds": Meaning("wall-clock time of one update, in seconds", "lower"),
    "seconds": Meaning("wall-clock time, in seconds", "lower"),
    "flops_per_second": Meaning(
        "operations a second that the tokens of a step need, without padding and recomputation; as a share of the "
        "devices' peak it is `utilisation`, which is left out where that peak is not known, as of a CPU",
        "higher",
    ),
    "utilisation": Meaning(
        "share of the devices' peak in bfloat16 that the tokens of a step need, without padding and recomputation",
        "higher",
    ),
    "*_per_second": Meaning("throughput while training or measuring", "higher"),
    "*_per_second/*": Meaning("throughput while training or measuring", "higher"),
    # preference tuning
    "rewards": Meaning("implicit reward: beta times the log-likelihood gained over the reference, in nats", "", REWARD),
    "rewards/chosen": Meaning("implicit reward of the chosen answer, in nats; 0 under the reference", "", REWARD),
    "rewards/rejected": Meaning("implicit reward of the rejected answer, in nats; 0 under the reference", "", REWARD),
    "rewards/margins": Meaning("reward of the chosen answer less that of the rejected one, in nats", "higher", REWARD),
    "rewards/accuracies": Meaning(
        "share of pairs whose chosen answer has the larger reward (a tie is a miss)", "higher"
    ),
    "rewards/ties": Meaning("share of pairs with equal rewards; all of them before the first update"),
    "logps": Meaning("log-probability of an answer under the policy, summed over its tokens, in nats", "", TOKENS),
    "logps/chosen": Meaning("log-probability of the chosen answer, summed over its tokens, in nats", "", TOKENS),
    "logps/rejected": Meaning("log-probability of the rejected answer, summed over its tokens, in nats", "", TOKENS),
    "displacement": Meaning("share of answers that became less likely than under the reference"),
    "displacement/chosen": Meaning("share of pairs whose chosen answer became less likely than at the start", "lower"),
    "displacement/rejected": Meaning("share of rejected answers that became less likely than at the start"),
    "displacement/both": Meaning("share of pairs of which both answers became less likely than at the start", "lower"),
    "baseline/longer": Meaning("accuracy of always preferring the longer answer, which a policy should beat"),
    "baseline/longer_ties": Meaning("share of pairs with answers of equal length"),
    "length/slope": Meaning("reward margin a token by which the chosen answer is longer; 0: no link", "", REWARD),
    "length/correlation": Meaning("correlation of reward margin and length difference, -1 to 1; 0: no link"),
    "kl": Meaning("estimate of the policy's divergence from the reference, in nats"),
    "labels/desirable": Meaning("share of the labelled answers that are desirable"),
    "pairs": Meaning("number of held-out pairs behind the numbers"),
    "longer_is_better": Meaning("share of held-out pairs whose chosen answer is the longer one, half of ties counted"),
}

LOWER = ("loss", "perplexity", "error", "seconds", "asr", "displacement")
HIGHER = ("accuracy", "accuracies", "margin", "margins", "per_second", "reward", "win_rate", "auc")


def of(name: str, own: Mapping[str, Meaning] | None = None) -> Meaning | None:
    """The meaning of a metric, with or without the `heldout/` in front; None where nobody explained it.

    Args:
        own: meanings of the experiment, which come before the common ones.
    """
    head, _, rest = name.partition("/")
    names = [name, rest] if rest and charts.is_heldout(head) else [name]
    for table in (own or {}, COMMON):
        for candidate in names:
            if candidate in table:
                return table[candidate]
        for pattern, meaning in table.items():
            if "*" in pattern and any(fnmatch.fnmatchcase(candidate, pattern) for candidate in names):
                return meaning
    return None


def direction(name: str, own: Mapping[str, Meaning] | None = None) -> int:
    """1 where more is better, -1 where less is, 0 where neither; the ending decides for a name without a meaning."""
    meaning = of(name, own)
    if meaning is not None:
        return {"higher": 1, "lower": -1}.get(meaning.better, 0)
    last = name.rsplit("/", 1)[-1]
    if last.endswith(HIGHER):
        return 1
    return -1 if last.endswith(LOWER) else 0


def is_comparable(name: str, varied: Collection[str], own: Mapping[str, Meaning] | None = None) -> bool:
    """Whether values of a metric compare between runs that differ in these config keys."""
    meaning = of(name, own)
    patterns = (*(meaning.scaled_by if meaning else ()), *DATA)
    return not any(fnmatch.fnmatchcase(key, pattern) for key in varied for pattern in patterns)


def clause(name: str, own: Mapping[str, Meaning] | None = None) -> str:
    """`share of ...; higher is better`, or "" for a name without a meaning."""
    meaning = of(name, own)
    if meaning is None:
        return ""
    return f"{meaning.text}; {meaning.better} is better" if meaning.better else meaning.text


def lead(names: Collection[str], own: Mapping[str, Meaning] | None = None, varied: Collection[str] = ()) -> str | None:
    """The metric that runs are best compared by: with a direction, comparable, held out, and an accuracy before a loss.

    Args:
        varied: config keys in which the runs differ.
    """
    candidates = [name for name in names if direction(name, own) and is_comparable(name, varied, own)]
    return min(candidates, key=_precedence, default=None)


def _precedence(name: str) -> tuple[bool, bool, bool]:
    is_cost = "per_second" in name or name.endswith("seconds")
    return is_cost, not charts.is_heldout(name), not name.endswith(("accuracy", "accuracies"))
