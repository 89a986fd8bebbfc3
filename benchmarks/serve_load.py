"""The server under many clients and under hostile ones: a bounded minute, then ten thousand requests.

    python benchmarks/serve_load.py --output benchmarks/results/serve_load.md

A server with a small model of random weights is started on loopback. Clients ask again and again, half of them for
streams; every answer is compared with what the same request gave before anybody else was there. Lost: no answer, or one
cut short. The wait is from a request to its first byte of an answer (streams) or to the whole (others). Then hostile
requests, as tests/experiments/serving/hostile.py makes them. Memory is the server's resident set.
"""

import argparse
import asyncio
import collections
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import time

import machine

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.experiments.serving import hostile  # noqa: E402

SETTINGS = ("engine.num_slots=8", "engine.max_len=256", "limits.queue=400", "limits.body_seconds=1.0")
SETTINGS += ("limits.header_seconds=1.0", "asks_itself=False", "port=0")


def start(folder: pathlib.Path) -> tuple[subprocess.Popen, dict]:
    """The server, and what it says of itself once it serves."""
    command = [
        sys.executable,
        "-m",
        "experiments.run",
        "--config",
        "experiments/serve.py:tiny",
        "--workdir",
        str(folder),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
    with open(folder.with_suffix(".txt"), "w") as out:
        command += [f"--config.{setting}" for setting in SETTINGS]
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
    place, end = folder / "server.json", time.monotonic() + 180
    while not place.exists():
        if server.poll() is not None or time.monotonic() > end:
            raise RuntimeError(folder.with_suffix(".txt").read_text()[-3000:])
        time.sleep(0.1)
    return server, json.loads(place.read_text())


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def ask(port: int, body: dict) -> tuple[str, float, float]:
    """The answer's text ("" where it is not whole), and the seconds to its first byte and to its end."""
    began, first, received = time.perf_counter(), 0.0, b""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(hostile.request("/v1/completions", json.dumps(body).encode()))
        while part := await reader.read(65_536):
            if b"data: " in part or not body["stream"]:
                first = first or time.perf_counter() - began
            received += part
    finally:
        writer.close()
    seconds = time.perf_counter() - began
    head, _, rest = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        return "", first, seconds
    if not body["stream"]:
        return json.loads(rest)["choices"][0]["text"] + "$", first, seconds
    events = [line[6:] for line in rest.decode().splitlines() if line.startswith("data: ")]
    if not events or events[-1] != "[DONE]":
        return "", first, seconds
    return "".join(c["text"] for e in events[:-1] for c in json.loads(e)["choices"]) + "$", first, seconds


def bodies(rng: random.Random) -> list[dict]:
    """Requests of many lengths and options, each with a seed."""
    return [
        {
            "prompt": "".join(rng.choice("abcdefgh ") for _ in range(rng.randint(1, 100))),
            "max_tokens": rng.randint(4, 64),
            "temperature": rng.choice([0, 0.7, 1]),
            "top_p": rng.choice([1, 0.9]),
            "seed": i,
            "stream": i % 2 == 0,
        }
        for i in range(40)
    ]


async def load(port: int, pid: int, num_clients: int, seconds: float) -> dict:
    """The bounded minute."""
    rng = random.Random(0)
    asked = bodies(rng)
    wanted = [(await ask(port, body))[0] for body in asked]
    counts, waits, memory = collections.Counter(), [], []
    end = time.monotonic() + seconds

    async def client(seed: int) -> None:
        own = random.Random(seed)
        while time.monotonic() < end:
            i = own.randrange(len(asked))
            text, first, total = await ask(port, asked[i])
            counts["answered" if text == wanted[i] else "changed" if text else "lost"] += 1
            waits.append((first, total))

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append(resident(pid))
            await asyncio.sleep(0.5)

    await asyncio.gather(watch(), *(client(seed) for seed in range(num_clients)))
    firsts = sorted(first for first, _ in waits)
    median = statistics.median(firsts)
    warm = statistics.median(memory[len(memory) // 6 : len(memory) // 3])
    return {
        "part": f"{num_clients} clients, {seconds:g} s",
        "requests": sum(counts.values()),
        "lost": counts["lost"],
        "changed": counts["changed"],
        "median wait, s": round(median, 3),
        "p99 over the median": round(firsts[int(0.99 * len(firsts))] / median, 2),
        "longest over the median": round(firsts[-1] / median, 2),
        "memory growth, %": round(100 * (statistics.median(memory[-10:]) / warm - 1), 2),
        "open afterwards": await num_open(port),
    }


async def attack(port: int, pid: int, num: int) -> tuple[dict, list[str]]:
    """The hostile requests, and what was wrong with the answers to them."""
    gate, complaints, kinds = asyncio.Semaphore(50), [], collections.Counter()

    async def one(case: hostile.Case) -> None:
        async with gate:
            complaint = hostile.complaint(case, await hostile.send(case, "127.0.0.1", port, seconds=60))
            kinds[case.kind] += 1
            complaints.extend([complaint] if complaint else [])

    cases = hostile.cases(num, seed=1)
    first, memory = num // 5, []
    for part in (first, num - first):
        await asyncio.gather(*(one(case) for _, case in zip(range(part), cases)))
        memory.append(resident(pid))
    await asyncio.sleep(1)
    row = {
        "part": f"{num} hostile requests of {len(kinds)} kinds",
        "requests": sum(kinds.values()),
        "lost": len(complaints),
        "memory growth, %": round(100 * (memory[1] / memory[0] - 1), 2),
        "open afterwards": await num_open(port),
    }
    return row, complaints


async def num_open(port: int) -> int:
    received = await hostile.send(
        hostile.Case("", [(0, hostile.request("/healthz", b"", method="GET"))]), "127.0.0.1", port
    )
    return json.loads(received.partition(b"\r\n\r\n")[2])["open"]


def measure(args: argparse.Namespace, folder: pathlib.Path) -> tuple[list[dict], dict]:
    server, about = start(folder / "served")
    try:
        port = int(about["url"].rpartition(":")[2])
        rows = [asyncio.run(load(port, server.pid, args.clients, args.seconds))]
        print(rows[-1], flush=True)
        row, complaints = asyncio.run(attack(port, server.pid, args.hostile))
        rows.append(row)
        print(rows[-1], flush=True)
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
    said = (folder / "served.txt").read_text()
    facts = {"exit code": code, "tracebacks in its output": said.count("Traceback"), "settings": list(SETTINGS)}
    return rows, facts | ({"complaints": complaints[:10]} if complaints else {})


def report(rows: list[dict], facts: dict) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    said = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    return f"# The server under load\n\n{said}\n\n" + "\n".join(lines) + "\n"


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--hostile", type=int, default=10_000)


if __name__ == "__main__":
    machine.main(__doc__, flags, measure, report)
