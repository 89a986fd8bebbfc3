"""Documents by where they were found: lists of domains, addresses, words and parts of words.

The lists are files of the user's, one entry a line, "#" before comments: block lists of domains such as UT1's come
that way. Addresses are parsed, never fetched.
"""

import contextlib
import dataclasses
import functools
import pathlib
import re
import urllib.parse
from collections.abc import Sequence

from alignment import errors
from alignment.filtering.rules.batch import Batch, Findings

_LONGEST = 8_192  # characters of an address that are looked at
_WORD = re.compile(r"[^\W_]+")


@dataclasses.dataclass(frozen=True)
class Lists:
    """What addresses are held against.

    Fields:
        domains: a domain stands for itself and all domains below it; without "www.", in ASCII (IDNA).
        addresses: host, path and query, as `address` writes them.
        words: one of these between marks, or as a part of the host's name between marks, is enough.
        soft_words: several of these are needed.
        substrings: anywhere in the address.
    """

    domains: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()
    soft_words: frozenset[str] = frozenset()
    substrings: tuple[str, ...] = ()


def parse(url: str) -> tuple[str, str]:
    """The host of an address, in ASCII and without "www.", and the rest: path and query, decoded, in lower case.

    Raises:
        ValueError: there is no host in it.
    """
    url = url.strip()[:_LONGEST]
    if "://" not in url:
        url = "//" + url.removeprefix("//")
    parts = urllib.parse.urlsplit(url)
    host = ascii_host(parts.hostname or "")
    if not host or any(c.isspace() for c in host):
        raise ValueError(f"no host in {url!r}")
    rest = parts.path + (f"?{parts.query}" if parts.query else "")
    return host, urllib.parse.unquote(rest, errors="replace").casefold().rstrip("/")


def ascii_host(host: str) -> str:
    """A domain as name servers know it: lower case, international names in IDNA's ASCII, no "www." and no last dot."""
    host = host.strip().rstrip(".").lower()
    if not host.isascii():
        with contextlib.suppress(UnicodeError):  # no name server knows such a name; it is compared as it is
            host = host.encode("idna").decode("ascii")
    return host.removeprefix("www.")


def domain_of(host: str, domains: frozenset[str]) -> str:
    """The listed domain that a host is or lies below; "" for none."""
    while host:
        if host in domains:
            return host
        host = host.partition(".")[2]
    return ""


def load(
    *,
    domains: Sequence[str] = (),
    addresses: Sequence[str] = (),
    words: Sequence[str] = (),
    soft_words: Sequence[str] = (),
    substrings: Sequence[str] = (),
) -> Lists:
    """Read lists; each argument holds paths of text files.

    Raises:
        InputError: a file that cannot be read, or an address without a host.
    """
    lines = {
        "domains": domains,
        "addresses": addresses,
        "words": words,
        "soft_words": soft_words,
        "substrings": substrings,
    }
    found = {name: [line for path in paths for line in _lines(path)] for name, paths in lines.items()}
    return Lists(
        domains=frozenset(ascii_host(line) for line in found["domains"]),
        addresses=frozenset(_address(line) for line in found["addresses"]),
        words=frozenset(line.casefold() for line in found["words"]),
        soft_words=frozenset(line.casefold() for line in found["soft_words"]),
        substrings=tuple(dict.fromkeys(line.casefold() for line in found["substrings"])),
    )


def rule(
    batch: Batch,
    *,
    domains: Sequence[str] = (),
    addresses: Sequence[str] = (),
    words: Sequence[str] = (),
    soft_words: Sequence[str] = (),
    substrings: Sequence[str] = (),
    min_soft_words: int = 2,
) -> Findings:
    """Drop documents by their address; those without one pass (`no_url`), as do those with a broken one (`bad_url`).

    Args:
        batch: documents with `metadata["url"]`, or without.
        domains, addresses, words, soft_words, substrings: paths of lists, one entry a line; see `Lists`.
        min_soft_words: different soft words in one address that drop the document.

    Returns:
        Reasons `url_domain`, `url_address`, `url_word`, `url_soft_words`, `url_substring`, in this order.
    """
    lists = _cached(*map(tuple, (domains, addresses, words, soft_words, substrings)))
    findings = Findings.passing(len(batch))
    for position, url in enumerate(batch.urls):
        if not url:
            findings.count("no_url")
            continue
        try:
            host, rest = parse(str(url))
        except ValueError:
            findings.count("bad_url")
            continue
        reason, value, threshold = _verdict(host, rest, lists, min_soft_words)
        if reason:
            findings.fail(position, reason, value, threshold)
    return findings


def _verdict(host: str, rest: str, lists: Lists, min_soft_words: int) -> tuple[str, float, float]:
    """Reason or "", and the numbers that go with it."""
    if lists.domains and domain_of(host, lists.domains):
        return "url_domain", 1, 0
    if lists.addresses and host + rest in lists.addresses:
        return "url_address", 1, 0
    if lists.words or lists.soft_words:
        found = set(_WORD.findall(host + " " + rest))
        if found & lists.words:
            return "url_word", len(found & lists.words), 0
        if lists.soft_words and len(found & lists.soft_words) >= min_soft_words:
            return "url_soft_words", len(found & lists.soft_words), min_soft_words
    if lists.substrings and any(part in host + rest for part in lists.substrings):
        return "url_substring", 1, 0
    return "", 0, 0


@functools.lru_cache(maxsize=8)
def _cached(domains, addresses, words, soft_words, substrings) -> Lists:
    return load(domains=domains, addresses=addresses, words=words, soft_words=soft_words, substrings=substrings)


def _address(line: str) -> str:
    try:
        return "".join(parse(line))
    except ValueError as error:
        raise errors.InputError(f"list of addresses: {error}; write one such as https://example.org/page") from None


def _lines(path: str) -> list[str]:
    """Entries of a list file, without comments and blank lines."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise errors.InputError(f"list {str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise errors.InputError(f"list {str(path)!r} is not UTF-8 at byte {error.start}: convert it") from None
    stripped = (line.partition(" #")[0].strip() for line in text.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]
