"""The pairs of benchmarks/dpo_step.py: how long they are, drawn ids, and the file that every contestant reads.

Only numpy: every contestant has another environment.
"""

from pathlib import Path

import numpy as np

NAMES = ("prompts", "chosen", "rejected")
PROFILES = {  # pairs, and mean tokens of prompt and answer; all but the first spread as real sets do
    "even": dict(pairs=4, prompt=256, answer=64),
    "hh": dict(pairs=16, prompt=127, answer=59),
    "ultrafeedback": dict(pairs=8, prompt=121, answer=288),
    "long": dict(pairs=6, prompt=670, answer=105),
}
SPREAD = {"prompt": 0.6, "answer": 0.55}  # standard deviations of the logarithms
END = 2  # of a sequence
ADAPTER = "adapter"  # folder of a peft adapter beside the weights, from which the variants that train one start


def lengths(mean: int, spread: float, num: int, rng: np.random.Generator) -> np.ndarray:
    """[num] tokens, lognormal around this mean, which the draw has but for rounding; at most four times it."""
    drawn = np.exp(rng.normal(0.0, spread, num))
    return np.clip(np.round(drawn * (mean / drawn.mean())), 4, 4 * mean).astype(int)


def draw(profile: dict, vocab_size: int, *, is_even: bool, answers: int = 2, seed: int = 1) -> dict[str, list]:
    """Prompts and answers of each pair; every answer ends in the end-of-sequence token.

    Args:
        answers: to each prompt; all pairs of them are in the batch: above 2, more pairs of fewer prompts.
    """
    rng = np.random.default_rng(seed)
    num_prompts = max(2 * profile["pairs"] // answers, 1)
    ids: dict[str, list] = {name: [] for name in NAMES}

    def sizes(name: str, num: int) -> np.ndarray:
        return np.full(num, profile[name]) if is_even else lengths(profile[name], SPREAD[name], num, rng)

    for prompt_len in sizes("prompt", num_prompts):
        prompt = rng.integers(3, vocab_size, prompt_len)
        written = [np.append(rng.integers(3, vocab_size, n - 1), END) for n in sizes("answer", answers)]
        for i in range(answers):
            for j in range(i + 1, answers):
                for name, one in zip(NAMES, (prompt, written[i], written[j])):
                    ids[name].append(one)
    return ids


def write(path: Path, ids: dict[str, list]) -> None:
    """Each name's sequences end to end, and their lengths."""
    arrays = {name: np.concatenate(of).astype(np.int64) for name, of in ids.items()}
    np.savez(path, **arrays, **{f"{name}_lengths": [len(one) for one in of] for name, of in ids.items()})


def read(path: Path) -> dict[str, list[np.ndarray]]:
    with np.load(path) as arrays:
        return {name: np.split(arrays[name], np.cumsum(arrays[f"{name}_lengths"])[:-1]) for name in NAMES}


def padded(sequences: list[np.ndarray], longest: int, *, on_left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ids [pairs, longest] and their mask, filled up with zeros."""
    ids, mask = (np.zeros((len(sequences), longest), np.int32) for _ in range(2))
    for row, one in enumerate(sequences):
        here = slice(longest - len(one), longest) if on_left else slice(0, len(one))
        ids[row, here], mask[row, here] = one, 1
    return ids, mask
