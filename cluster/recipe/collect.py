"""The recipe's sections on conversations: those to fine-tune on, and those whose answers are ranked."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cluster.recipe.base import Call, FunctionName, Place, Positive, Section, Temperature, needs_its_origin


class ChatSource(Section):
    """Conversations to fine-tune on, or prompts to sample from."""

    kind: Literal["files", "function"] = Field("files", description="files to read, or a Python function to call")
    path: Annotated[str | None, Place.FILES] = Field(
        None, description="for kind files: JSONL, JSON or Parquet in a common layout of conversations"
    )
    function: FunctionName | None = Field(
        None, description="for kind function: module:function(seed, **arguments) -> rows as files have them"
    )
    arguments: dict[str, Any] = Field({}, description="for kind function: its keyword arguments besides the seed")

    _one_origin = model_validator(mode="after")(needs_its_origin)


class Collect(Section):
    sources: Annotated[list[ChatSource], Field(min_length=1)] = Field(description="prompts, in any layout of sft")
    prompts: Positive = Field(700, description="how many are ranked and trained on; evaluate takes of the others")
    samples_per_prompt: Annotated[int, Field(ge=2, le=9)] = Field(4, description="answers to rank, of each prompt")
    temperature: Temperature = Field(1.0, description="divides the logits before an answer's tokens are drawn")
    max_tokens: Positive = Field(32, description="longest answer")
    annotator: Literal["people", "imported"] | Call = Field(
        "people",
        description="people: waits for their rankings; imported: takes what `triptych feedback import` added and "
        "samples nothing; or a synthetic annotator, module:function(prompt, answers, chance, **arguments)",
    )
    min_rankings: Positive = Field(100, description="rankings to wait for where people give them")
    held_out_share: Annotated[float, Field(gt=0, le=0.5)] = Field(0.15, description="prompts to test the reward model")
