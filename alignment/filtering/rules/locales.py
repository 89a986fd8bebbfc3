"""What the rules need to know about a language: a locale pack, read from a YAML file beside this one.

A pack is plain data and goes to worker processes by pickle. A file of the user's own does for another language:
`locales.load("packs/fa.yaml")`; its keys are those of `locale_en.yaml`, none may be missing and none added.
"""

import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Callable, Mapping

import yaml

from alignment import errors
from alignment.filtering.rules import arabic

_FOLDER = pathlib.Path(__file__).parent


def casefold(text: str) -> str:
    """Letters without case; the spelling in which Latin words are compared."""
    return text.casefold()


NORMALISERS: dict[str, Callable[[str], str]] = {"casefold": casefold, "arabic": arabic.normalise}


@dataclasses.dataclass(frozen=True)
class Pack:
    """One language.

    Fields:
        name: ISO 639 code; what identification calls the language.
        script: Unicode's name of its script, such as "Latin".
        letters: inside of a regex character class: its letters, and the marks within words (vowel signs, tatweel).
        stop_words: Gopher's words, of which a document must have some; compare `stop_key(word)`, not the word.
        common_words: what tells the language from others of its script; compare `comparison_key(word)`.
        terminal_punctuation: what ends a line, for FineWeb; for `str.endswith`.
        end_punctuation: the same for C4.
        sentence_end: characters that end a sentence.
        policy_phrases: notices of cookies, terms and privacy, in `comparison_key` spelling: C4 drops their lines.
        boilerplate_phrases: further phrases of page furniture, for NeMo's rule; the same spelling.
        citation_patterns: regular expressions of reference marks that C4 takes out of a text.
        stop_normaliser, comparison_normaliser: keys of `NORMALISERS`, "" for the text as it is.
        overrides: rule to the settings of it that differ for the language; None: the rule is off.
        sha256: of the file, for a run's manifest.
    """

    name: str
    script: str
    letters: str
    stop_words: frozenset[str]
    common_words: frozenset[str]
    terminal_punctuation: tuple[str, ...]
    end_punctuation: tuple[str, ...]
    sentence_end: str
    policy_phrases: tuple[str, ...]
    boilerplate_phrases: tuple[str, ...]
    citation_patterns: tuple[str, ...]
    stop_normaliser: str
    comparison_normaliser: str
    overrides: Mapping[str, Mapping | None]
    sha256: str

    @property
    def normalise(self) -> Callable[[str], str] | None:
        """What a word or line goes through before it is compared with stop words; None: nothing."""
        return NORMALISERS[self.stop_normaliser] if self.stop_normaliser else None

    def stop_key(self, word: str) -> str:
        return self.normalise(word) if self.normalise else word

    def comparison_key(self, text: str) -> str:
        """A text as phrases and word lists are compared with it."""
        return NORMALISERS[self.comparison_normaliser](text) if self.comparison_normaliser else text

    @functools.cached_property
    def citations(self) -> re.Pattern:
        return re.compile("|".join(self.citation_patterns))

    @functools.cached_property
    def word(self) -> re.Pattern:
        """One word of the language: a run of its letters, marks included."""
        return re.compile(f"[{self.letters}]+")


def known() -> list[str]:
    """Languages with a pack of ours."""
    return sorted(path.stem.removeprefix("locale_") for path in _FOLDER.glob("locale_*.yaml"))


def load(name: str) -> Pack:
    """The pack of a language, or of a YAML file.

    Args:
        name: one of `known()`, or the path of a file that ends in .yaml or .yml.

    Raises:
        InputError: unknown language, missing file, or a file with missing, unknown or ill-typed keys.
    """
    path = pathlib.Path(name) if name.endswith((".yaml", ".yml")) else _FOLDER / f"locale_{name}.yaml"
    if not name.endswith((".yaml", ".yml")) and name not in known():
        raise errors.InputError(
            f"unknown locale pack {name!r}: use one of {', '.join(known())}, "
            "or the path of a .yaml file with the keys of locale_en.yaml"
        )
    try:
        content = path.read_bytes()
        fields = yaml.safe_load(content)
    except OSError as error:
        raise errors.InputError(f"locale pack {name!r} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise errors.InputError(f"locale pack {name!r} is not YAML: {error}") from None
    return _pack(fields, name, hashlib.sha256(content).hexdigest())


def _pack(fields: object, source: str, sha256: str) -> Pack:
    kinds = {field.name: str(field.type) for field in dataclasses.fields(Pack) if field.name != "sha256"}
    if not isinstance(fields, dict):
        raise errors.InputError(
            f"locale pack {source!r} holds a {type(fields).__name__}: it takes the keys {', '.join(kinds)}"
        )
    unknown, missing = [key for key in fields if key not in kinds], [key for key in kinds if key not in fields]
    if unknown or missing:
        raise errors.InputError(
            f"locale pack {source!r}: unknown keys {unknown}, missing keys {missing}; "
            f"it takes exactly {', '.join(kinds)}"
        )
    values = {key: _value(fields[key], key, source) for key in kinds}
    for key in ("stop_normaliser", "comparison_normaliser"):
        if values[key] not in ("", *NORMALISERS):
            raise errors.InputError(
                f"locale pack {source!r}: {key} is {values[key]!r}; use '' or one of {', '.join(NORMALISERS)}"
            )
    for key, pattern in (
        ("letters", f"[{values['letters']}]"),
        ("citation_patterns", "|".join(values["citation_patterns"])),
    ):
        try:
            re.compile(pattern)
        except re.error as error:
            raise errors.InputError(f"locale pack {source!r}: {key} is no regular expression: {error}") from None
    pack = Pack(**values, sha256=sha256)
    return dataclasses.replace(
        pack,
        stop_words=frozenset(map(pack.stop_key, pack.stop_words)),
        common_words=frozenset(map(pack.comparison_key, pack.common_words)),
        policy_phrases=tuple(map(pack.comparison_key, pack.policy_phrases)),
        boilerplate_phrases=tuple(map(pack.comparison_key, pack.boilerplate_phrases)),
    )


def _value(value: object, key: str, source: str) -> object:
    if key == "overrides":
        if isinstance(value, dict) and all(part is None or isinstance(part, dict) for part in value.values()):
            return value
        raise errors.InputError(
            f"locale pack {source!r}: overrides maps a rule to its settings, or to null, got {value!r}"
        )
    if key in ("name", "script", "letters", "sentence_end", "stop_normaliser", "comparison_normaliser"):
        if isinstance(value, str):
            return value
        raise errors.InputError(f"locale pack {source!r}: {key} is a text, got {value!r}")
    if key in ("stop_words", "common_words") and isinstance(value, str):
        value = value.split()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise errors.InputError(
            f"locale pack {source!r}: {key} is a list of texts (quote words such as 'no'), got {value!r}"
        )
    return frozenset(value) if key in ("stop_words", "common_words") else tuple(value)
