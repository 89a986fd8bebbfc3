"""Many clients at once: who waits, who is turned away, what is freed when, and what happens when something breaks."""

import asyncio
import json

import pytest

from experiments.serving import schema, server, service, wire
from experiments.serving.failures import Failure
from experiments.serving.service import Limits
from tests.experiments.serving.conftest import Parrot, opened


async def until(holds, seconds=5.0):
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.001)


def started(door, num, **fields):
    """Requests that have been sent, in this order, and not answered."""
    return [asyncio.ensure_future(door.complete(f"p{i:03}", max_tokens=3, **fields)) for i in range(num)]


def test_a_full_queue_turns_requests_away_with_429_and_says_when_to_come_again(run):
    async def work():
        engine = Parrot(num_slots=2)
        engine.gate.clear()
        async with opened(engine, limits=Limits(queue=3)) as door:
            tasks = started(door, 5)
            await until(lambda: door.service.driver.num_open == 5)
            for stream in (False, True):
                reply = await door.complete("one more", stream=stream)
                assert reply.status == 429 and 1 <= int(reply.headers["retry-after"]) <= 60
                assert reply.error["type"] == "rate_limit_error" and reply.error["code"] == "queue_full"
            engine.gate.set()
            assert [reply.status for reply in await asyncio.gather(*tasks)] == [200] * 5
            assert await door.settled() and (await door.complete("now", max_tokens=1)).status == 200

    run(work())


def test_a_request_of_many_answers_is_taken_whole_or_not_at_all(run):
    async def work():
        engine = Parrot(num_slots=2)
        engine.gate.clear()
        async with opened(engine, limits=Limits(queue=4)) as door:
            tasks = started(door, 3)
            await until(lambda: door.service.driver.num_open == 3)
            assert (await door.complete("a", n=4)).status == 429
            assert (await door.complete("a", n=7)).status == 400  # it will never fit
            task = asyncio.ensure_future(door.complete("a", n=3, max_tokens=1))
            await until(lambda: door.service.driver.num_open == 6)
            engine.gate.set()
            assert [reply.status for reply in await asyncio.gather(*tasks, task)] == [200] * 4

    run(work())


def test_requests_are_served_in_the_order_in_which_they_came(run):
    async def work():
        engine = Parrot(num_slots=1)
        async with opened(engine, limits=Limits(queue=100)) as door:
            done = []
            tasks = started(door, 50)
            for i, task in enumerate(tasks):
                task.add_done_callback(lambda _, i=i: done.append(i))
            assert all(reply.status == 200 for reply in await asyncio.gather(*tasks))
            assert engine.order == [f"p{i:03}".encode() for i in range(50)] and done == sorted(done)

    run(work())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_goes_frees_its_slots_before_the_next_step(stream, n, run):
    async def work():
        engine, gone = Parrot(num_slots=2), asyncio.Event()
        async with opened(engine) as door:
            body = {"prompt": "abc", "max_tokens": 200, "stream": stream, "n": n}
            engine.seconds = 0.002
            task = asyncio.ensure_future(door.post("/v1/completions", body, leaves=gone))
            await until(lambda: engine.num_busy == min(n, 2))
            engine.gate.clear()
            answers = [job[0] for job in engine.busy]
            gone.set()
            reply = await task
            before = [len(answer.tokens) for answer in answers]
            engine.gate.set()
            assert not reply.is_complete and await door.settled()
            assert all(len(answer.tokens) - num <= 1 for answer, num in zip(answers, before))
            assert engine.cancel(0) is None
            assert (await door.complete("z", max_tokens=1)).json["choices"][0]["text"] == "z"
            text = (await door.get("/metrics")).body.decode()
            assert 'plumbline_requests_total{outcome="cancelled",path="/v1/completions"} 1.0' in text

    run(work())


def test_a_client_that_goes_while_it_waits_leaves_the_queue(run):
    async def work():
        engine, gone = Parrot(num_slots=1), asyncio.Event()
        engine.gate.clear()
        async with opened(engine, limits=Limits(queue=2)) as door:
            first = asyncio.ensure_future(door.complete("first", max_tokens=2))
            await until(lambda: door.service.driver.num_open == 1)
            second = asyncio.ensure_future(
                door.post("/v1/completions", {"prompt": "second", "max_tokens": 2}, leaves=gone)
            )
            await until(lambda: door.service.driver.num_open == 2)
            gone.set()
            assert (await second).status == 0
            engine.gate.set()
            assert (await first).status == 200 and await door.settled()

    run(work())


def test_a_client_that_goes_in_the_middle_of_its_body_takes_nothing(run):
    async def work():
        async with opened() as door:
            reply = await door.post("/v1/completions", b"", parts=[(0, b'{"prompt"'), (0.001, None)])
            assert reply.status == 0 and door.service.driver.num_open == 0

    run(work())


def test_one_clients_going_changes_nothing_for_the_others(run):
    async def work():
        async with opened(Parrot(num_slots=2)) as door:
            others = [asyncio.ensure_future(door.complete(f"abc{i}", max_tokens=40)) for i in range(4)]
            body = {"prompt": "x", "max_tokens": 200, "stream": True}
            await asyncio.gather(*(door.post("/v1/completions", body, leaves=i + 1) for i in range(4)))
            for i, reply in enumerate(await asyncio.gather(*others)):
                assert reply.json["choices"][0]["text"] == (f"abc{i}" * 10)[:40]
            assert await door.settled()

    run(work())


def test_an_answer_that_takes_too_long_ends_with_504_or_an_error_in_the_stream(run):
    async def work():
        engine = Parrot()
        engine.gate.clear()
        async with opened(engine, limits=Limits(seconds=0.05)) as door:
            reply = await door.complete("a")
            assert reply.status == 504 and "took longer than 0.05 seconds" in reply.error["message"]
            reply = await door.complete("a", stream=True)
            assert reply.status == 200 and (not reply.events or json.loads(reply.events[-1])["error"]["type"])
            engine.gate.set()
            assert await door.settled()

    run(work())


def test_a_client_that_reads_nothing_is_let_go(run):
    async def work():
        async def stuck(message):
            if message["type"] == "http.response.body":
                await asyncio.sleep(60)

        async with opened(limits=Limits(seconds=0.05)) as door:
            body = {"prompt": "a", "max_tokens": 50, "stream": True}
            reply = await door.post("/v1/completions", body, on_send=stuck)
            assert not reply.is_complete and await door.settled()

    run(work())


def test_a_stream_without_news_is_kept_alive(run, monkeypatch):
    async def work():
        monkeypatch.setattr(service, "QUIET", 0.01)
        engine = Parrot()
        engine.gate.clear()
        async with opened(engine) as door:
            task = asyncio.ensure_future(door.complete("a", stream=True, max_tokens=2))
            await asyncio.sleep(0.1)
            engine.gate.set()
            reply = await task
            assert reply.body.count(wire.PING) >= 2 and len(reply.chunks) == 2

    run(work())


def test_a_fault_with_one_request_ends_that_one_alone(run, capsys):
    async def work():
        async with opened() as door:
            assert (await door.complete("bad\x07", n=2)).status == 500
            assert (await door.complete("good", max_tokens=1)).status == 200
            assert (await door.get("/healthz")).json["status"] == "ok" and await door.settled()

    run(work())
    assert "this prompt is too much" in capsys.readouterr().err


def test_a_broken_engine_fails_whoever_waits_and_turns_the_health_to_503(run, capsys):
    async def work():
        engine = Parrot(num_slots=1)
        engine.gate.clear()
        async with opened(engine) as door:
            tasks = [*started(door, 2), *started(door, 1, stream=True)]
            await until(lambda: door.service.driver.num_open == 3)
            engine.fault = FloatingPointError("the logits are not numbers")
            engine.gate.set()
            first, second, streamed = await asyncio.gather(*tasks)
            assert first.status == second.status == 500 and "the logits are not numbers" in first.error["message"]
            assert json.loads(streamed.events[-1])["error"]["type"] == "server_error"
            health = await door.get("/healthz")
            assert health.status == 503 and health.json["status"] == "broken" and health.json["open"] == 0
            assert (await door.complete("later")).status == 500

    run(work())
    assert "FloatingPointError" in capsys.readouterr().err


def test_a_fault_of_the_server_itself_is_a_500_that_tells_nothing_of_it(run, capsys, monkeypatch):
    async def work():
        async with opened() as door:

            def fail(*_):
                raise KeyError("a secret of the code")

            monkeypatch.setattr(door.service, "_grow", fail)
            reply = await door.complete("a")
            assert reply.status == 500 and b"secret" not in reply.body and await door.settled()
            reply = await door.complete("a", stream=True)
            assert reply.status == 200 and not reply.is_complete and await door.settled()

    run(work())
    assert "a secret of the code" in capsys.readouterr().err


def test_a_drain_lets_answers_end_and_turns_new_ones_away(run):
    async def work():
        engine = Parrot(num_slots=1)
        engine.gate.clear()
        async with opened(engine) as door:
            tasks = started(door, 3)
            await until(lambda: door.service.driver.num_open == 3)
            draining = asyncio.ensure_future(door.service.drain(10))
            await until(lambda: door.service.is_draining)
            reply = await door.complete("late")
            assert reply.status == 503 and int(reply.headers["retry-after"]) and "is ending" in reply.error["message"]
            health = await door.get("/healthz")
            assert health.status == 503 and health.json["status"] == "draining"
            engine.gate.set()
            assert [reply.status for reply in await asyncio.gather(*tasks)] == [200] * 3
            await draining

    run(work())


def test_a_request_that_was_still_read_when_the_drain_began_is_turned_away(run):
    async def work():
        async with opened() as door:
            body = schema.read(schema.Completion, {"prompt": "a"})
            prepared = await door.service.prepare(body)
            await door.service.drain(1)
            with pytest.raises(Failure, match="is ending"):
                door.service.submit(prepared)

    run(work())


def test_a_drain_gives_up_what_does_not_end_in_time(run):
    async def work():
        engine = Parrot(num_slots=1)
        engine.gate.clear()
        async with opened(engine) as door:
            tasks = [*started(door, 2), *started(door, 1, stream=True)]
            await until(lambda: door.service.driver.num_open == 3)
            await door.service.drain(0.05)
            first, second, streamed = await asyncio.gather(*tasks)
            assert first.status == second.status == 503 and "gave this request up" in first.error["message"]
            assert "gave this request up" in json.loads(streamed.events[-1])["error"]["message"]
            engine.gate.set()
            assert await door.settled()

    run(work())


def test_the_metrics_count_requests_tokens_slots_and_times(run):
    async def work():
        async with opened() as door:
            await door.complete("abc", max_tokens=5)
            await door.chat("abc", max_tokens=2, n=2)
            await door.complete("abc", max_tokens=-1)
            await door.get("/secret/path")
            text = (await door.get("/metrics")).body.decode()
            for line in (
                'plumbline_requests_total{outcome="ok",path="/v1/completions"} 1.0',
                'plumbline_requests_total{outcome="refused",path="/v1/completions"} 1.0',
                'plumbline_requests_total{outcome="ok",path="/v1/chat/completions"} 1.0',
                'plumbline_requests_total{outcome="refused",path="other"} 1.0',
                "plumbline_generated_tokens_total 9.0",
                "plumbline_busy_slots 0.0",
                "plumbline_waiting 0.0",
                "plumbline_slots 2.0",
                "plumbline_first_token_seconds_count 2.0",
                "plumbline_prefix_cache_hits_total 0.0",
                'plumbline_info{fingerprint="fp_test",model="parrot"} 1.0',
            ):
                assert line in text, line

    run(work())


def test_the_log_has_a_line_a_request_without_its_words(run, tmp_path):
    async def work():
        async with opened() as door:
            await door.complete("my secret prompt", max_tokens=5)
            await door.complete("my secret prompt", temperature=-1)
            await door.complete(["my secret prompt", 3])
            await door.get("/v1/models")

    with server.request_log(tmp_path):
        run(work())
    lines = (tmp_path / "requests.jsonl").read_text().splitlines()
    answered, *refused, listed = map(json.loads, lines)
    assert (answered["outcome"], answered["tokens"], answered["status"]) == ("ok", 5, 200)
    assert [(line["outcome"], line["param"]) for line in refused] == [("refused", "temperature"), ("refused", "prompt")]
    assert listed["path"] == "/v1/models" and not any("secret" in line for line in lines)
