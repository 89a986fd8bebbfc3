"""Tables of a run: verbatim protection, membership inference, detection of marked answers."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError
from alignment.watermark import attacks, detect, membership, text_marks, verbatim
from alignment.watermark.text_marks import Mark
from alignment.watermark.verbatim import Scored
from experiments.text_watermarks import memorising
from experiments.text_watermarks.texts import Text

SHARES = (0.25, 0.5, 0.75)  # of tokens that an attack replaces
LEAST_NEGATIVES = 1_000  # fewer cannot show a rate of one in a thousand
PIECES = (1, 3)  # that a marked text is cut into where it is pasted into another
DILUTION = 3  # tokens of the other text for each marked one
MOST_PASTED = 500  # unmarked texts beside pasted ones, each read by all windows and their resamples
RESAMPLES = 199  # of windows; the smallest p-value is 1 / 200


def verbatim_lines(
    members: Sequence[Sequence[Scored]], scheme: str, deltas: Sequence[float], prompt_lens: Sequence[int], gamma: float
) -> list[dict[str, Any]]:
    """A line for each strength and prompt: means over keys of the increase, and the theory beside it.

    Args:
        members: for each text its scores under each key.
    """
    out = []
    for delta in deltas:
        for prompt_len in prompt_lens:
            begin = max(prompt_len, 1) - 1  # the first token of a text is not scored
            each = []
            for k in range(len(members[0])):
                clean = [scored[k].logps_T[begin:] for scored in members if len(scored[k].logps_T) > begin]
                marked = [scored[k].marked(delta)[begin:] for scored in members if len(scored[k].logps_T) > begin]
                each.append(verbatim.increase(clean, marked))
            if not each:
                raise InputError("mark.keyring is empty; give at least one key")
            names = ("delta_of_mean", "mean_of_delta", "delta_of_min", "min_of_delta", "log10_factor")
            means = {name: float(np.mean([getattr(x, name) for x in each])) for name in names}
            targets = float(np.mean([np.exp(scored[0].logps_T[begin:]).mean() for scored in members]))
            theory = dict(expected_spread=verbatim.expected_increase(delta, gamma))
            theory["expected_at_mean_probability"] = verbatim.expected_increase(
                delta, gamma, target=min(targets, 1 - 1e-9)
            )
            out.append(dict(scheme=scheme, delta=delta, prompt_len=prompt_len, keys=len(each)) | means | theory)
    return out


def theory_lines(
    members: Sequence[Sequence[Scored]], scheme: str, deltas: Sequence[float], gamma: float
) -> list[dict[str, Any]]:
    """A line for each strength: the paper's bounds on emitting one of the members, and what was measured.

    Probabilities are logarithms to base 10; 0 leaves None. The soft bound speaks of texts whose every target is
    likelier than all rivals (`soft_texts`), with one epsilon for all of them, and holds above `soft_delta` alone.

    Args:
        members: for each text its scores under each key.
    """
    chances = [scored[0].logps_T.sum() for scored in members]
    soft, is_first = [], []
    for scored in members:
        assert scored[0].rivals_T2 is not None
        least, most = scored[0].rivals_T2[:, 0].min(), scored[0].rivals_T2[:, 1]
        is_first += [most < 0]
        if (epsilon := verbatim.soft_epsilon(float(most.max()))) is not None:
            soft.append((epsilon, float(np.exp(max(least, -600.0))), len(most)))
    shared: dict[str, Any] = {"texts": len(members), "tokens": min(len(scored[0].logps_T) for scored in members)}
    shared |= {"likeliest_tokens": float(np.mean(np.concatenate(is_first))), "soft_texts": len(soft)}
    bound = None
    if soft:
        epsilon, mu, length = (min(values) for values in zip(*soft))
        shared |= {"soft_epsilon": epsilon, "soft_delta": verbatim.soft_delta(epsilon, mu)}
        bound = _log10(verbatim.soft_bound(len(soft), length, epsilon))
    else:
        shared |= {"soft_epsilon": None, "soft_delta": None}
    shared |= {"hard_bound": _log10(verbatim.hard_bound(shared["texts"], shared["tokens"], gamma))}
    out = []
    for delta in deltas:
        marked = np.array([[each.marked(delta).sum() for each in scored] for scored in members])
        num_keys = marked.shape[1]
        out.append(
            dict(scheme=scheme, delta=delta)
            | shared
            | {"soft_bound": bound if shared["soft_delta"] is not None and delta > shared["soft_delta"] else None}
            | {"clean": float(np.logaddexp.reduce(chances)) / math.log(10)}
            | {"marked": float(np.logaddexp.reduce(marked, axis=None) - math.log(num_keys)) / math.log(10)}
        )
    return out


def _log10(value: float) -> float | None:
    return math.log10(value) if value > 0 else None


def attack_scores(
    scored: Scored, lower: Scored, delta: float, text: str, reference_T: np.ndarray | None
) -> dict[str, float]:
    """Every attack's score of one text under one key; at delta 0 without the mark."""
    marked_T, lower_T = scored.marked(delta), lower.marked(delta)
    corrected_T = membership.adaptive(marked_T, scored.is_green_T, delta)
    exact_T = membership.exact_debias(marked_T, scored.is_green_T, scored.marked_mass(delta), delta)
    lower_corrected_T = membership.adaptive(lower_T, lower.is_green_T, delta)
    out = {
        "loss": membership.loss(marked_T),
        "zlib": membership.zlib_ratio(marked_T, text),
        "lowercase": membership.lowercase(marked_T, lower_T),
        "min_k_plus_plus": membership.min_k(membership.plus_plus(marked_T, *memorising.marked_moments(scored, delta))),
        "adaptive_min_k": membership.min_k(corrected_T),
        "adaptive_zlib": membership.zlib_ratio(corrected_T, text),
        "adaptive_lowercase": membership.lowercase(corrected_T, lower_corrected_T),
        "exact_min_k": membership.min_k(exact_T),
        "exact_loss": membership.loss(exact_T),
        "min_k": membership.min_k(marked_T),
    }
    out |= {f"min_k_{k:g}": membership.min_k(marked_T, k) for k in membership.KS}
    if reference_T is not None:
        out["reference_ratio"] = membership.reference_ratio(marked_T, reference_T)
        out["reference_difference"] = membership.reference_difference(marked_T, reference_T)
    return out


def membership_lines(
    texts: Sequence[Text],
    scored: Sequence[Sequence[Scored]],
    lower: Sequence[Sequence[Scored]],
    references: Sequence[np.ndarray] | None,
    *,
    scheme: str,
    delta: float,
) -> list[dict[str, Any]]:
    """A line for each attack: AUC clean, mean and deviation over keys under the mark, the drop, TPR at 5 % FPR.

    `short_texts`: texts in which the attack's share of tokens is below one, where it takes one.
    """
    is_member_N = np.array([text.is_member for text in texts])

    def table(delta: float, key: int) -> dict[str, np.ndarray]:
        rows = [
            attack_scores(
                scored[i][key], lower[i][key], delta, text.text, None if references is None else references[i]
            )
            for i, text in enumerate(texts)
        ]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def auc(scores_N: np.ndarray) -> float:
        return membership.auc(scores_N[is_member_N], scores_N[~is_member_N])

    clean = table(0.0, 0)
    marked = [table(delta, key) for key in range(len(scored[0]))]
    out = []
    for name in clean:
        over_keys = [auc(each[name]) for each in marked]
        tpr = [membership.tpr_at(each[name][is_member_N], each[name][~is_member_N], 0.05) for each in marked]
        out.append(
            {
                "attack": name,
                "scheme": scheme,
                "delta": delta,
                "clean": auc(clean[name]),
                "watermarked": float(np.mean(over_keys)),
                "deviation": float(np.std(over_keys)),
                "drop": auc(clean[name]) - float(np.mean(over_keys)),
                "tpr_at_5_fpr": float(np.mean(tpr)),
                "short_texts": _num_short(name, scored),
            }
        )
    return out


def _num_short(attack: str, scored: Sequence[Sequence[Scored]]) -> int:
    """Texts that are too short for an attack which averages a share of the tokens; 0 for other attacks."""
    if "min_k" not in attack:
        return 0
    last = attack.rpartition("_")[2]
    k = float(last) if last[0].isdigit() else membership.FIXED_K
    return sum(membership.is_short(len(each[0].logps_T), k) for each in scored)


def detection_line(mark: Mark, answers: Sequence[Sequence[int]], negatives: Sequence[Sequence[int]]) -> dict[str, Any]:
    """How well a mark is found in answers, and how often in texts without it; too short ones are counted.

    Rates at 0.1 % false alarms of the negatives themselves are None below 1,000 negatives, which cannot show them;
    `p_below_0.001` is the rate at that level by exact p-values. `low_power`: answers of fewer than 16 scored tokens.
    """
    usable, others = ([ids for ids in x if len(ids) > mark.num_context] for x in (answers, negatives))
    if not usable or not others:
        raise InputError(f"no text is longer than the {mark.num_context} tokens of a context; write longer answers")
    detections, null = ([detect.detect(mark, ids) for ids in x] for x in (usable, others))
    scores, null_z = [x.z for x in detections], [x.z for x in null]
    return {
        "n": len(detections),
        "too_short": len(answers) - len(usable),
        "z_median": float(np.median(scores)),
        "low_power": sum(x.has_low_power for x in detections),
        "p_below_0.01": float(np.mean([x.p_value < 0.01 for x in detections])),
        "p_below_0.001": float(np.mean([x.p_value < 0.001 for x in detections])),
        "negatives": len(null),
        "false_alarms_at_0.01": float(np.mean([x.p_value < 0.01 for x in null])),
        "false_alarms_at_0.001": float(np.mean([x.p_value < 0.001 for x in null])),
        "tpr_at_1_fpr": membership.tpr_at(scores, null_z, 0.01),
        "tpr_at_0.1_fpr": membership.tpr_at(scores, null_z, 0.001) if len(null) >= LEAST_NEGATIVES else None,
    }


def robustness_lines(
    mark: Mark, answers: Sequence[Sequence[int]], negatives: Sequence[Sequence[int]], seed: int
) -> list[dict[str, Any]]:
    """Detection after cuts, mixing and pasting; negatives are cut alike."""
    rng = np.random.default_rng(seed)
    longest = max(map(len, answers))
    out = []

    def add(attack: str, strength: float, change_fn: Any, negative_fn: Any) -> None:
        changed, others = [change_fn(ids) for ids in answers], [negative_fn(ids) for ids in negatives]
        if any(len(ids) > mark.num_context for ids in changed) and any(len(ids) > mark.num_context for ids in others):
            out.append(dict(attack=attack, strength=strength) | detection_line(mark, changed, others))

    for share in (1.0, 0.5, 0.25):
        length = max(int(longest * share), 1)
        cut_fn = functools.partial(attacks.cut, length=length, rng=rng)
        add("cut", length, cut_fn, cut_fn)
    other = [x for ids in negatives for x in ids]
    for share in SHARES:
        add("mix", share, functools.partial(attacks.mix, unmarked=other, share=share, rng=rng), list)
    return out + pasted_lines(mark, answers, other, rng, num_others=min(len(negatives), MOST_PASTED))


def pasted_lines(
    mark: Mark,
    answers: Sequence[Sequence[int]],
    unmarked: Sequence[int],
    rng: np.random.Generator,
    *,
    num_others: int,
) -> list[dict[str, Any]]:
    """Answers inside unmarked text three times as long, read as a whole and by windows; negatives are as long.

    Args:
        unmarked: one long text, whose parts the answers are pasted into.
        num_others: negatives, cut from it as well.
    """

    def part(length: int) -> list[int]:
        return attacks.cut(unmarked, length, rng)

    usual = int(np.median([len(ids) for ids in answers]))
    if len(unmarked) < (DILUTION + 1) * usual:  # too little text to hide in
        return []
    others = [part((DILUTION + 1) * usual) for _ in range(num_others)]
    out = []
    for pieces in PIECES:
        changed = [attacks.paste(ids, part(DILUTION * len(ids)), pieces, rng) for ids in answers]
        line = detection_line(mark, changed, others) | window_columns(mark, changed, others)
        out.append(dict(attack="paste", strength=pieces) | line)
    return out


def window_columns(mark: Mark, marked: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What the best window says (WinMax); schemes without green lists have none."""
    if mark.scheme not in (text_marks.KGW, text_marks.UNIGRAM):
        return {}
    windows, null = (
        [detect.find_window(mark, ids, resamples=RESAMPLES) for ids in x if len(ids) > mark.num_context]
        for x in (marked, others)
    )
    z, null_z = [x.z for x in windows], [x.z for x in null]
    return {
        "window_p_below_0.01": float(np.mean([x.p_value < 0.01 for x in windows])),
        "window_false_alarms_at_0.01": float(np.mean([x.p_value < 0.01 for x in null])),
        "window_tpr_at_1_fpr": membership.tpr_at(z, null_z, 0.01),
    }


def null_lines(windows: Sequence[Sequence[int]], marks: Sequence[Mark]) -> list[dict[str, Any]]:
    """Shares of exact p-values below three levels on unmarked text, over windows and keys together."""
    p = np.array([[detect.detect(mark, ids).p_value for ids in windows] for mark in marks])
    return [
        {"scheme": marks[0].scheme, "level": level, "share": float(np.mean(p < level)), "n": p.size}
        | {"largest_of_a_key": float(np.max(np.mean(p < level, axis=1)))}
        for level in (0.05, 0.01, 0.001)
    ]


def marks_of(c: Mapping[str, Any], scheme: str, vocab_size: int, delta: float, tokenizer: str) -> list[Mark]:
    """The marks of all keys."""
    more: dict[str, Any] = dict(gamma=c["gamma"], delta=float(delta), tokenizer=tokenizer)
    if scheme == text_marks.KGW:
        more["width"] = 1
    return [Mark(scheme, int(key), vocab_size, **more) for key in c["keyring"]]
