"""The recipe's section `corpus`: sources of text, quality rules, deduplication and the tokenizer."""

import codecs
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cluster.recipe.base import FunctionName, PathKind, Positive, PositiveFloat, Section, Share, check_origin
from cluster.recipe.functions.signature import TEXTS

KeepPolicy = Literal["longest", "source", "quality", "earlier_source"]
TokenizerKind = Literal["bpe", "wordpiece"]
PersonalData = Literal["email", "phone", "ip", "card", "iban"]


class Source(Section):
    """Text: files, or the output of a Python function."""

    kind: Literal["files", "function"] = Field("files", description="files to read, or a Python function to call")
    name: str | None = Field(None, description="the source's name in ids and statistics; unset: its path or function")
    path: Annotated[str | None, PathKind.FILES] = Field(
        None,
        description="for kind files: .txt, .md, .rst, .jsonl, .json, .csv, .tsv, .warc or .wet, each also as .gz or "
        ".zst, .parquet or .html; a file, folder or glob, on this machine or as a URI (s3://, gs://, hf://datasets/…)",
    )
    function: Annotated[FunctionName | None, TEXTS] = Field(
        None, description="for kind function: module:function(seed, **arguments) -> texts"
    )
    arguments: dict[str, Any] = Field({}, description="for kind function: keyword arguments, in addition to the seed")
    text_field: str = Field(
        "text",
        description="name of the field or column that holds the text; a.b is the field b of the objects in a, and line "
        "breaks join the strings of a list",
    )
    encoding: str = Field("utf-8", description="encoding of text, JSON and CSV; pages name their own")
    skip_other_files: bool = Field(
        False, description="whether most bytes of a folder may be in files of formats that are not read"
    )
    text_lines: bool = Field(False, description="read every line of a .txt file as a document of its own")
    subset: str | None = Field(
        None, description="for a folder laid out like a Hugging Face dataset: its configuration to read"
    )
    split: str | None = Field(None, description="for such a folder: its split to read, such as train; unset: all files")
    weight: PositiveFloat | None = Field(
        None,
        description="share of the training tokens, relative to the weights of the other sources: texts are repeated or "
        "left out to reach it; unset: every document once. All sources have a weight, or none",
    )
    near_duplicates: Literal["drop", "keep"] = Field(
        "drop", description="whether documents similar to another one are removed; exact copies always are"
    )
    limit: Positive | None = Field(None, description="the most documents to read; unset: all")
    license: str | None = Field(None, description="a tag that the statistics count by, such as CC-BY-4.0")

    _one_origin = model_validator(mode="after")(check_origin)

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str) -> str:
        try:
            return codecs.lookup(name).name
        except LookupError as error:
            raise ValueError(f"Python knows no encoding {name!r}; one is utf-8, cp1252 or euc-kr") from error

    @model_validator(mode="after")
    def _files_have_parts(self) -> "Source":
        if self.kind != "files" and (self.split or self.subset or self.text_lines):
            raise ValueError("split, subset and text_lines are for sources of kind files")
        return self


class GopherQuality(Section):
    """Gopher's quality rules: Rae et al. 2021, https://arxiv.org/abs/2112.11446, appendix A1.1."""

    min_words: Positive = Field(50, description="the fewest words of a document")
    max_words: Positive = Field(100_000, description="the most words of a document")
    min_mean_word_length: PositiveFloat = Field(3.0, description="lower bound of the mean characters per word")
    max_mean_word_length: PositiveFloat = Field(10.0, description="upper bound of the mean characters per word")
    symbols_per_word: Share = Field(0.1, description="upper bound of hash signs per word, and of ellipses per word")
    bullet_lines: Share = Field(0.9, description="upper bound of the share of lines that start with a bullet")
    ellipsis_lines: Share = Field(0.3, description="upper bound of the share of lines that end with an ellipsis")
    words_with_a_letter: Share = Field(0.8, description="lower bound of the share of words with a letter")
    stop_words: Annotated[int, Field(ge=0, le=8)] = Field(
        2,
        description="the fewest of the language's eight stop words: in English the, be, to, of, and, that, have, with",
    )


class GopherRepetition(Section):
    """Gopher's repetition rules: Rae et al. 2021, table A1. Each key is the largest share of a document."""

    duplicate_lines: Share = Field(0.3, description="share of lines that repeat an earlier line")
    duplicate_paragraphs: Share = Field(0.3, description="share of paragraphs that repeat an earlier paragraph")
    duplicate_line_characters: Share = Field(0.2, description="share of characters in repeated lines")
    duplicate_paragraph_characters: Share = Field(0.2, description="share of characters in repeated paragraphs")
    top_n_grams: Annotated[list[Share], Field(min_length=3, max_length=3)] = Field(
        [0.2, 0.18, 0.16], description="share of characters in the most frequent n-gram, for n = 2, 3, 4"
    )
    duplicate_n_grams: Annotated[list[Share], Field(min_length=6, max_length=6)] = Field(
        [0.15, 0.14, 0.13, 0.12, 0.11, 0.1], description="share of characters in repeated n-grams, for n = 5 to 10"
    )


class C4(Section):
    """C4's rules: Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.2. Lines are removed, then
    documents, then spans of sentences that the corpus repeats. One published rule is not in `c4: {}`: the list of bad
    words, which is named in bad_words."""

    terminal_punctuation: bool = Field(True, description="remove lines that do not end with a punctuation mark")
    words_per_line: Positive = Field(5, description="remove lines with fewer words")
    longest_word: Positive = Field(1000, description="remove lines with a word of more characters")
    boilerplate_lines: bool = Field(True, description="remove lines about JavaScript, cookies and terms of use")
    sentences: Positive = Field(3, description="the fewest sentences of a document, after lines are removed")
    curly_brackets: bool = Field(True, description="drop documents that contain a {")
    repeated_spans: bool = Field(
        True,
        description="leave only the first of spans of three sentences in a row that the corpus repeats, without case; "
        "sources with near_duplicates: keep are left as they are",
    )
    citations: bool = Field(True, description="remove the marks [1], [edit] and [citation needed] of wikis")
    bad_words: Annotated[str | None, PathKind.FILES] = Field(
        None,
        description="text file with a word or phrase a line; documents that contain one are dropped. C4 used the List "
        "of Dirty, Naughty, Obscene or Otherwise Bad Words of the document's language; unset: none",
    )


class FineWeb(Section):
    """FineWeb's rules: Penedo et al. 2024, https://arxiv.org/abs/2406.17557, section 3.6, with the thresholds of the
    code that made the data set."""

    punctuated_lines: Share = Field(0.12, description="lower bound of the share of lines that end with punctuation")
    short_lines: Share = Field(0.67, description="upper bound of the share of lines of at most 30 characters")
    duplicate_line_characters: Share = Field(
        0.01, description="upper bound of the share of characters in repeated lines; the paper says 0.1"
    )
    newlines_per_word: Annotated[float, Field(ge=0)] = Field(0.3, description="upper bound of line breaks per word")


class Rules(Section):
    """Published sets of quality rules, applied in this order. An empty section, `c4: {}`, takes a set as published."""

    gopher_quality: GopherQuality | None = Field(
        None, description="Gopher: lengths, symbols and stop words; unset: not applied"
    )
    gopher_repetition: GopherRepetition | None = Field(
        None, description="Gopher: repeated lines and n-grams; unset: not applied"
    )
    c4: C4 | None = Field(None, description="C4: lines and sentences; unset: not applied")
    fineweb: FineWeb | None = Field(None, description="FineWeb: punctuation and short lines; unset: not applied")

    @model_validator(mode="after")
    def _some(self) -> "Rules":
        if not (self.gopher_quality or self.gopher_repetition or self.c4 or self.fineweb):
            raise ValueError("no set of rules is named: add one, for example gopher_quality: {}")
        return self


class QualityClassifier(Section):
    """A linear classifier of hashed words that is trained on examples of good and bad text, and scores every document.
    A text in a language that the examples lack gets a score that says nothing."""

    good: Annotated[list[Source], Field(min_length=1)] = Field(
        description="examples of good text, such as encyclopedias and answers to questions"
    )
    bad: Annotated[list[Source], Field(min_length=1)] = Field(
        description="examples of ordinary or bad text, such as pages drawn from a crawl"
    )
    examples: Annotated[int, Field(ge=20)] = Field(
        5000, description="the most texts of each kind to train on: the first of its sources, an equal number of each"
    )
    min_score: Share = Field(
        0.5, description="lower bound of the score, the probability of being good if both kinds were equally frequent"
    )


class Decontaminate(Section):
    """Removal of documents that share n consecutive words with evaluation files (Brown et al. 2020, appendix C)."""

    files: Annotated[
        list[str],
        PathKind.FILES,
        Field(
            min_length=1,
            description="evaluation files: .json, .jsonl, .csv, .tsv or .parquet, or globs; those of evaluate.tasks "
            "are added",
        ),
    ]
    n: Positive = Field(13, description="how many consecutive words must match, ignoring case and punctuation")
    action: Literal["drop", "count"] = Field("drop", description="drop such documents, or only count them")


class Corpus(Section):
    """Gathering, cleaning, filtering, deduplicating, tokenizing and packing text."""

    sources: list[Source] = Field([], description="text to pre-train on; empty: no pre-training")
    rules: Rules | None = Field(
        None, description="published sets of quality rules; unset: min_words and four mild rules that short texts pass"
    )
    classifier: QualityClassifier | None = Field(
        None, description="quality classifier, trained on examples when the stage starts; unset: none"
    )
    languages: list[str] = Field([], description="ISO 639-1 codes of the languages to keep; empty: all")
    language_probability: Share = Field(
        0.65, description="with languages: the least probability of being in one of them (0.65 is FineWeb's)"
    )
    personal_data: list[PersonalData] = Field([], description="kinds of personal data to replace with placeholders")
    extractor: Literal["resiliparse", "trafilatura"] = Field(
        "resiliparse",
        description="library that extracts the main text of web pages; trafilatura takes 20 times as long",
    )
    page_seconds: PositiveFloat = Field(10.0, description="processor seconds after which a web page is given up")
    max_bad_share: Share = Field(
        0.01,
        description="share of a source's records, and of its bytes, that may be unreadable; with more, the stage "
        "fails. A file that ends early counts whole, since nobody knows how much of it is missing",
    )
    keep_excluded: bool = Field(
        False, description="write the documents that the rules drop to excluded/, each with its reason"
    )
    held_out_share: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.02, description="share of the documents that are held out of training, to measure the loss on"
    )
    min_words: Positive = Field(5, description="the fewest words of a document, whatever the rules")
    near_duplicate_similarity: Share = Field(
        0.8, description="Jaccard similarity of 5-word shingles from which documents are near-duplicates (MinHash)"
    )
    keep_policy: KeepPolicy = Field(
        "longest",
        description="the near-duplicate to keep: the longest; the one of the source listed first; the one of best "
        "quality (lines that end with punctuation); earlier_source drops a document only if an earlier source or "
        "corpus has a near-duplicate",
    )
    previous_corpora: Annotated[list[str], PathKind.STAGE] = Field(
        [], description="corpus folders of earlier runs; documents that are in one of them are dropped"
    )
    decontaminate: Decontaminate | None = Field(
        None, description="removal of documents that contain evaluation text; unset: none"
    )
    tokenizer: TokenizerKind = Field(
        "bpe", description="kind of tokenizer to train on the corpus; with model.start_from, that model's own is used"
    )

    @model_validator(mode="after")
    def _weights_of_all_or_none(self) -> "Corpus":
        if len({source.weight is None for source in self.sources}) == 2:
            raise ValueError("give every source a weight, or none")
        return self
