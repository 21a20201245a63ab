"""Encodings of pages, as browsers decode them: by label, without one, and with bytes that are wrong."""

import pytest

from pipelines.corpus.read.extract_worker import decoded

TEXTS = {
    "euc-kr": ("cp949", "안녕하세요. 이것은 한국어 문장입니다. 똠방각하도 읽습니다. "),
    "euc-jp": ("euc_jp", "これは日本語の文章です。漢字もカタカナもあります。"),
    "shift_jis": ("cp932", "これは日本語の文章です。①漢字もカタカナもあります。"),
    "gb2312": ("gb18030", "这是一个中文句子。我们在学校里学习汉语和数学，每天都很高兴。"),
    "big5": ("big5hkscs", "這是一個中文句子。我們在學校裡學習國語和數學，每天都很高興。"),
    "tis-620": ("cp874", "นี่คือประโยคภาษาไทย เราเรียนหนังสือที่โรงเรียน "),
    "windows-1251": ("cp1251", "Это предложение на русском языке. Мы учимся в школе. "),
}


def page(text: str, codec: str, meta: str = "") -> bytes:
    return f"<html><head>{meta}<title>t</title></head><body><p>{text * 3}</p></body></html>".encode(codec)


@pytest.mark.parametrize("label_in", ["header", "meta", "no label"])
@pytest.mark.parametrize("fault", ["none", "0xFF", "two", "cut"])
@pytest.mark.parametrize("label", TEXTS)
def test_one_bad_byte_is_one_replacement(label: str, fault: str, label_in: str) -> None:
    codec, text = TEXTS[label]
    whole = page(text, codec, f'<meta charset="{label}">' if label_in == "meta" else "")
    place = whole.index(text[0].encode(codec)) + len(text[:5].encode(codec))
    bad = {
        "none": whole,
        "0xFF": whole[:place] + b"\xff" + whole[place:],
        "two": whole[:place] + b"\xff\xff" + whole[place:],
        "cut": whole[: len(whole) - len("</p></body></html>") - len(text[-1].encode(codec)) - 1],
    }[fault]
    found = decoded(bad, label if label_in == "header" else None)
    wrong = found.count("\ufffd")
    assert wrong <= {"none": 0, "0xFF": 1, "two": 2, "cut": 1}[fault]
    # Russian has a letter at 0xFF.
    bare = found.replace("\ufffd", "").replace("я", "")
    expected = whole.decode(codec).replace("я", "")
    assert bare == expected if fault != "cut" else expected.startswith(bare[:-1])


@pytest.mark.parametrize(
    ("data", "charset", "text"),
    [
        ("<p>①㈱".encode("cp932"), "shift_jis", "<p>①㈱"),
        (b"<p>\xad\xa1\xc6\xfc", "euc-jp", "<p>①日"),
        ("<p>똠방".encode("cp949"), "euc-kr", "<p>똠방"),
        ("<p>朱镕基".encode("gbk"), "gb2312", "<p>朱镕基"),
        (b"<p>\x80 5 \x85", "iso-8859-11", "<p>\u20ac 5 …"),
        ('<meta charset="utf-16"><p>Grüße'.encode(), None, '<meta charset="utf-16"><p>Grüße'),
        ("<p>Grüße und Küsse".encode(), "utf-16", "<p>Grüße und Küsse"),
        ("<p>Grüße — Küsse".encode(), "euc-kr", "<p>Grüße — Küsse"),
        ("<p>Grüße".encode("cp1252"), "utf-8", "<p>Grüße"),
        (b"<p>valid \xef\xbf\xbd, \xc3\xa9", "utf-8", "<p>valid \ufffd, é"),
        ("<p>äöüß".encode() + b"\xe2\x82" + "äöüß".encode(), None, "<p>äöüß\ufffdäöüß"),
        (b"<p>\x81 \x93x\x94", "latin1", "<p>\x81 “x”"),
    ],
)
def test_labels_mean_what_they_mean_in_browsers(data: bytes, charset: str | None, text: str) -> None:
    assert decoded(data, charset) == text
