"""The README and the pages of infra/docs as tests read them: fenced blocks, links, inline code and headings."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import ROOT

DOCS = ROOT / "infra" / "docs"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: the language after its fence ("" if none), and its text."""

    page: str
    language: str
    text: str


@dataclass(frozen=True)
class Page:
    """A Markdown file, named by its path below the repository."""

    name: str

    @property
    def path(self) -> Path:
        return ROOT / self.name

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def prose(self) -> str:
        """The page without its fenced blocks."""
        return FENCE.sub("", self.text)

    def blocks(self, *languages: str) -> list[Block]:
        """Returns the fenced blocks in these languages, in order."""
        return [Block(self.name, *found) for found in FENCE.findall(self.text) if found[0] in languages]

    def links(self) -> list[str]:
        """Returns the targets of all links and images."""
        return re.findall(r"\]\(([^)\s]+)\)", self.prose)

    def code(self) -> list[str]:
        """Returns the texts in backticks outside of fenced blocks."""
        return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", self.prose)]

    def anchors(self) -> set[str]:
        """Returns the anchors that GitHub gives the headings."""
        headings = re.findall(r"^#+ (.+)$", self.prose, flags=re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    def commands(self) -> list[list[str]]:
        """Returns the words of every command in the sh and console blocks, without its prompt, comment and variables.

        Requests by curl are left to another test.
        """
        found = []
        for block in self.blocks("sh", "console"):
            for line in [] if block.text.startswith("curl ") else block.text.splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words:
                    found.append(words)
        return found


README = Page("README.md")
PAGES = [README, *(Page(f"infra/docs/{path.name}") for path in sorted(DOCS.glob("*.md")))]
EXAMPLE = DOCS / "examples" / "own"


def python_modules() -> dict[str, tuple[str, str]]:
    """Returns every Python block that begins with `# NAME.py: KIND`, as NAME to its kind and text."""
    found = {}
    for page in PAGES:
        for block in page.blocks("python"):
            if named := re.match(r"# (\w+)\.py: (\w+)\n", block.text):
                assert named[1] not in found, f"{page.name}: {named[1]}.py is there twice"
                found[named[1]] = (named[2], block.text)
    return found
