"""The server through clients of others: OpenAI's own package, and schemathesis on its description."""

import asyncio
import concurrent.futures
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from experiments.serving import server
from experiments.serving.service import Limits, Service
from tests.experiments.conftest import ROOT
from tests.experiments.serving.conftest import MAX_LEN, PIECES, TOK, Parrot

openai = pytest.importorskip("openai")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FOLDER = ROOT / "models/smollm2"
NUM_NEW = 32
NEAR = 1e-4  # the two best logits are nearer than that: either token is right, and what follows is not compared
KEY = "a key of the tests"


@contextlib.contextmanager
def served(folder, engine=None, **limits):
    """The address of a server in a thread with a loop of its own."""
    ready, over = threading.Event(), threading.Event()
    place = []

    async def until(url):
        place.append(url)
        ready.set()
        while not over.is_set():
            await asyncio.sleep(0.01)

    async def work():
        fields = dict(name="parrot", fingerprint="fp_test", num_slots=2, max_len=MAX_LEN, limits=Limits(**limits))
        service = Service(engine or Parrot(stop_ids=(ord("\n"),)), TOK, PIECES, **fields)
        options = {"grace": 1.0, "header_seconds": 20.0, "connections": 50}
        await server.serve(service, server.bind("127.0.0.1", 0), folder, until=until, **options)

    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    try:
        assert ready.wait(30)
        yield place[0]
    finally:
        over.set()
        thread.join(30)


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setenv(server.KEY, KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with served(tmp_path) as url, openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["parrot"]
    assert client.models.retrieve("parrot").id == "parrot"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_completions_with_samples_logprobs_echo_and_a_seed(client):
    done = client.completions.create(
        model="parrot", prompt="ab", max_tokens=3, n=2, logprobs=2, echo=True, seed=1, stop=["zz"],
        extra_body={"top_k": 5, "min_p": 0.1},
    )  # fmt: skip
    assert [choice.text for choice in done.choices] == ["ababa", "ababa"]
    logprobs = done.choices[0].logprobs
    assert logprobs.tokens == ["<|bos|>", *"ababa"] and logprobs.token_logprobs == [None, *[-0.5] * 5]
    assert logprobs.text_offset == [0, 0, 1, 2, 3, 4] and logprobs.top_logprobs[1] == {"a": -0.5, "b": -1.5}
    assert done.usage.completion_tokens == 6 and done.system_fingerprint == "fp_test"


def test_a_completion_is_streamed(client):
    stream = client.completions.create(
        model="parrot", prompt="abc", max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = stream
    assert "".join(chunk.choices[0].text for chunk in chunks) == "abcab"
    assert chunks[-1].choices[0].finish_reason == "length" and last.usage.completion_tokens == 5


def test_a_chat_answers_whole_and_streamed_with_logprobs(client):
    asked = dict(
        model="parrot",
        messages=[
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        ],
        logprobs=True,
        top_logprobs=2,
        max_completion_tokens=50,
    )
    done = client.chat.completions.create(**asked)
    choice = done.choices[0]
    assert choice.message.content == "System: Be kind." and choice.finish_reason == "stop"
    assert [token.token for token in choice.logprobs.content] == list("System: Be kind.")
    assert choice.logprobs.content[0].top_logprobs[1].logprob == -1.5
    *chunks, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "System: Be kind."
    assert last.usage == done.usage
    next_turn = [*asked["messages"], choice.message, {"role": "user", "content": "And?"}]
    assert client.chat.completions.create(**asked | {"messages": next_turn}).choices[0].finish_reason == "stop"


def test_errors_are_the_packages_own(client):
    with pytest.raises(openai.BadRequestError) as e:
        client.completions.create(model="parrot", prompt="a", temperature=3)
    assert e.value.param == "temperature" and e.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as e:
        client.completions.create(model="parrot", prompt="a" * 250)
    assert e.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_a_full_queue_is_tried_again_by_the_package(tmp_path, monkeypatch):
    monkeypatch.delenv(server.KEY, raising=False)
    engine = Parrot(num_slots=1, seconds=0.002)
    with served(tmp_path, engine, queue=1) as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as impatient:
            texts, failures = [], []

            def one():
                try:
                    texts.append(impatient.completions.create(model="parrot", prompt="abc", max_tokens=200))
                except openai.RateLimitError as e:
                    failures.append(e.response.headers["retry-after"])

            threads = [threading.Thread(target=one) for _ in range(8)]
            [thread.start() for thread in threads]
            [thread.join(30) for thread in threads]
            assert len(texts) + len(failures) == 8 and failures and all(int(seconds) >= 1 for seconds in failures)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=3) as patient:
            assert patient.completions.create(model="parrot", prompt="abc", max_tokens=3).choices[0].text == "abc"


@pytest.mark.parametrize("ends", [False, True])
def test_the_harness_reads_scores_of_the_continuation_alone(ends, tmp_path, monkeypatch):
    """It asks for one new token and takes off one, also where that token ends the answer."""
    completions = pytest.importorskip("lm_eval.models.openai_completions")
    monkeypatch.delenv(server.KEY, raising=False)
    context, continuation = list(b"a context"), list(b" goes on")
    engine = Parrot(stop_ids=(ord("a"),) if ends else ())  # the parrot goes on with the prompt's first letter
    with served(tmp_path, engine) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        asked = dict(prompt=[context + continuation] * 2, temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True)
        body = client.completions.create(model="parrot", **asked).model_dump()
    parse = completions.LocalCompletionsAPI.parse_logprobs
    assert body["choices"][0]["finish_reason"] == ("stop" if ends else "length")
    assert parse(body, ctxlens=[len(context)] * 2) == [(-0.5 * len(continuation), True)] * 2


@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed")
def test_schemathesis_finds_no_answer_that_the_description_does_not_know(tmp_path, monkeypatch):
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    monkeypatch.delenv(server.KEY, raising=False)
    with served(tmp_path) as url:
        description = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations = [result.ok() for result in description.get_all_operations()]
        assert len(operations) == 5
        for operation in operations:

            @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
            @given(operation.as_strategy())
            def check(case):
                # what fields may not say together, and the cache's length, the description cannot tell
                case.call_and_validate(base_url=url, timeout=30, excluded_checks=[positive_data_acceptance])

            check()


def test_a_real_model_chats_as_transformers_does_with_several_clients_at_once(tmp_path, monkeypatch):
    if not FOLDER.is_dir():
        pytest.skip("models/smollm2 is not there: make models")
    monkeypatch.delenv(server.KEY, raising=False)
    questions = ["What is the capital of France?", "How do I kill a Python process?", "Name three colours."]
    # a process of its own: programs of the tests are compiled without optimisation
    command = [sys.executable, "-m", "experiments.run", "--config", "experiments/serve.py:smol", "--config.port=0"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    with (tmp_path / "out.txt").open("w") as out:
        started = subprocess.Popen(
            [*command, "--workdir", str(tmp_path / "run")], cwd=ROOT, env=environment, stdout=out, stderr=out
        )
    try:
        place = tmp_path / "run/server.json"
        while not place.exists():
            assert started.poll() is None, (tmp_path / "out.txt").read_text()
            time.sleep(0.1)
        url = json.loads(place.read_text())["url"]
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

            def ask(question):
                asked = dict(model="smollm2", temperature=0, max_tokens=NUM_NEW)
                messages = [{"role": "user", "content": question}]
                whole = client.chat.completions.create(messages=messages, **asked)
                parts = client.chat.completions.create(messages=messages, stream=True, **asked)
                text = "".join(part.choices[0].delta.content or "" for part in parts)
                assert text == whole.choices[0].message.content
                return text

            with concurrent.futures.ThreadPoolExecutor(len(questions)) as pool:
                texts = list(pool.map(ask, questions))
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) == 0
    finally:
        if started.poll() is None:
            started.kill()
            started.wait()
    for text, (wanted, is_whole) in zip(texts, greedily(questions), strict=True):
        assert text.startswith(wanted) and (text == wanted or not is_whole)
    assert "Paris" in texts[0]


def greedily(questions):
    """Transformers' answer to each, up to where its two best logits are nearly equal, and whether that is all of it."""
    tok = transformers.AutoTokenizer.from_pretrained(FOLDER)
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    for text in questions:
        messages = [{"role": "user", "content": text}]
        ids = tok.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            out = model.generate(
                **ids, max_new_tokens=NUM_NEW, do_sample=False, return_dict_in_generate=True, output_logits=True
            )
        best = torch.stack(out.logits)[:, 0].topk(2).values
        gaps = (best[:, 0] - best[:, 1]).tolist()
        near = next((i for i, gap in enumerate(gaps) if gap < NEAR), len(gaps))
        tokens = out.sequences[0, ids["input_ids"].shape[1] :].tolist()
        yield tok.decode(tokens[:near], skip_special_tokens=True), near == len(gaps)
