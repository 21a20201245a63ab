"""The recipe's section on evaluation."""

from pydantic import Field

from cluster.recipe.base import Call, Positive, Section
from cluster.recipe.corpus import Source


class Evaluate(Section):
    exam: Call | None = Field(None, description="module:function(seed, **arguments) -> pipelines.evaluate.exam.Exam")
    max_tokens: Positive = Field(32, description="of an answer to the exam's questions")
    prompts: Positive = Field(200, description="prompts of collect.sources, kept back from RLHF, to reward answers to")
    samples_per_prompt: Positive = Field(2, description="answers to each of these, by every model")
    text: list[Source] = Field([], description="to measure perplexity on; by default what the corpus held out")
    text_tokens: Positive = Field(20_000, description="the most of it that is read")
