"""The words and sentences of the toys: a YAML file each, beside this one."""

import pathlib
from typing import Any

import yaml


def load(name: str) -> dict[str, Any]:
    """The tables of `NAME.yaml`; their lists as tuples, so that nobody changes what others draw from."""
    text = pathlib.Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8")
    return {key: _frozen(value) for key, value in yaml.safe_load(text).items()}


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _frozen(inner) for key, inner in value.items()}
    return tuple(_frozen(inner) for inner in value) if isinstance(value, list) else value
