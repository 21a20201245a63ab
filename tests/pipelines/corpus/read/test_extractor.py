"""The process that extracts the text of pages: it dies, hangs and ends without harm to other pages."""

import pytest

from pipelines.corpus.read.extractor import ExtractionError, Extractor


def test_a_parser_that_dies_is_restarted() -> None:
    with Extractor(10) as extract:
        assert extract(b"<p>one") == "one"
        assert extract._process is not None
        extract._process.kill()
        with pytest.raises(ExtractionError, match=r"ended the parser \(exit code -9\)"):
            extract(b"<p>two")
        assert extract(b"<p>three") == "three"
        process = extract._process
    assert process is not None
    assert process.poll() is not None


@pytest.mark.slow
def test_pages_sent_ahead_are_answered_in_order_and_only_those_that_end_the_parser_are_lost() -> None:
    nested = b"<div>" * 20_000 + b"x"
    # More than a socket takes at once, in pages of which some do not fit into it themselves.
    pages = [b"<p>" + b"%d " % number * (1 + 40_000 * (number % 10 == 0)) for number in range(200)]
    bad = (0, 50, 51, 120)
    for number in bad:
        pages[number] = nested
    with Extractor(0.5) as extract:
        requests = [extract.request(page) for page in pages]
        for number, page in enumerate(requests):
            if number in bad:
                with pytest.raises(ExtractionError, match=r"takes more than 0\.5 s"):
                    page.text()
            else:
                assert set(page.text().split()) == {str(number)}


def test_the_parser_ends_although_pages_are_waiting(capfd: pytest.CaptureFixture[str]) -> None:
    with Extractor(10) as extract:
        for _ in range(50):
            extract.request(b"<p>here" * 500)
        process = extract._process
    assert process is not None
    assert process.poll() == 0
    assert capfd.readouterr().err == ""
