"""What the sections of a recipe share: strict fields, no unknown keys, and the common types."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
# vLLM refuses more.
Temperature = Annotated[float, Field(gt=0, le=2)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Lora(Section):
    """Low-rank adapters beside every linear layer, trained in its place (Hu et al. 2022)."""

    rank: Positive = 16
    alpha: Positive = Field(32, description="the adapter's output is scaled by alpha / rank")
