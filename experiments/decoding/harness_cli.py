"""lm-evaluation-harness's own command line, with `flax` among its models.

python -m experiments.decoding.harness_cli run --model flax --model_args init_from=hf:DIR --tasks arc_easy
"""

import multiprocessing
import sys

from alignment.errors import InputError
from alignment.evaluation import harness

TARGET = "experiments.decoding.harness_models:Flax"


def main() -> int:
    try:
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import model_registry
    except ImportError:
        print(f"lm-evaluation-harness is not installed; {harness.PIP}", file=sys.stderr)
        return 2
    import lm_eval.models  # noqa: F401  # fills the registry, which must not be frozen before

    if "flax" not in model_registry:  # a release with plug-ins finds it by the entry point
        model_registry.register("flax", target=TARGET)
    try:
        cli_evaluate()
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    # The harness prints its tables with worker processes, and a fork of a process with JAX's threads may hang.
    multiprocessing.set_start_method("forkserver")
    sys.exit(main())
