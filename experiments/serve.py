"""A server of one model, with OpenAI's interface, a page to try it on, and counts for Prometheus.

Run:     python -m experiments.run --config experiments/serve.py --config.init_from=hf:DIR --config.port=8000
Laptop:  python -m experiments.run --config experiments/serve.py:laptop   (CPU; `tiny` asks itself a question and ends)
Expect:  laptop at temperature 0, "Where is the owl clock?" gets "The owl clock is in the north hall. You will like it."
Smol:    make models, then the same with serve.py:smol

It serves until SIGTERM or Ctrl-C, then lets the answers that are being written end, and exits with 0. Clients must send
the key that stands in the environment as PLUMBLINE_API_KEY, if one does. Needs the extra `serve`.
"""

import asyncio
import dataclasses
import hashlib
import importlib.util
import ipaddress
import json
import pathlib
from typing import Any

import jax
import ml_collections
from ml_collections import config_dict

from alignment.decoding import backends
from alignment.decoding.requests import Request
from alignment.errors import InputError, within
from experiments.decoding import guides, models
from experiments.launch import checks, host

SETTINGS = ("", "laptop", "smol", "tiny")
IS_SERVER = True
PACKAGES = ("prometheus_client", "pydantic", "starlette", "uvicorn")
SECONDS = ("body_seconds", "header_seconds", "seconds", "grace")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict(models.settings(arg) | guides.settings())
    c.seed = 0  # of requests without one
    c.name = ""  # of the model, as clients call it; "" takes the last part of init_from
    c.host = "127.0.0.1"  # 0.0.0.0 lets other machines in
    c.port = 8_000  # 0 takes a free one
    c.engine.num_steps = min(c.engine.num_steps, 4)  # few, so that a new request does not wait long
    c.engine.chunks_per_turn = 2  # of prompts, while others write
    c.limits = dict(
        queue=64,  # answers that wait for a slot; more are refused with 429
        max_bytes=1 << 20,  # of a request's body
        max_tokens=config_dict.placeholder(int),  # of a chat's answer without a limit; None: what there is room for
        connections=1_000,  # at a time
        header_seconds=20.0,  # in which a request's headers must have come
        body_seconds=20.0,  # in which its body must have come
        seconds=600.0,  # from a request to the end of its answer
        grace=30.0,  # for the answers that are being written, after SIGTERM
    )
    c.asks_itself = arg == "tiny"  # one question over HTTP, and then the end: whether all of it works here
    return c


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither weights nor devices to be seen."""
    models.check(c)
    guides.parse(c)
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise InputError(
            f"serve needs packages that are not installed ({', '.join(missing)}): pip install 'plumbline[serve]'"
        )
    from experiments.serving import server  # with the packages of the extra

    backends.key_in(server.KEY)  # one that no client could send is refused
    within("[0, 65535]", port=c.port, hint="; 0 takes a free one")
    checks.within(c, "[1, inf)", "engine.chunks_per_turn", "limits.queue", "limits.connections", "limits.max_tokens")
    checks.within(c, "[1000, inf)", "limits.max_bytes")
    checks.within(c, "(0, inf)", *(f"limits.{name}" for name in SECONDS))


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    from experiments.serving import server  # with the packages of the extra

    check(c)
    folder = pathlib.Path(workdir)
    sock = server.bind(c.host, c.port)  # a port that is taken is said before weights are read
    try:
        service = build(c, folder)
        _warn(c)
        options = {name: c.limits[name] for name in ("grace", "header_seconds", "connections")}
        until = server.ask if c.asks_itself else None
        asyncio.run(server.serve(service, sock, folder, until=until, **options))
    except host.Terminated:  # while weights were read and programs compiled
        print("stopped before it served", flush=True)
        return {}
    finally:
        sock.close()
    if service.driver.fault:
        raise RuntimeError(f"the engine failed: {service.driver.fault}")
    return {"requests": service.metrics.num_requests, "generated_tokens": service.metrics.num_tokens}


def build(c: ml_collections.ConfigDict, workdir: pathlib.Path) -> Any:
    """The service of a config, with its programs compiled."""
    from experiments.serving.service import Limits, Service

    opened = models.open_model(c, workdir)
    led_by = guides.open_guides(guides.parse(c), opened)  # refused before any weights are read
    models.warn_of_length(opened, c.engine.max_len)
    model = models.with_weights(opened, c)
    led_by = guides.load(led_by, model)
    engine = models.engine(model, c, seed=c.seed, guides=led_by.members, frees_params=True)
    # Two requests through all programs, so that the first client does not wait for the compiler.
    prompt = [0] * min(c.engine.chunk + 2, engine.max_len - 1)
    weights = led_by.weights_of({})
    full = Request(prompt, max_new_tokens=1, temperature=1.0, logprobs=1, prompt_logprobs=True, **weights)
    list(engine.run([full, Request(prompt, max_new_tokens=0, **weights)]))
    known = {name: c.limits[name] for name in ("queue", "max_bytes", "max_tokens", "body_seconds", "seconds")}
    return Service(
        engine,
        model.tok,
        model.pieces,
        name=name_of(c),
        fingerprint=fingerprint(c, model, led_by.digest, attention=engine.plan.attention),
        num_slots=c.engine.num_slots,
        max_len=engine.max_len,
        limits=Limits(**known),
        drops_space=model.drops_first_space,
        guides=dataclasses.replace(led_by, members=()),
    )


def name_of(c: ml_collections.ConfigDict) -> str:
    """What clients call the model; a path on this machine is nobody's business."""
    return c.name or pathlib.PurePath(c.init_from.rpartition(":")[2]).name


def fingerprint(c: ml_collections.ConfigDict, model: models.Model, guides_digest: str = "", *, attention: str) -> str:
    """Of what the bits of an answer depend on: weights, tokenizer, numerics, slots; see alignment/decoding/engine.py.

    Args:
        attention: the kernel that the engine chose, which the config's "auto" does not say.
    """
    device = jax.devices()[0]
    content = {"weights": model.digest, "jax": jax.__version__, "device": f"{device.platform} {device.device_kind}"}
    content |= {"settings": models.settings_digest(model)}
    content |= {"engine": {**c.engine, "attention": attention}, "draft": c.draft_from, "tensor": c.mesh.tensor}
    content |= {"guides": guides_digest} if guides_digest else {}
    return "fp_" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _warn(c: ml_collections.ConfigDict) -> None:
    from experiments.serving import server

    try:
        is_local = ipaddress.ip_address(c.host).is_loopback
    except ValueError:
        is_local = c.host == "localhost"
    if not is_local and not backends.key_in(server.KEY):
        print(f"warning: whoever reaches {c.host} may use this server; set {server.KEY} to ask for a key", flush=True)
