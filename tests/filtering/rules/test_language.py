"""Languages by script, letters, words and model: worked sentences, and accuracy on real text in two languages."""

import json
import subprocess
import sys

import pytest

from alignment import errors
from alignment.filtering.rules import language, locales
from alignment.models import fasttext

SENTENCES = {  # the first article of the Universal Declaration of Human Rights
    "en": "All human beings are born free and equal in dignity and rights.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "tr": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.",
    "ar": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "fa": "تمام افراد بشر آزاد زاده می‌شوند و از لحاظ حیثیت و کرامت و حقوق با هم برابرند.",
    "ur": "تمام انسان آزاد اور حقوق و عزت کے اعتبار سے برابر پیدا ہوئے ہیں۔",
    "ps": "ټول انسانان آزاد نړۍ ته راځي او د حیثیت او حقوقو له پلوه سره برابر دي.",
    "ckb": "هەموو مرۆڤەکان بە ئازادی و بە ڕێز و مافی یەکسان لە دایک دەبن.",
    "ug": "ھەممە ئادەم تۇغۇلۇشىدىنلا ئەركىن، ئىززەت-ھۆرمەت ۋە ھوقۇقتا باپباراۋەر بولۇپ تۇغۇلغان.",
    "ru": "Все люди рождаются свободными и равными в своём достоинстве и правах.",
    "uk": "Всі люди народжуються вільними і рівними у своїй гідності та правах.",
    "zh": "人人生而自由，在尊严和权利上一律平等。",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "he": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
}
CODE = "def f(xs, n=10):\n    ys = [x ** 2 for x in xs]\n    return {y: ys[i] for i, y in enumerate(ys) if i < n}\n"


@pytest.mark.parametrize("name", SENTENCES)
def test_a_sentence_is_taken_for_its_language(name):
    found, probability = language.identify([SENTENCES[name]])[0]
    assert found == name and probability > 0.9


def test_scripts_are_shares_of_the_letters():
    assert language.scripts("abc ابجد! 12") == pytest.approx({"ARABIC": 4 / 7, "LATIN": 3 / 7})
    assert language.scripts("پژ ab") == {"LATIN": 0.5, "ARABIC": 0.5}
    assert language.scripts("12 !?") == {}


@pytest.mark.parametrize(
    "text", ["", " \n", "12345 678.90", "{} [] () <>", "😀😀😀 😀", "== == ==", "1. 2. a 3. 4.", CODE]
)
def test_code_numbers_and_symbols_have_no_language(text):
    assert language.identify([text])[0][0] == language.UNDETERMINED


def test_the_probability_falls_with_the_share_of_another_script():
    arabic, english = SENTENCES["ar"], SENTENCES["en"]
    found = language.identify([arabic, arabic + english, arabic + english * 3])
    assert found[0] == ("ar", 1.0)
    assert max(found[1][1], 1 - found[1][1]) < 0.65
    assert found[2][0] == "en" and 0.65 < found[2][1] < 0.9


def test_a_foreign_name_does_not_make_arabic_persian():
    text = " ".join([SENTENCES["ar"]] * 5) + " قال پوتين."
    assert language.identify([text])[0] == ("ar", 1.0)


def test_vowel_signs_do_not_matter():
    assert language.identify(["بِسْمِ اللَّهِ الرَّحْمَنِ الرَّحِيمِ ( 1 )"]) == [("ar", 1.0)]


def test_a_text_is_identified_alike_alone_and_in_company():
    texts = [*SENTENCES.values(), CODE, ""]
    assert language.identify(texts) == [language.identify([text])[0] for text in texts]


def test_lone_surrogates_and_long_texts_are_no_trouble():
    assert language.identify(["\ud800" + SENTENCES["ar"]])[0][0] == "ar"
    assert language.identify([SENTENCES["en"] * 20_000])[0][0] == "en"


def test_ordinary_english_and_arabic_never_reach_the_model():
    program = (
        "import sys; from alignment.filtering.rules import language, nemo, pii, urls, wordlists, mojibake, locales\n"
        f"print(language.identify([{SENTENCES['en']!r} * 3, {SENTENCES['ar']!r}]))\n"
        "assert not {'jax', 'py3langid', 'datatrove', 'spacy'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1.0") == 2


def test_packs_decide_what_is_expected():
    packs = {"ar": locales.load("ar")}
    assert language.identify([SENTENCES["en"]], packs=packs)[0][0] == "en"  # by the model, not by a pack's words


class FakeModel:
    labels = ("__label__eng_Latn", "__label__arz_Arab", "__label__zxx_Zxxx", "__label__gv")

    def predict(self, texts):
        answers = {"a": 0, "b": 1, "c": 2, "d": 3, " ": 0}  # fastText answers for nothing too
        return [[(self.labels[answers[text]], 1.00001)] if text in answers else [] for text in texts]


def test_fasttext_labels_come_out_as_short_codes(monkeypatch, tmp_path):
    monkeypatch.setattr(fasttext, "load", lambda path: FakeModel())
    assert language.from_fasttext("lid.bin")(["a", "b", "c", "d", "?", " "]) == [
        ("en", 1.0),
        ("ar", 1.0),
        ("und", 1.0),
        ("gv", 1.0),
        ("und", 0.0),
        ("und", 0.0),
    ]
    monkeypatch.undo()
    with pytest.raises(errors.InputError):
        language.from_fasttext(tmp_path / "missing.bin")


def test_real_text_is_told_apart(shared_data):
    def texts(path):
        return [json.loads(line)["text"] for line in (shared_data / path).read_text("utf-8").splitlines()]

    tashkeela = (shared_data / "text_ar_tashkeela/tashkeela_val.txt").read_text("utf-8").splitlines()
    for name, found, least in (
        ("en", texts("text_en_web/c4_demo.jsonl"), 0.99),  # 299 of 300: the other is a list of names
        ("en", (shared_data / "text_en_web/wiki_demo.txt").read_text("utf-8").splitlines(), 1),
        ("en", texts("text_xquad_ar_en/xquad_en_a.jsonl"), 1),
        ("ar", texts("text_xquad_ar_en/xquad_ar_a.jsonl"), 1),
        ("ar", texts("text_ar_wikipedia_arcd/arcd_train.jsonl"), 1),
        ("ar", [line for line in tashkeela if len(line.split()) >= 8], 0.998),  # the others are page numbers
    ):
        answers = language.identify(found)
        assert sum(answer == name and p >= 0.65 for answer, p in answers) >= least * len(found)


def test_arabic_from_a_persian_keyboard_stays_arabic():
    text = "قال كريم إن التمر الذي تركه عمر في المدينة قديم وإن الكتاب الكبير على الكرسي في البيت"
    typed = text.replace("ك", "ک").replace("ي", "ی")
    ((name, probability),) = language.identify([typed])
    assert name == "ar" and probability > 0.65
