"""Drop documents by their address: lists of domains, addresses, words and parts of words.

The lists are the user's files, with an entry on each line and "#" before comments, the format of block lists of domains
such as UT1's. Addresses are parsed, never fetched.
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

_LONGEST = 8_192  # characters of an address that are read
_WORD = re.compile(r"[^\W_]+")


@dataclasses.dataclass(frozen=True)
class Lists:
    """Lists that addresses are compared with.

    Fields:
        domains: a domain stands for itself and all domains below it; without "www.", in ASCII (IDNA).
        addresses: host, path and query, as `address` writes them.
        words: one of these as a whole word of the address (between marks) is enough.
        soft_words: several of these are needed.
        substrings: may stand anywhere in the address.
    """

    domains: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()
    soft_words: frozenset[str] = frozenset()
    substrings: tuple[str, ...] = ()


def parse(url: str) -> tuple[str, str]:
    """The host of an address, in ASCII and without "www.", and its path and query, decoded and in lower case.

    Raises:
        ValueError: the address has no host.
    """
    url = url.strip()[:_LONGEST]
    if "://" not in url:  # urlsplit takes "example.org/x" for a path unless "//" stands before it
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
        with contextlib.suppress(UnicodeError):  # not a name that a name server can know; it is compared as it is
            host = host.encode("idna").decode("ascii")
    return host.removeprefix("www.")


def domain_of(host: str, domains: frozenset[str]) -> str:
    """The listed domain that the host equals or lies below, or ""."""
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
    """Read lists; each argument names text files.

    Raises:
        InputError: a file cannot be read, or an address has no host.
    """
    lines = {
        "domains": domains,
        "addresses": addresses,
        "words": words,
        "soft_words": soft_words,
        "substrings": substrings,
    }
    entries = {name: [line for path in paths for line in _lines(path)] for name, paths in lines.items()}
    return Lists(
        domains=frozenset(ascii_host(line) for line in entries["domains"]),
        addresses=frozenset(_address(line) for line in entries["addresses"]),
        words=frozenset(line.casefold() for line in entries["words"]),
        soft_words=frozenset(line.casefold() for line in entries["soft_words"]),
        substrings=tuple(dict.fromkeys(line.casefold() for line in entries["substrings"])),
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
    """Drop documents by their address; those without an address (`no_url`) or with a broken one (`bad_url`) pass.

    Args:
        batch: documents with `metadata["url"]`, or without.
        domains, addresses, words, soft_words, substrings: paths of lists; see `Lists`.
        min_soft_words: a document with so many different soft words in its address is dropped.

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
    """The reason or "", the measured number and its threshold."""
    if lists.domains and domain_of(host, lists.domains):
        return "url_domain", 1, 0
    if lists.addresses and host + rest in lists.addresses:
        return "url_address", 1, 0
    if lists.words or lists.soft_words:  # splitting into words only where a list needs them
        words = set(_WORD.findall(host + " " + rest))
        if words & lists.words:
            return "url_word", len(words & lists.words), 0
        if lists.soft_words and len(words & lists.soft_words) >= min_soft_words:
            return "url_soft_words", len(words & lists.soft_words), min_soft_words
    if lists.substrings and any(part in host + rest for part in lists.substrings):
        return "url_substring", 1, 0
    return "", 0, 0


@functools.lru_cache(maxsize=8)
def _cached(
    domains: tuple[str, ...],
    addresses: tuple[str, ...],
    words: tuple[str, ...],
    soft_words: tuple[str, ...],
    substrings: tuple[str, ...],
) -> Lists:
    """`load`, once for each set of paths in a process."""
    return load(domains=domains, addresses=addresses, words=words, soft_words=soft_words, substrings=substrings)


def _address(line: str) -> str:
    try:
        return "".join(parse(line))
    except ValueError as error:
        raise errors.InputError(f"list of addresses: {error}; an entry looks like https://example.org/page") from None


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
