"""What a filter run leaves to read: funnel, scores before and after, gates, cards of sources, sampled documents.

Numbers come from the tallies that the slices' notes hold, and so are the same whoever did the slices.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from alignment import files
from alignment.filtering import tally
from data.corpus import shards
from experiments.filtering import tools as filter_tools
from experiments.report import pictures

TREATMENTS = {  # of a decision: whether it is this
    "kept": lambda row: row["action"] == "keep" and row["rule"] != "gate",
    "rewritten or dropped for harm": lambda row: (
        row["action"] != "keep" and row["rule"] in ("router", "rewriter", "gate")
    ),
    "dropped as a duplicate": lambda row: row["rule"] == "duplicates",
    "dropped for its language": lambda row: row["rule"] == "language",
    "dropped by another rule": lambda row: (
        row["action"] == "drop" and row["rule"] not in ("router", "rewriter", "gate", "duplicates", "language")
    ),
}
ASKED = {  # by what the toy web plants
    "clean": "kept",
    "pii": "kept",
    "unsafe": "rewritten or dropped for harm",
    "unfair": "rewritten or dropped for harm",
    "duplicate": "dropped as a duplicate",
    "wrong_language": "dropped for its language",
    "spam": "dropped by another rule",
    "boilerplate": "dropped by another rule",
    "short": "dropped by another rule",
}
ANSWERS = ("accepted", "unchanged", "rejected")  # what becomes of a rewriting; other rows of `gates` say why
BROKEN = ("bad/truncated", "bad/damaged")  # reasons that stand for the rest of a file
HEAVY = 0.5  # a rule that takes more of a source than this is named at the top
FINE = ("not_scored", "tagged")  # reasons of documents kept without a rewriter having been asked
MB = 1 << 20


def write(c, workdir: pathlib.Path, settings, job, speed, warnings: Sequence[str] = ()) -> dict[str, float]:
    """Tables, pictures and findings of a finished run; returns its summary.

    Args:
        settings: of the stages.
        job: of the stages; their notes hold the counts.
        speed: documents this start filtered, and seconds it took.
        warnings: lines that come before all other findings.
    """
    notes = (row for stage in ("screen", "align") for _, row in each(job, stage))
    counts = tally.merge((row["tally"] for row in notes), c.samples)
    total = tally.totals(counts)
    num = {name: total.get(name, (0, 0))[0] for name in ("keep", "rewrite", "synthesise", "drop", "bad")}
    num["in"] = sum(num.values())
    steps = funnel(c.chain, settings, total, num["in"])
    files.write_rows(workdir / "tables/funnel.jsonl", steps)
    left = [{"step": i, "documents_left": row["left"]} for i, row in enumerate(steps)]
    files.write_rows(workdir / "metrics.jsonl", left)  # a step of the funnel is one of the run
    files.write_rows(workdir / "tables/sources.jsonl", cards(counts))
    files.write_rows(workdir / "tables/gates.jsonl", gate_rows(counts))
    files.write_rows(workdir / "tables/samples.jsonl", samples(counts))
    files.write_rows(workdir / "tables/scores.jsonl", score_rows(counts))
    draw(workdir / "figures", steps, counts)
    lines = [*warnings, *findings(settings, counts, total, num)]
    summary = {
        "docs_in": num["in"],
        "docs_kept": num["in"] - num["drop"] - num["bad"],
        "docs_rewritten": num["rewrite"] + num["synthesise"],
        "docs_dropped": num["drop"],
        "bad_records": num["bad"],
        "bad_share": num["bad"] / max(num["in"], 1),
        "max_bad": c.max_bad,
        "bytes_out": sum(
            shard["bytes"]
            for _, row in each(job, "align")
            for name, shard in row["outputs"].items()
            if name.startswith("documents/")
        ),
    }
    for row in steps:
        step, _, reason = row["reason"].partition("/")
        if reason and step != "bad":
            summary[f"drop/{reason}"] = summary.get(f"drop/{reason}", 0) + row["documents"]
    summary |= {f"gate/{row['gate']}": row["documents"] for row in gate_rows(counts)}
    summary |= {
        f"counter/{name}": number for name, number in sorted(counts["counters"].items()) if not name.startswith("gate/")
    }
    if speed[0]:
        summary |= {"docs_per_second": speed[0] / max(speed[1], 1e-9), "seconds": speed[1]}
    print("\n".join(line for line in lines if line.startswith("Warning")), flush=True)
    files.write(workdir / "findings.txt", lambda f: f.write("".join(f"{line}\n" for line in lines).encode()))
    return summary


def funnel(chain: Sequence[str], settings, total: Mapping[str, Sequence[int]], num_in: int) -> list[dict[str, Any]]:
    """What each step took, in the order of the steps, and what was left after it."""
    order = [*chain, "duplicates", "scores", "router", "gate"]
    taken = {name.removeprefix("drop/"): found for name, found in total.items() if name.startswith("drop/")}
    taken |= {f"bad/{name.removeprefix('bad/')}": found for name, found in total.items() if name.startswith("bad/")}

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


def cards(counts) -> list[dict[str, Any]]:
    """A card a source: what came in, what stayed, what was rewritten, what took the most."""
    rows = []
    for source, card in sorted(counts["sources"].items()):
        whole = sum(card.get(name, (0, 0))[0] for name in ("keep", "rewrite", "synthesise", "drop", "bad"))
        drops = sorted(((found[0], name) for name, found in card.items() if name.startswith("drop/")), reverse=True)
        row = {"source": source, "documents": whole}
        row |= {name: card.get(name, (0, 0))[0] / max(whole, 1) for name in ("keep", "rewrite", "drop", "bad")}
        row["MB"] = sum(card.get(name, (0, 0))[1] for name in ("keep", "rewrite", "synthesise", "drop", "bad")) / MB
        row["taken most by"] = ", ".join(f"{name[5:]} {docs}" for docs, name in drops[:3])
        rows.append(row)
    return rows


def gate_rows(counts) -> list[dict[str, Any]]:
    found = {name[5:]: number for name, number in counts["counters"].items() if name.startswith("gate/")}
    asked = sum(found.get(name, 0) for name in ANSWERS)
    return [
        {"gate": name, "documents": number, "share": number / max(asked, 1)}
        for name, number in sorted(found.items(), key=lambda item: (item[0] not in ANSWERS, -item[1]))
    ]


def score_rows(counts) -> list[dict[str, Any]]:
    """Mean scores of what passed rules and duplicates, as it came and as it goes to training, and the improvement."""
    found = counts["histograms"]
    rows = []
    for name in sorted(name.removesuffix(" before") for name in found if name.endswith(" before")):
        before = tally.mean(found[f"{name} before"])
        after = tally.mean(found[f"{name} after"]) if f"{name} after" in found else None
        row = {"score": name, "mean before": before, "mean after": after}
        row["improvement, %"] = 100 * (before - after) / before if before and after is not None else None
        rows.append(row)
    return rows


def samples(counts) -> list[dict[str, Any]]:
    return [{"action": action, **row} for action, kept in sorted(counts["samples"].items()) for _, row in kept]


def draw(folder: pathlib.Path, steps, counts) -> None:
    left = [("in", steps[0]["documents"])] if steps else []
    by_step: dict[str, int] = {}
    for row in steps[1:]:
        by_step[row["step"]] = row["left"]
    left += [(f"after {step}", number) for step, number in by_step.items()]
    pictures.bars(folder / "funnel.png", dict(left), caption="Documents left after each step.", label="documents")
    names = sorted({name.rsplit(" ", 1)[0] for name in counts["histograms"] if name.endswith((" before", " after"))})
    for name in names:
        groups = {
            when: counts["histograms"][f"{name} {when}"]
            for when in ("before", "after")
            if f"{name} {when}" in counts["histograms"]
        }
        safe = name.replace("/", "_").replace(" ", "_")
        pictures.histograms(
            folder / f"score_{safe}.png",
            groups,
            label=name,
            caption=f"{name} of documents that passed rules and duplicates: as they came, and as they go to training.",
        )
    if "edit similarity" in counts["histograms"]:
        groups = {"rewritten": counts["histograms"]["edit similarity"]}
        pictures.histograms(
            folder / "edits.png",
            groups,
            label="edit similarity (1: unchanged)",
            caption="How much the rewriter changed, by characters.",
        )
    gates = {row["gate"]: row["share"] for row in gate_rows(counts) if row["gate"] not in ("accepted", "rejected")}
    if gates:
        pictures.bars(folder / "gates.png", gates, label="share of rewritings", caption="Gates that rewritings failed.")


def findings(settings, counts, total, num) -> list[str]:
    """What a reader should know first; warnings before numbers."""
    lines = [
        f"Warning: {rule} takes {100 * share:.0f} % of source {source} ({docs} of {whole} documents)."
        for source, rule, docs, whole, share in heavy(counts)
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
    if settings["align"]["score"] == "":
        lines.append("Warning: safety was not scored (skip); every document that the rules let pass was kept.")
    else:
        lines += about_scores(settings, total)
    whole = max(num["in"], 1)
    kept = num["keep"] + num["rewrite"] + num["synthesise"]
    lines.append(
        f"{num['in']:,} documents in: {kept:,} go to training ({100 * kept / whole:.1f} %), {num['rewrite']:,} of them "
        f"rewritten; {num['drop']:,} dropped ({100 * num['drop'] / whole:.1f} %), {num['bad']:,} records set aside."
    )
    failed = [f"{row['gate']} {row['documents']}" for row in gate_rows(counts) if row["gate"] not in ANSWERS]
    if failed:
        lines.append(f"Gates that rewritings failed: {', '.join(failed)}.")
    return lines


def about_scores(settings, total: Mapping[str, Sequence[int]]) -> list[str]:
    """What the deciding scorer could not say, and what stays although it called for a change."""
    lines, safety, align = [], settings["align"]["safety"], settings["align"]
    if unscored := total.get("keep/not_scored", (0, 0))[0]:
        known = safety.get("languages", "")
        lines.append(f"Warning: {unscored:,} documents are not in the scorer's languages ({known}); kept, not scored.")
    elif not safety.get("languages"):
        lines.append(
            "Every language was scored. Where the scorer was trained on one alone, name it by --config.scorers."
            f"{align['score'].split('.')[0]}.languages: what it says of others is noise."
        )
    num_levels = filter_tools.num_levels(safety)
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


def heavy(counts) -> list[tuple[str, str, int, int, float]]:
    """(source, rule, documents, of, share) where one rule takes most of a source of at least 20 documents."""
    found = []
    for source, card in sorted(counts["sources"].items()):
        whole = sum(card.get(name, (0, 0))[0] for name in ("keep", "rewrite", "synthesise", "drop", "bad"))
        rules: dict[str, int] = {}
        for name, (docs, _) in card.items():
            if name.startswith("drop/"):
                rules[name.split("/")[1]] = rules.get(name.split("/")[1], 0) + docs
        found += [
            (source, r, n, whole, n / whole) for r, n in sorted(rules.items()) if whole >= 20 and n > HEAVY * whole
        ]
    return found


def planted(workdir: pathlib.Path, truth: Mapping[str, str], decisions: Mapping[str, dict]) -> dict[str, float]:
    """Recall and precision of what was planted in a toy web, as a table and as numbers.

    Recall: of the documents of a kind, the share treated as it asks for. Precision: of the documents treated so, the
    share whose kind asks for it.

    Args:
        truth: {id: what was planted}.
        decisions: {id: decision}.
    """
    treated = {name: {id for id, row in decisions.items() if fits(row)} for name, fits in TREATMENTS.items()}
    rows, summary = [], {}
    for kind, treatment in ASKED.items():
        ids = {id for id, planted in truth.items() if planted == kind}
        right = sum(ASKED[truth[id]] == treatment for id in treated[treatment])
        row = {"planted": kind, "documents": len(ids), "asked": treatment}
        row |= {"recall": len(ids & treated[treatment]) / len(ids) if ids else None}
        row |= {"precision": right / len(treated[treatment]) if treated[treatment] else None}
        rows.append(row)
        summary |= {f"planted/{kind}/recall": row["recall"], f"planted/{kind}/precision": row["precision"]}
    clean = [decisions[id] for id, kind in truth.items() if kind == "clean" and id in decisions]
    left = [row for row in clean if row["action"] != "drop"]
    summary["clean_rewritten"] = sum(row["action"] == "rewrite" for row in clean)
    summary["identity_rate"] = 1 - summary["clean_rewritten"] / len(left) if left else None
    files.write_rows(workdir / "tables/planted.jsonl", rows)
    shares = ", ".join(f"{row['planted']} {100 * row['recall']:.0f} %" for row in rows if row["recall"] is not None)
    lines = [
        f"Of what was planted this share was treated as it asks for: {shares}.",
        f"Clean documents rewritten: {summary['clean_rewritten']} of {len(left)}.",
    ]
    with open(workdir / "findings.txt", encoding="utf-8") as f:
        lines = [*f.read().splitlines(), *lines]
    files.write(workdir / "findings.txt", lambda f: f.write("".join(f"{line}\n" for line in lines).encode()))
    return summary


def each(job, stage: str):
    """(slice, note) of a stage."""
    return shards.each_finished(job.outputs, stage, job.hashes[stage])


def decisions_of(job) -> dict[str, dict]:
    """All of a small corpus."""
    return {row["id"]: row for i in range(job.num_slices) for row in shards.read(job.path("decisions", i))}
