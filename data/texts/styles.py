"""Styles of attacks as inert tags, and the templates of a user who has real ones.

No wording of an attack lies in this repository, and none is made up: a style is rendered as a tag in front of the
request, or by the user's own template. The names are neutral words for families of attacks; Egida's own labels come
with its data.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from alignment import errors, files
from alignment.errors import InputError
from data.texts import suites

STYLES = (
    "persona",  # the model is to speak as a character
    "unrestricted_persona",  # as one without rules
    "dual_response",  # in two voices, one of them without rules
    "fiction",  # in a story
    "nested_fiction",  # in a story within a story
    "research",  # for a study or a test
    "technical_document",  # in a report
    "past_tense",  # how something was done
    "prefix_injection",  # with first words that the request dictates
    "refusal_suppression",  # without words of apology
    "format_constraint",  # as a table, as a poem
    "payload_splitting",  # the request comes in parts
    "encoding",  # in a cipher, misspelt
    "language_switch",  # in another language or in several
    "few_shot",  # after turns that obeyed
    "instruction_override",  # under rules that the request claims are new
    "code_completion",  # inside code
    "distractors",  # among many small tasks
)
PLACE = "{request}"


def render(style: str, request: str) -> str:
    """The request under an inert tag; the plain style leaves it as it is."""
    return request if style == suites.PLAIN else f"[STYLE:{style}] {request}"


def read_templates(path: str) -> dict[str, str]:
    """A user's JSON file of style -> template, a text with {request} in it.

    Raises:
        InputError: the file is not there or says something else.
    """
    templates = files.read_object(path, "name a file of styles and texts")
    if not templates or not all(isinstance(t, str) for t in templates.values()):
        raise InputError(f"templates={path} must be a JSON object of style names and texts with {PLACE}")
    if without := [style for style, text in templates.items() if PLACE not in text]:
        raise InputError(f"templates={path}: {without[0]!r} has no {PLACE}, where the request goes")
    return templates


def styled(
    cases: Sequence[suites.Case],
    styles: Iterable[str],
    *,
    templates: Mapping[str, str] | None = None,
    is_inert: bool = False,
) -> list[suites.Case]:
    """Each plain request as it is, then once in each style; their `request` keeps them together.

    Args:
        cases: plain requests.
        styles: of the renderings.
        templates: style -> text with {request}, for real attacks.
        is_inert: renders tags (`render`) and needs no templates.

    Raises:
        InputError: a style without a template, or a case that is rendered already.
    """
    styles = list(styles)
    if not is_inert:
        for style in styles:
            errors.one_of(
                "style",
                style,
                templates or {},
                hint="attacks are rendered with templates of your own: give a JSON file of them, or ask for inert tags",
            )
    if already := [case for case in cases if case.style != suites.PLAIN]:
        raise InputError(f"prompt {already[0].id} is in the style {already[0].style!r} already and takes no other")
    out = []
    for case in cases:
        out.append(case)
        for style in styles:
            text = render(style, case.prompt) if is_inert else (templates or {})[style].replace(PLACE, case.prompt)
            name = case.request or case.id
            out.append(dataclasses.replace(case, id=f"{name}/{style}", request=name, style=style, prompt=text))
    return out
