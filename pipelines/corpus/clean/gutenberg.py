"""Takes the header and the license off Project Gutenberg's books, in the forms they have had since the 1990s."""

import re

_NAME = "Project Gutenberg"
# *** START OF THIS PROJECT GUTENBERG EBOOK ALICE ***, and before 2004 the end of the "small print".
_START = re.compile(
    r"^(?:\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG E(?:BOOK|TEXT)\b[^*]{0,400}\*\*\*"
    r"|\*END ?\*? ?THE SMALL PRINT![^\n]*\*END\*)[^\S\n]*$",
    re.MULTILINE,
)
_END = re.compile(
    r"^(?:\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG E(?:BOOK|TEXT)\b"
    r"|End of (?:the |this )?Project Gutenberg(?:'s|’s| E(?:Book|text))\b)",
    re.MULTILINE | re.IGNORECASE,
)
# Who made the text, a paragraph of its own at the start.
_CREDITS = re.compile(
    r"\s*(?:E-?text |This e-?text was )?(?:prepared|produced) by\b.*?(?:\n[^\S\n]*\n|\Z)", re.I | re.S
)
_CREDITS_WITHIN = 2000


def without_license(text: str) -> str:
    """The book alone; any other text as it is."""
    if _NAME not in text and _NAME.upper() not in text:
        return text
    start = _START.search(text)
    # Without the mark at its start, a text is taken for one that speaks of the project.
    if not start:
        return text
    end = _END.search(text, start.end())
    book = text[start.end() : end.start() if end else len(text)]
    made_by = _CREDITS.match(book[:_CREDITS_WITHIN])
    return (book[made_by.end() :] if made_by else book).strip()
