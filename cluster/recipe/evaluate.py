"""The recipe's section `evaluate`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from cluster.recipe.base import NAME_PATTERN, Call, PathKind, Positive, PositiveFloat, Section, Share
from cluster.recipe.corpus import Source
from cluster.recipe.functions.signature import EXAM

# The tasks of pipelines.evaluate.tasks.built_in, by name.
BuiltInTask = Literal[
    "bits_per_byte", "minimal_pairs", "cloze", "instructions", "refusal", "sycophancy", "truth", "built_in"
]

# The default of `TaskFile.max_bad_share`.
MAX_BAD_SHARE = 0.01


class TaskFile(Section):
    """A benchmark in a file, in a published layout, which is recognized by the fields of its first row."""

    kind: Literal["choice", "generate", "pairs", "perplexity"] = Field(
        description="choice: TruthfulQA, HHH, BIG-bench, HellaSwag, ARC, MMLU; generate: GSM8K, or prompt and answer; "
        "pairs: RewardBench, HH, LLMBar, BLiMP; perplexity: rows with a text"
    )
    path: Annotated[str, PathKind.FILES] = Field(description="a .json, .jsonl, .csv, .tsv or .parquet file, or a glob")
    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = Field(
        None, description="the task's name in the report; unset: the file's name without its suffix"
    )
    metric: Literal["accuracy", "normalized"] | None = Field(
        None,
        description="for kinds choice and pairs: compare options by log-probability, or by that per character; unset: "
        "as is usual with the layout",
    )
    limit: Positive | None = Field(None, description="the most rows to ask; unset: all")
    max_tokens: Positive = Field(64, description="for kind generate: the most tokens of an answer")
    max_bad_share: Share = Field(
        MAX_BAD_SHARE,
        description="share of the file's rows that cannot be used and are left out, each of which is named with file "
        "and line; with more, the stage fails",
    )


class Evaluate(Section):
    """The comparison of the base, fine-tuned and reinforced model, on data that they were not trained on."""

    exam: Annotated[Call | None, EXAM] = Field(
        None,
        description="questions with a grader: module:function(seed, **arguments) -> pipelines.evaluate.exam.Exam; "
        "unset: models are compared by reward and perplexity alone",
    )
    max_failed_gradings: Share = Field(
        0.05,
        description="largest share of a model's answers to the exam on which its grader may fail, by an exception in "
        "three attempts or by taking too long. Such questions are left out for all models and named in the report; "
        "beyond it the stage stops",
    )
    timeout_seconds: PositiveFloat = Field(60, description="the most seconds for the exam's grading of one answer")
    tasks: list[BuiltInTask | TaskFile] = Field(
        [],
        description="tasks for every model: names of built-in ones, which need no files (built_in: all of them), and "
        "benchmarks in files",
    )
    decontaminate: bool = Field(
        True,
        description="whether the corpus stage leaves out documents that share text with the files of tasks, as with "
        "corpus.decontaminate; set it to false to add tasks to a finished run without making its corpus again",
    )
    max_tokens: Positive = Field(32, description="the most tokens of an answer to a question of the exam")
    prompts: Positive = Field(
        200,
        description="the most prompts of collect.sources to compare rewards on; neither ranked nor trained on by RLHF",
    )
    samples_per_prompt: Positive = Field(2, description="answers that each model samples to each of these prompts")
    text: list[Source] = Field([], description="text to measure perplexity on; empty: the corpus's held-out documents")
    text_tokens: Positive = Field(20_000, description="the most tokens of text to measure perplexity on")


def add_task_files(given: dict[str, Any]) -> dict[str, Any]:
    """Adds the files of `evaluate.tasks` to `corpus.decontaminate`, in a recipe before its validation.

    Nothing is added without `corpus.sources`, with `evaluate.decontaminate: false`, or where a section is malformed,
    which validation reports.
    """
    evaluate, corpus = given.get("evaluate"), given.get("corpus")
    if not isinstance(evaluate, dict) or not isinstance(corpus, dict) or not corpus.get("sources"):
        return given
    tasks, wanted = evaluate.get("tasks"), evaluate.get("decontaminate", True)
    paths = [task.get("path") for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []
    own = corpus.get("decontaminate") or {}
    if not paths or wanted is not True or not isinstance(own, dict) or not isinstance(own.get("files", []), list):
        return given
    files = list(dict.fromkeys([*own.get("files", []), *(path for path in paths if isinstance(path, str))]))
    return {**given, "corpus": {**corpus, "decontaminate": {**own, "files": files}}}
