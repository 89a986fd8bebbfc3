"""Requests that no honest client sends, over a real socket: the server answers each, or hangs up, and goes on."""

import asyncio
import collections

import pytest

from experiments.serving import server
from experiments.serving.service import Limits, Service
from tests.experiments.serving import hostile
from tests.experiments.serving.conftest import MAX_LEN, PIECES, TOK, Parrot

NUM, AT_ONCE = 500, 50


async def served(tmp_path, work, **options):
    """Do some work with a server on a socket: `work(service, host, port)`."""
    limits = Limits(body_seconds=0.3, seconds=20.0)
    service = Service(
        Parrot(num_slots=4), TOK, PIECES, name="parrot", fingerprint="fp", num_slots=4, max_len=MAX_LEN, limits=limits
    )
    sock = server.bind("127.0.0.1", 0)

    async def until(url):
        host, _, port = url.removeprefix("http://").partition(":")
        await work(service, host, int(port))

    options = {"grace": 1.0, "header_seconds": 0.3, "connections": 200} | options
    async with asyncio.timeout(100):
        await server.serve(service, sock, tmp_path, until=until, **options)


async def ask(host, port, path="/healthz", **body):
    raw = hostile.request(path, hostile.json.dumps(body).encode() if body else b"", method="POST" if body else "GET")
    received = await hostile.send(hostile.Case("honest", [(0, raw)]), host, port)
    return received.partition(b"\r\n\r\n")


async def idle(service, seconds=5.0):
    async with asyncio.timeout(seconds):
        while service.driver.num_open or service.driver.num_busy or service.driver.num_waiting:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", [0])
def test_five_hundred_hostile_requests_are_refused_and_no_slot_leaks(seed, tmp_path, capsys):
    async def work(service, host, port):
        gate, complaints, counts = asyncio.Semaphore(AT_ONCE), [], collections.Counter()

        async def one(case):
            async with gate:
                received = await hostile.send(case, host, port)
                counts[case.kind] += 1
                complaints.append(hostile.complaint(case, received))

        await asyncio.gather(*(one(case) for case in hostile.cases(NUM, seed)))
        assert [complaint for complaint in complaints if complaint] == []
        assert len(counts) >= 11 and sum(counts.values()) == NUM
        await idle(service)
        head, _, body = await ask(host, port)
        assert head.startswith(b"HTTP/1.1 200") and b'"open":0' in body
        head, _, body = await ask(host, port, "/v1/completions", prompt="abc", max_tokens=3)
        assert head.startswith(b"HTTP/1.1 200") and b'"text":"abc"' in body

    asyncio.run(served(tmp_path, work))
    assert "Traceback" not in capsys.readouterr().err


def test_a_connection_on_which_no_request_comes_is_closed(tmp_path):
    async def work(service, host, port):
        for parts in ([(60, b"")], [(0, b"GET / HT"), (60, b"")]):
            assert await hostile.send(hostile.Case("idle", parts), host, port, seconds=5) == b""
        # one that is used, and then left open
        raw = hostile.request("/healthz", b"", method="GET").replace(b"connection: close", b"connection: keep-alive")
        received = await hostile.send(hostile.Case("idle", [(0, raw), (60, b"")]), host, port, seconds=5)
        assert received.startswith(b"HTTP/1.1 200") and received.count(b"HTTP/1.1") == 1

    asyncio.run(served(tmp_path, work))


def test_a_connection_may_carry_several_requests(tmp_path):
    async def work(service, host, port):
        body = hostile.json.dumps({"prompt": "abc", "max_tokens": 3}).encode()
        one = hostile.request("/v1/completions", body).replace(b"connection: close", b"connection: keep-alive")
        for parts in ([(0, one * 3)], [(0, one), (0.1, one), (0.1, one)]):
            received = await hostile.send(hostile.Case("several", parts), host, port, seconds=5)
            assert received.count(b"HTTP/1.1 200") == 3 and received.count(b'"text":"abc"') == 3

    asyncio.run(served(tmp_path, work))


def test_an_early_error_to_an_endless_body_ends_the_connection(tmp_path):
    async def work(service, host, port):
        head = b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000000\r\n\r\n"
        case = hostile.Case("endless", [(0, head), *[(0.01, b"x" * 1_000)] * 2_000])
        received = await hostile.send(case, host, port, seconds=10)
        assert received.startswith(b"HTTP/1.1 404")

    asyncio.run(served(tmp_path, work))


def test_more_connections_than_the_limit_get_503(tmp_path):
    async def work(service, host, port):
        held = [await asyncio.open_connection(host, port) for _ in range(5)]
        head, _, _ = await ask(host, port)
        assert head.startswith(b"HTTP/1.1 503")
        for _, writer in held:
            writer.close()

    asyncio.run(served(tmp_path, work, connections=5, header_seconds=5.0))


def test_the_workdir_names_the_address_while_the_server_runs(tmp_path, capsys):
    async def work(service, host, port):
        about = hostile.json.loads((tmp_path / "server.json").read_text())
        assert about["url"] == f"http://{host}:{port}" and about["model"] == "parrot"

    asyncio.run(served(tmp_path, work))
    assert not (tmp_path / "server.json").exists()
    assert "serving parrot at http://127.0.0.1:" in capsys.readouterr().out
