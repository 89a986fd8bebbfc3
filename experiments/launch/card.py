"""The model card of an export: README.md, as the Hugging Face hub shows it, from a run's config and metrics."""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
import yaml

from alignment import files
from data import records

SHOWN = ("loss", "steps", "batch_size", "accumulate", "reference", "seed")
GROUPS = ("objective", "batch", "optimizer", "adapter", "compute")


def text(c: ml_collections.ConfigDict, workdir: pathlib.Path, step: int) -> str:
    """The card of the weights after `step` updates; nothing in it depends on the clock or on where the run lies."""
    base = base_model(str(c.get("init_from") or ""))
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["plumbline"]}
    if base and "/" in base:  # an id of the hub, which it links
        front["base_model"] = base
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=True)}---",
        "# A language model trained with Plumbline",
        f"Trained for {step:,} updates, {f'beginning from {base}' if base else 'from nothing'}.",
    ]
    if rows := settings(c):
        parts.append("## Training\n\n" + _table(("setting", "value"), rows))
    if values := heldout(workdir, step):
        parts.append("## Held-out numbers\n\n" + _table(("metric", "value"), values))
    parts.append(
        "What these weights may be used for, and under which licence, follows from the base model and the data, which "
        "this card does not know. Add it before you share them."
    )
    return "\n\n".join(parts) + "\n"


def base_model(init_from: str) -> str:
    """What the weights began from, without where it lies: an id of the hub, or the last part of a path."""
    kind, _, name = init_from.partition(":")
    if kind == "hf" and name.count("/") == 1 and not pathlib.Path(name).exists() and not name.startswith("."):
        return name.partition("@")[0]
    return pathlib.Path(name).name


def settings(c: ml_collections.ConfigDict) -> list[tuple[str, str]]:
    """What shaped the training, of the keys that this config has; of the data the files' names alone."""
    rows = [(name, str(c[name])) for name in SHOWN if name in c]
    for group in GROUPS:
        if not isinstance(c.get(group), ml_collections.ConfigDict) or (group == "adapter" and not _has_adapter(c)):
            continue
        rows += [(f"{group}.{name}", str(value)) for name, value in sorted(c[group].items()) if value not in (None, "")]
    paths = c.get("data", {}).get("path", "") if isinstance(c.get("data"), ml_collections.ConfigDict) else ""
    names = [pathlib.PurePath(part).name for part in records.listed(str(paths))]
    return [*rows, *([("data", ", ".join(names))] if names else [])]


def _has_adapter(c: ml_collections.ConfigDict) -> bool:
    return bool(c.adapter.get("rank") or c.adapter.get("init_from"))


def heldout(workdir: pathlib.Path, step: int) -> list[tuple[str, str]]:
    """The held-out values that were logged at this step."""
    path = workdir / "metrics.jsonl"
    logged = files.read_rows(path) if path.is_file() else []
    row: Mapping[str, Any] = next((row for row in reversed(logged) if row["step"] == step), {})
    return [(name, f"{value:.4g}") for name, value in sorted(row.items()) if name.startswith("heldout/")]


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows)])
