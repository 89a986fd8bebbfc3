"""A model of this tree as lm-evaluation-harness's `flax`, from a config or from the arguments of its command line."""

import functools
from typing import Any

import ml_collections

from alignment.decoding.engine import Engine
from alignment.errors import InputError
from alignment.evaluation import harness
from experiments.decoding import models


def flax_lm(model: models.Model, c: ml_collections.ConfigDict) -> Any:
    """The harness's model class around a model and the engine of its config, which is made when a task needs it."""
    return harness.flax_lm(**arguments(model, c))


def arguments(model: models.Model, c: ml_collections.ConfigDict) -> dict[str, Any]:
    """Keyword arguments of `harness.flax_lm`."""

    def engine_fn(num_tokens: int) -> Engine:
        # as long as the texts need, because the cache of all slots is allocated at once
        num_tokens = min(num_tokens, c.engine.max_len) + c.engine.num_draft
        return models.engine(model, c, max_len=num_tokens, seed=c.seed, order="longest")

    return dict(
        model=model.network,
        params=model.params,
        tok=model.tok,
        engine_fn=engine_fn,
        digest=model.digest,
        max_length=max_length(model, c.engine.max_len),
        mesh=model.mesh if model.mesh.size > 1 else None,
    )


def max_length(model: models.Model, wanted: int) -> int:
    """`wanted`, or the length that the checkpoint was made for where that is shorter."""
    longest = models.context_of(model.init_from) or wanted
    if longest < wanted:
        print(f"engine.max_len={wanted} is longer than the checkpoint's context; {longest} tokens are read", flush=True)
    return min(longest, wanted)


@functools.cache
def lm_class() -> type:
    """`flax` for the harness's command line, whose `--model_args` are this class's arguments.

    Raises:
        InputError: the harness is not installed.
    """

    class Flax(harness.lm_class()):  # type: ignore[misc]  # made when it is first needed, as it inherits from lm_eval
        """`init_from=hf:DIR` (or run:, gguf:), and any of `dtype`, `tokenizer`, `max_length`, `num_slots`, `seed`."""

        def __init__(
            self,
            init_from: str = "",
            *,
            dtype: str | None = None,
            tokenizer: str = "",
            max_length: int = harness.MAX_LENGTH,
            num_slots: int = 16,
            seed: int = 0,
            batch_size: Any = None,
            max_batch_size: Any = None,
            device: Any = None,
            **unknown: Any,
        ) -> None:
            # the harness gives the last three to every model; rows are packed and devices taken whatever they say
            if unknown:
                raise InputError(f"model_args has {', '.join(unknown)}, which flax does not read; see the class Flax")
            if not init_from:
                raise InputError("model_args lacks init_from, such as init_from=hf:models/smollm2")
            c = ml_collections.ConfigDict(models.settings())
            c.update(init_from=init_from, dtype=dtype, tokenizer=tokenizer, seed=seed)
            c.engine.update(max_len=int(max_length), num_slots=int(num_slots))
            models.check(c)
            super().__init__(**arguments(models.load(c, "."), c))

    return Flax


def __getattr__(name: str) -> Any:
    if name == "Flax":  # what the harness's registry looks up
        return lm_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
