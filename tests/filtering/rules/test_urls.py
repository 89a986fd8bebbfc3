"""Addresses against lists; a document without one, or with a broken one, passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment import errors
from alignment.filtering.rules import locales, urls
from alignment.filtering.rules.batch import Batch


def run(found_at, tmp_path, **lists):
    paths = {}
    for name, lines in lists.items():
        if name == "min_soft_words":
            paths[name] = lines
        else:
            file = tmp_path / f"{name}.txt"
            file.write_text("\n".join(lines), encoding="utf-8")
            paths[name] = [str(file)]
    metadata = [{} if address is None else {"url": address} for address in found_at]
    records = [{"id": str(i), "text": "x", "source": "", "metadata": part} for i, part in enumerate(metadata)]
    return urls.rule(Batch(records, locales.load("en")), **paths)


@pytest.mark.parametrize(
    ("url", "host", "rest"),
    [
        ("https://www.Example.org/A%20b/?q=1", "example.org", "/a b/?q=1"),
        ("http://user:pw@sub.example.org:8080/x/", "sub.example.org", "/x"),
        ("example.org/x", "example.org", "/x"),
        ("//example.org", "example.org", ""),
        ("https://bücher.example/ß", "xn--bcher-kva.example", "/ss"),
        ("https://موقع.example/", "xn--4gbrim.example", ""),
        ("http://[2001:db8::1]/x", "2001:db8::1", "/x"),
        ("https://example.org./x", "example.org", "/x"),
    ],
)
def test_an_address_comes_apart_into_host_and_rest(url, host, rest):
    assert urls.parse(url) == (host, rest)


@given(st.text("a.:/[]@%#?é م\u3002-1", max_size=40))
def test_any_text_is_an_address_or_a_value_error(text):
    try:
        host, _ = urls.parse(text)
    except ValueError:
        return
    assert host and host == host.lower() and not host.startswith("www.www.")


def test_a_domain_stands_for_what_lies_below_it_and_for_nothing_else(tmp_path):
    addresses = [
        "http://bad.example/x",
        "https://a.b.BAD.example",
        "http://notbad.example",
        "http://bad.example.org/bad.example",
    ]
    findings = run(addresses, tmp_path, domains=["# list", "www.bad.example  # why"])
    assert findings.reasons == ["url_domain", "url_domain", "", ""]


def test_international_names_match_in_either_spelling(tmp_path):
    findings = run(["http://xn--bcher-kva.example/", "http://Bücher.example/"], tmp_path, domains=["bücher.example"])
    assert findings.reasons == ["url_domain", "url_domain"]


def test_each_list_has_its_reason(tmp_path):
    addresses = [
        "http://ok.example/page?a=1",
        "http://ok.example/zorp-shop",
        "http://ok.example/zorpshop",
        "http://glim.example/glam",
        "http://glim.example/glim/glim",
        "http://ok.example/free-casinoz-win",
    ]
    lists = dict(
        addresses=["https://www.ok.example/page?a=1"],
        words=["Zorp"],
        soft_words=["glim", "glam"],
        substrings=["asinoz"],
    )
    findings = run(addresses, tmp_path, **lists)
    assert findings.reasons == ["url_address", "url_word", "", "url_soft_words", "", "url_substring"]
    assert run(addresses, tmp_path, min_soft_words=1, **lists).reasons[4] == "url_soft_words"


def test_missing_and_broken_addresses_pass_and_are_counted(tmp_path):
    addresses = [None, "", "http://[broken", "http://", "/only/a/path", 17, "http://bad.example"]
    findings = run(addresses, tmp_path, domains=["bad.example"])
    assert findings.reasons == [""] * 6 + ["url_domain"]
    assert findings.counters == {"no_url": 2, "bad_url": 3}


def test_unusable_lists_are_refused(tmp_path):
    with pytest.raises(errors.InputError, match="cannot be read"):
        urls.load(domains=[str(tmp_path / "missing.txt")])
    (tmp_path / "bytes.txt").write_bytes(b"a\xff")
    with pytest.raises(errors.InputError, match="not UTF-8 at byte 1"):
        urls.load(words=[str(tmp_path / "bytes.txt")])
    (tmp_path / "addresses.txt").write_text("http://\n")
    with pytest.raises(errors.InputError, match="no host"):
        urls.load(addresses=[str(tmp_path / "addresses.txt")])
