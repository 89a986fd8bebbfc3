"""Preference data: files of comparisons in, batches of tokenised pairs out.

    train, heldout, report = preferences.load(path="pairs.jsonl", tokenizer=tok, max_len=1024)
    for batch in preferences.batches(train, batch_size=64, seed=0): ...

Dimensions: B pairs, N rows, T time, R answer tokens, P = (chosen, rejected).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError, one_of, within
from data import loader, records
from data.texts import answers, orders, pair_formats, ranked, splits, tree_steps
from data.texts.pair_formats import Comparison
from data.texts.pairs import Pairs
from data.tokens.tokenizer import Tokenizer
from data.toys import synthetic

PADDED = ("separate", "shared")
LAYOUTS = (*PADDED, "tree")
ORDERS = ("shuffled", "balanced", "prompts")
Sides = tuple[answers.Answered, ...]  # the chosen and the rejected sequence of a pair


def check(
    *,
    path: str | Sequence[str],
    heldout_path: str | Sequence[str] = "",
    heldout_fraction: float = 0.1,
    split: str = "train",
    heldout_split: str = "",
    format: str = "auto",
    chat: str = "auto",
    max_len: int | None = None,
    max_prompt_len: int | None = None,
    truncation: str = "keep_end",
    limit: int | None = None,
) -> None:
    """Refuse settings of `load` before a record is read.

    Raises:
        InputError: a setting out of its range, or a path where nothing lies.
    """
    one_of("data.truncation", truncation, answers.TRUNCATION)
    one_of("data.format", format, ("auto", *pair_formats.FORMATS))
    one_of("data.chat", chat, answers.CHAT)
    if max_len is not None and max_len < 2:
        raise InputError(f"data.max_len={max_len}; a prompt and an answer need at least 2 tokens")
    within("[1, inf)", hint="; None sets no limit", **{"data.limit": limit, "data.max_prompt_len": max_prompt_len})
    splits.check(path, heldout_path, split=split, heldout_split=heldout_split)
    if not heldout_path and not heldout_split and not 0 <= heldout_fraction < 1:
        raise InputError(f"data.heldout_fraction={heldout_fraction}; it must be in [0, 1)")
    for one in filter(None, (path, heldout_path)):
        if one != "synthetic":
            records.check(one)


def load(
    *,
    path: str | Sequence[str],
    tokenizer: Tokenizer,
    heldout_path: str | Sequence[str] = "",
    heldout_fraction: float = 0.1,
    split: str = "train",
    heldout_split: str = "",
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    verdicts: Mapping[str, str] | None = None,
    chat: str = "auto",
    max_len: int | None = None,
    max_prompt_len: int | None = None,
    truncation: str = "keep_end",
    limit: int | None = None,
    seed: int = 0,
    group_column: str = "",
    unpair: bool = False,
    bad_records_path: str = "",
) -> tuple[Pairs, Pairs, dict[str, int]]:
    """Read, split, tokenise.

    Args:
        path: file, folder, glob, several of these (a list, or with commas between), `tfds:name/config`, or 'synthetic'
            for the embedded data.
        heldout_path: records to evaluate on; '' holds back `heldout_fraction` of the prompts of `path`.
        split, heldout_split: of a tensorflow-datasets source.
        format: 'auto', or a key of pair_formats.FORMATS.
        columns: our name to the file's, such as `{"prompt": "question", "chosen": "good", "rejected": "bad"}`; ""
            stands for the usual names. A prompt the file does not call `prompt` is a question to a chat model.
        verdicts: what the file's preferences or labels mean, such as `{"output_1": "model_a", "output_2": "model_b"}`;
            "" stands for the usual words. See `verdicts.of`.
        chat: 'auto', 'always' or 'never': see answers.texts.
        max_len: tokens of prompt and answer together; None keeps all.
        max_prompt_len: tokens of the prompt; None lets a prompt take what its answers leave, and at least half of
            max_len.
        truncation: 'keep_end' cuts a long prompt from the left, 'keep_start' from the right, 'drop' and 'error' do not
            cut.
        limit: use the first so many comparisons; None uses all.
        seed: of the split, and of the embedded data.
        group_column: records with equal values in this column stay on one side of the split; '' splits by prompt.
        unpair: make two labelled records of each pair, for losses on unpaired data.
        bad_records_path: where to write the lines set aside, as JSONL; '' writes nothing.

    Returns:
        Training pairs, held-out pairs, and counts of everything that was read, dropped and cut.

    Raises:
        InputError: a setting out of its range, a file or column that is missing, or no pair left to train on.
    """
    held: dict[str, Any] = dict(
        heldout_path=heldout_path, heldout_split=heldout_split, heldout_fraction=heldout_fraction
    )
    fitting: dict[str, Any] = dict(max_len=max_len, max_prompt_len=max_prompt_len, truncation=truncation)
    check(path=path, format=format, chat=chat, limit=limit, **held, **fitting)
    report: dict[str, int] = {}
    renamed = {ours: theirs for ours, theirs in (columns or {}).items() if theirs}
    of_pairs = {ours: theirs for ours, theirs in renamed.items() if ours not in ("answers", "scores")}
    options: dict[str, Any] = dict(format=format, columns=of_pairs, words=verdicts, group_column=group_column)

    def read(path: str | Sequence[str], split: str, bad_records_path: str) -> list[Comparison]:
        if path == "synthetic":
            rows = records.numbered(synthetic.preference_pairs(limit or 2_000, seed=seed), "synthetic", counts=report)
        else:
            rows = records.read_counted(path, counts=report, split=split, bad_records_path=bad_records_path)
        expanded = list(ranked.expand(rows, renamed, report))
        return pair_formats.read(expanded, limit=limit, counts=report, **options)

    halves = splits.read(read, path, split=split, seed=seed, bad_records_path=bad_records_path, **held)
    if unpair:
        halves = [_unpaired(half) for half in halves]
    tokenised = [_tokenise(half, tokenizer, mode=chat, report=report, **fitting) for half in halves]
    if not len(tokenised[0][0]):
        raise InputError(f"{path}: no pair is left to train on; counts: {report}")
    limits = _limits([sequences for _, sequences in tokenised])
    train, heldout = (_pack(items, sequences, limits, tokenizer.pad_id) for items, sequences in tokenised)
    report["training pairs"], report["held-out pairs"] = len(train), len(heldout)
    return train, heldout, report


def set_aside(pairs: Pairs, fraction: float, *, seed: int) -> tuple[Pairs | None, Pairs]:
    """Pairs that are set aside, None for a fraction of 0, and the others; those of a group, or a prompt, stay together.

    The side is a hash, so that it is the same in every file and template. Give another seed than that of the held-out
    pairs, which are taken by the same hash.

    Raises:
        InputError: one of the sides has no pair.
    """
    if not fraction:
        return None, pairs
    limit = fraction * 2**64
    is_aside = [splits.key(item.group or item.prompt_text(), seed) < limit for item in pairs.items]
    if len(set(is_aside)) < 2:
        raise InputError(
            f"{len(pairs)} pairs do not part into some to set aside and others at a fraction of {fraction}; give more "
            "pairs, or another fraction"
        )
    aside, others = ([i for i, own in enumerate(is_aside) if own == side] for side in (True, False))
    return pairs.subset(aside), pairs.subset(others)


def of_tokens(triples: Sequence[Sequence[np.ndarray]], labels: Sequence[bool] | None = None) -> Pairs:
    """Pairs of token ids that are there already, such as drawn ones.

    Args:
        triples: the ids of a prompt, of the chosen and of the rejected answer.
        labels: of unpaired data, see `Pairs`.
    """
    sequences = [
        tuple(answers.Answered(np.concatenate([prompt, ids]).astype(np.int32), len(prompt), False) for ids in both)
        for prompt, *both in triples
    ]
    items = [Comparison("", ("", ""), label=label) for label in labels or [None] * len(triples)]
    return _pack(items, sequences, _limits([sequences]), pad_id=0)


def batches(
    pairs: Pairs,
    *,
    batch_size: int,
    seed: int = 0,
    layout: str = "separate",
    order: str = "shuffled",
    num_rows: int = 1,
    max_len: int | None = None,
    endless: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 1,
    extra: Mapping[str, np.ndarray] | None = None,
    expand: str = "",
) -> loader.Loader:
    """Batches with static shapes; the keys are listed at `assemble`, those of 'tree' at `trees.fill`.

    Args:
        batch_size: pairs over all processes.
        layout: 'separate' makes a row of each answer, with its own copy of the prompt; 'shared' makes one row of a
            pair: the prompt once, then both answers as branches; 'tree' packs all pairs of a step into `num_rows` rows,
            in which every token stands once, of one of at most three lengths.
        order: of an epoch: 'shuffled'; 'balanced' deals out long and short pairs, so that all steps have nearly equally
            many tokens; 'prompts' takes the pairs of a prompt one after the other, so that they share a step.
        num_rows: of 'tree', over all processes.
        max_len: T; None takes the longest row of all splits, rounded up; 'tree' has lengths of its own.
        endless: shuffle and repeat; otherwise one pass in order, the last batch filled up with weight 0. In order
            'prompts' every batch is, where the pairs of the next prompt do not fit.
        extra: further keys, each an array with one entry a pair, such as stored reference log-probabilities.
        expand: of 'tree', for kernels that take ordinary sequences: a key of trees.EXPANDS.
    """
    one_of("batch.layout", layout, LAYOUTS)
    order_fn = _order(pairs, order, batch_size=batch_size, seed=seed)
    if not endless:  # in the file's order, but for losses on lists, which must be whole
        order_fn = _one_pass(pairs, batch_size) if order == "prompts" else None
    content = pairs.digest if order == "shuffled" else f"{pairs.digest} {order}"
    options: dict[str, Any] = dict(
        num_examples=len(pairs),
        batch_size=batch_size,
        seed=seed,
        endless=endless,
        num_threads=num_threads,
        content=content,
        order_fn=order_fn,
    )
    if layout == "tree":
        if max_len is not None:
            raise InputError(f"max_len={max_len} is not read with layout 'tree', which has lengths of its own")
        mine = loader.share(num_rows, process_index, process_count)
        return loader.build(
            tree_steps.maker(pairs, options, num_rows, mine, extra or {}, expand), **options, is_split=False
        )
    if expand:
        raise InputError(f"expand={expand!r} is not read with layout {layout!r}: its rows are no trees")
    num_time, num_answer = shape(pairs, layout=layout, max_len=max_len)

    def make(index: np.ndarray, weight: np.ndarray) -> loader.Batch:
        batch = assemble(pairs, index, layout=layout, num_time=num_time, num_answer=num_answer)
        return batch | {"weights": weight} | {key: values[index] for key, values in (extra or {}).items()}

    return loader.build(make, **options, process_index=process_index, process_count=process_count)


def lists_cut(pairs: Pairs, *, batch_size: int, seed: int | None = None) -> int:
    """The number of prompts whose pairs lie across two steps in order 'prompts'.

    Args:
        seed: of the order, for the first epoch of those that repeat; None is one pass.
    """
    one_pass = _one_pass(pairs, batch_size)
    order_fn = one_pass if seed is None else orders.together(pairs.prompt_N, batch_size=batch_size, seed=seed)
    return orders.across(pairs.prompt_N, order_fn(0), batch_size)


def _one_pass(pairs: Pairs, batch_size: int) -> orders.OrderFn:
    return lambda epoch: orders.one_pass(pairs.prompt_N, batch_size=batch_size)


def _order(pairs: Pairs, order: str, *, batch_size: int, seed: int) -> orders.OrderFn | None:
    """The order of an epoch; None for the loader's own."""
    one_of("batch.order", order, ORDERS)
    if order == "balanced":
        sizes_n = pairs.starts[2::2] - pairs.starts[:-2:2] - pairs.trunk_len_N
        return orders.balanced(sizes_n, batch_size=batch_size, seed=seed)
    if order == "prompts":
        return orders.together(pairs.prompt_N, batch_size=batch_size, seed=seed)
    return None


def shape(pairs: Pairs, *, layout: str = "separate", max_len: int | None = None) -> tuple[int, int]:
    """T and R of the batches, the same for the training and the held-out pairs; not of layout 'tree'."""
    one_of("batch.layout", layout, PADDED)
    need = pairs.limits["sequence" if layout == "separate" else "row"]
    if max_len is not None and max_len < need:
        raise InputError(f"rows of {max_len} tokens are too short for layout {layout!r}: the longest needs {need}")
    return max_len or round_up(need), round_up(pairs.limits["answer"])


def assemble(pairs: Pairs, index: np.ndarray, *, layout: str, num_time: int, num_answer: int) -> dict[str, np.ndarray]:
    """One batch of the pairs `index` [B].

    Returns:
        tokens, positions, groups, branches: [N, T] int32; N = 2B ('separate') or B ('shared'). Groups are 1 on tokens
            and 0 on padding; branches are 0 on the trunk, 1 on the chosen and 2 on the rejected answer.
        sources: [B, 2, R] int32, place in the side's row of the token that predicts the target.
        targets: [B, 2, R] int32, the answer's tokens. mask: [B, 2, R] float32, 1 on those.
        weights: [B] float32, 1. index: [B] int32. labels: [B] float32, for unpaired data only.
    """
    num_rows = len(index) * (2 if layout == "separate" else 1)
    tokens = np.full((num_rows, num_time), pairs.pad_id, np.int32)
    positions, groups, branches = (np.zeros((num_rows, num_time), np.int32) for _ in range(3))
    sources, targets = (np.zeros((len(index), 2, num_answer), np.int32) for _ in range(2))
    mask = np.zeros((len(index), 2, num_answer), np.float32)
    for b, i in enumerate(index):
        trunk = int(pairs.trunk_len_N[i]) if layout == "shared" else 0
        row, at = (b, trunk) if layout == "shared" else (2 * b, 0)
        tokens[row, :trunk] = pairs.sequence(i, 0)[:trunk]
        positions[row, :trunk] = np.arange(trunk)
        groups[row, :trunk] = 1
        for p in range(2):
            ids, prompt_len = pairs.sequence(i, p), int(pairs.prompt_len_NP[i, p])
            here = slice(at, at + len(ids) - trunk)
            tokens[row, here] = ids[trunk:]
            # Both branches go on from the trunk's last position, so each is rotated as if it stood alone behind it.
            positions[row, here] = np.arange(trunk, len(ids))
            groups[row, here] = 1
            branches[row, here] = p + 1 if layout == "shared" else 0
            # The token before each answer token predicts it.
            source = np.arange(prompt_len - 1, len(ids) - 1)
            num = len(source)
            # A shared row holds the trunk once; what a side has of its own follows at `at`.
            sources[b, p, :num] = np.where(source < trunk, source, source - trunk + at)
            targets[b, p, :num] = ids[prompt_len:]
            mask[b, p, :num] = 1
            row, at = (row, here.stop) if layout == "shared" else (row + 1, 0)
    batch: loader.Batch = {"tokens": tokens, "positions": positions, "groups": groups, "branches": branches}
    batch |= {"sources": sources, "targets": targets, "mask": mask}
    batch |= {"weights": np.ones(len(index), np.float32), "index": np.asarray(index, np.int32)}
    return batch if pairs.label_N is None else batch | {"labels": pairs.label_N[index]}


def longer_is_better(pairs: Pairs) -> float:
    """Accuracy in [0, 1] of always preferring the longer answer, in characters; equal lengths count half.

    It is the baseline that a reward has to beat.
    """
    lengths = np.array([[len(a) for a in item.answers] for item in pairs.items])
    return float(np.mean((lengths[:, 0] > lengths[:, 1]) + 0.5 * (lengths[:, 0] == lengths[:, 1])))


def round_up(length: int) -> int:
    """The next multiple of 8, above 256 of 64: few shapes are compiled, and a device's tiles are full."""
    step = 8 if length <= 256 else 64
    return -(-length // step) * step


def _unpaired(items: Sequence[Comparison]) -> list[Comparison]:
    """Each pair as two labelled records."""
    out = []
    for item in items:
        if len(item.answers) == 1:
            out.append(item)
        else:
            out += [dataclasses.replace(item, answers=(a,), label=k == 0) for k, a in enumerate(item.answers)]
    return out


def _tokenise(
    items: Sequence[Comparison],
    tokenizer: Tokenizer,
    *,
    mode: str,
    report: dict[str, int],
    max_len: int | None,
    max_prompt_len: int | None,
    truncation: str,
) -> tuple[list[Comparison], list[Sides]]:
    """The items that fit, and the two sequences of each."""
    kinds = {len(item.answers) for item in items}
    if len(kinds) > 1:
        raise InputError("the data mixes pairs and single labelled answers; read them apart, or set unpair=True")
    # Of single answers the second side is another record's answer, for the KL of KTO.
    others = items if kinds == {2} else _partners(items)
    columns = [
        answers.encode(tokenizer, items, [item.answers[0] for item in items], mode=mode),
        answers.encode(tokenizer, items, [other.answers[-1] for other in others], mode=mode),
    ]

    def count(what: str, num: int = 1) -> None:
        report[what] = report.get(what, 0) + num

    fitting_items, sequences, refused = [], [], []
    for item, sides in zip(items, zip(*columns)):
        if bad := [side for side in sides if isinstance(side, records.BadRecord)]:
            refused.append(bad[0])
            continue
        if any(a.is_merged for a in sides):
            count("boundary inside a token")
        pair = answers.fit(
            sides,
            max_len=max_len,
            max_prompt_len=max_prompt_len,
            truncation=truncation,
            bos_id=tokenizer.bos_id,
            where=f"{item.file}:{item.line}",
            count=count,
        )
        num_tokens = sum(len(a.ids) for a in sides)
        count("tokens read", num_tokens)
        count("tokens cut or dropped", num_tokens - sum(len(a.ids) for a in pair or ()))
        if pair is not None:
            fitting_items.append(item)
            sequences.append(pair)
    records.set_aside(refused, len(items), report, "conversations that the chat template refuses")
    return fitting_items, sequences


def _partners(items: Sequence[Comparison]) -> list[Comparison]:
    """For each record the next one with another prompt, from the end back to the start.

    Its answer after this record's prompt is a mismatched pair, from which KTO estimates the KL term.
    """
    partners = []
    for i, item in enumerate(items):
        others = (items[(i + k) % len(items)] for k in range(1, len(items)))
        partner = next((other for other in others if other.prompt != item.prompt), None)
        if partner is None:
            raise InputError(
                f"unpaired data needs at least two different prompts in each split, one has {len(items)} records of "
                "one prompt; give more records, another data.heldout_fraction (0 holds nothing back), or "
                "data.heldout_path"
            )
        partners.append(partner)
    return partners


def _trunk_len(pair: Sides) -> int:
    """Tokens that both sides share; a token that holds letters of an answer does not count."""
    # A trunk that reached into an answer would hide that answer's first tokens from the loss.
    cap = min(a.prompt_len - a.is_merged for a in pair)
    differs = np.flatnonzero(pair[0].ids[:cap] != pair[1].ids[:cap])
    return int(differs[0]) if len(differs) else cap


def _limits(splits: Sequence[Sequence[Sides]]) -> dict[str, int]:
    pairs = [pair for sequences in splits for pair in sequences]
    return {
        "sequence": max((len(a.ids) for pair in pairs for a in pair), default=1),
        "row": max((sum(len(a.ids) for a in pair) - _trunk_len(pair) for pair in pairs), default=1),
        "answer": max((a.answer_len for pair in pairs for a in pair), default=1),
    }


def _pack(items: Sequence[Comparison], sequences: Sequence[Sides], limits: Mapping[str, int], pad_id: int) -> Pairs:
    flat = [a.ids for pair in sequences for a in pair]
    has_labels = bool(items) and items[0].label is not None
    return Pairs(
        tokens=np.concatenate(flat) if flat else np.zeros(0, np.int32),
        starts=np.cumsum([0, *map(len, flat)]),
        prompt_len_NP=np.array([[a.prompt_len for a in pair] for pair in sequences], np.int32).reshape(-1, 2),
        trunk_len_N=np.array([_trunk_len(pair) for pair in sequences], np.int32),
        label_N=np.array([item.label for item in items], np.float32) if has_labels else None,
        items=tuple(items),
        limits=limits,
        pad_id=pad_id,
    )
