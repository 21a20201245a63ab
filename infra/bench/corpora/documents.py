"""Generates documents and web pages for benches from the sentences of the package randfacts and a seed."""

import html
import json
import random
from collections.abc import Iterator
from pathlib import Path

import randfacts

BYTES = 4000
# Every how many documents one is a near-copy of its predecessor, repeats a line, or is a list of short lines.
NEAR, REPEATED, LISTED = 20, 25, 40


def documents(count: int, seed: int = 1) -> Iterator[str]:
    """Generates texts of about 4 KB with paragraphs of three to six sentences, low-quality ones and near-duplicates."""
    rng = random.Random(seed)
    sentences = sorted({fact if fact.endswith((".", "!", "?")) else f"{fact}." for fact in randfacts.safe_facts})
    text = ""
    for number in range(count):
        if number % NEAR == NEAR - 1:
            text = f"{text} {rng.choice(sentences)}"
        elif number % REPEATED == REPEATED - 1:
            text = "\n".join([rng.choice(sentences)] * (BYTES // 100))
        elif number % LISTED == LISTED - 1:
            text = "\n".join(f"- {rng.choice(sentences)[:20]}" for _ in range(BYTES // 25))
        else:
            paragraphs, size = [], 0
            while size < BYTES:
                paragraphs.append(" ".join(rng.choices(sentences, k=rng.randint(3, 6))))
                size += len(paragraphs[-1])
            text = "\n\n".join(paragraphs)
        yield text


def write_lines(path: Path, texts: Iterator[str]) -> Path:
    """Writes texts to a JSONL file; returns its path."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps({'text': text}, ensure_ascii=False)}\n" for text in texts)
    return path


def page(text: str) -> bytes:
    """Renders a text as a web page of about 25 KB with a menu, a sidebar, a footer, styles and a script."""
    menu = "".join(
        f'<li class="item"><a href="/{number}/index.html">Section {number}</a></li>' for number in range(100)
    )
    script = "".join(f"function f{number}(x) {{ return x * {number}; }}\n" for number in range(150))
    body = "".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in text.split("\n\n"))
    return (
        '<!DOCTYPE html><html><head><meta charset="utf-8"><title>A page</title><style>p {margin: 1em}</style>'
        f"<script>{script}</script></head>"
        f"<body><nav><ul>{menu}</ul></nav><main><article><h1>Facts</h1>{body}</article></main>"
        f"<aside><ul>{menu}</ul></aside><footer>All rights reserved. <a href='/terms'>Terms</a></footer></body></html>"
    ).encode()
