"""The recipe's section `collect`, and the source of conversations that it shares with `sft`."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cluster.recipe.base import (
    Call,
    FunctionName,
    PathKind,
    Positive,
    PositiveFloat,
    Section,
    Temperature,
    check_origin,
)
from cluster.recipe.functions.signature import ANNOTATOR, ROWS


class ChatSource(Section):
    """Conversations to fine-tune on, or prompts to sample answers to."""

    kind: Literal["files", "function", "live"] = Field(
        "files",
        description="files to read, a Python function to call, or, in collect.sources, the prompts of live traffic "
        "that a server stored by consent (serve.record); these are asked beside collect.prompts others",
    )
    path: Annotated[str | None, PathKind.FILES] = Field(
        None,
        description="for kind files: a path or glob of JSONL, CSV, TSV, JSON or Parquet. Rows hold messages, "
        "conversations (ShareGPT), instruction and output (Alpaca), prompt and response, or question and answer",
    )
    function: Annotated[FunctionName | None, ROWS] = Field(
        None, description="for kind function: module:function(seed, **arguments) -> rows, as dictionaries"
    )
    arguments: dict[str, Any] = Field({}, description="for kind function: keyword arguments, in addition to the seed")
    limit: Positive = Field(
        200, description="for kind live: the most prompts that a round adds to those asked before, the newest"
    )

    _one_origin = model_validator(mode="after")(check_origin)


class Select(Section):
    """Which of the sampled prompts people are asked first, once a round has trained a reward model."""

    by: Literal["disagreement", "uncertainty"] = Field(
        "disagreement",
        description="disagreement: variance over the members of the reward model of the probability that one answer is "
        "preferred, mean over pairs of answers (Christiano et al. 2017, section 2.2.4); needs reward.members of 2 or "
        "more; uncertainty: how near that probability is to one half, p(1 - p), for a reward model of one member too",
    )
    random_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.25,
        description="share of the training prompts that come at random, as all held-out ones do, so that people's "
        "agreement and the reward model's accuracy are measured on prompts that were not chosen",
    )


class Collect(Section):
    """Human feedback: the fine-tuned model answers each prompt several times, and annotators rank the answers."""

    sources: Annotated[list[ChatSource], Field(min_length=1)] = Field(
        description="prompts; of a conversation, all before its last answer. RLHF trains on the same prompts, unless "
        "rlhf.sources names others"
    )
    prompts: Positive = Field(
        700,
        description="how many prompts of the sources to use, for rankings and, without rlhf.sources, for RLHF; "
        "evaluate uses others",
    )
    samples_per_prompt: Annotated[int, Field(ge=2, le=9)] = Field(4, description="answers sampled to each prompt")
    temperature: Temperature = Field(1.0, description="sampling temperature: divides the logits")
    redraws: Annotated[int, Field(ge=0, le=5)] = Field(
        1,
        description="how often a prompt whose answers are all identical is sampled again, each time at 1.5 times the "
        "temperature",
    )
    max_tokens: Positive = Field(32, description="the most tokens of an answer")
    annotator: Annotated[Literal["people", "imported"] | Call, ANNOTATOR] = Field(
        "people",
        description="people: wait for rankings made on the server's page /label; imported: sample nothing and use the "
        "rankings that `triptych feedback import` added; or a function that stands in for people, "
        "module:function(prompt, answers, chance, **arguments) -> ranks",
    )
    min_rankings: Positive = Field(
        100,
        description="for annotator people: rankings to wait for. Prompts whose answers are all identical do not count",
    )
    select: Select | None = Field(
        None,
        description="have people asked first what teaches most; unset: prompts come at random. A change makes no stage "
        "anew: it decides what comes next",
    )
    max_failed_rankings: Annotated[float, Field(ge=0, le=1)] = Field(
        0.05,
        description="for a function as annotator: the largest share of prompts that it may fail on, three times each. "
        "These are left out; above it the stage stops",
    )
    timeout_seconds: PositiveFloat = Field(
        60, description="for a function as annotator: the most seconds to rank the answers to one prompt"
    )
    at_once: Positive = Field(
        1,
        description="for a function as annotator: how many prompts it is called for side by side. More than 1 pays for "
        "a function that waits, such as for a server: it is called in threads, where timeout_seconds cannot end a "
        "computation that keeps Python busy, such as a regular expression; the calls of an async def function are "
        "awaited on one event loop, and canceled by timeout_seconds",
    )
    held_out_share: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.15, description="share of the prompts whose rankings test the reward model instead of training it"
    )

    @model_validator(mode="after")
    def _something_to_select(self) -> "Collect":
        if self.select and self.annotator == "imported":
            raise ValueError("select chooses what people are asked, and annotator imported asks nobody: remove one")
        return self
