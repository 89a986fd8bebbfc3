"""The code of conduct that texts are rewritten under: versioned YAML packs, and the prompts made from them.

    pack = conduct.load("en-neutral")
    messages = conduct.prompt(pack, text)              # system: the code; user: the text, wrapped as data
    assert conduct.text_of(messages) == text

The goals and the rule against needless edits are those of Liang et al. 2024 (arXiv:2412.03253), in our own words. Texts
that are written under a pack carry its hash, so that a mix of two versions shows.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from alignment import errors

FOLDER = pathlib.Path(__file__).parent
KINDS = ("rewrite", "educate", "refuse")
BLOCKS = ("format", "values", "safety", "knowledge")  # the goals of a rewrite
KEYS = ("name", "version", "locale", "default", "blocks", "tasks", "notice")
_WRAPPED = re.compile(r"<<<TEXT ([0-9a-f]{16})>>>\n(.*)\n<<<END \1>>>", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Conduct:
    """One version of a code of conduct.

    Attributes:
        locale: the language and place that it is written for, such as "ar-gulf".
        default: the first rule: no needless edit.
        blocks: goal -> instructions, in the order of BLOCKS.
        tasks: kind of text, one of KINDS -> instructions.
        notice: says that the wrapped text is data, whatever it contains.
        markers: regular expressions of remarks that a model adds around its answer in the pack's language; the gates
            refuse them beside those they know. They may be left out, and are no part of the prompt, nor of the hash.
    """

    name: str
    version: str
    locale: str
    default: str
    blocks: Mapping[str, str]
    tasks: Mapping[str, str]
    notice: str
    markers: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of the content in canonical form (sorted keys, white space folded), whatever the YAML's layout."""
        prompts = {key: value for key, value in dataclasses.asdict(self).items() if key != "markers"}
        content = json.dumps(_folded(prompts), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()


def known() -> list[str]:
    """Names of the packs that come with the library."""
    return sorted(path.stem.removeprefix("conduct_").replace("_", "-") for path in FOLDER.glob("conduct_*.yaml"))


def load(name: str | pathlib.Path) -> Conduct:
    """Read a pack by name, such as "en-neutral", or by the path of a YAML file with the same keys.

    Raises:
        InputError: an unknown name, or a file that is missing or has other keys.
    """
    path = pathlib.Path(name)
    if path.suffix not in (".yaml", ".yml"):
        errors.one_of("code of conduct", str(name), known(), hint="the path of a .yaml file of your own works too")
        path = FOLDER / f"conduct_{str(name).replace('-', '_')}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise errors.InputError(f"cannot read the code of conduct {path}: {e.strerror}") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise errors.InputError(f"{path} is not a YAML file in UTF-8: {e}") from e
    return _checked(content, path)


def _checked(content: Any, path: pathlib.Path) -> Conduct:
    markers = content.pop("markers", None) or [] if isinstance(content, dict) else []
    _require(content, KEYS, path, "")
    _check_markers(markers, path)
    _require(content["blocks"], BLOCKS, path, "blocks.")
    _require(content["tasks"], KINDS, path, "tasks.")
    texts = {key: content[key] for key in ("name", "version", "locale", "default", "notice")}
    texts |= {f"{group}.{key}": value for group in ("blocks", "tasks") for key, value in content[group].items()}
    for key, value in texts.items():
        if not isinstance(value, str) or not value.strip():
            raise errors.InputError(
                f"{path}: {key} is {value!r}; it needs text (a version needs quotes, such as '1.0')"
            )
    return Conduct(
        **{key: content[key].strip() for key in ("name", "version", "locale", "default", "notice")},
        blocks={key: content["blocks"][key].strip() for key in BLOCKS},
        tasks={key: content["tasks"][key].strip() for key in KINDS},
        markers=tuple(markers),
    )


def _check_markers(markers: Any, path: pathlib.Path) -> None:
    if not isinstance(markers, list) or not all(isinstance(marker, str) and marker for marker in markers):
        raise errors.InputError(f"{path}: markers must be a list of regular expressions, got {markers!r}")
    for marker in markers:
        try:
            re.compile(marker)
        except re.error as e:
            raise errors.InputError(f"{path}: the marker {marker!r} is not a regular expression: {e}") from None


def _require(content: Any, keys: tuple[str, ...], path: pathlib.Path, where: str) -> None:
    present = set(content) if isinstance(content, dict) else set()
    missing = [where + key for key in keys if key not in present]
    unknown = sorted(f"{where}{key}" for key in present - set(keys))
    if missing or unknown:
        raise errors.InputError(
            f"{path}: keys missing: {', '.join(missing) or 'none'}; keys unknown: {', '.join(unknown) or 'none'}. "
            f"It takes exactly {', '.join(where + key for key in keys)}"
        )


def _folded(content: Any) -> Any:
    """The content with every run of white space as one space."""
    if isinstance(content, Mapping):
        return {key: _folded(value) for key, value in content.items()}
    return " ".join(content.split())


def prompt(conduct: Conduct, text: str, kind: str = "rewrite") -> list[dict[str, str]]:
    """The chat that requests one text: the code of conduct as system turn, the wrapped text as user turn."""
    return [{"role": "system", "content": system(conduct, kind)}, {"role": "user", "content": wrap(text)}]


def system(conduct: Conduct, kind: str = "rewrite") -> str:
    """The system turn: the task, for a rewrite the rule against needless edits and the goals, and the notice."""
    errors.one_of("kind of text", kind, KINDS)
    goals = [conduct.default, *conduct.blocks.values()] if kind == "rewrite" else []
    return "\n\n".join([conduct.tasks[kind], *goals, conduct.notice])


def wrap(text: str) -> str:
    """The text between marks with a word that it does not contain, so that nothing in it can close them.

    The word comes from the text's hash and not from a random number: the same text gives the same prompt, which a cache
    of requests can then recognise.
    """
    salt = 0
    while True:
        word = hashlib.sha256(f"{salt}\n{text}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
        if word not in text:  # a text that holds its own hash is absurd, but it costs nothing to be sure
            return f"<<<TEXT {word}>>>\n{text}\n<<<END {word}>>>"
        salt += 1


def text_of(messages: Sequence[Mapping[str, str]]) -> str:
    """The text inside a prompt."""
    content = messages[-1]["content"]
    wrapped = _WRAPPED.fullmatch(content)
    return wrapped[2] if wrapped else content


def unwrapped(answer: str) -> str:
    """An answer without the prompt's marks, if the model repeated both of them."""
    wrapped = _WRAPPED.fullmatch(answer.strip())
    return wrapped[2] if wrapped else answer
