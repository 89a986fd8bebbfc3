"""Bodies made from /openapi.json: what it does not allow is refused, and nothing of it brings the server down."""

import asyncio
import json
import math

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.serving import schema
from tests.experiments.serving.conftest import MAX_LEN, opened

DESCRIPTION = schema.openapi(model="parrot", max_len=MAX_LEN)
PATHS = {"/v1/completions": "Completion", "/v1/chat/completions": "Chat"}
NUMBERS = st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
LETTERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def values(part):
    """Values that a part of the description allows."""
    if "$ref" in part:
        return values(DESCRIPTION["components"]["schemas"][part["$ref"].rpartition("/")[2]])
    if "anyOf" in part:
        return st.one_of([values(one) for one in part["anyOf"]])
    if "const" in part:
        return st.just(part["const"])
    if "enum" in part:
        return st.sampled_from(part["enum"])
    kind = part.get("type")
    if kind == "object":
        names = part.get("properties")
        if names is None:
            extra = part.get("additionalProperties")
            inner = values(extra) if isinstance(extra, dict) else ANYTHING
            return st.dictionaries(st.integers(0, 300).map(str) | LETTERS, inner, max_size=3)
        known = {name: values(one) for name, one in names.items()}
        needed = {name: known.pop(name) for name in part.get("required", [])}
        return st.fixed_dictionaries(needed, optional=known)
    if kind == "array":
        sizes = {"min_size": part.get("minItems", 0), "max_size": min(part.get("maxItems", 4), 4)}
        return st.lists(values(part["items"]), **sizes)
    if kind == "string":
        sizes = {"min_size": part.get("minLength", 0), "max_size": min(part.get("maxLength", 12), 12)}
        return st.text(st.characters(exclude_categories=["Cs"]), **sizes)
    if kind == "integer":
        most = min(part.get("exclusiveMaximum", 2**40) - 1, part.get("maximum", 2**40))
        return st.integers(part.get("minimum", -(2**40)), most)
    if kind == "number":
        least = part.get("minimum", part.get("exclusiveMinimum", -1e6))
        return st.floats(least, part.get("maximum", 1e6), exclude_min="exclusiveMinimum" in part)
    return {"boolean": st.booleans(), "null": st.none()}[kind]


def changed(bodies, names):
    """Bodies of which some fields hold anything at all."""
    known = st.sampled_from(sorted(names)) | st.sampled_from(sorted(schema.ABSENT)) | LETTERS
    return st.tuples(bodies, st.dictionaries(known, ANYTHING, max_size=2)).map(lambda pair: {**pair[0], **pair[1]})


def accepts(name, body):
    parts = DESCRIPTION["components"]["schemas"]
    checked = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": parts}}
    # JSON Schema takes 1.0 for a whole number; this server does not
    return jsonschema.Draft202012Validator(checked).is_valid(body)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("is_changed", [False, True])
def test_what_the_description_allows_is_answered_and_all_else_is_refused(path, is_changed):
    name = PATHS[path]
    part = DESCRIPTION["components"]["schemas"][name]
    bodies = values(part)

    async def post(body):
        async with opened() as door:
            reply = await door.post(path, json.dumps(body).encode())
            return reply, await door.settled()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(changed(bodies, part["properties"]) if is_changed else bodies)
    def check(body):
        reply, is_settled = asyncio.run(post(body))
        assert is_settled
        if reply.status == 200:
            neutral = {k: v for k, v in body.items() if k not in schema.ABSENT}
            assert accepts(name, neutral), body
            if body.get("stream"):
                assert reply.events[-1] == "[DONE]"
            else:
                assert len(reply.json["choices"]) % (body.get("n") or 1) == 0
                assert all(math.isfinite(x) for x in numbers(reply.json))
        else:
            assert reply.status in (400, 404, 429), (reply.status, reply.body)
            assert reply.error["message"] and reply.error["type"]

    check()


def numbers(value):
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, float):
        yield value
