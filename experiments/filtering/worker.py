"""A trained rewriter as a backend: a Hugging Face folder in, a function that answers prompts out.

`experiments/rewriter.py` leaves such a folder in export/hf; any chat model's folder will do.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from alignment import errors, files
from alignment.decoding import backends, engine
from alignment.filtering.rewriting import conduct
from alignment.models import huggingface
from alignment.train import language_model, sharding
from data.tokens import tokenizer

FILE = "rewriter.json"  # beside the weights: the code of conduct and the kind of prompt of its training
PROMPTS = ("full", "bare")


@dataclasses.dataclass(frozen=True)
class Worker:
    """A model that rewrites.

    Attributes:
        complete: the backend.
        count_tokens: of a text, by its tokenizer.
        name: of model and weights, for the key of a request cache.
        conduct_sha256: of the code of conduct it was trained under; "" where that is unknown.
    """

    complete: backends.Complete
    count_tokens: Callable[[str], int]
    name: str
    conduct_sha256: str


def load(folder: str, *, batch_size: int = 16, dtype: str = "bfloat16") -> Worker:
    """The worker of a Hugging Face folder (or hub id).

    Args:
        batch_size: texts rewritten at once.
    """
    path = pathlib.Path(huggingface.resolve(folder))
    about = files.read_object(path / FILE) if (path / FILE).is_file() else {}
    tok = tokenizer.load(str(path))
    compute = dict(dtype=dtype, remat="none", attention="auto", unroll=1)
    model = language_model.build(f"hf:{path}", tok, model={}, compute=compute, rows_are_plain=True)
    params = language_model.params(f"hf:{path}", model, sharding.make_mesh(data=1, fsdp=-1, tensor=1))
    prompt = about.get("prompt", "full")  # any chat model's folder will do, and most have no such file
    complete = backend(model, params, tok, prompt=prompt, batch_size=batch_size)

    def count_tokens(text: str) -> int:
        return len(tok.encode(text))

    return Worker(complete, count_tokens, f"{path.name}:{fingerprint(path)}", about.get("sha256", ""))


def backend(
    model: Any, params: Any, tok: tokenizer.Tokenizer, *, prompt: str, batch_size: int = 16, **options: Any
) -> backends.Complete:
    """`backends.flax` with this tokenizer's chat template; `prompt` is one of PROMPTS."""
    check_prompt(prompt)

    def encode(messages: Sequence[dict[str, str]]) -> list[int]:
        chat = messages if prompt == "full" else bare(conduct.text_of(messages))
        return tok.encode(tok.render(chat, add_generation_prompt=True))

    def engine_fn(max_len: int) -> engine.Engine:
        known = dict(stop_ids=tok.stop_ids, num_ids=tok.vocab_size, order="longest")
        return engine.Engine(model, params, num_slots=batch_size, max_len=max_len, **known)

    return backends.flax(engine_fn, encode=encode, decode=tok.decode, **options)


def bare(text: str) -> list[dict[str, str]]:
    """The prompt of a worker that has its code of conduct in its weights: the text alone, unwrapped."""
    return [{"role": "user", "content": text}]


def check_prompt(prompt: str) -> None:
    errors.one_of("prompt", prompt, PROMPTS)


def note(code: conduct.Conduct, prompt: str) -> str:
    """The content of FILE."""
    about = {"conduct": code.name, "version": code.version, "sha256": code.sha256, "prompt": prompt}
    return json.dumps(about, indent=2)


def fingerprint(folder: pathlib.Path) -> str:
    """A hash of the folder's files by name, size, and the first and last megabyte of each."""
    out = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        size = path.stat().st_size
        with open(path, "rb") as f:
            first = f.read(1 << 20)
            f.seek(max(size - (1 << 20), 0))
            out.update(f"{path.name} {size}\n".encode() + first + f.read())
    return out.hexdigest()[:16]
