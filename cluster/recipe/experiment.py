"""The recipe's section `experiment`: variants of the corpus, and the small models that tell which of them helps."""

from typing import Annotated, Any

from pydantic import Field

from cluster.recipe.base import NAME_PATTERN, SMALL_SIZE_PATTERN, Positive, PositiveFloat, Section
from cluster.recipe.corpus import Source

# The name of the corpus as the recipe has it, among the variants.
AS_IT_IS = "recipe"
VariantName = Annotated[str, Field(pattern=NAME_PATTERN)]


class Experiment(Section):
    """`triptych experiment`: small models, each trained on a variant of the corpus, are compared on other text.

    All are trained on equally many tokens, as in DataComp-LM (Li et al. 2024, https://arxiv.org/abs/2406.11794) and
    CLIMB (Diao et al. 2025, https://arxiv.org/abs/2504.13161)."""

    target: Annotated[list[Source], Field(min_length=1)] = Field(
        description="text of the kind that the model is to be good at, on which the small models are compared. "
        "Documents that share 13 words in a row with it are left out of every variant"
    )
    variants: Annotated[dict[VariantName, dict[str, Any]], Field(min_length=1)] = Field(
        description="by name, the keys of corpus that differ, such as sources, rules or languages, each with its whole "
        "value; every variant is compared with the corpus as the recipe has it, which is called recipe"
    )
    size: str = Field("400K", pattern=SMALL_SIZE_PATTERN, description="approximate number of parameters of a model")
    vocabulary: Annotated[int, Field(ge=300)] = Field(
        2048, description="size of the tokenizer of each variant; losses are compared by byte of text"
    )
    context: Annotated[int, Field(ge=32)] = Field(256, description="tokens of a training row")
    tokens: Positive = Field(
        500_000, description="tokens that each model is trained on; a variant that has fewer is read several times"
    )
    batch_rows: Positive = Field(8, description="rows of an optimizer step")
    learning_rate: PositiveFloat = Field(3e-3, description="peak learning rate of AdamW")
    seeds: Annotated[int, Field(ge=2)] = Field(
        5, description="models a variant, which differ in their first weights and in the order of the text"
    )
    target_documents: Annotated[int, Field(ge=2)] = Field(200, description="the first documents of target to use")
