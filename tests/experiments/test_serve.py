"""The server as the launcher starts it; tests/experiments/serving has what it does with requests."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from experiments import serve
from experiments.decoding import models
from experiments.launch import host
from tests.experiments.conftest import ROOT, launch


def read(path):
    return json.loads(path.read_text())


def test_tiny_serves_asks_itself_a_question_and_ends_with_0(tiny):
    ended = tiny("serve")
    assert ended.code == 0, ended.err
    assert re.search(r"serving random at http://127\.0\.0\.1:\d+ ", ended.out) and "8 tokens came back" in ended.out
    (start,) = read(ended.workdir / "environment.json")["starts"]
    assert start["outcome"] == "done" and start["devices"]
    left = {path.name for path in ended.workdir.iterdir()}
    assert left == {".lock", "config.json", "environment.json", "requests.jsonl"}  # no DONE: a server does not end
    (line,) = map(json.loads, (ended.workdir / "requests.jsonl").read_text().splitlines())
    assert line["outcome"] == "ok" and line["tokens"] == 8 and line["path"] == "/v1/chat/completions"


def test_another_config_may_start_in_a_servers_folder_but_not_in_that_of_a_run(tiny, tmp_path, monkeypatch):
    (tmp_path / "served").mkdir()
    for name in ("config.json", "environment.json"):
        (tmp_path / "served" / name).write_bytes((tiny("serve").workdir / name).read_bytes())
    monkeypatch.setattr(serve, "run", lambda c, workdir: {"requests": c.seed})
    ended = launch("serve.py:tiny", tmp_path / "served", "--config.seed=7")
    assert ended.code == 0 and "requests  7" in ended.out
    assert len(read(tmp_path / "served" / "environment.json")["starts"]) == 2
    (tmp_path / "environment.json").write_text('{"experiment": "dpo", "starts": []}')
    ended = launch("serve.py:tiny", tmp_path)
    assert ended.code == 2 and "already holds a run of dpo" in ended.err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("port=70000", "port=70000 must be in [0, 65535]"),
        ("limits.queue=0", "limits.queue=0 must be at least 1"),
        ("limits.seconds=0.0", "limits.seconds=0.0 must be above 0"),
        ("limits.max_tokens=0", "limits.max_tokens=0 must be at least 1"),
        ("engine.chunks_per_turn=0", "engine.chunks_per_turn=0 must be at least 1"),
        ("init_from=hf:nowhere", "nowhere is neither a folder here nor a hub id"),
    ],
)
def test_what_cannot_be_served_is_refused_before_weights_are_read(flag, message, tmp_path, monkeypatch):
    monkeypatch.setattr(serve, "build", lambda *_: pytest.fail("weights were read"))
    ended = launch("serve.py:tiny", tmp_path / "run", f"--config.{flag}")
    assert ended.code == 2 and message in ended.err and "Traceback" not in ended.err


def test_a_key_that_no_client_could_send_is_refused_and_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("PLUMBLINE_API_KEY", "my-secret\nkey")
    ended = launch("serve.py:tiny", tmp_path / "run")
    assert ended.code == 2 and "PLUMBLINE_API_KEY holds a line end" in ended.err and "my-secret" not in ended.err


def test_a_missing_package_is_named_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else name)
    ended = launch("serve.py:tiny", tmp_path / "run")
    assert ended.code == 2 and "(uvicorn): pip install 'plumbline[serve]'" in ended.err


def test_a_port_that_is_taken_is_refused(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        ended = launch("serve.py:tiny", tmp_path / "run", f"--config.port={sock.getsockname()[1]}")
    assert ended.code == 2 and "cannot be listened on" in ended.err


def test_a_signal_while_weights_are_read_ends_with_0(tmp_path, monkeypatch):
    def stopped(*_):
        raise host.Terminated

    monkeypatch.setattr(serve, "build", stopped)
    ended = launch("serve.py:tiny", tmp_path / "run", "--config.port=0")
    assert ended.code == 0 and "stopped before it served" in ended.out


def test_the_name_of_a_model_says_nothing_about_folders():
    c = serve.get_config()
    for init_from, name in [("hf:/a/b/my-model", "my-model"), ("hf:owner/model", "model"), ("run:runs/dpo", "dpo")]:
        c.init_from = init_from
        assert serve.name_of(c) == name
    c.name = "mine"
    assert serve.name_of(c) == "mine"


def test_a_fingerprint_changes_with_weights_tokenizer_numerics_and_slots_alone(tmp_path):
    c = serve.get_config("tiny")
    model = dataclasses.replace(models.open_model(c, tmp_path), digest="weights")
    first = serve.fingerprint(c, model, attention="blocks")
    assert first.startswith("fp_")
    again = dataclasses.replace(models.open_model(c, tmp_path), digest="weights")
    assert first == serve.fingerprint(serve.get_config("tiny"), again, attention="blocks")
    others = [dataclasses.replace(model, digest="others")]
    others += [dataclasses.replace(model, network=model.network.clone(rope_theta=5.0))]
    for changed in (dict(files={**model.tok.files, "chat_template.jinja": b"{{ 1 }}"}), dict(stop_ids=(1,))):
        others.append(dataclasses.replace(model, tok=dataclasses.replace(model.tok, **changed)))
    for other in others:
        assert serve.fingerprint(c, other, attention="blocks") != first
    assert serve.fingerprint(c, model, attention="paged") != first
    c.port, c.seed, c.engine.attention = 9, 3, "blocks"  # what "auto" chose has the same bits by its name
    assert serve.fingerprint(c, model, attention="blocks") == first
    c.engine.num_slots = 3
    assert serve.fingerprint(c, model, attention="blocks") != first


def test_only_a_server_that_others_reach_without_a_key_is_warned_of(capsys, monkeypatch):
    c = serve.get_config("tiny")
    for address, key, is_warned in [
        ("127.0.0.1", "", False),
        ("localhost", "", False),
        ("::1", "", False),
        ("0.0.0.0", "", True),
        ("0.0.0.0", "secret", False),
    ]:
        c.host = address
        monkeypatch.setenv("PLUMBLINE_API_KEY", key)
        serve._warn(c)
        assert ("warning" in capsys.readouterr().out) == is_warned, address


def fetch(url, body=None):
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
        return json.loads(response.read())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_answers_end_refuses_new_ones_and_the_server_exits_with_0(number, tmp_path):
    command = [sys.executable, "-m", "experiments.run", "--config", "experiments/serve.py:tiny", "--config.port=0"]
    command += ["--workdir", str(tmp_path / "run"), "--config.asks_itself=False", "--config.engine.num_steps=1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with (tmp_path / "out.txt").open("w") as out:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
    try:
        place, end = tmp_path / "run/server.json", time.monotonic() + 120
        while not place.exists():
            assert server.poll() is None and time.monotonic() < end, (tmp_path / "out.txt").read_text()
            time.sleep(0.05)
        about = read(place)
        assert about["pid"] == server.pid and fetch(f"{about['url']}/healthz")["status"] == "ok"
        body = json.dumps({"prompt": "a", "max_tokens": 100, "stream": True, "logit_bias": {"258": -100}}).encode()
        request = urllib.request.Request(f"{about['url']}/v1/completions", body, {"content-type": "application/json"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
            first = response.readline()
            server.send_signal(number)
            rest = response.read()
        assert first.startswith(b"data: {") and rest.endswith(b"data: [DONE]\n\n")
        assert server.wait(60) == 0, (tmp_path / "out.txt").read_text()
        assert not place.exists() and "ending: 1 answers" in (tmp_path / "out.txt").read_text()
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
