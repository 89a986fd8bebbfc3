"""Processes of one run that watch each other over sockets: how an end before its time spreads, and with what code."""

import signal
import socket
import subprocess
import sys
import threading
import time
import types

import pytest

from experiments.launch import host, peers


class Watches:
    """Three connected processes in one, the first of which is the hub; their forced exits are kept in `exits`."""

    def __init__(self, monkeypatch, silence=60.0):
        for name, seconds in {"BEAT": 0.05, "SILENCE": silence, "GRACE": 0.2, "LINGER": 2.0}.items():
            monkeypatch.setattr(peers, name, seconds)
        self.store, self.exits = {}, {}
        self.all = [peers.join(self, i, 3, "127.0.0.1:1") for i in range(3)]
        for i, watch in enumerate(self.all):
            watch._exit_fn = lambda code, i=i: self.exits.setdefault(i, code)
        deadline = time.monotonic() + 5
        while len(self.all[0]._connections) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)

    def key_value_set(self, key, value):
        self.store[key] = value

    def blocking_key_value_get(self, key, milliseconds):
        return self.store[key]

    def die(self, i):
        """What the kernel does for a process that is killed."""
        for s in [*self.all[i]._connections.values()]:
            s.shutdown(socket.SHUT_RDWR)

    def exited(self, *processes):
        deadline = time.monotonic() + 10
        while not set(processes) <= self.exits.keys() and time.monotonic() < deadline:
            time.sleep(0.02)
        return [self.exits.get(i) for i in processes]


@pytest.mark.parametrize("dead", [1, 2])
def test_a_process_that_dies_is_named_and_the_others_end_with_75(monkeypatch, capsys, dead):
    watches = Watches(monkeypatch)
    watches.die(dead)
    other = 3 - dead
    assert watches.all[0].trouble(5).process == dead and watches.all[other].trouble(5).process == dead
    monkeypatch.setattr(peers.Watch, "_grace", lambda watch, ended: 0.1)
    assert watches.exited(0, other) == [75, 75]
    assert f"process {dead} of this run died" in capsys.readouterr().err


def test_when_the_first_process_dies_the_others_end_at_once_before_jax_aborts_them(monkeypatch):
    watches = Watches(monkeypatch)
    watches.die(0)
    began = time.monotonic()
    assert watches.exited(1, 2) == [75, 75]
    assert time.monotonic() - began < 0.7
    assert "process 0 of this run died" in str(watches.all[1].trouble())


@pytest.mark.parametrize("code", [1, 2, 75, 130])
@pytest.mark.parametrize("first", [0, 1])
def test_the_others_follow_a_process_that_says_how_it_ends(monkeypatch, first, code):
    watches = Watches(monkeypatch)
    monkeypatch.setattr(peers.Watch, "_grace", lambda watch, ended: 0.1)
    monkeypatch.setattr(peers, "LINGER", 0.1)
    watches.all[first].end(code, "mesh=3 needs 3 devices")
    others = [i for i in range(3) if i != first]
    assert watches.exited(*others) == [code, code]
    assert "mesh=3 needs 3 devices" in str(watches.all[others[0]].trouble())


@pytest.mark.parametrize("code", [0, 3])
def test_a_process_that_is_done_may_go_before_the_others(monkeypatch, code):
    watches = Watches(monkeypatch)
    for i in (1, 0):
        watches.all[i].end(code)
        time.sleep(0.05)
        watches.die(i)
    time.sleep(0.5)
    assert 2 not in watches.exits and watches.all[2].trouble() is None


def test_a_process_that_connects_after_the_first_has_ended_hears_why_and_the_first_waits_for_it(monkeypatch):
    monkeypatch.setattr(peers.Watch, "_grace", lambda watch, ended: 60.0)  # until then no watch ends this process
    store, exits = {}, []
    client = types.SimpleNamespace(key_value_set=store.__setitem__, blocking_key_value_get=lambda key, _: store[key])
    first = peers.join(client, 0, 2, "127.0.0.1:1")
    first._exit_fn = exits.append  # not os._exit, which would end the tests
    ending = threading.Thread(target=first.end, args=(2, "the folder holds another run"))
    ending.start()
    ending.join(0.1)
    assert ending.is_alive()
    second = peers.join(client, 1, 2, "127.0.0.1:1")
    second._exit_fn = exits.append
    assert "the folder holds another run" in str(second.trouble(5)) and second.trouble().follow() == 2
    second._connections[0].shutdown(socket.SHUT_RDWR)
    ending.join(5)
    assert not ending.is_alive()


def test_a_host_that_falls_silent_counts_as_dead(monkeypatch):
    watches = Watches(monkeypatch, silence=2.0)
    time.sleep(1.0)
    assert watches.all[0].trouble() is None  # signs of life come
    monkeypatch.setattr(watches.all[1], "_send_all", lambda message: None)
    ended = watches.all[0].trouble(5)
    assert ended.process == 1 and "nothing was heard of it" in ended.why


def test_a_stranger_on_the_port_is_turned_away(monkeypatch):
    watches = Watches(monkeypatch)
    port = int(watches.store[peers.KEY].split()[0])
    for line in (b'{"process": 1, "token": "guess"}\n', b"GET / HTTP/1.1\r\n", b"[]\n"):
        with socket.create_connection(("127.0.0.1", port)) as s:
            s.sendall(line)
            s.settimeout(5)
            assert s.recv(1) == b""
    assert watches.all[0].trouble() is None


def test_a_folder_that_another_host_does_not_see_is_refused_with_the_numbers_of_the_blind(tmp_path):
    with pytest.raises(host.InputError, match="process 1, 3 does not see there what process 0 writes"):
        host.refuse_unshared("runs/x", [1, 3])
    assert not host._appears(tmp_path / "nowhere" / "mark", 0.0)
    (tmp_path / "mark").touch()
    assert host._appears(tmp_path / "mark", 0.0)


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        ("host._is_joining = True", 75, "ended while they came together"),
        ("host._watch = watch", 75, "process 0 of this run died"),
        ("host._watch = quiet", -signal.SIGABRT, ""),
        ("pass", -signal.SIGABRT, ""),
    ],
    ids=["while joining", "a peer is dead", "no peer is dead", "alone"],
)
def test_where_jax_aborts_because_of_a_peer_the_process_ends_with_75_and_any_other_abort_stays_one(state, code, words):
    program = f"""
import os, socket
from experiments.launch import host, peers
host.ABORT_WAIT = 0.3
(near, far), (near2, far2) = socket.socketpair(), socket.socketpair()
watch, quiet = peers.Watch(1, {{0: near}}), peers.Watch(1, {{0: near2}})
watch._grace = lambda ended: 60.0  # the abort comes before the watch would end the process
{state}
peers.answer_abort(host.follow_at_abort)
far.close()
os.abort()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == code and words in ended.stderr, ended.stderr
