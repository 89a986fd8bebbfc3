"""The best parameters of a run by a held-out metric, and when to stop looking for better ones.

What counts is the held-out values in `metrics.jsonl` up to the step that a run goes on from, so a run that was killed
decides as one that was not. The best state is a checkpoint under `best/checkpoints` of the workdir.
"""

import math
import pathlib
from collections.abc import Sequence

from alignment import errors, files
from alignment.train import checkpoint
from alignment.train.train_state import TrainState

LOWER = ("loss", "perplexity", "error")  # ends of names of metrics of which the lowest value is the best


class Watch:
    """Follows a held-out metric.

    Args:
        metrics: as they are logged, such as `heldout/loss`; of LOWER the lowest value is the best, of others the
            highest. A second one decides between equal values of the first.
        patience: evaluations without a better value after which `is_over`; None never ends a run.
        restored: the step that the run goes on from; None for a fresh one.
    """

    def __init__(self, workdir: pathlib.Path, *metrics: str, patience: int | None, restored: int | None):
        self.metrics, self.patience = metrics, patience
        self.history = [] if restored is None else _logged(workdir, metrics, restored)
        self._saved = [] if restored is None else [restored]  # the run's own last checkpoints, two at most
        self._manager = checkpoint.open_manager(workdir / "best/checkpoints", keep=None)
        for step in self._manager.all_steps():
            if restored is None or step > restored:
                self._manager.delete(step)
        checkpoint.wait(self._manager)  # removes the hashes of what is gone, which the same steps may write anew

    def note(self, number: int, heldout: dict[str, float], state: TrainState) -> None:
        """Take the values of an evaluation, and save the state if it is the best so far.

        Raises:
            InputError: the run measures no such metric.
        """
        for metric in self.metrics:
            errors.one_of("loop.best", metric, heldout)
        before = self.best_step()
        self.history.append((number, tuple(heldout[metric] for metric in self.metrics)))
        if self.best_step() != before:
            self.save(state)

    def save(self, state: TrainState) -> None:
        """Take this state for the best."""
        checkpoint.wait(self._manager, hashes=False)
        # The last of the run's own checkpoints may be half written, so a killed run goes on from it or from the one
        # before, and needs what was the best there; what it came to later it comes to again.
        steps = self._manager.all_steps()
        needed = {max((step for step in steps if step <= end), default=None) for end in (*self._saved, math.inf)}
        for step in set(steps) - needed:
            self._manager.delete(step)
        checkpoint.save(self._manager, state, {})

    def prepare(self, step: int) -> None:
        """Be complete on disk before the run writes its own checkpoint of this step, which a restart goes on from."""
        checkpoint.wait(self._manager, hashes=False)
        self._saved = [*self._saved[-1:], step]

    def best_step(self) -> int | None:
        """The first step with the best value, of which NaN is the worst; None before an evaluation."""

        def worth(pair: tuple[int, tuple[float, ...]]) -> list[float]:
            signed = [-value if name.endswith(LOWER) else value for name, value in zip(self.metrics, pair[1])]
            return [-math.inf if math.isnan(value) else value for value in signed]

        return max(self.history, key=worth)[0] if self.history else None

    @property
    def is_over(self) -> bool:
        """Whether the last `patience` evaluations brought nothing better."""
        best = self.best_step()
        if self.patience is None or best is None:
            return False
        return sum(number > best for number, _ in self.history) >= self.patience

    def explain(self, number: int, steps: int) -> None:
        """Say why a run that `is_over` stays at this step."""
        if number < steps and files.is_first_process():
            print(
                f"this run ended at step {number} of {steps}, because patience={self.patience} evaluations brought no "
                f"better {self.metrics[0]}; to train further, give a larger patience in another --workdir",
                flush=True,
            )

    def restore(self, state: TrainState) -> TrainState:
        """The best state; the arrays of the one that is given are freed, because memory may not hold both.

        It is the last that was saved where no evaluation chose one.
        """
        checkpoint.wait(self._manager)
        return checkpoint.restore(self._manager, checkpoint.give_up(state), step=self.best_step())[0]

    def close(self) -> None:
        self._manager.close()


def _logged(workdir: pathlib.Path, metrics: Sequence[str], restored: int) -> list[tuple[int, tuple[float, ...]]]:
    """Steps and values that a run has logged up to the one that it goes on from."""
    path = workdir / "metrics.jsonl"
    # The writer, which cuts a torn line off, may not have opened the file yet, and is another process's of several.
    rows = [row for row, _ in files.whole_rows(path)] if path.is_file() else []
    rows = [row for row in rows if row.keys() >= set(metrics) and row["step"] <= restored]
    return [(row["step"], tuple(row[metric] for metric in metrics)) for row in rows]
