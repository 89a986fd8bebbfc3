"""Starts many runs of the launcher at the price of one import: forks before JAX has started anything.

Reads one JSON object a line: {"argv", "log"} starts a run and answers its process id, {"wait"} answers how one ended.
"""

import json
import os
import sys
import warnings

warnings.filterwarnings("ignore", message=r"os\.fork\(\)")

from alignment.train import writers  # noqa: E402, F401  (and with it JAX, Orbax and all that a run imports)
from experiments import dpo, run  # noqa: E402, F401


def begin(argv: list[str], log: str) -> int:
    child = os.fork()
    if child:
        return child
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(out, stream)
    run.page.build = lambda workdir: workdir  # drawing the page takes longer than the training
    code = run.main(argv)
    sys.stdout.flush()
    os._exit(code)


for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
    else:
        answer = begin(asked["argv"], asked["log"])
    print(json.dumps(answer), flush=True)
