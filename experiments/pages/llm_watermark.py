"""What a run of llm_watermark.py leaves behind: tables, pictures, and its summary."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from alignment import files
from experiments.decoding import answering
from experiments.report import charts, pictures

UNMARKED = "unmarked"
TABLES = ("verbatim", "membership", "detection", "robustness", "null", "speed", "theory", "approximate")
CSV = {"verbatim": "watermark_verbatim.csv", "membership": "mia_auc.csv", "detection": "detection.csv"}
CSV |= {"speed": "speed.csv", "theory": "theory.csv", "approximate": "approximate.csv"}

CURVES = (
    ("detection", "cut", "tokens", "after cuts"),
    ("mixes", "mix", "share of tokens replaced", "after mixing with unmarked text"),
    ("swaps", "swap", "share of the words with synonyms that were swapped", "after swaps of words"),
)


def write(folder: pathlib.Path, results: Mapping[str, Any]) -> dict[str, float | None]:
    """Tables, pictures and the summary; its numbers are those of the first scheme at its largest strength."""
    for name in TABLES:
        lines = results[name]
        files.write_rows(folder / f"tables/{name}.jsonl", lines)
        if name in CSV and lines:
            files.write_csv(folder / CSV[name], list(lines[0]), [list(line.values()) for line in lines])
    adaptive = [line for line in results["membership"] if line["attack"].startswith(("adaptive_", "exact_"))]
    files.write_csv(folder / "adaptive_auc.csv", list(adaptive[0]), [list(line.values()) for line in adaptive])
    _draw(folder / "figures", results)
    return summary(results)


def summary(results: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of the first scheme: `delta_of_mean` without a prompt, AUCs, the detection of its strongest mark."""
    first = results["verbatim"][0]["scheme"]
    protection = [line for line in results["verbatim"] if line["scheme"] == first]
    strongest = max(protection, key=lambda line: (line["delta"], -line["prompt_len"]))
    aucs = {
        line["attack"]: line
        for line in results["membership"]
        if line["scheme"] == first and line["delta"] == strongest["delta"]
    }
    own = [line for line in results["detection"] if line["point"].startswith(f"{first} ")] or results["detection"]
    best = own[-1]
    speeds = {line["scheme"]: line for line in results["speed"]}
    costs = {f"cost/{scheme}": line["cost"] for scheme, line in speeds.items() if scheme != UNMARKED}
    near = results["approximate"]
    return {
        "delta_of_mean": strongest["delta_of_mean"],
        "mean_of_delta": strongest["mean_of_delta"],
        "auc/min_k/clean": aucs["min_k"]["clean"],
        "auc/min_k/watermarked": aucs["min_k"]["watermarked"],
        "auc/min_k/adaptive": aucs["adaptive_min_k"]["watermarked"],
        "auc/min_k/exact": aucs["exact_min_k"]["watermarked"],
        "auc/loss/clean": aucs["loss"]["clean"],
        "auc/loss/watermarked": aucs["loss"]["watermarked"],
        "edit_similarity/clean": near[0]["edit_tokens"],
        "edit_similarity/watermarked": near[-1]["edit_tokens"],
        "blind_auc": results["blind_auc"],
        "detection/tpr_at_1_fpr": best["tpr_at_1_fpr"],
        "detection/z_median": best["z_median"],
        "perplexity/unmarked": results["perplexity"],
        "perplexity/marked": best["perplexity"],
        "unmarked_tokens_per_second": speeds[UNMARKED]["tokens_per_second"],
        **costs,
    }


def _draw(folder: pathlib.Path, results: Mapping[str, Any]) -> None:
    def by(lines: Sequence[Mapping[str, Any]], name: str, x: str, y: str) -> dict[str, list[tuple[float, float]]]:
        out: dict[str, list[tuple[float, float]]] = {}
        for line in lines:
            out.setdefault(str(line[name]), []).append((line[x], line[y]))
        return out

    whole = [line for line in results["verbatim"] if line["prompt_len"] == results["verbatim"][0]["prompt_len"]]
    pictures.curves(
        folder / "protection.png",
        by(whole, "scheme", "delta", "delta_of_mean"),
        caption="By how much a mark raises the perplexity of memorised texts",
        x_label="delta, nats",
        y_label="relative increase of perplexity",
    )
    first = whole[0]["scheme"]
    attacks = ("loss", "min_k", "adaptive_min_k", "exact_min_k", "min_k_plus_plus", "zlib")
    lines = [line for line in results["membership"] if line["scheme"] == first and line["attack"] in attacks]
    pictures.curves(
        folder / "membership.png",
        by(lines, "attack", "delta", "watermarked"),
        caption=f"AUC of membership attacks under {first}, mean over keys",
        x_label="delta, nats",
        y_label="AUC",
        chance=0.5,
    )
    for name, attack, x_label, what in CURVES:
        lines = [line for line in results["robustness"] if line["attack"] == attack]
        if attack == "mix":  # from the whole answer on
            lines = [{**line, "strength": 0.0} for line in results["detection"]] + lines
        pictures.curves(
            folder / f"{name}.png",
            by(lines, "point", "strength", "tpr_at_1_fpr"),
            caption=f"Share of marked answers that are detected at 1 % false alarms {what}",
            x_label=x_label,
            y_label="share",
        )
    _draw_quality(folder / "quality.png", results)
    _draw_cost(folder / "cost.png", results)


def _draw_quality(path: pathlib.Path, results: Mapping[str, Any]) -> None:
    """What each scheme's strengths cost in quality, and how far they raise z; a line a scheme, from weak to strong."""
    x, y = "perplexity of the answers under the unmarked model", "median z"
    figure, axes = pictures.canvas(4.8, 3.2, x=x, y=y)
    schemes = dict.fromkeys(line["point"].split()[0] for line in results["detection"])
    for scheme, colour in zip(schemes, charts.PALETTE):
        own = [line for line in results["detection"] if line["point"].split()[0] == scheme]
        points = [(line["perplexity"], line["z_median"]) for line in own]
        axes.plot(*zip(*points), color=colour, marker="o", ms=4, label=scheme)
    axes.axvline(results["perplexity"], color="k", linewidth=0.8, linestyle="--")
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=8)
    pictures.save(figure, path, "How far a mark stands out, and its price in quality; dashed: unmarked answers.")


def _draw_cost(path: pathlib.Path, results: Mapping[str, Any]) -> None:
    """What each scheme costs beside how well its strongest mark is found."""
    found = {line["point"].split()[0]: line["tpr_at_1_fpr"] for line in results["detection"]}
    x, y = "seconds a token, in times of unmarked writing", "share detected at 1 % false alarms"
    figure, axes = pictures.canvas(4.8, 3.2, x=x, y=y)
    marked = [line for line in results["speed"] if line["scheme"] in found]
    for line, colour in zip(marked, charts.PALETTE):
        axes.scatter(line["cost"], found[line["scheme"]], s=40, color=colour, label=line["scheme"])
    axes.axvline(1, color="k", linewidth=0.8, linestyle="--")
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=8)
    pictures.save(figure, path, "What a mark costs, and how well its strongest form is detected")


METRICS = {
    "delta_of_mean": ("relative increase of the members' mean perplexity under the strongest mark", "higher"),
    "mean_of_delta": ("mean over members of each one's relative increase", "higher"),
    "auc/min_k/clean": ("AUC of Min-20% without a mark", ""),
    "auc/min_k/watermarked": ("AUC of Min-20% under the strongest mark, mean over keys", ""),
    "auc/min_k/adaptive": ("AUC of Min-20% for an attacker who knows keys and strength", ""),
    "auc/min_k/exact": ("AUC of Min-20% for one who also sees whole distributions, which undoes the mark", ""),
    "auc/loss/clean": ("AUC of the loss without a mark", ""),
    "auc/loss/watermarked": ("AUC of the loss under the strongest mark, mean over keys", ""),
    "edit_similarity/clean": (
        "of unmarked continuations of members with the texts, by tokens; 1: equal",
        "",
    ),
    "edit_similarity/watermarked": ("the same under the strongest mark", "lower"),
    "blind_auc": ("AUC of naive Bayes on the words alone, which reads no model; 0.5: the texts do not differ", ""),
    "detection/tpr_at_1_fpr": ("share of marked answers above 99 % of the unmarked texts", "higher"),
    "detection/z_median": ("median z of marked answers", "higher"),
    "perplexity/unmarked": ("of unmarked answers under the model that wrote them", ""),
    "perplexity/marked": ("of the same scheme's marked answers under the unmarked model", "lower"),
    "unmarked_tokens_per_second": (
        "written without a mark, several answers at once, as schemes are timed",
        "higher",
    ),
    "cost/*": ("median time of a scheme's writing in times of unmarked writing in the same round", "lower"),
    **answering.METRICS,
}


def headline(summary: Mapping[str, float]) -> str:
    """The page's first sentence."""
    clean, marked, adaptive = (summary[f"auc/min_k/{name}"] for name in ("clean", "watermarked", "adaptive"))
    return (
        f"The strongest mark makes memorised texts {1 + summary['delta_of_mean']:.3g} times as perplexing; Min-20% "
        f"finds members with AUC {clean:.3f} without it, {marked:.3f} under it and {adaptive:.3f} where the attacker "
        f"knows the key (blind: {summary['blind_auc']:.3f}); {100 * summary['detection/tpr_at_1_fpr']:.3g} % "
        "of marked answers are detected at 1 % false alarms."
    )
