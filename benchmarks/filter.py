"""Compare filtering with datatrove's local executor (same rules, same files); measure memory, time and executors.

Run:    python benchmarks/filter.py                              (about ten minutes on two cores, plus installing)
Look:   python benchmarks/filter.py --documents 200 --rounds 1 --megabytes 5
Keep:   python benchmarks/filter.py --output benchmarks/results/filter.md
Large:  python benchmarks/filter.py --parts memory --megabytes 10,100,1000,10000       (three quarters of an hour)

Documents come from --data (JSONL files with a `text`, or plain text by paragraphs; default: the toy web's English).
They are joined or cut to about 2.5 kB, and a few words of each are changed, so that none is a copy of another.
datatrove runs in an environment of its own (about 600 MB under ~/.cache/plumbline/bench, or --env-dir). Each side is a
fresh process; they take turns, and only one works at a time. The clock starts after the imports.

Parts: `rules`, Gopher repetition and quality, C4 without the end-mark rule and FineWeb, with decisions compared one by
one; `signatures`, MinHash of 14 x 8; `executors`, processes against Ray, warm; `memory`, peak memory and time of the
default chain against the size of the input.
"""

import argparse
import functools
import gzip
import json
import pathlib
import random
import resource
import statistics
import subprocess
import sys
import time

import machine

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

PACKAGES = [("datatrove[io,processing]==0.10.1 spacy>=3.8",)]
PARTS = ("rules", "signatures", "executors", "memory")
SIZE = 2_500  # characters of a document
VARIED = 8  # words changed in a document


# Documents ----------------------------------------------------------------------------------------------------------


def texts(data: str) -> list[str]:
    """Texts of about SIZE characters: long ones are cut between lines, short ones joined."""
    if not data:
        from data.toys import toyweb

        originals = [d["text"] for d in toyweb.documents(4_000, seed=0, languages=("en",))]
    else:
        originals = []
        for path in sorted(pathlib.Path(p) for part in data.split(",") for p in part.split()):
            content = path.read_text("utf-8")
            if path.suffix == ".jsonl":
                originals += [row["text"] for row in map(json.loads, content.splitlines()) if row.get("text")]
            else:
                originals += [part for part in content.split("\n\n") if part.strip()]
    cut_texts, buffer = [], ""
    for text in originals:
        for line in text.split("\n"):
            buffer += line + "\n"
            while len(buffer) >= SIZE:
                end = "\n" if "\n" in buffer[SIZE - 1 : SIZE + 500] else " "
                cut = buffer.find(end, SIZE - 1) + 1 or len(buffer)
                cut_texts.append(buffer[:cut].strip())
                buffer = buffer[cut:]
        buffer += "\n"
    return cut_texts


def write(path: pathlib.Path, originals: list[str], *, num: int = 1 << 62, size: float = 1e30, seed: int = 0) -> int:
    """Write documents as JSONL (.gz) up to `num` documents or `size` bytes before packing; return their number.

    They are the originals in turn, with some words replaced by others of the corpus.
    """
    rng = random.Random(seed)
    words = [word for text in originals for word in text.split(" ")]
    make = functools.partial(gzip.open, compresslevel=1) if path.suffix == ".gz" else open
    written, total = 0, 0
    with make(path, "wb") as f:
        while written < num and total < size:
            varied = originals[written % len(originals)].split(" ")
            for _ in range(VARIED if written >= len(originals) else 0):
                varied[rng.randrange(len(varied))] = rng.choice(words)
            row = json.dumps({"id": f"d{written}", "text": " ".join(varied)}, ensure_ascii=False)
            total += f.write(f"{row}\n".encode())
            written += 1
    return written


# Measuring ----------------------------------------------------------------------------------------------------------


def measured(python: str, script: str, part: str, inputs: pathlib.Path, out: pathlib.Path) -> dict:
    command = [python, str(HERE / "peers" / script), "--part", part, "--inputs", str(inputs), "--out", str(out)]
    before, start, own = machine.busy_cpu_seconds(), time.perf_counter(), _children()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} --part {part} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    row = json.loads(done.stdout.strip().splitlines()[-1])
    wall, used = time.perf_counter() - start, _children() - own  # starting included
    row["others"] = max(0.0, (machine.busy_cpu_seconds() - before - used) / wall)
    return row


def _children() -> float:
    """CPU seconds of all child processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def side_by_side(contestants: dict, inputs: pathlib.Path, folder: pathlib.Path, args) -> dict[str, list[dict]]:
    """Measure the contestants in turns: {contestant: a row for each round}."""
    rows = {name: [] for name in contestants}
    for turn in range(args.rounds):
        for name, (python, script, part) in contestants.items():
            machine.wait_until_quiet(args.patience)
            rows[name].append(measured(python, script, part, inputs, folder / f"{name}-{turn}"))
            print(f"  {name}: {rows[name][-1]['cpu_seconds']:.2f} CPU seconds", flush=True)
    return rows


def speeds(part: str, rows: dict[str, list[dict]], num: int) -> list[dict]:
    """A row for each contestant: documents a second of one core, and the ratio to datatrove's, round by round."""
    peer = [row["cpu_seconds"] for row in rows["datatrove"]]
    table = []
    for name, own in rows.items():
        ratios = [theirs / row["cpu_seconds"] for theirs, row in zip(peer, own)]
        table.append(
            {
                "part": part,
                "contestant": name,
                "docs_per_core_second": num / statistics.median(row["cpu_seconds"] for row in own),
                "docs_per_second": num / statistics.median(row["seconds"] for row in own),
                "ratio": statistics.median(ratios),
                "low": min(ratios),
                "high": max(ratios),
                "peak_mb": max(row["peak_mb"] for row in own),
                "others": max(row["others"] for row in own),
                "versions": own[0]["versions"],
            }
        )
    return table


def decisions(ours: pathlib.Path, theirs: pathlib.Path, num: int) -> dict:
    """Shares of the documents with equal decisions, and with equal reasons, and which documents differ."""
    from data.corpus import shards

    own = {row["row"]["id"]: row["row"]["reason"] for row in shards.read(ours / "stages/dropped/00000.jsonl.zst")}
    peer = {}
    for path in theirs.glob("removed/*/*.jsonl"):
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            peer[row["id"]] = row["metadata"]["filter_reason"]
    names = [f"d{i}" for i in range(num)]
    differ = [[name, own.get(name, ""), peer.get(name, "")] for name in names if own.get(name) != peer.get(name)]
    same = sum((name in own) == (name in peer) for name in names) / num
    return {"equal_decisions": same, "equal_reasons": 1 - len(differ) / num, "dropped": len(own), "differ": differ[:20]}


def executors(folder: pathlib.Path, originals: list[str], args) -> list[dict]:
    """Documents a second of the default chain by two processes and by Ray with two CPUs, workers warm, in turns."""
    sys.path.append(str(HERE / "peers"))
    import filter_ours

    from data.corpus import executors as engine
    from experiments.filtering import stages as filter_stages

    num = 4 * args.documents
    path = folder / "executors.jsonl"
    write(path, originals, num=num)
    size = path.stat().st_size / 2**20
    rates, digests = {"process": [], "ray": []}, set()
    for turn in range(args.rounds):
        for name in rates:
            out = folder / f"{name}-{turn}"
            job, pieces = filter_ours.job_of(str(path), str(out), size / 16)
            with engine.opened(
                functools.partial(filter_stages.do, job), executor=name, workers=2, retries=0
            ) as run_tasks:
                tasks = [("screen", piece.index, piece) for piece in pieces]
                list(run_tasks(tasks))  # workers start and fill their vocabularies
                start = time.perf_counter()
                rows = dict(run_tasks(tasks))
                rates[name].append(num / (time.perf_counter() - start))
            digests.add(json.dumps([rows[i]["outputs"] for i in sorted(rows)], sort_keys=True))
            print(f"  {name}: {rates[name][-1]:.0f} documents a second", flush=True)
    ratios = [ray / process for ray, process in zip(rates["ray"], rates["process"])]
    medians = {name: statistics.median(of_rounds) for name, of_rounds in rates.items()}
    return [
        {
            "part": "executors",
            **medians,
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "same": len(digests) == 1,
        }
    ]


def memory(folder: pathlib.Path, originals: list[str], args, python: str) -> list[dict]:
    """Peak memory and seconds of one worker against the size of its input; one file of JSONL, and the same packed."""
    rows = []
    packed = set(map(float, args.packed.split(",")))
    for megabytes in map(float, args.megabytes.split(",")):
        for ending in (".jsonl", ".jsonl.gz") if megabytes in packed else (".jsonl",):
            path = folder / f"size{ending}"
            num = write(path, originals, size=megabytes * 1e6)
            used = measured(python, "filter_ours.py", "screen", path, folder / "size-out")
            row = {"part": "memory", "megabytes": megabytes, "file": ending, "documents": num}
            rows.append(row | {key: used[key] for key in ("seconds", "cpu_seconds", "peak_mb", "others")})
            times = f"{used['seconds']:.1f} s, {used['cpu_seconds']:.1f} CPU seconds"
            print(f"  {megabytes:g} MB {ending}: {used['peak_mb']:.0f} MiB, {times}", flush=True)
            subprocess.run(["rm", "-rf", str(folder / "size-out"), str(path)], check=True)
    return rows


# Reporting ----------------------------------------------------------------------------------------------------------


def report(rows: list[dict], facts: dict) -> str:
    lines = []
    for part in ("rules", "signatures"):
        own = [row for row in rows if row["part"] == part]
        if own:
            lines += [
                f"### {part}",
                "",
                "| contestant | documents per core and second | x datatrove (range) |",
            ]
            lines.append("| --- | --- | --- |")
            for row in own:
                cells = [row["contestant"], f"{row['docs_per_core_second']:,.0f}"]
                cells.append(f"{row['ratio']:.1f} ({row['low']:.1f}-{row['high']:.1f})")
                lines.append("| " + " | ".join(cells) + " |")
            lines.append("")
    for row in rows:
        if row["part"] == "decisions":
            lines.append(
                f"Decisions equal on {100 * row['equal_decisions']:.2f} % of {facts['documents']} documents, reasons "
                f"on {100 * row['equal_reasons']:.2f} %; {row['dropped']} dropped. Where they differ: {row['differ']}."
            )
        if row["part"] == "executors":
            same = "the same bytes" if row["same"] else "**other bytes**"
            lines.append(
                f"Ray with two CPUs does {row['ray']:,.0f} documents a second, two processes {row['process']:,.0f}: "
                f"{row['ratio']:.2f} times as many, with {same}."
            )
    sizes = [row for row in rows if row["part"] == "memory"]
    if sizes:
        lines += ["", "### memory", "", "| input, MB | file | documents | seconds | CPU seconds | peak memory, MiB |"]
        lines.append("| --- | --- | --- | --- | --- | --- |")
        for row in sizes:
            cells = [f"{row['megabytes']:g}", row["file"], f"{row['documents']:,}"]
            cells += [f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}", f"{row['peak_mb']:.0f}"]
            lines.append("| " + " | ".join(cells) + " |")
    others = max((row["others"] for row in rows if "others" in row), default=0.0)
    quiet = "" if others <= machine.QUIET else "; **not a quiet machine, so not a measurement to keep**"
    versions = {row["contestant"]: row["versions"] for row in rows if "versions" in row}
    notes = {
        "Command": f"`{facts['command']}`",
        "Documents": f"{facts['documents']} of {facts['characters']:,} characters on average, from {facts['data']}; "
        f"{facts['rounds']} rounds",
        "Hardware": f"{facts['hardware']}; others kept at most {others:.2f} cores busy while a side ran{quiet}",
        "Versions": "; ".join(f"{who}: {of}" for who, of in versions.items()),
        "When": f"{facts['date']}, commit {facts['commit']}",
    }
    return "\n".join(lines) + "\n\n" + machine.notes(notes)


def draw(path: pathlib.Path, rows: list[dict]) -> None:
    """Memory and time against size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    for ending in sorted({row["file"] for row in rows}):
        own = [row for row in rows if row["file"] == ending]
        left.plot([row["megabytes"] for row in own], [row["peak_mb"] for row in own], "o-", label=ending)
        right.plot([row["megabytes"] for row in own], [row["cpu_seconds"] for row in own], "o-", label=ending)
    left.axhline(500, color="grey", linestyle="--", linewidth=1)
    for axes, name in ((left, "peak memory of a worker, MiB"), (right, "CPU seconds")):
        axes.set_xscale("log")
        axes.set_xlabel("input, MB")
        axes.set_ylabel(name)
    left.set_ylim(0)
    right.set_yscale("log")
    left.legend(frameon=False)
    figure.savefig(path)


# Command line -------------------------------------------------------------------------------------------------------


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--data", default="", help="files of text, .jsonl or .txt, with commas between")
    parser.add_argument("--documents", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", default="10,100,1000", help="sizes of the part `memory`")
    parser.add_argument("--packed", default="10,100,1000", help="which of these sizes also as .gz")


def measure(args: argparse.Namespace, folder: pathlib.Path) -> tuple[list[dict], dict]:
    parts = args.parts.split(",")
    if wrong := [part for part in parts if part not in PARTS]:
        raise SystemExit(f"{wrong[0]!r} is not one of the parts {', '.join(PARTS)}")
    originals = texts(args.data)
    facts = {"documents": args.documents, "rounds": args.rounds}
    facts["characters"] = round(statistics.mean(map(len, originals)))
    facts["data"] = ", ".join(pathlib.Path(p).name for p in args.data.split(",")) if args.data else "the toy web"
    inputs = folder / "inputs"
    inputs.mkdir()
    write(inputs / "documents.jsonl", originals, num=args.documents)
    rows, peer = [], ""
    if {"rules", "signatures"} & set(parts):
        peer = machine.environment("datatrove", PACKAGES, args.env_dir, args.python or machine.find_python())
    if "rules" in parts:
        sides = {"ours": (sys.executable, "filter_ours.py", "rules")}
        sides["datatrove"] = (peer, "filter_datatrove.py", "rules")
        rows += speeds("rules", side_by_side(sides, inputs, folder, args), args.documents)
        rows.append({"part": "decisions", **decisions(folder / "ours-0", folder / "datatrove-0", args.documents)})
    if "signatures" in parts:
        sides = {"ours": (sys.executable, "filter_ours.py", "signatures")}
        sides["ours, datatrove's hashes"] = (sys.executable, "filter_ours.py", "signatures-datatrove")
        sides["datatrove"] = (peer, "filter_datatrove.py", "signatures")
        (folder / "signatures").mkdir()
        rows += speeds("signatures", side_by_side(sides, inputs, folder / "signatures", args), args.documents)
    if "executors" in parts:
        rows += executors(folder, originals, args)
    if "memory" in parts:
        rows += memory(folder, originals, args, sys.executable)
    if args.data:  # a kept report does not show where somebody's files lie
        facts["command"] = machine.command().replace(args.data, "FILES")
    return rows, facts


def keep(output: pathlib.Path, rows: list[dict]) -> None:
    if sizes := [row for row in rows if row["part"] == "memory"]:
        draw(output.with_suffix(".png"), sizes)


if __name__ == "__main__":
    machine.main(__doc__, add_flags, measure, report, keep)
