"""The recipe's section `evaluate`."""

from pydantic import Field

from cluster.recipe.base import Call, Positive, Section
from cluster.recipe.corpus import Source


class Evaluate(Section):
    """The comparison of the base, fine-tuned and reinforced model, on data that they were not trained on."""

    exam: Call | None = Field(
        None,
        description="questions with a grader: module:function(seed, **arguments) -> pipelines.evaluate.exam.Exam; "
        "unset: models are compared by reward and perplexity alone",
    )
    max_tokens: Positive = Field(32, description="the most tokens of an answer to a question of the exam")
    prompts: Positive = Field(
        200, description="the most prompts of collect.sources, beyond those that RLHF trains on, to compare rewards on"
    )
    samples_per_prompt: Positive = Field(2, description="answers that each model samples to each of these prompts")
    text: list[Source] = Field([], description="text to measure perplexity on; empty: the corpus's held-out documents")
    text_tokens: Positive = Field(20_000, description="the most tokens of text to measure perplexity on")
