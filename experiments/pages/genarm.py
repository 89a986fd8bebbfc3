"""What a run of genarm.py leaves behind: the frontier, head-to-head comparisons, latencies, rewards token by token."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from alignment import files, frontier
from alignment.decoding.requests import Token
from alignment.evaluation.head_to_head import Tally
from data.texts import preferences
from experiments.decoding import answering
from experiments.guidance import methods, scoring
from experiments.guidance.methods import Method
from experiments.guidance.training import Objective
from experiments.guidance.writing import Models
from experiments.pages import generate
from experiments.report import charts, markup, pictures

REFERENCE = methods.BASE  # every answer is compared with the base's draw
LABELS = {
    methods.GENARM: "GenARM",
    methods.SOUP: "rewarded soups",
    methods.DPO: "DPO on all pairs",
    methods.BASE: "base",
    methods.GREEDY: "base, greedy",
    methods.BEST: "best of n",
    methods.ARGS: "ARGS, greedy",
    methods.PROXY: "proxy tuning",
    methods.CONTRASTIVE: "contrastive decoding",
}


@dataclasses.dataclass(frozen=True)
class Results:
    """What was written and measured.

    Attributes:
        names: of the objectives.
        compared: the methods.
        answers: by a method's name and a prompt's number.
        outcomes_fn: who of two methods answered better.
        measuring: what measures each objective; [] where rules or judges do.
        judge: whose outcomes these are.
    """

    names: Sequence[str]
    compared: Sequence[Method]
    answers: Mapping[str, scoring.Rows]
    outcomes_fn: scoring.OutcomesFn
    models: Models
    objectives: Sequence[Objective]
    measuring: Sequence[scoring.Measuring]
    judge: str

    def of_kind(self, *kinds: str) -> list[Method]:
        return [method for method in self.compared if method.kind in kinds]

    def corner(self, kind: str, k: int) -> str | None:
        """The method that follows objective `k` alone."""
        own = [m for m in self.of_kind(kind) if m.weights and m.weights[k] and not sum(map(bool, m.weights)) > 1]
        return own[0].name if own else None  # a grid begins with its corners


def write(
    folder: pathlib.Path,
    results: Results,
    latency: Sequence[Mapping[str, Any]],
    pieces: Sequence[bytes],
    *,
    num_shown: int,
) -> dict[str, float | None]:
    """All tables and pictures; the summary. `num_shown`: prompts whose answers are in the table of rewards."""
    num = len(results.names)
    points = {m.name: scoring.point(results.outcomes_fn, m.name, REFERENCE, num) for m in results.compared}
    files.write_table(folder, "models", model_lines(results))
    files.write_table(folder, "frontier", frontier_lines(results, points))
    duels = duel_lines(results)
    files.write_table(folder, "h2h", duels)
    files.write_table(folder, "latency", latency)
    if num_shown:
        files.write_rows(folder / "tables/rewards.jsonl", reward_lines(results, pieces, num_shown))
    if num > 1:
        draw_frontier(folder / "figures/frontier.png", results, points)
    return summary(results, points, duels, latency)


def model_lines(results: Results) -> list[dict[str, Any]]:
    """How each objective's models rank held-out pairs, beside the rule that longer is better."""
    out = []
    for k, name in enumerate(results.names):
        summary = results.models.guides[k].summary
        heldout = results.objectives[k].reward[1]
        out.append(
            {
                "objective": name,
                "held-out pairs": len(heldout),
                "reward model": summary.get("heldout/rewards/accuracies"),
                "longer is better": preferences.longer_is_better(heldout),
                "length correlation": summary.get("heldout/length/correlation"),
                "logp chosen": summary.get("heldout/logps/chosen"),
                "logp rejected": summary.get("heldout/logps/rejected"),
                "pairs trained on": len(results.objectives[k].reward[0]),
                "measuring reward": results.measuring[k].accuracy if results.measuring else None,
                "pairs it was fitted to": results.measuring[k].num_pairs if results.measuring else None,
            }
        )
    return out


def frontier_lines(results: Results, points: Mapping[str, Sequence[Tally]]) -> list[dict[str, Any]]:
    """Each method's share of wins and half of its ties beside the base's draws, by each objective."""
    best = frontier.front({name: scoring.shares(own) for name, own in points.items()})
    lines = []
    for method in results.compared:
        rows = results.answers[method.name].values()
        line: dict[str, Any] = {"method": method.kind, "weights": ", ".join(f"{w:.3g}" for w in method.weights)}
        for name, tally in zip(results.names, points[method.name]):
            low, high = tally.interval
            line |= {name: tally.win_half_tie, f"{name} low": low, f"{name} high": high}
        line |= {"n": points[method.name][0].n, "not determined": sum(t.undetermined for t in points[method.name])}
        line |= {"pareto": method.name in best, "temperature": method.temperature}
        line |= {"tokens": sum(row["n_new_tokens"] for row in rows) / max(len(rows), 1)}
        lines.append(line | {"judge": results.judge, "reference_id": f"{REFERENCE} of {results.models.base.source}"})
    return lines


def duel_lines(results: Results) -> list[dict[str, Any]]:
    """Guided decoding by one objective's reward model beside what else follows that objective, judged by it."""
    lines, temperature = [], {method.name: method.temperature for method in results.compared}
    for k, name in enumerate(results.names):
        ours = results.corner(methods.GENARM, k)
        assert ours is not None  # the grid begins with the corners
        for kind in (methods.BASE, methods.GREEDY, methods.SOUP, methods.BEST, methods.ARGS, methods.PROXY):
            other = kind if kind in results.answers else results.corner(kind, k)
            if other is None or other not in results.answers:
                continue
            tally = scoring.compare(results.outcomes_fn, ours, other, k)
            low, high = tally.interval
            lines.append(
                {
                    "objective": name,
                    "guided": ours,
                    "beside": "dpo" if kind == methods.SOUP else kind,
                    "temperature": temperature[ours],
                    "temperature beside": temperature[other],
                    "win": tally.wins,
                    "tie": tally.ties,
                    "lose": tally.losses,
                    "not_determined": tally.undetermined,
                    "win_half_tie": tally.win_half_tie,
                    "low": low,
                    "high": high,
                    "judge": results.judge,
                }
            )
    return lines


def duel(duels: Sequence[Mapping[str, Any]], beside: str) -> float | None:
    """Win and half tie over all objectives' comparisons with one method; None without any."""
    own = [line for line in duels if line["beside"] == beside]
    return scoring.total([Tally(line["win"], line["tie"], line["lose"]) for line in own]).win_half_tie if own else None


def reward_lines(results: Results, pieces: Sequence[bytes], num_shown: int) -> list[dict[str, Any]]:
    """Some prompts with their answers, token by token as the base and as each reward model sees them."""
    corners = [results.corner(methods.GENARM, k) for k in range(len(results.names))]
    lines = []
    for n in range(min(num_shown, len(results.answers[REFERENCE]))):
        for method in filter(None, dict.fromkeys(corners)):
            row = results.answers[method][n]
            line = {"prompt": row["prompt"], "method": method}
            for name, logps in zip(("base", *results.names), [row["base_logp"], *row["arm_logp"]]):
                tokens = [Token(i, logp) for i, logp in zip(row["ids"], logps)]
                line[f"as {name} sees it"] = {markup.TOKENS: generate.spans(tokens, pieces)}
            lines.append(line)
    return lines


def summary(
    results: Results,
    points: Mapping[str, Sequence[Tally]],
    duels: Sequence[Mapping[str, Any]],
    latency: Sequence[Mapping[str, Any]],
) -> dict[str, float | None]:
    each = {line["objective"]: line for line in model_lines(results)}
    accuracies = {name: line["reward model"] for name, line in each.items()}
    out: dict[str, float | None] = {"heldout/rewards/accuracies": sum(accuracies.values()) / len(accuracies)}
    out |= {f"heldout/rewards/accuracies/{name}": value for name, value in accuracies.items()}
    out |= {f"heldout/longer_is_better/{name}": line["longer is better"] for name, line in each.items()}
    if results.measuring:
        out |= {f"heldout/measuring/{name}": line["measuring reward"] for name, line in each.items()}
    kinds = (methods.BASE, methods.GREEDY, methods.DPO, methods.BEST, methods.ARGS, methods.PROXY)
    for kind in kinds:
        if kind in (methods.BASE, methods.DPO) or any(line["beside"] == kind for line in duels):
            out[f"win_half_tie/genarm_vs_{kind}"] = duel(duels, kind)
    out |= recovered(results, points)
    for kind in (methods.GENARM, methods.SOUP, methods.BEST):
        if kind != methods.BEST or results.of_kind(kind):
            out[f"hypervolume/{kind}"] = scoring.hypervolume(points, results.of_kind(kind))
    return (
        out
        | {f"seconds_per_token/{line['method']}": line["seconds_per_token"] for line in latency}
        | {"prompts": len(results.answers[REFERENCE])}
    )


def recovered(results: Results, points: Mapping[str, Sequence[Tally]]) -> dict[str, float]:
    """By objective, the guides' gain over the base as a share of what tuning the base itself (DPO) gains.

    With reward models smaller than the base this is how far weak models lead a strong one. An objective in which DPO
    gains nothing has no share.
    """
    out = {}
    for k, name in enumerate(results.names):
        corners = [results.corner(kind, k) for kind in (methods.GENARM, methods.SOUP)]
        if None not in corners:
            ours, dpo = (scoring.shares(points[str(corner)])[k] - 0.5 for corner in corners)
            out |= {f"gap_recovered/{name}": ours / dpo} if dpo > 0 else {}
    return out


def draw_frontier(path: pathlib.Path, results: Results, points: Mapping[str, Sequence[Tally]]) -> None:
    """The first two objectives: what one base and its reward models trace, and where the other methods lie."""
    figure, axes = pictures.canvas(
        5.6, 4.6, x=f"{results.names[0]}: wins and half of the ties beside the base", y=f"{results.names[1]}: the same"
    )
    place = {name: scoring.shares(own)[:2] for name, own in points.items()}
    for colour, kind in zip(charts.PALETTE, (methods.GENARM, methods.SOUP, methods.BEST)):
        own = sorted(((place[m.name], m) for m in results.of_kind(kind)), key=lambda pair: pair[0])
        if own:
            x, y = zip(*(xy for xy, _ in own))
            axes.plot(x, y, "o-", color=colour, markersize=4, linewidth=1.2, label=LABELS[kind])
        for xy, method in own if kind == methods.GENARM else []:
            axes.annotate(
                ",".join(f"{w:.2g}" for w in method.weights), xy, fontsize=6, xytext=(4, 4), textcoords="offset points"
            )
    singles = (methods.DPO, methods.BASE, methods.GREEDY, methods.ARGS, methods.PROXY, methods.CONTRASTIVE)
    for kind, marker, colour in zip(singles, "*Ds^vP", charts.PALETTE[3:] + charts.PALETTE[:1]):
        for number, method in enumerate(results.of_kind(kind)):
            label = LABELS[kind] if number == 0 else None
            axes.scatter(
                *place[method.name], marker=marker, s=70 if marker == "*" else 30, color=colour, label=label, zorder=3
            )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=7, loc="lower left")
    caption = f"What one frozen base and its reward models trace without retraining; judged by {results.judge}."
    pictures.save(figure, path, f"{caption} Labels are the reward models' weights; volumes are above (0, 0).")


METRICS = {
    "heldout/rewards/accuracies": ("share of held-out pairs that the reward models rank as labelled, mean", "higher"),
    "heldout/rewards/accuracies/*": ("the same of one objective's reward model", "higher"),
    "heldout/longer_is_better/*": ("share of held-out pairs whose longer answer is the chosen one", ""),
    "heldout/measuring/*": ("share of held-out pairs that the reward which measures ranks as labelled", "higher"),
    "win_half_tie/*": (
        "guided by one objective's reward model beside the other: wins and half of the ties, over all objectives",
        "higher",
    ),
    "gap_recovered/*": ("gain over the base by guides, as a share of the gain by tuning it with DPO", "higher"),
    "hypervolume/*": ("volume that the frontier dominates above (0, 0), in shares of wins beside the base", "higher"),
    "seconds_per_token/*": ("wall-clock time of a token, one request at a time, compiled before", "lower"),
    "prompts": ("held-out prompts that were answered", ""),
    **answering.METRICS | {"seconds": ("spent on answering over all starts, without training and compiling", "lower")},
}


def headline(numbers: Mapping[str, float]) -> str:
    """The page's first sentence."""
    words = f"Guided answers beat the base's in {100 * numbers['win_half_tie/genarm_vs_base']:.1f} % (ties count half)"
    if numbers.get("win_half_tie/genarm_vs_dpo") is not None:
        words += f" and those of DPO in {100 * numbers['win_half_tie/genarm_vs_dpo']:.1f} %"
    words += f"; the frontier's volume is {numbers['hypervolume/genarm']:.3f}"
    if numbers.get("hypervolume/soups") is not None:
        words += f", that of rewarded soups {numbers['hypervolume/soups']:.3f}"
    ratio = numbers["seconds_per_token/genarm"] / numbers["seconds_per_token/base"]
    return f"{words}; a guided token costs {ratio:.2f} times one of the base."
