"""Models behind an endpoint, which an evaluation asks to write, and how answers are drawn."""

import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from alignment import errors
from alignment.decoding import backends, cache
from alignment.evaluation import prompting

ENDPOINT = "endpoint"
AT_ONCE = 64  # requests to a service between two times that answers are stored


def settings() -> dict[str, Any]:
    """The group of a config that says how a service is reached."""
    return dict(
        url="",  # up to /v1
        api_key_env="OPENAI_API_KEY",
        concurrency=8,  # requests at once
        retries=3,  # of a request that fails
        timeout_seconds=120.0,
    )


def unread(c: ml_collections.ConfigDict, specs: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Names of the group's settings where nobody of `specs` is a service, and why nobody reads them."""
    if not any(str(spec).startswith("endpoint:") for spec in specs):
        yield from ((f"endpoint.{name}", "no model is endpoint:<name>") for name in c.endpoint)


def options(c: ml_collections.ConfigDict) -> dict[str, Any]:
    return {name: c.endpoint[name] for name in c.endpoint if name != "url"}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How answers are drawn; `temperature=0` takes the likeliest token."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    num: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()


class Service:
    """A model behind an endpoint, which writes and gives no log-probabilities; its answers are kept one by one."""

    has_logprobs = False

    def __init__(self, name: str, spec: str, c: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
        self.name, self.c, self.num_cut = name, c, 0
        self.model = spec.partition(":")[2]
        self.digest = f"{spec} at {c.endpoint.url}"
        self._kept = folder / "service_answers.jsonl"

    def prompt(self, question: str) -> str:
        return question

    def write(self, prompts: Sequence[str], how: Sampling) -> list[list[str]]:
        """`how.num` answers to each prompt, cut at a stop text; "" where the service gives none.

        Raises:
            Stopped: the service is down; the answers so far are kept.
        """
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        draws = [
            self._complete(chats, dataclasses.replace(how, seed=how.seed + sample, num=1)) for sample in range(how.num)
        ]
        return [list(answers) for answers in zip(*draws, strict=True)]

    def respond(self, requests: Sequence[prompting.Request]) -> list[prompting.Reply]:
        """Replies to conversations; equal ones differ by their seeds."""
        parts: dict[Sampling, list[int]] = {}
        draws: Counter[str] = Counter()
        for i, request in enumerate(requests):
            key = json.dumps([request.messages, request.temperature, request.max_new_tokens])
            how = Sampling(request.max_new_tokens, request.temperature, seed=draws[key])
            draws[key] += 1
            parts.setdefault(how, []).append(i)
        out = [prompting.Reply("")] * len(requests)
        for how, numbers in parts.items():
            for i, said in zip(numbers, self._complete([requests[i].messages for i in numbers], how), strict=True):
                out[i] = prompting.Reply(said)
        return out

    def _complete(self, chats: Sequence[prompting.Messages], how: Sampling) -> list[str]:
        """One answer to each conversation."""
        extra: dict[str, Any] = dict(temperature=how.temperature, seed=how.seed)
        extra |= dict(top_p=how.top_p) if how.temperature else {}
        sampling = extra | {"max_new_tokens": how.max_new_tokens}
        keys = [cache.key(chat, model=self.digest, sampling=sampling) for chat in chats]
        with cache.Cache(self._kept) as replies:
            self._ask({key: chat for key, chat in zip(keys, chats) if replies.get(key) is None}, how, extra, replies)
            return [_cut(replies.get(key) or "", how.stop) for key in keys]

    def _ask(self, chats: Mapping[str, Any], how: Sampling, extra: Mapping[str, Any], replies: cache.Cache) -> None:
        complete = backends.openai(self.c.endpoint.url, self.model, extra=extra, **options(self.c))
        keys = list(chats)
        for start in range(0, len(keys), AT_ONCE):
            part = keys[start : start + AT_ONCE]
            down = None
            try:
                said = complete([chats[key] for key in part], [how.max_new_tokens] * len(part))
            except backends.Down as e:
                said, down = e.answers, e
            for key, answer in zip(part, said):
                if answer is not None:
                    replies.put(key, answer)
            if down is not None:
                raise errors.Stopped(f"the service is down: {down}") from down


def _cut(said: str, stops: Sequence[str]) -> str:
    for stop in stops:
        said = said.partition(stop)[0]
    return said
