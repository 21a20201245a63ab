"""The published quality rules: each at both sides of its threshold, on examples counted by hand."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import UserError
from cluster.recipe.corpus import C4, FineWeb, GopherQuality, GopherRepetition, Rules
from pipelines.corpus.filter.cache import MeasureSettings, cache_key, load, store
from pipelines.corpus.filter.rules import bounds, read_bad_words, reasons_to_drop
from pipelines.corpus.filter.signals import measure
from pipelines.corpus.prepare import StepTimer, measured_batches
from pipelines.corpus.read.sources import InputSplit

QUALITY = Rules(gopher_quality=GopherQuality(min_words=10))
REPETITION = Rules(gopher_repetition=GopherRepetition())
ALL = Rules(
    gopher_quality=GopherQuality(),
    gopher_repetition=GopherRepetition(),
    c4=C4(),
    fineweb=FineWeb(),
)


def reason(text: str, rules: Rules) -> str | None:
    """Judges a text among others, so that a mix-up of documents shows."""
    _, signals = measure(["", "some other text", text, "and one more"], rules)
    return reasons_to_drop(signals, bounds(rules, 1))[2]


def signal(text: str, name: str, rules: Rules = REPETITION) -> float:
    return float(measure(["the same the same the same", text, ""], rules)[1][name][1])


def unlike(count: int) -> list[str]:
    """Returns words of four letters, no two the same."""
    letters = "bcdfghjklm"
    return [f"{letters[n // 100]}{letters[n // 10 % 10]}{letters[n % 10]}x" for n in range(count)]


def stop(*words: str) -> str:
    return " ".join(["the", "of", *words])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (stop(*unlike(8)), None),
        (stop(*unlike(7)), "too few words"),
        # 10 words: 5 letters from the stop words, 25 or 24 more make a mean of 3.0 or 2.9.
        (stop("aaaa", *["bbb"] * 7), None),
        (stop("aaa", *["bbb"] * 7), "mean word length"),
        # 5 + 8 words of 95 letters in all make 100 letters, a mean of 10.0.
        (stop("a" * 18, *["b" * 11] * 7), None),
        (stop("a" * 19, *["b" * 11] * 7), "mean word length"),
        (stop(*unlike(7), "#tag"), None),
        (stop(*unlike(6), "#tag", "#tag"), "too many symbols"),
        (stop("well…", *unlike(7)), None),
        (stop("well…", "so...", *unlike(6)), "too many symbols"),
        # 9 of 10 lines are 0.9; all 10 are 1.0.
        ("\n".join([stop("tale"), *(f"-{word}" for word in unlike(9))]), None),
        ("\n".join([f"-{stop('tale')}", *(f"•{word}" for word in unlike(9))]), "bullet lines"),
        # 3 of 10 lines end with an ellipsis; 4 of 10. Four words a line keep the symbols at 0.1.
        ("\n".join([f"{stop('and')} {w}..." for w in unlike(3)] + [stop("and", w) for w in unlike(7)]), None),
        (
            "\n".join([f"{stop('and')} {w}…" for w in unlike(4)] + [stop("and", w) for w in unlike(6)]),
            "ellipsis lines",
        ),
        (stop(*unlike(6), "1999", "2001"), None),
        (stop(*unlike(5), "1999", "2001", "2003"), "too few words with a letter"),
        (" ".join(["The", "of,", *unlike(8)]), None),
        (" ".join(["the", "the", *unlike(8)]), "too few stop words"),
    ],
)
def test_gopher_quality_at_both_sides_of_its_thresholds(text: str, expected: str | None) -> None:
    assert reason(text, QUALITY) == (f"gopher quality: {expected}" if expected else None)


def test_gopher_quality_has_the_published_numbers_of_words() -> None:
    published = Rules(gopher_quality=GopherQuality())
    assert reason(stop(*unlike(48)), published) is None
    assert reason(stop(*unlike(47)), published) == "gopher quality: too few words"
    rare = ["abcd"] * 99_998
    assert reason(stop(*rare), published) is None
    assert reason(stop(*rare, "abcd"), published) == "gopher quality: too many words"


def long_lines(count: int) -> list[str]:
    return [" ".join(unlike(count * 10)[10 * n : 10 * n + 10]) for n in range(count)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # 3 and 4 of 10 lines are copies; the others are so long that their characters are few.
        ("\n".join([*long_lines(6), "a", "a", "a", "a"]), None),
        ("\n".join([*long_lines(5), "a", "a", "a", "a", "a"]), "duplicate lines"),
        # As many paragraphs, each of two lines, so that 6 and 8 of 20 lines would be copies: 30 % and 40 %.
        ("\n\n".join([*long_lines(6), "a", "a", "a", "a"]), None),
        # Lines of 40 characters: 2 copies in 10 are 20 % of the characters, 2 in 9 are 22 %.
        ("\n".join([*("z" * 37 + f"{n:03}" for n in range(8)), *["z" * 37 + "000"] * 2]), None),
        ("\n".join([*("z" * 37 + f"{n:03}" for n in range(7)), *["z" * 37 + "000"] * 2]), "duplicate line characters"),
    ],
)
def test_gopher_repeated_lines(text: str, expected: str | None) -> None:
    assert reason(text, REPETITION) == (f"gopher repetition: {expected}" if expected else None)


def test_gopher_repeated_paragraphs() -> None:
    """Paragraphs of two lines that share one: of the 10, 3 or 4 are whole copies."""
    limits = GopherRepetition(
        duplicate_lines=1.0, duplicate_line_characters=1.0, top_n_grams=[1.0] * 3, duplicate_n_grams=[1.0] * 6
    )
    few = ["x\na"] * 4 + [f"x\n{word}" for word in long_lines(6)]
    many = ["x\na"] * 5 + [f"x\n{word}" for word in long_lines(5)]
    assert reason("\n\n".join(few), Rules(gopher_repetition=limits)) is None
    assert reason("\n\n".join(many), Rules(gopher_repetition=limits)) == "gopher repetition: duplicate paragraphs"
    # 2 copies in 10 of equally long paragraphs are 20 % of the characters, 2 in 9 are 22 %.
    blocks = ["z" * 37 + f"{n:03}\n{n}" for n in range(8)]
    assert reason("\n\n".join([*blocks, blocks[0], blocks[0]]), Rules(gopher_repetition=limits)) is None
    fewer = "\n\n".join([*blocks[1:], blocks[1], blocks[1]])
    assert reason(fewer, Rules(gopher_repetition=limits)) == "gopher repetition: duplicate paragraph characters"


@pytest.mark.parametrize(
    ("n", "words"),
    # 2-grams: 2 × 2 words of 20 are 0.20, of 19 are 0.21. 3-grams: 2 × 3 of 34 are 0.176, of 33 are 0.182.
    # 4-grams: 2 × 4 of 50 are 0.16, of 49 are 0.163.
    [(2, 20), (3, 34), (4, 50)],
)
def test_gopher_top_n_grams(n: int, words: int) -> None:
    for total, expected in ((words, None), (words - 1, f"gopher repetition: top {n} gram")):
        fresh = unlike(total - n)
        text = " ".join([*fresh[:n], fresh[n], *fresh[:n], *fresh[n + 1 :]])
        assert len(text.split()) == total
        assert reason(text, REPETITION) == expected


@pytest.mark.parametrize(
    ("n", "words"),
    # Both occurrences count. 5: 10 words of 67 are 0.1493, of 66 are 0.1515. 6: 12 of 86 and 85. 7: 14 of 108 and 107.
    # 8: 16 of 134 and 133. 9: 18 of 164 and 163. 10: 20 of 200 are 0.1, of 199 are 0.1005.
    [(5, 67), (6, 86), (7, 108), (8, 134), (9, 164), (10, 200)],
)
def test_gopher_duplicate_n_grams(n: int, words: int) -> None:
    for total, expected in ((words, None), (words - 1, f"gopher repetition: duplicate {n} gram")):
        fresh = unlike(total - n)
        text = " ".join([*fresh[:n], fresh[n], *fresh[:n], *fresh[n + 1 :]])
        assert reason(text, REPETITION) == expected


def test_repetition_is_counted_in_characters_of_words() -> None:
    # 2 × "aa bb" is 8 of the 8 + 3 + 4 characters; "x" between them and "yyyyyy" after are once.
    assert signal("aa bb x aa bb yyyyyy", "top_2_gram") == pytest.approx(8 / 15)
    # The longest of the pairs that occur twice counts: "dddd e", 2 × 5 of 16 characters.
    assert signal("a b x a b dddd e dddd e z", "top_2_gram") == pytest.approx(10 / 16)
    # Seven like words hold three 5-grams that overlap, and no character counts twice.
    assert signal("o o o o o o o p", "duplicate_5_gram") == pytest.approx(7 / 8)
    # An n-gram does not reach over into the next document.
    _, signals = measure(["a b c d e", "a b c d e", "c d e a b"], REPETITION)
    assert signals["top_2_gram"].tolist() == signals["duplicate_5_gram"].tolist() == [0, 0, 0]


def test_repetition_equals_a_count_by_definition() -> None:
    rng = random.Random(5)
    texts = [" ".join(rng.choices(["a", "bb", "ccc", "dd", "e"], k=rng.randint(0, 60))) for _ in range(60)]
    _, signals = measure(texts, REPETITION)
    for number, text in enumerate(texts):
        words = text.split()
        total = sum(map(len, words)) or 1
        for n in range(2, 11):
            grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
            times = Counter(grams)
            if n < 5:
                top = max(((count, len("".join(gram))) for gram, count in times.items() if count > 1), default=(0, 0))
                expected, name = top[0] * top[1] / total, f"top_{n}_gram"
            else:
                inside = {at + i for at, gram in enumerate(grams) if times[gram] > 1 for i in range(n)}
                expected, name = sum(len(words[at]) for at in inside) / total, f"duplicate_{n}_gram"
            assert signals[name][number] == pytest.approx(expected), (text, name)


LINE = "this line has six words in."


@pytest.mark.parametrize(
    ("line", "stays"),
    [
        (LINE, True),
        ("this line has six words in", False),
        ("this line has six words in...", False),
        ('she said it has "six words"', True),
        ("this line has five words.", True),
        ("this line has four.", False),
        (f"a long word is {'x' * 999}.", True),
        (f"a long word is {'x' * 1000}.", False),
        ("please turn on JavaScript to read this.", False),
        ("she was born in the north of it[citation needed]", False),
        ("by our Privacy Policy you may read this.", False),
    ],
)
def test_c4_removes_lines(line: str, stays: bool) -> None:
    left, _ = measure(["other", f"{LINE}\n\n{line}\n{LINE}"], Rules(c4=C4()))
    assert left[1].split("\n") == [LINE, *([line] if stays else []), LINE]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{LINE}\n{LINE}\n{LINE}", None),
        (f"{LINE}\n{LINE}\nthis line ends with no mark", "too few sentences"),
        ("We ate 3.5 pies here. Did she see? She said so!", None),
        ("We ate 3.5 pies here... Did she see the end?", "too few sentences"),
        (f"{LINE}\n{LINE}\nthe function starts with a {{ here.", "curly bracket"),
        (f"{LINE}\n{LINE}\nnow Lorem Ipsum dolor sit amet.", "lorem ipsum"),
    ],
)
def test_c4_documents(text: str, expected: str | None) -> None:
    assert reason(text, Rules(c4=C4())) == (f"c4: {expected}" if expected else None)


def test_c4_removes_the_marks_of_wikis() -> None:
    left, _ = measure([f"History [edit]\n{LINE}[1][23]\nit was[citation needed] said to be true.[]"], Rules(c4=C4()))
    assert left == [f"{LINE}\nit was said to be true."]
    (left,), _ = measure([f"{LINE[:-1]} [1]."], Rules(c4=C4(citations=False)))
    assert left == f"{LINE[:-1]} [1]."


def test_c4_drops_documents_with_the_words_of_a_list(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("Darn\nblue moon\n坏话\n\n", encoding="utf-8")
    rules = Rules(c4=C4(bad_words=str(tmp_path / "bad.txt"), sentences=1))
    listed = read_bad_words(rules)
    assert listed == ("darn", "blue moon", "坏话")
    texts = [f"{LINE} {end}" for end in ("darned it is.", "DARN it is.", "a blue moon it is.", "他说坏话了。")]
    _, signals = measure(texts, rules, listed)
    bad = "c4: bad words"
    assert reasons_to_drop(signals, bounds(rules, 1)) == [None, bad, bad, bad]
    with pytest.raises(UserError, match=r"cannot read .*none\.txt.*fix the path"):
        read_bad_words(Rules(c4=C4(bad_words=str(tmp_path / "none.txt"))))


def test_c4_follows_the_recipe() -> None:
    loose = C4(terminal_punctuation=False, words_per_line=3, sentences=1, boilerplate_lines=False, curly_brackets=False)
    text = "{ three words.\nuse cookies here\ntwo words"
    assert measure([text], Rules(c4=loose))[0] == ["{ three words.\nuse cookies here"]
    assert reason(text, Rules(c4=loose)) is None


WIDE = "here is a line of more than thirty characters"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # 3 of 25 lines end with punctuation: 0.12; 2 of 25: 0.08.
        ("\n".join([f"{WIDE} {n}." for n in range(3)] + [f"{WIDE} {n}" for n in range(3, 25)]), None),
        (
            "\n".join([f"{WIDE} {n}!" for n in range(2)] + [f"{WIDE} {n}" for n in range(2, 25)]),
            "too few punctuated lines",
        ),
        # 2 of 3 lines are short: 0.667; 3 of 4: 0.75. A line of 30 characters is short, one of 31 is not.
        ("\n".join(["it is a line of thirty in all.", "they all are short.", f"{WIDE}."]), None),
        ("\n".join(["it is a line of thirty1 in all.", "they are short.", "all of them are.", f"{WIDE}."]), None),
        ("\n".join(["it is a line of thirty in all.", "they are short.", "so are all.", f"{WIDE}."]), "short lines"),
        # A copied line of 5 characters among 500 is 0.01, of 6 more.
        ("\n".join(["a dog", "a dog", ("it is " * 82)[:489] + "."]), None),
        ("\n".join(["a dogs", "a dogs", ("it is " * 82)[:487] + "."]), "repeated lines"),
        # 3 newlines in 10 words are 0.3, 4 in 13 more.
        (f"{WIDE}.\n\n\none", None),
        (f"{WIDE}. one two three\n\n\n\nfour.", "newlines per word"),
    ],
)
def test_fineweb_at_both_sides_of_its_thresholds(text: str, expected: str | None) -> None:
    assert reason(text, Rules(fineweb=FineWeb())) == (f"fineweb: {expected}" if expected else None)


def test_every_set_names_its_reason_and_the_first_counts() -> None:
    assert reason("short", ALL) == "gopher quality: too few words"
    names = [bound.reason for bound in bounds(ALL, 5)]
    assert len(set(names)) == len(names) == 1 + 8 + 13 + 3 + 4
    _, signals = measure(["short", stop(*unlike(60))], ALL)
    assert {bound.signal for bound in bounds(ALL, 5)} <= set(signals)
    assert all(values.shape == (2,) and np.isfinite(values).all() for values in signals.values())


def test_measured_documents_are_cached_for_other_thresholds(tmp_path: Path) -> None:
    text = tmp_path / "file.txt"
    text.write_text(f"{LINE}\nno end\n{LINE}")
    split = InputSplit("part-00000", "s", "files", (str(text),), "text", None, True, 1)
    given = MeasureSettings(Rules(c4=C4()))
    path, key = tmp_path / "signals.parquet", cache_key(split, given)
    assert load(path, key) is None
    (first,) = store(measured_batches(split, given, StepTimer()), path, key)
    again = load(path, key)
    assert again is not None
    (second,) = again
    assert second.documents == first.documents
    assert second.documents[0].text == f"{LINE}\n{LINE}"
    assert second.languages == first.languages == [""]
    assert second.read_bytes == first.read_bytes == [2 * len(LINE) + 8]
    assert {name: values.tolist() for name, values in second.signals.items()} == {
        name: values.tolist() for name, values in first.signals.items()
    }
    assert cache_key(split, MeasureSettings(Rules(c4=C4(sentences=9), fineweb=FineWeb()))) == key
    assert cache_key(split, MeasureSettings(Rules(c4=C4(words_per_line=9)))) != key
    assert cache_key(split, MeasureSettings(Rules(c4=C4()), ("email",))) != key
    assert cache_key(split, MeasureSettings(Rules(c4=C4()), language=True)) != key
    assert cache_key(split, MeasureSettings(Rules(c4=C4()), bad_words=("darn",))) != key
    text.write_text("another text")
    assert cache_key(split, given) != key
    assert load(path, cache_key(split, given)) is None
