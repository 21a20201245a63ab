"""The recipe's corpus section: sources, and the rules by which documents are judged."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cluster.recipe.base import FunctionName, Place, Positive, PositiveFloat, Section, Share, needs_its_origin

KeepPolicy = Literal["longest", "source", "quality", "earlier_source"]
TokenizerKind = Literal["bpe", "wordpiece"]
PersonalData = Literal["email", "phone", "ip", "card", "iban"]


class Source(Section):
    """Text to pre-train on: files, or what a Python function gives."""

    kind: Literal["files", "function"] = Field("files", description="files to read, or a Python function to call")
    name: str | None = Field(None, description="in ids and statistics; the path or the function by default")
    path: Annotated[str | None, Place.FILES] = Field(
        None,
        description="for kind files: .txt, .jsonl[.gz|.zst], .parquet, .html, .warc[.gz]; a folder or glob, here or as "
        "a URI: s3://, gs://, hf://datasets/…",
    )
    function: FunctionName | None = Field(
        None, description="for kind function: module:function(seed, **arguments) -> texts"
    )
    arguments: dict[str, Any] = Field({}, description="for kind function: its keyword arguments besides the seed")
    text_field: str = Field("text", description="the field of a row, or the column, that holds the text")
    text_lines: bool = Field(False, description="every line of a .txt file is a document of its own")
    subset: str | None = Field(None, description="of a folder laid out like a Hugging Face dataset, the configuration")
    split: str | None = Field(None, description="of such a folder, the split to read, e.g. train; all files by default")
    weight: PositiveFloat | None = Field(None, description="share of the tokens to train on, relative to the others'")
    near_duplicates: Literal["drop", "keep"] = Field("drop", description="documents much like another one")
    limit: Positive | None = Field(None, description="most documents to take")
    license: str | None = Field(None, description="a tag for the statistics, e.g. CC-BY-4.0")

    _one_origin = model_validator(mode="after")(needs_its_origin)

    @model_validator(mode="after")
    def _files_have_parts(self) -> "Source":
        if self.kind != "files" and (self.split or self.subset or self.text_lines):
            raise ValueError("split, subset and text_lines are for sources of kind files")
        return self


class GopherQuality(Section):
    """Rae et al. 2021, https://arxiv.org/abs/2112.11446, appendix A1.1. Shares are of words or of lines."""

    min_words: Positive = Field(50, description="least words of a document")
    max_words: Positive = Field(100_000, description="most words of a document")
    min_mean_word_length: PositiveFloat = Field(3.0, description="least characters a word, on average")
    max_mean_word_length: PositiveFloat = Field(10.0, description="most characters a word, on average")
    symbols_per_word: Share = Field(0.1, description="most hashes, and most ellipses, a word")
    bullet_lines: Share = Field(0.9, description="most lines that start with a bullet")
    ellipsis_lines: Share = Field(0.3, description="most lines that end with an ellipsis")
    words_with_a_letter: Share = Field(0.8, description="least share of words with a letter")
    stop_words: Annotated[int, Field(ge=0, le=8)] = Field(2, description="least of the, be, to, of, and, that, …")


class GopherRepetition(Section):
    """Rae et al. 2021, table A1: the largest shares of a document that may repeat."""

    duplicate_lines: Share = Field(0.3, description="lines that repeat an earlier one")
    duplicate_paragraphs: Share = Field(0.3, description="paragraphs that repeat an earlier one")
    duplicate_line_characters: Share = Field(0.2, description="characters in such lines")
    duplicate_paragraph_characters: Share = Field(0.2, description="characters in such paragraphs")
    top_n_grams: Annotated[list[Share], Field(min_length=3, max_length=3)] = Field(
        [0.2, 0.18, 0.16], description="characters in the most frequent n-gram, for n = 2, 3, 4"
    )
    duplicate_n_grams: Annotated[list[Share], Field(min_length=6, max_length=6)] = Field(
        [0.15, 0.14, 0.13, 0.12, 0.11, 0.1], description="characters in n-grams that repeat, for n = 5 to 10"
    )


class C4(Section):
    """Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.2. Takes lines out, then judges what is left."""

    terminal_punctuation: bool = Field(True, description="take out lines that no punctuation mark ends")
    words_per_line: Positive = Field(5, description="take out lines with fewer words")
    longest_word: Positive = Field(1000, description="take out lines with a longer word")
    boilerplate_lines: bool = Field(True, description="take out lines about JavaScript, cookies and terms of use")
    sentences: Positive = Field(3, description="least sentences of a document")
    curly_brackets: bool = Field(True, description="drop documents with a {")


class FineWeb(Section):
    """Penedo et al. 2024, https://arxiv.org/abs/2406.17557, section 3.6."""

    punctuated_lines: Share = Field(0.12, description="least share of lines that end with punctuation")
    short_lines: Share = Field(0.67, description="most lines of at most 30 characters")
    duplicate_line_characters: Share = Field(0.01, description="most characters in lines that repeat an earlier one")
    newlines_per_word: Annotated[float, Field(ge=0)] = Field(0.3, description="most line breaks a word")


class Rules(Section):
    """Published sets of quality rules, in the order in which they are applied; `{}` takes a set as published."""

    gopher_quality: GopherQuality | None = Field(None, description="lengths, symbols and stop words (Gopher)")
    gopher_repetition: GopherRepetition | None = Field(None, description="repeated lines and n-grams (Gopher)")
    c4: C4 | None = Field(None, description="lines and sentences (C4)")
    fineweb: FineWeb | None = Field(None, description="punctuation and short lines (FineWeb)")

    @model_validator(mode="after")
    def _some(self) -> "Rules":
        if not (self.gopher_quality or self.gopher_repetition or self.c4 or self.fineweb):
            raise ValueError("no set of rules is named: write for example gopher_quality: {}")
        return self


class Decontaminate(Section):
    """Documents that share a run of words with evaluation files, as in Brown et al. 2020, appendix C."""

    files: Annotated[list[str], Place.FILES, Field(min_length=1, description=".json, .jsonl or .csv")]
    n: Positive = Field(13, description="words of a run, without case and punctuation")
    action: Literal["drop", "count"] = Field("drop", description="leave such documents out, or only count them")


class Corpus(Section):
    sources: list[Source] = Field([], description="text to pre-train on")
    rules: Rules | None = Field(None, description="a few mild rules, fit for short texts, by default")
    languages: list[str] = Field([], description="ISO 639-1 codes; drop documents in none of them; all pass by default")
    language_probability: Share = Field(0.65, description="least probability of the language (0.65: FineWeb)")
    personal_data: list[PersonalData] = Field([], description="kinds to replace: email, phone, ip, card, iban")
    extractor: Literal["resiliparse", "trafilatura"] = Field(
        "resiliparse", description="what takes the main text from web pages; trafilatura takes 20 times as long"
    )
    page_seconds: PositiveFloat = Field(10.0, description="processor time after which a web page is left out")
    max_bad_share: Share = Field(0.01, description="records of a source that cannot be read, above which to stop")
    keep_excluded: bool = Field(False, description="write what the rules drop to excluded/, each with its reason")
    held_out_share: Annotated[float, Field(gt=0, le=0.5)] = Field(0.02, description="documents not trained on")
    min_words: Positive = Field(5, description="least words of a document, where no rules are named")
    near_duplicate_similarity: Share = Field(0.8, description="Jaccard similarity of 5-word shingles (MinHash)")
    keep_policy: KeepPolicy = Field(
        "longest",
        description="which of near-duplicates stays; earlier_source drops only what an earlier source or corpus has",
    )
    previous_corpora: Annotated[list[str], Place.STAGE] = Field(
        [], description="corpus folders of earlier runs: what they have is dropped"
    )
    decontaminate: Decontaminate | None = Field(None, description="leave out documents that hold evaluation text")
    tokenizer: TokenizerKind = Field("bpe", description="trained on the corpus unless the model to start from has one")

    @model_validator(mode="after")
    def _weights_of_all_or_none(self) -> "Corpus":
        if len({source.weight is None for source in self.sources}) == 2:
            raise ValueError("give every source a weight, or none")
        return self
