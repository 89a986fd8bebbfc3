"""Runs to compare: what they differ in, and the groups of those that differ in nothing but their seed."""

import dataclasses
import json
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.errors import InputError
from experiments.launch import workdir as workdirs
from experiments.report.markup import number, optional_json

LONGEST_LABEL = 44  # characters


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a comparison; `settings` holds the config keys in which the runs differ, `summary` its numbers.

    `summary` is None while the run is not finished; `link` is what a link to its page reads.
    """

    name: str
    folder: pathlib.Path
    settings: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    link: str

    def value(self, metric: str) -> float | None:
        value = (self.summary or {}).get(metric)
        return value if isinstance(value, (int, float)) else None


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs with the same settings but for the seed."""

    settings: Mapping[str, Any]
    runs: Sequence[Run]

    def values(self, metric: str) -> list[float]:
        """Of its finished runs."""
        return [value for run in self.runs if (value := run.value(metric)) is not None]

    def mean(self, metric: str) -> float | None:
        values = self.values(metric)
        return statistics.fmean(values) if values else None

    def deviation(self, metric: str) -> float | None:
        """Standard deviation over seeds; None for fewer than two."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None

    def text(self, metric: str) -> str:
        """`0.9706 ± 0.004`."""
        deviation = self.deviation(metric)
        return number(self.mean(metric)) + (f" ± {deviation:.2g}" if deviation is not None else "")

    def label(self) -> str:
        """The settings, or the first run's name where they are none or too many to read."""
        text = label(self.settings)
        return text if 0 < len(text) <= LONGEST_LABEL else self.runs[0].name


def is_seed(key: str) -> bool:
    return key.rsplit(".", 1)[-1] == "seed"


def label(settings: Mapping[str, Any]) -> str:
    """`beta=0.05 lr=0.001`: the settings without the path of their keys, where that leaves them distinct."""
    last = [key.rsplit(".", 1)[-1] for key in settings]
    names = last if len(set(last)) == len(last) else list(settings)
    return " ".join(f"{name}={value}" for name, value in zip(names, settings.values()))


def grouped(runs: Sequence[Run]) -> tuple[list[Group], dict[str, Any]]:
    """Runs that differ in their seed alone, together, in order of first appearance; and the settings equal in all."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        settings = {key: value for key, value in run.settings.items() if not is_seed(key)}
        members.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    keys = dict.fromkeys(key for run in runs for key in run.settings if not is_seed(key))
    varied = [key for key in keys if len({json.dumps(run.settings.get(key)) for run in runs}) > 1]
    same = {key: runs[0].settings.get(key) for key in keys if key not in varied}
    return [Group({key: mine[0].settings.get(key) for key in varied}, mine) for mine in members.values()], same


def of_sweep(folder: pathlib.Path) -> list[Run]:
    """The points of a sweep, in its order, finished or not."""
    index = optional_json(folder / "sweep.json") or {"points": []}
    return [
        Run(
            point["id"],
            folder / point["id"],
            {key: _plain(value) for key, value in point["overrides"].items()},
            optional_json(folder / point["id"] / "summary.json"),
            ", ".join(str(value) for key, value in point["overrides"].items() if is_seed(key)) or "report",
        )
        for point in index["points"]
    ]


def of_folders(folders: Sequence[str | os.PathLike]) -> list[Run]:
    """Any runs, and the points of any sweeps, with the config keys in which they differ as their settings.

    A key that has the value of another key in every run, such as a reference to it, is left out.

    Raises:
        InputError: a folder that is neither a run's nor a sweep's.
    """
    places: list[pathlib.Path] = []
    for folder in map(pathlib.Path, folders):
        is_sweep = (folder / "sweep.json").is_file()
        places += [run.folder for run in of_sweep(folder) if run.folder.is_dir()] if is_sweep else [folder]
        if not is_sweep and not (folder / "config.json").is_file():
            raise InputError(f"{folder} holds neither a run (config.json) nor a sweep (sweep.json)")
    configs = []
    for place in places:
        environment = optional_json(place / "environment.json") or {}
        config = workdirs.flatten(optional_json(place / "config.json") or {})
        configs.append({"experiment": environment.get("experiment")} | config)
    keys = sorted({key for config in configs for key in config}, key=lambda key: (key.count("."), key))
    columns: dict[str, list[Any]] = {}
    for key in keys:
        values = [_plain(config.get(key)) for config in configs]
        if any(value != values[0] for value in values) and values not in columns.values():
            columns[key] = values
    names = _names(places)
    return [
        Run(
            name,
            place,
            {key: values[i] for key, values in columns.items()},
            optional_json(place / "summary.json"),
            name,
        )
        for i, (name, place) in enumerate(zip(names, places))
    ]


def _plain(value: Any) -> Any:
    """A setting's value; a list or dict as text, so that it can be a key."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def _names(places: Sequence[pathlib.Path]) -> list[str]:
    """The folders' names, with as many of their parents' as tell them apart."""
    parts = [place.resolve().parts for place in places]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names
