"""What a run of llm_watermark.py leaves behind: tables, pictures, and its summary."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from alignment import files
from experiments.decoding import answering
from experiments.report import pictures

TABLES = ("verbatim", "membership", "detection", "robustness", "null")
CSV = {"verbatim": "watermark_verbatim.csv", "membership": "mia_auc.csv", "detection": "detection.csv"}


def write(folder: pathlib.Path, results: Mapping[str, Any]) -> dict[str, float | None]:
    """Tables, pictures and the summary; its numbers are those of the first scheme at its largest strength."""
    for name in TABLES:
        lines = results[name]
        files.write_rows(folder / f"tables/{name}.jsonl", lines)
        if name in CSV and lines:
            files.write_csv(folder / CSV[name], list(lines[0]), [list(line.values()) for line in lines])
    adaptive = [line for line in results["membership"] if line["attack"].startswith("adaptive_")]
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
    return {
        "delta_of_mean": strongest["delta_of_mean"],
        "mean_of_delta": strongest["mean_of_delta"],
        "auc/min_k/clean": aucs["min_k"]["clean"],
        "auc/min_k/watermarked": aucs["min_k"]["watermarked"],
        "auc/min_k/adaptive": aucs["adaptive_min_k"]["watermarked"],
        "auc/loss/clean": aucs["loss"]["clean"],
        "auc/loss/watermarked": aucs["loss"]["watermarked"],
        "blind_auc": results["blind_auc"],
        "detection/tpr_at_1_fpr": best["tpr_at_1_fpr"],
        "detection/z_median": best["z_median"],
        "perplexity/unmarked": results["perplexity"],
        "perplexity/marked": best["perplexity"],
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
    attacks = ("loss", "min_k", "adaptive_min_k", "min_k_plus_plus", "zlib")
    lines = [line for line in results["membership"] if line["scheme"] == first and line["attack"] in attacks]
    pictures.curves(
        folder / "membership.png",
        by(lines, "attack", "delta", "watermarked"),
        caption=f"AUC of membership attacks under {first}, mean over keys",
        x_label="delta, nats",
        y_label="AUC",
        chance=0.5,
    )
    cuts = [line for line in results["robustness"] if line["attack"] == "cut"]
    pictures.curves(
        folder / "detection.png",
        by(cuts, "point", "strength", "tpr_at_1_fpr"),
        caption="Share of marked answers that are detected at 1 % false alarms",
        x_label="tokens",
        y_label="share",
    )


METRICS = {
    "delta_of_mean": ("relative increase of the members' mean perplexity under the strongest mark", "higher"),
    "mean_of_delta": ("mean over members of each one's relative increase", "higher"),
    "auc/min_k/clean": ("AUC of Min-20% without a mark", ""),
    "auc/min_k/watermarked": ("AUC of Min-20% under the strongest mark, mean over keys", ""),
    "auc/min_k/adaptive": ("AUC of Min-20% for an attacker who knows keys and strength", ""),
    "auc/loss/clean": ("AUC of the loss without a mark", ""),
    "auc/loss/watermarked": ("AUC of the loss under the strongest mark, mean over keys", ""),
    "blind_auc": ("AUC of naive Bayes on the words alone, which reads no model; 0.5: the texts do not differ", ""),
    "detection/tpr_at_1_fpr": ("share of marked answers above 99 % of the unmarked texts", "higher"),
    "detection/z_median": ("median z of marked answers", "higher"),
    "perplexity/unmarked": ("of unmarked answers under the model that wrote them", ""),
    "perplexity/marked": ("of the same scheme's marked answers under the unmarked model", "lower"),
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
