"""The recipe's section `loop`: when the next round is made, and what decides on it."""

from typing import Annotated, Literal

from pydantic import Field

from cluster.recipe.base import Positive, PositiveFloat, Section

# The gates of pipelines.loop.gates, by name.
Gate = Literal["agreement", "chance", "accuracy", "probes"]


class Loop(Section):
    """`triptych loop`: judgements become the next policy, which takes over if it passes."""

    min_new: Positive = Field(20, description="new or removed judgements to wait for before the next round is made")
    accept_gates: list[Gate] = Field(
        [], description="gates whose failure is noted and does not end the round; see infra/docs/loop.md"
    )
    promote_if: Literal["better", "not worse"] = Field(
        "better",
        description="how the new policy's rewards have to compare with the live one's, by a paired 95% interval on "
        "held-out prompts. No figure of the exam may be worse beyond chance",
    )
    approve: Literal["nobody", "people"] = Field(
        "nobody",
        description="people: a policy that passes waits for a click on the page /runs, or for `triptych loop RUN "
        "approve` or `refuse`",
    )
    canary_share: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0,
        description="share of the requests for the alias `latest` that a new policy answers on trial before it is "
        "promoted; 0: no trial. `triptych serve` has to be started with it, and keeps one more model in memory",
    )
    canary_minutes: PositiveFloat = Field(60, description="how long a trial lasts")
    canary_thumbs: Positive = Field(
        20,
        description="thumbs on the new policy's answers, and votes between it and the live one, after which its trial "
        "ends before the time",
    )
