"""What the rules need to know about a language: a locale pack, read from a YAML file beside this one.

A pack is plain data that pickles, for worker processes. For another language write a file with exactly the keys of
`locale_en.yaml` and give its path: `locales.load("packs/fa.yaml")`.
"""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from alignment import errors
from alignment.filtering.rules import arabic

_FOLDER = pathlib.Path(__file__).parent


def casefold(text: str) -> str:
    """Text without case, for comparing Latin words."""
    return text.casefold()


NORMALISERS: dict[str, Callable[[str], str]] = {"casefold": casefold, "arabic": arabic.normalise}


@dataclasses.dataclass(frozen=True)
class Pack:
    """One language.

    Fields:
        name: ISO 639 code, as the language identification gives it.
        script: Unicode's name of its script, such as "Latin".
        letters: the inside of a regex character class with its letters and the marks within words (vowel signs,
            tatweel).
        stop_words: Gopher's words; a document must have some of them. Compare `stop_key(word)`, not the word.
        common_words: frequent words that distinguish it from languages of the same script; compare
            `comparison_key(word)`.
        terminal_punctuation: ends of a line for FineWeb's rules, for `str.endswith`.
        end_punctuation: ends of a line for C4's rules.
        sentence_end: characters that end a sentence.
        policy_phrases: phrases of notices about cookies, terms and privacy, whose lines C4 drops; in the spelling of
            `comparison_key`.
        boilerplate_phrases: further phrases of page furniture, for NeMo's rule; in the same spelling.
        citation_patterns: regular expressions of reference marks that C4 cuts out.
        stop_normaliser, comparison_normaliser: keys of `NORMALISERS`, or "" for the text itself.
        overrides: rule -> settings of it that differ for the language, or None, which switches the rule off.
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

    def stop_key(self, word: str) -> str:
        """A word in the spelling of `stop_words`."""
        return NORMALISERS[self.stop_normaliser](word) if self.stop_normaliser else word

    def comparison_key(self, text: str) -> str:
        """A text in the spelling of phrases and word lists."""
        return NORMALISERS[self.comparison_normaliser](text) if self.comparison_normaliser else text


def known() -> list[str]:
    """The languages whose packs come with the library."""
    return sorted(path.stem.removeprefix("locale_") for path in _FOLDER.glob("locale_*.yaml"))


def load(name: str) -> Pack:
    """Read the pack of a language, or a YAML file.

    Args:
        name: one of `known()`, or the path of a file that ends in .yaml or .yml.

    Raises:
        InputError: unknown language, missing file, or a file with missing, unknown or ill-typed keys.
    """
    path = pathlib.Path(name) if name.endswith((".yaml", ".yml")) else _FOLDER / f"locale_{name}.yaml"
    if not name.endswith((".yaml", ".yml")):
        errors.one_of("locale pack", name, known(), hint="the path of a .yaml file of your own works too")
    try:
        content = path.read_bytes()
        fields = yaml.safe_load(content)
    except OSError as error:
        raise errors.InputError(f"locale pack {name!r} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise errors.InputError(f"locale pack {name!r} is not YAML: {error}") from None
    return _pack(fields, name, hashlib.sha256(content).hexdigest())


def _pack(fields: object, source: str, sha256: str) -> Pack:
    names = [field.name for field in dataclasses.fields(Pack) if field.name != "sha256"]
    if not isinstance(fields, dict):
        raise errors.InputError(
            f"locale pack {source!r} holds a {type(fields).__name__}: it takes the keys {', '.join(names)}"
        )
    unknown, missing = [key for key in fields if key not in names], [key for key in names if key not in fields]
    if unknown or missing:
        raise errors.InputError(
            f"locale pack {source!r}: unknown keys {unknown}, missing keys {missing}; "
            f"it takes exactly {', '.join(names)}"
        )
    values: dict[str, Any] = {key: _value(fields[key], key, source) for key in names}
    for key in ("stop_normaliser", "comparison_normaliser"):
        errors.one_of(f"locale pack {source!r}: {key}", values[key], ("", *NORMALISERS))
    for key, pattern in (
        ("letters", f"[{values['letters']}]"),
        ("citation_patterns", "|".join(values["citation_patterns"])),
    ):
        try:
            re.compile(pattern)
        except re.error as error:
            raise errors.InputError(f"locale pack {source!r}: {key} is not a regular expression: {error}") from None
    pack = Pack(**values, sha256=sha256)
    # Lists are normalised once here, so that rules need to normalise only the text.
    return dataclasses.replace(
        pack,
        stop_words=frozenset(map(pack.stop_key, pack.stop_words)),
        common_words=frozenset(map(pack.comparison_key, pack.common_words)),
        policy_phrases=tuple(map(pack.comparison_key, pack.policy_phrases)),
        boilerplate_phrases=tuple(map(pack.comparison_key, pack.boilerplate_phrases)),
    )


def _value(value: Any, key: str, source: str) -> Any:
    """A field in the type that `Pack` has for it."""
    if key == "overrides":
        if isinstance(value, dict) and all(part is None or isinstance(part, dict) for part in value.values()):
            return value
        raise errors.InputError(
            f"locale pack {source!r}: overrides must map rules to their settings or to null, got {value!r}"
        )
    if key in ("name", "script", "letters", "sentence_end", "stop_normaliser", "comparison_normaliser"):
        if isinstance(value, str):
            return value
        raise errors.InputError(f"locale pack {source!r}: {key} must be a text, got {value!r}")
    if key in ("stop_words", "common_words") and isinstance(value, str):  # words may also be one text
        value = value.split()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise errors.InputError(
            f"locale pack {source!r}: {key} must be a list of texts (quote words such as 'no'), got {value!r}"
        )
    return frozenset(value) if key in ("stop_words", "common_words") else tuple(value)
