"""The page in a real browser, served as users get it, with a script at its end that uses it and measures."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from alignment.decoding.requests import Request
from alignment.models import decoder
from experiments.decoding.guides import Guide, Guides
from experiments.serving import app, server
from experiments.serving.service import Limits, Service
from tests.experiments.report.test_browser import CHROMIUM
from tests.experiments.serving.conftest import MAX_LEN, PIECES, TOK, Parrot, opened
from tests.experiments.serving.test_with_engine import new_engine

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --no-proxy-server --enable-logging=stderr --remote-debugging-port=0"
)
DRIVE = """
<script>
const steps = STEPS, plain = answer;
let last = null;
answer = prompt => (last = plain(prompt));
async function drive() {
  const seen = [];
  await sliders;
  for (const step of steps) {
    for (const [id, value] of Object.entries(step)) if (id !== "click" && id !== "change") at(id).value = value;
    if (step.click) at(step.click).click();
    else if (step.change) at(step.change).dispatchEvent(new Event("change"));
    else at("form").requestSubmit();
    await last?.catch(() => {});
    await new Promise(done => setTimeout(done, 1));
    last = null;
    seen.push({
      status: at("status").textContent, isBad: at("status").className === "bad", model: at("model").textContent,
      turns: [...document.querySelectorAll(".turn")].map(turn => ({
        who: turn.querySelector("b").textContent, text: turn.children[1].textContent,
        elements: turn.querySelectorAll("*").length,
        tokens: [...turn.querySelectorAll(".token")].map(t => [t.textContent, t.style.backgroundColor, t.title]),
      })),
      guides: [...document.querySelectorAll("#guides input")].map(slider => slider.name), seed: at("seed").value,
      width: document.documentElement.scrollWidth, window: window.innerWidth, messages,
      attacked: window.attacked ?? false,
    });
  }
  await fetch("measured", {method: "POST", body: JSON.stringify(seen)});
}
drive();
</script>
"""


def used(steps, tmp_path, monkeypatch, width=1000, engine=None, **options):
    """What the page shows after each step, and what the browser wrote to its console.

    Args:
        engine, options: of the service, where it is not a parrot's.
    """
    page, build = tmp_path / "page.html", app.build
    page.write_bytes(app.PAGE.read_bytes() + DRIVE.replace("STEPS", json.dumps(steps).replace("<", "\\u003c")).encode())
    monkeypatch.setattr(app, "PAGE", page)
    measured = []

    def with_a_door_for_the_measured(service, **options):
        inner = build(service, **options)

        async def outer(scope, receive, send):
            if scope["path"] != "/measured":
                return await inner(scope, receive, send)
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message["body"], message["more_body"]
            measured.append(json.loads(body))
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        return outer

    monkeypatch.setattr(app, "build", with_a_door_for_the_measured)
    log = tmp_path / "browser.txt"

    async def browse(url):
        flags = [*FLAGS.split(), f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}"]
        with log.open("wb") as out:
            process = subprocess.Popen([CHROMIUM, *flags, url], stdout=out, stderr=out, start_new_session=True)
        try:
            async with asyncio.timeout(120):
                while not measured and process.poll() is None:
                    await asyncio.sleep(0.02)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.wait()

    async def work():
        fields = dict(name="parrot <b>", fingerprint="fp", num_slots=2, max_len=MAX_LEN, limits=Limits())
        service = Service(engine or Parrot(), TOK, PIECES, **(fields | options))
        times = {"grace": 1.0, "header_seconds": 20.0, "connections": 50}
        await server.serve(service, server.bind("127.0.0.1", 0), tmp_path, until=browse, **times)

    asyncio.run(work())
    assert measured, log.read_text()[-2000:]
    return measured[0], [line for line in log.read_text().splitlines() if "CONSOLE" in line]


browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
ATTACK = "<img src=x onerror='window.attacked=1'><script>window.attacked=1</script>é€"


@browser
def test_an_answer_is_streamed_into_the_page_each_token_coloured_and_no_text_becomes_html(tmp_path, monkeypatch):
    steps = [
        {"kind": "text", "prompt": ATTACK, "max_tokens": len(ATTACK.encode()) + 1, "temperature": 0},
        {"kind": "chat", "prompt": "hi", "max_tokens": 11},
        {"prompt": "again", "max_tokens": 3},
        {"click": "clear"},
    ]
    (first, second, third, cleared), console = used(steps, tmp_path, monkeypatch)
    assert console == [] and not any(seen["attacked"] or seen["isBad"] for seen in (first, second, third))
    assert first["model"] == "parrot <b>"
    user, assistant = first["turns"]
    assert (user["who"], user["text"]) == ("user", ATTACK) and user["elements"] == 2
    assert assistant["who"] == "assistant" and assistant["text"] == ATTACK + "<"
    tokens = assistant["tokens"]
    assert len(tokens) == len(ATTACK.encode()) + 1 == assistant["elements"] - 2
    assert [text for text, _, _ in tokens[-6:]] == ["", "é", "", "", "€", "<"]  # a letter stands with its last byte
    colour, title = tokens[0][1:]
    assert colour.startswith("rgba(232, 89, 12, 0.31") and title.startswith('60.7 %\nlikeliest: "<" 60.7 %')
    assert re.match(rf"{len(tokens)} tokens in \d+\.\d s \(\d+ a second\), ended by length", first["status"])
    assert [turn["text"] for turn in second["turns"][2:]] == ["hi", "User: hi\n\nA"]
    assert [m["content"] for m in third["messages"]] == ["hi", "User: hi\n\nA", "again", "Use"]
    assert cleared["turns"] == [] and cleared["messages"] == []
    assert all(seen["width"] <= seen["window"] for seen in (first, second, third))


@browser
def test_a_refusal_is_shown_with_its_words_and_the_page_goes_on(tmp_path, monkeypatch):
    steps = [
        {"prompt": "a" * 300},
        {"prompt": "a", "temperature": 3},
        {"prompt": "a", "temperature": 1, "max_tokens": 2},
    ]
    (long, hot, good), _ = used(steps, tmp_path, monkeypatch, width=500)
    assert long["isBad"] and "together they must be at most 256" in long["status"] and long["turns"] == []
    assert hot["turns"] == []  # the browser itself keeps the number within its range
    assert not good["isBad"] and [turn["text"] for turn in good["turns"]] == ["a", "Us"]
    assert all(seen["width"] <= seen["window"] for seen in (long, hot, good))


def test_the_page_loads_nothing_and_says_so_to_the_browser():
    async def work():
        async with opened() as door:
            reply = await door.get("/")
            assert reply.status == 200 and reply.headers["content-type"].startswith("text/html")
            assert "default-src 'none'" in reply.headers["content-security-policy"]
            return reply.body.decode()

    text = asyncio.run(work())
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text) and "@import" not in text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text)
    assert not re.search(r"<script[^>]*\ssrc|url\((?!#|data:)", text)
    assert len(text) < 20_000


@browser
def test_a_slider_changes_the_text_weight_zero_is_the_bases_own_and_tokens_show_what_guides_say(tmp_path, monkeypatch):
    sizes = dict(vocab_size=264, num_layers=1, model_dim=32, num_heads=2, num_kv_heads=1, ffn_dim=64)
    model = decoder.DecoderLM(**sizes)
    base, other = (nn.meta.unbox(model.init(jax.random.key(i), jnp.zeros((1, 4), int))["params"]) for i in (0, 1))
    plain = new_engine((model, base)).answers([Request(TOK.encode("abc", add_bos=TOK.adds_bos), 12)])[0]
    engine = new_engine((model, base), guides=[(model, other)])
    all_guides = Guides((Guide("loud", "run:loud", 0.0),), (None,))
    steps = [
        {"kind": "text", "prompt": "abc", "max_tokens": 12, "temperature": 0},
        {"guide-loud": 3, "change": "guide-loud"},
        {"colour": "loud", "change": "colour"},
        {"guide-loud": 0, "change": "guide-loud"},
    ]
    seen, console = used(steps, tmp_path, monkeypatch, engine=engine, max_len=128, num_slots=4, guides=all_guides)
    assert console == [] and not any(at["isBad"] for at in seen)
    off, loud, coloured, _ = seen
    assert off["guides"] == ["loud"] and off["seed"] == "0"
    texts = ["".join(token[0] for token in at["turns"][1]["tokens"]) for at in seen]
    assert texts[0] == texts[3] == plain.text.decode("utf-8", "replace") and texts[1] == texts[2] != texts[0]
    assert all([turn["who"] for turn in at["turns"]] == ["user", "assistant"] for at in seen)
    for before, after in zip(loud["turns"][1]["tokens"], coloured["turns"][1]["tokens"]):
        assert "log-probability: base -" in before[2] and ", loud -" in before[2]
        assert "232, 89, 12" in before[1] or before[1] == "rgba(232, 89, 12, 0)"
        said = dict(pair.split(" ") for pair in after[2].partition("log-probability: ")[2].split(", "))
        gain = float(said["loud"]) - float(said["base"])
        assert ("43, 138, 62" if gain >= 0 else "201, 42, 42") in after[1]
