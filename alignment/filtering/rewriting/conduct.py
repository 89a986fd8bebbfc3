"""The code of conduct that texts are rewritten under: versioned YAML packs, and the prompts made from them.

    pack = conduct.load("en-neutral")
    messages = conduct.prompt(pack, text)              # system: the code; user: the text, wrapped as data
    assert conduct.text_of(messages) == text

The goals and the rule of no needless edit are those of Liang et al. 2024 (arXiv:2412.03253), in our own words. What is
written under a pack carries the pack's hash, so that texts of two versions are never mixed unseen.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping

import yaml

from alignment.errors import InputError

FOLDER = pathlib.Path(__file__).parent
KINDS = ("rewrite", "educate", "refuse")
BLOCKS = ("format", "values", "safety", "knowledge")  # a goal each
KEYS = ("name", "version", "locale", "default", "blocks", "tasks", "notice")
_WRAPPED = re.compile(r"<<<TEXT ([0-9a-f]{16})>>>\n(.*)\n<<<END \1>>>", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Conduct:
    """One version of a code of conduct.

    Attributes:
        locale: language and place it is written for, such as "ar-gulf".
        default: the rule that comes first: nothing is edited that need not be.
        blocks: goal -> instructions, in the order of BLOCKS.
        tasks: what to do with a text -> instructions, one for each of KINDS.
        notice: that the wrapped text is data, whatever it says.
    """

    name: str
    version: str
    locale: str
    default: str
    blocks: Mapping[str, str]
    tasks: Mapping[str, str]
    notice: str

    @property
    def sha256(self) -> str:
        """Of the content in canonical form (sorted keys, white space folded): layout of the YAML does not matter."""
        content = json.dumps(_folded(dataclasses.asdict(self)), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()


def known() -> list[str]:
    """Names of the packs that come with the library."""
    return sorted(path.stem.removeprefix("conduct_").replace("_", "-") for path in FOLDER.glob("conduct_*.yaml"))


def load(name: str | pathlib.Path) -> Conduct:
    """A pack by name, such as "en-neutral", or by the path of a YAML file of the same keys."""
    path = pathlib.Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if str(name) not in known():
            raise InputError(
                f"code of conduct {str(name)!r} is unknown; known: {', '.join(known())}. A path to a .yaml file of "
                "your own would do as well"
            )
        path = FOLDER / f"conduct_{str(name).replace('-', '_')}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"cannot read the code of conduct {path}: {e.strerror}") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise InputError(f"{path} is not a YAML file in UTF-8: {e}") from e
    return _checked(content, path)


def _checked(content, path: pathlib.Path) -> Conduct:
    _require(content, KEYS, path, "")
    _require(content["blocks"], BLOCKS, path, "blocks.")
    _require(content["tasks"], KINDS, path, "tasks.")
    texts = {key: content[key] for key in ("name", "version", "locale", "default", "notice")}
    texts |= {f"{group}.{key}": value for group in ("blocks", "tasks") for key, value in content[group].items()}
    for key, value in texts.items():
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{path}: {key} is {value!r}; it needs text (a version needs quotes, such as '1.0')")
    ordered = {
        group: {k: content[group][k].strip() for k in keys} for group, keys in (("blocks", BLOCKS), ("tasks", KINDS))
    }
    return Conduct(**{key: content[key].strip() for key in KEYS if key not in ordered}, **ordered)


def _require(content, keys: tuple[str, ...], path: pathlib.Path, where: str) -> None:
    found = set(content) if isinstance(content, dict) else set()
    missing = [where + key for key in keys if key not in found]
    unknown = sorted(f"{where}{key}" for key in found - set(keys))
    if missing or unknown:
        raise InputError(
            f"{path}: keys missing: {', '.join(missing) or 'none'}; keys unknown: {', '.join(unknown) or 'none'}. "
            f"It takes exactly {', '.join(where + key for key in keys)}"
        )


def _folded(content):
    if isinstance(content, Mapping):
        return {key: _folded(value) for key, value in content.items()}
    return " ".join(content.split())


def prompt(conduct: Conduct, text: str, kind: str = "rewrite") -> list[dict[str, str]]:
    """Chat messages that ask for one text: the code of conduct as system turn, the wrapped text as user turn."""
    return [{"role": "system", "content": system(conduct, kind)}, {"role": "user", "content": wrap(text)}]


def system(conduct: Conduct, kind: str = "rewrite") -> str:
    """The system turn: the task, the rule of no needless edit and the goals (for a rewrite), the notice."""
    if kind not in KINDS:
        raise InputError(f"kind={kind!r} of a prompt is unknown; known: {', '.join(KINDS)}")
    goals = [conduct.default, *conduct.blocks.values()] if kind == "rewrite" else []
    return "\n\n".join([conduct.tasks[kind], *goals, conduct.notice])


def wrap(text: str) -> str:
    """The text between marks that hold a word it does not contain, so nothing in it can close them.

    The word comes from the text's hash: the same text gives the same prompt, and is found in a request cache.
    """
    salt = 0
    while True:
        word = hashlib.sha256(f"{salt}\n{text}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
        if word not in text:
            return f"<<<TEXT {word}>>>\n{text}\n<<<END {word}>>>"
        salt += 1


def text_of(messages: list[Mapping[str, str]]) -> str:
    """The text that a prompt asks to work on."""
    content = messages[-1]["content"]
    found = _WRAPPED.fullmatch(content)
    return found[2] if found else content


def unwrapped(answer: str) -> str:
    """An answer without the marks of the prompt, where a model repeated both of them."""
    found = _WRAPPED.fullmatch(answer.strip())
    return found[2] if found else answer
