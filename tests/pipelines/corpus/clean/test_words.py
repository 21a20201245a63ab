"""Words of every script, in rules, deduplication and decontamination."""

import numpy as np
import pytest

from cluster.recipe.corpus import C4, FineWeb, GopherQuality, GopherRepetition, Rules
from pipelines.corpus.clean.words import is_unspaced, word_spans, words
from pipelines.corpus.dedup.decontaminate import NGrams
from pipelines.corpus.dedup.minhash import least_agreement, shingles, signatures
from pipelines.corpus.filter.rules import bounds, reasons_to_drop
from pipelines.corpus.filter.signals import measure

CHINESE = (
    "孩子们沿着河边走了很久，终于在森林中间看到一座老房子。房子里住着一位老人，"
    "他每天都在院子里种花。春天来了，花都开了！"
)
JAPANESE = (
    "子供たちは川に沿って歩き、森の真ん中にある古い家に着きました。そこには老人が住んでいて、"
    "毎日花を育てています。春です。"
)
THAI = "เด็กๆ เดินไปตามแม่น้ำจนกระทั่งพบบ้านเก่ากลางป่า มีชายชราอาศัยอยู่ในบ้านและปลูกดอกไม้ทุกวัน"
HINDI = "बच्चे नदी के किनारे चलते रहे। वे जंगल के बीच एक पुराने घर तक पहुँचे। वहाँ एक बूढ़ा आदमी रहता था।"
PUBLISHED = Rules(
    gopher_quality=GopherQuality(min_words=20), gopher_repetition=GopherRepetition(), c4=C4(), fineweb=FineWeb()
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop: 3 naïve cafés", ["Don", "t", "stop", "3", "naïve", "cafés"]),
        ("我们在 GPU 上。", ["我", "们", "在", "GPU", "上"]),
        ("カフェ・ラテ", ["カ", "フ", "ェ", "ラ", "テ"]),
        ("บ้านเก่า", ["บ้", "า", "น", "เ", "ก่", "า"]),
        ("पहुँचे। हिन्दी", ["पहुँचे", "हिन्दी"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("می‌روم", ["می‌روم"]),
    ],
)
def test_words_of_every_script(text: str, expected: list[str]) -> None:
    assert words(text) == expected
    assert [text[start:end] for start, end in word_spans(text)] == expected


def test_scripts_without_spaces_are_told_from_quotations() -> None:
    assert [is_unspaced(text) for text in (CHINESE, JAPANESE, THAI, HINDI, "an English text with 汉字")] == [
        *(True, True, True, False, False)
    ]


@pytest.mark.parametrize("text", [CHINESE, JAPANESE, THAI, HINDI])
@pytest.mark.parametrize("rules", [None, PUBLISHED])
def test_rules_of_english_drop_no_good_text_of_another_script(text: str, rules: Rules | None) -> None:
    (left,), signals = measure([text], rules)
    assert reasons_to_drop(signals, bounds(rules, 5)) == [None]
    assert left == text
    assert signals["words"][0] >= 20
    assert np.isnan(signals["stop_words"]).all()


def test_english_is_judged_by_its_stop_words() -> None:
    _, signals = measure(["The dog and the cat have naïve habits"], PUBLISHED)
    assert signals["stop_words"].tolist() == [3]


@pytest.mark.parametrize("text", [CHINESE, JAPANESE, THAI])
def test_near_duplicates_without_spaces_are_found(text: str) -> None:
    other = text.replace(words(text)[20], "x", 1)
    before, after = set(shingles(text)), set(shingles(other))
    assert len(before & after) / len(before | after) > 0.75
    first, second, far = signatures([text, other, CHINESE if text != CHINESE else JAPANESE])
    assert (first == second).mean() > least_agreement(0.75)
    assert (first == far).mean() < 0.3


def test_texts_of_symbols_are_no_duplicates_of_each_other() -> None:
    first, second, same = signatures(["★ ★ ★ → ←", "### --- ***", "###---***"])
    assert (first == second).mean() < 0.5
    assert (second == same).all()


def test_exams_without_spaces_are_found_in_documents() -> None:
    grams = NGrams(iter([("exam:0", [CHINESE[:30]]), ("exam:1", [THAI[:40]])]), 13)
    text = f"{JAPANESE}{CHINESE[:30]}{JAPANESE}"
    (match,) = grams.find(text)
    assert match.item == "exam:0"
    assert text[match.start : match.end] == CHINESE[: match.end - match.start]
    assert match.end - match.start >= 28
    assert [match.item for match in grams.find(f"บทความ {THAI}")] == ["exam:1"]
    assert not grams.find(JAPANESE)
