"""What a filter run leaves to read: funnel, scores before and after, gates, cards of sources, sampled documents.

Numbers come from the tallies in the slices' notes, so they do not depend on who did the slices, or in what order.
`counts` is a tally (see alignment/filtering/tally.py) of the whole run, `total` its documents and bytes by outcome.
"""

import collections
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment import files
from alignment.filtering import tally
from data.corpus import shards
from experiments.filtering import jobs
from experiments.filtering import planted as planted_documents
from experiments.filtering import settings as filter_settings
from experiments.report import pictures

OUTCOMES = ("keep", "rewrite", "synthesise", "drop", "bad")
ANSWERS = ("accepted", "unchanged", "rejected")  # what became of a rewriting; the other rows of gates say why
BROKEN = ("bad/truncated", "bad/damaged")  # reasons that stand for the rest of a file
HEAVY = 0.5  # a rule that drops more of a source than this share is named at the top
FINE = ("not_scored", "tagged")  # reasons of documents that were kept without a request to the rewriter
MB = 1 << 20


def write(
    workdir: pathlib.Path,
    job: jobs.Job,
    *,
    max_bad: float,
    speed: Mapping[str, float],
    warnings: Sequence[str] = (),
    planted: str = "",
) -> dict[str, float | None]:
    """Tables, pictures and findings of a finished run; returns its summary.

    Args:
        job: whose notes hold the counts.
        max_bad: share of bad records that is allowed; it goes into the summary.
        speed: more numbers for the summary.
        warnings: lines that come before all other findings.
        planted: path of a file as experiments/filtering/planted.py says; "" where there is none.
    """
    notes = (row for stage in ("screen", "align") for _, row in each(job, stage))
    counts = tally.merge((row["tally"] for row in notes), job.settings["align"]["samples"])
    total = tally.totals(counts)
    num = {name: total.get(name, (0, 0))[0] for name in OUTCOMES}
    num["in"] = sum(num.values())
    steps = funnel(job.settings["screen"]["chain"], total, num["in"])
    lines = [*warnings, *findings(job.settings["align"], counts, total, num)]
    lines += about_copies(counts["counters"])
    if "c4" in job.settings["screen"]["chain"]:
        lines.append("The rule c4 goes by lines: blank lines between paragraphs are not kept.")
    print("\n".join(line for line in lines if line.startswith("Warning")), flush=True)
    summary = {**summary_of(job, counts, steps, num, max_bad), **speed}
    if planted:
        decisions = (row for i in range(job.num_slices) for row in shards.read(job.path("decisions", i)))
        by_id = {row["id"]: row for row in decisions}
        rows, shares, more = planted_documents.measure(files.read_rows(planted), by_id)
        files.write_rows(workdir / "tables/planted.jsonl", rows)
        summary |= shares
        lines += more
    left = [{"step": i, "documents_left": row["left"]} for i, row in enumerate(steps)]
    files.write_rows(workdir / "metrics.jsonl", left)  # a step of the funnel is one of the run
    files.write_rows(workdir / "tables/funnel.jsonl", [*steps, kept_row(counts, steps)])
    files.write_rows(workdir / "tables/sources.jsonl", cards(counts))
    files.write_rows(workdir / "tables/gates.jsonl", gate_rows(counts))
    files.write_rows(workdir / "tables/samples.jsonl", samples(counts))
    files.write_rows(workdir / "tables/scores.jsonl", score_rows(counts))
    draw(workdir / "figures", steps, counts)
    files.write_text(workdir / "findings.txt", "".join(f"{line}\n" for line in lines))
    return summary


def summary_of(
    job: jobs.Job,
    counts: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    num: Mapping[str, int],
    max_bad: float,
) -> dict[str, float]:
    """Flat names to numbers: documents by action, by reason, by gate, and the rules' counters."""
    summary = {
        "docs_in": num["in"],
        "docs_kept": num["in"] - num["drop"] - num["bad"],
        "docs_rewritten": num["rewrite"] + num["synthesise"],
        "docs_dropped": num["drop"],
        "bad_records": num["bad"],
        "bad_share": num["bad"] / max(num["in"], 1),
        "max_bad": max_bad,
        "bytes_out": counts["counters"].get("bytes_out", 0),
        "bytes_written": sum(row["outputs"][job.name("documents", i)]["bytes"] for i, row in each(job, "align")),
    }
    for row in steps:
        step, _, reason = row["reason"].partition("/")
        if reason and step != "bad":
            summary[f"drop/{reason}"] = summary.get(f"drop/{reason}", 0) + row["documents"]
    summary |= {f"gate/{row['gate']}": row["documents"] for row in gate_rows(counts)}
    others = ("gate/", "bytes_out")
    rule_counters = {name: n for name, n in sorted(counts["counters"].items()) if not name.startswith(others)}
    return summary | {f"counter/{name}": number for name, number in rule_counters.items()}


def funnel(chain: Sequence[str], total: Mapping[str, Sequence[int]], num_in: int) -> list[dict[str, Any]]:
    """How many documents each step removed, in the order of the steps, and how many were left after it."""
    order = [*chain, "duplicates", "scores", "router", "gate"]
    taken = {name.removeprefix("drop/"): sizes for name, sizes in total.items() if name.startswith("drop/")}
    taken |= {name: sizes for name, sizes in total.items() if name.startswith("bad/")}

    def place(name: str) -> tuple[int, int, str]:
        step = name.split("/")[0]
        at = -1 if step == "bad" else order.index(step) if step in order else len(order)
        return at, -taken[name][0], name

    rows, left = [{"step": "read", "reason": "", "documents": num_in, "share": 1.0, "MB": None, "left": num_in}], num_in
    for name in sorted(taken, key=place):
        step = name.split("/")[0]
        docs, size = taken[name]
        left -= docs
        share = docs / max(num_in, 1)
        rows.append({"step": step, "reason": name, "documents": docs, "share": share, "MB": size / MB, "left": left})
    return rows


def kept_row(counts: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last row of the funnel's table: what goes to training, with the size of its text."""
    left, size = steps[-1]["left"], counts["counters"].get("bytes_out", 0)
    share = left / max(steps[0]["documents"], 1)
    return {"step": "kept", "reason": "", "documents": left, "share": share, "MB": size / MB, "left": left}


def cards(counts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a source: documents that came in, shares kept, rewritten and dropped, and the rules that dropped most."""
    rows = []
    for source, card in sorted(counts["sources"].items()):
        num_docs, num_bytes = (sum(card.get(name, (0, 0))[i] for name in OUTCOMES) for i in (0, 1))
        drops = sorted(((docs, name) for name, (docs, _) in card.items() if name.startswith("drop/")), reverse=True)
        row = {"source": source, "documents": num_docs}
        row |= {name: card.get(name, (0, 0))[0] / max(num_docs, 1) for name in ("keep", "rewrite", "drop", "bad")}
        row["MB"] = num_bytes / MB
        row["taken most by"] = ", ".join(f"{name[5:]} {docs}" for docs, name in drops[:3])
        rows.append(row)
    return rows


def gate_rows(counts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rewritings by what became of them, then by the gates that they failed, with their share of all rewritings."""
    gates = {name[5:]: number for name, number in counts["counters"].items() if name.startswith("gate/")}
    num_rewritings = sum(gates.get(name, 0) for name in ANSWERS)
    return [
        {"gate": name, "documents": number, "share": number / max(num_rewritings, 1)}
        for name, number in sorted(gates.items(), key=lambda item: (item[0] not in ANSWERS, -item[1]))
    ]


def score_rows(counts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Mean scores of what passed rules and duplicates, as it came and as it goes to training, and the improvement."""
    histograms = counts["histograms"]
    rows = []
    for name in sorted(name.removesuffix(" before") for name in histograms if name.endswith(" before")):
        before = tally.mean(histograms[f"{name} before"])
        after = tally.mean(histograms[f"{name} after"]) if f"{name} after" in histograms else None
        row = {"score": name, "mean before": before, "mean after": after}
        row["improvement, %"] = 100 * (before - after) / before if before and after is not None else None
        rows.append(row)
    return rows


def samples(counts: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"action": action, **row} for action, some in sorted(counts["samples"].items()) for _, row in some]


def draw(folder: pathlib.Path, steps: Sequence[Mapping[str, Any]], counts: Mapping[str, Any]) -> None:
    left = {"in": steps[0]["documents"]} | {f"after {row['step']}": row["left"] for row in steps[1:]}
    pictures.bars(folder / "funnel.png", left, caption="Documents left after each step.", label="documents")
    histograms = counts["histograms"]
    for name in sorted({name.rsplit(" ", 1)[0] for name in histograms if name.endswith((" before", " after"))}):
        times = [when for when in ("before", "after") if f"{name} {when}" in histograms]
        groups = {when: histograms[f"{name} {when}"] for when in times}
        safe = name.replace("/", "_").replace(" ", "_")
        pictures.histograms(
            folder / f"score_{safe}.png",
            groups,
            label=name,
            caption=f"{name} of documents that passed rules and duplicates: as they came, and as they go to training.",
        )
    if "edit similarity" in histograms:
        pictures.histograms(
            folder / "edits.png",
            {"rewritten": histograms["edit similarity"]},
            label="edit similarity (1: unchanged)",
            caption="How much the rewriter changed, by characters.",
        )
    gates = {row["gate"]: row["share"] for row in gate_rows(counts) if row["gate"] not in ("accepted", "rejected")}
    if gates:
        pictures.bars(folder / "gates.png", gates, label="share of rewritings", caption="Gates that rewritings failed.")


def findings(
    align: Mapping[str, Any],
    counts: Mapping[str, Any],
    total: Mapping[str, Sequence[int]],
    num: Mapping[str, int],
) -> list[str]:
    """What a reader should know first; warnings before numbers.

    Args:
        align: settings of the stage.
        num: documents by outcome, and "in".
    """
    lines = [
        f"Warning: {rule} takes {100 * docs / num_docs:.0f} % of source {source} ({docs} of {num_docs} documents)."
        for source, rule, docs, num_docs in heavy(counts)
    ]
    lines += [
        f"Warning: {docs:,} records have {name[4:]}; read.columns names the columns (an empty id makes ids)."
        for name, (docs, _) in sorted(total.items())
        if name.startswith("bad/no '")
    ]
    broken = [f"{docs:,} ({name[4:]})" for name, (docs, _) in sorted(total.items()) if name.startswith(BROKEN)]
    if broken:
        lines.append(
            f"Warning: files break off, what comes after is lost: {', '.join(broken)}. errors/ names them and where."
        )
    if repeated := total.get("bad/duplicate id", (0, 0))[0]:
        lines.append(
            f"Warning: {repeated:,} records repeat an id of their source and are set aside; where ids are not unique, "
            "--config.read.columns.id= makes them of file name and offset."
        )
    if unjudged := total.get("drop/router/not_judged", (0, 0))[0]:
        lines.append(f"Warning: {unjudged:,} documents were dropped because the scorer gave them no score.")
    if align["score"]:
        lines += about_scores(align, total)
    else:
        lines.append("Warning: safety was not scored (skip); every document that the rules let pass was kept.")
    percent = 100 / max(num["in"], 1)
    num_out = num["keep"] + num["rewrite"] + num["synthesise"]
    lines.append(
        f"{num['in']:,} documents in: {num_out:,} go to training ({percent * num_out:.1f} %), {num['rewrite']:,} of "
        f"them rewritten; {num['drop']:,} dropped ({percent * num['drop']:.1f} %), {num['bad']:,} records set aside."
    )
    failed = [f"{row['gate']} {row['documents']}" for row in gate_rows(counts) if row["gate"] not in ANSWERS]
    if failed:
        lines.append(f"Gates that rewritings failed: {', '.join(failed)}.")
    return lines


def about_scores(align: Mapping[str, Any], total: Mapping[str, Sequence[int]]) -> list[str]:
    """Documents that the deciding scorer cannot judge, and documents that stay although it called for a change."""
    lines, safety = [], align["safety"]
    if unscored := total.get("keep/not_scored", (0, 0))[0]:
        known = safety.get("languages", "")
        lines.append(f"Warning: {unscored:,} documents are not in the scorer's languages ({known}); kept, not scored.")
    elif not safety.get("languages"):
        lines.append(
            "Every language was scored. Where the scorer was trained on one alone, name it by --config.scorers."
            f"{align['score'].split('.')[0]}.languages: what it says of others is noise."
        )
    num_levels = filter_settings.num_levels(safety)
    if num_levels and num_levels <= align["router"]["drop_at"]:
        lines.append(
            f"The scorer knows the levels 0 to {num_levels - 1}, and documents are dropped from "
            f"{align['router']['drop_at']} on: what it calls unsafe goes to the rewriter, and none is dropped."
        )
    stays = sum(docs for name, (docs, _) in total.items() if name.startswith("keep/") and name[5:] not in FINE)
    if stays:
        unchanged = total.get("keep/unchanged", (0, 0))[0]
        lines.append(
            f"Warning: {stays:,} documents were sent to the rewriter and stay as they were: {unchanged:,} came back "
            f"unchanged, {stays - unchanged:,} had no answer that passed the gates (mild ones are kept then)."
        )
    return lines


def about_copies(counters: Mapping[str, int]) -> list[str]:
    """What became of groups of copies of which the first was dropped after copies were found."""
    lines = []
    if stood := counters.get("copies/stand in"):
        lines.append(f"{stood:,} near copies stand in for documents that their scores drop.")
    if lost := counters.get("copies/groups lost"):
        lines.append(
            f"Of {lost:,} groups of copies nothing is left: the document that stayed was dropped later, and its "
            f"{counters['copies/lost']:,} near copies had gone before. removed/duplicates names the one that stayed."
        )
    return lines


def heavy(counts: Mapping[str, Any]) -> list[tuple[str, str, int, int]]:
    """(source, rule, documents dropped, documents) where a rule drops most of a source of 20 documents or more."""
    rows = []
    for source, card in sorted(counts["sources"].items()):
        num_docs = sum(card.get(name, (0, 0))[0] for name in OUTCOMES)
        dropped = collections.Counter()
        for name, (docs, _) in card.items():
            if name.startswith("drop/"):
                dropped[name.split("/")[1]] += docs
        if num_docs >= 20:
            rows += [
                (source, rule, docs, num_docs) for rule, docs in sorted(dropped.items()) if docs > HEAVY * num_docs
            ]
    return rows


def each(job: jobs.Job, stage: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(slice, note) of a stage."""
    return shards.each_finished(job.outputs, stage, job.hashes[stage])
