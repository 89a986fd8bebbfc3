"""Print the share of lines that tests run, from slipcover's report, below the files with most lines that none runs."""

import json
import pathlib
import sys

files = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))["files"]
lines = {name: (len(file["executed_lines"]), len(file["missing_lines"])) for name, file in files.items()}
worst = sorted(lines.items(), key=lambda item: -item[1][1])
for name, (run, missing) in worst[: int(sys.argv[2])]:
    print(f"{missing:5d} of {run + missing:5d} lines are not run: {name}")
run, missing = (sum(column) for column in zip(*lines.values()))
share = 100 * run / (run + missing)
print(f"the tests run {share:.1f} % of {run + missing} lines (those that child processes run are not counted)")
