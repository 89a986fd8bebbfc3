"""Personal data by its form. All numbers here are documentation's examples or made up."""

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment import errors
from alignment.filtering.rules import locales, pii
from alignment.filtering.rules.batch import Batch

FOUND = {
    "email": [
        ("write to jane.doe+x@mail.example.co.uk, please", "jane.doe+x@mail.example.co.uk"),
        ("(user_1@example.org)", "user_1@example.org"),
        ("راسلنا على info@example.com.", "info@example.com"),
    ],
    "ip": [("from 8.8.8.8 on", "8.8.8.8"), ("[2001:4860:4860::8888]", "2001:4860:4860::8888")],
    "phone": [
        ("call +966 50 123 4567 now", "+966 50 123 4567"),
        ("Tel. 0044 20 7946 0958", "0044 20 7946 0958"),
        ("هاتف: +٩٦٦٥٠١٢٣٤٥٦٧", "+٩٦٦٥٠١٢٣٤٥٦٧"),
        ("هاتف ٠٠٩٦٦٥٠١٢٣٤٥٦٧", "٠٠٩٦٦٥٠١٢٣٤٥٦٧"),
        ("+1 (212) 555-0100", "+1 (212) 555-0100"),
        ("reach us: (212) 555-0100.", "(212) 555-0100"),
        ("or 212-555-0100", "212-555-0100"),
    ],
    "iban": [
        ("IBAN GB82 WEST 1234 5698 7654 32 PLEASE", "GB82 WEST 1234 5698 7654 32"),
        ("DE89370400440532013000", "DE89370400440532013000"),
        ("SA03 8000 0000 6080 1016 7519", "SA03 8000 0000 6080 1016 7519"),
    ],
    "card": [("4111 1111 1111 1111", "4111 1111 1111 1111"), ("378282246310005", "378282246310005")],
}
NOT_FOUND = [
    "no one@home, a@b, @example.com, user@localhost, me@.com",
    "192.168.1.1 10.0.0.1 127.0.0.1 0.0.0.0 1.2.3.4.5 256.1.1.1 v1.2.3 ::1 fe80::1 2001:db8::1 10:30:45",
    "1999-2000, 2001 2002 2003 2004; 3.14159265358979; ISBN 978-3-16-148410-0; 12,345,678,901,234",
    "4111 1111 1111 1112; 4111111111111111111111; GB82 WEST 1234 5698 7654 33; GB00; ZZ82WEST12345698765432",
    "+12, 00123, 1 + 2 = 3, 2021-09-01 12:00, order 0012, page 212-213",
]
HOSTILE = ["a", "@", "a@a.", "a@a.a", "aA1@", "1 ", "1.", "1-", "0", "4", "4111 ", "+1 ", "+(", "٠", "AA00", "AA00 ",
           "2001:", "200:", "555-555-", "GB82 WEST 1234 5698 7654 33 "]  # fmt: skip


def run(texts, **settings):
    records = [{"id": str(i), "text": text, "source": "", "metadata": {}} for i, text in enumerate(texts)]
    return pii.rule(Batch(records, locales.load("en")), **settings)


@pytest.mark.parametrize(("kind", "text", "expected"), [(k, *pair) for k, pairs in FOUND.items() for pair in pairs])
def test_personal_data_is_found_with_its_kind_and_place(kind, text, expected):
    start = text.index(expected)
    assert pii.spans(text) == [(start, start + len(expected), kind)]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_other_numbers_and_private_addresses_are_not_personal_data(text):
    assert pii.spans(text) == []


def test_check_digits_by_hand():
    assert pii.luhn("79927398713") and not pii.luhn("79927398710")  # 7+9+9+4+7+6+9+7+7+2+3 = 70
    assert pii.mod_97("GB82WEST12345698765432") and not pii.mod_97("GB28WEST12345698765432")


@given(st.integers(0, 14), st.integers(1, 9))
def test_a_wrong_digit_is_no_card(position, shift):
    digits = "4111111111111111"
    wrong = digits[:position] + str((int(digits[position]) + shift) % 10) + digits[position + 1 :]
    assert not pii.luhn(wrong)


@given(st.lists(st.sampled_from([text for pairs in FOUND.values() for text, _ in pairs] + NOT_FOUND), max_size=6))
@settings(max_examples=60, deadline=None)
def test_spans_are_ordered_apart_and_gone_after_replacement(parts):
    text = "\n".join(parts)
    found = pii.spans(text)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(found))
    assert len(found) == sum(text not in NOT_FOUND for text in parts)
    replaced = pii.replace(text, found)
    assert pii.spans(replaced) == []
    assert sum(replaced.count(tag) for tag in pii.TAGS.values()) == len(found)


@pytest.mark.parametrize("unit", HOSTILE)
def test_a_megabyte_that_nearly_matches_everywhere_takes_no_longer(unit):
    text = (unit * (1_000_000 // len(unit) + 1))[:1_000_000]
    start = time.process_time()
    pii.spans(text)
    assert time.process_time() - start < 5  # 0.01 to 0.3 s on one core; a quadratic search takes hours


def test_more_than_five_drop_a_document_and_fewer_are_replaced():
    mails = [f"user{i}@example.org" for i in range(6)]
    findings = run([" ".join(mails), "mail " + mails[0], "none"])
    assert findings.reasons == ["pii", "", ""]
    assert (findings.values[0], findings.thresholds[0]) == (6, 5)
    assert findings.texts == {1: "mail <EMAIL>"}
    assert findings.counters == {"email_replaced": 1}
    assert findings.attributes["pii_email"] == [6, 1, 0] and findings.attributes["pii_card"] == [0, 0, 0]
    assert run([" ".join(mails)], max_spans=None).texts == {0: " ".join(["<EMAIL>"] * 6)}
    assert run(["mail " + mails[0]], replace_spans=False).texts == {}
    assert run(["mail " + mails[0] + " 8.8.8.8"], kinds=("ip",)).texts == {0: f"mail {mails[0]} <IP>"}


def test_an_unknown_kind_is_refused_with_the_known():
    with pytest.raises(errors.InputError, match=r"passport.*email, iban, card, national_id, ip, phone"):
        run(["x"], kinds=("passport",))


@pytest.mark.parametrize(
    "text",
    [
        "Ordra in version 2.1.1.108 and release 12.31.3.17",
        "see section 12.31.40.2 of it",
        "Chrome/91.10.44.12 and lib-12.10.44.12",
        "12.10.44.12 Results of the year",
        "v 91.20.33.41",
        "الإصدار 12.31.40.2",
        "moved by +0.12345678 metres",
        "+1.00234567 and +2.71828182",
        "+40.7127764 degrees",
        "icon@2x.png and photo@home.jpeg",
        "numbers 01 02 03 04 05",
        "on 01-02-2003",
        "000-12-3456",
        "666-12-3456",
        "784-1990-1234567-1",
        "رقم الهوية 1234567890",
        "1-234-56-7890 a",
        "part 0123456789012",
    ],
)
def test_numbers_that_belong_to_nobody_are_no_personal_data(text):
    assert pii.spans(text) == []


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ("020 7946 0958", "phone"),
        ("06 12 34 56 78", "phone"),
        ("030 1234567", "phone"),
        ("(020) 7946 0958", "phone"),
        ("0501234567", "phone"),
        ("٠٥٠١٢٣٤٥٦٧", "phone"),
        ("٠٥٠ ١٢٣ ٤٥٦٧", "phone"),
        ("01012345678", "phone"),
        ("07700 900123", "phone"),
        ("۰۵۰۱۲۳۴۵۶۷", "phone"),
        ("+44.2079460958", "phone"),
        ("123-45-6789", "national_id"),
        ("١٢٣-٤٥-٦٧٨٩", "national_id"),
        ("AB 12 34 56 C", "national_id"),
        ("AB123456C", "national_id"),
        ("83.31.40.2", "ip"),
    ],
)
def test_national_numbers_are_found_in_all_digits(found, kind):
    text = f"Call or write {found} today"
    start = text.index(found)
    assert pii.spans(text) == [(start, start + len(found), kind)]


def test_identity_numbers_with_a_check_digit_are_verified():
    def checked(body):
        return next(f"{body}{i}" for i in range(10) if pii.luhn(f"{body}{i}"))

    emirates, saudi = checked("784199012345671"[:14]), checked("123456789")
    assert [kind for *_, kind in pii.spans(f"card {emirates} here")] == ["national_id"]
    dashed = f"{emirates[:3]}-{emirates[3:7]}-{emirates[7:14]}-{emirates[14:]}"
    assert [kind for *_, kind in pii.spans(f"card {dashed} here")] == ["national_id"]
    assert [kind for *_, kind in pii.spans(f"رقم الهوية: {saudi}")] == ["national_id"]
    assert pii.spans(f"at {saudi} seconds") == []
