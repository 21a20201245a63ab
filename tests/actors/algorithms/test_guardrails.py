"""How far a policy may go."""

from actors.algorithms.guardrails import breach, has_limits, is_within
from cluster.recipe.rlhf import LIMITS, Rlhf


def test_limits_are_named_and_none_is_set_unless_asked():
    figures = {"kl_sequence": 5.0, "entropy": 0.01, "repetition": 0.4}
    assert breach(figures, Rlhf()) is None
    assert "entropy was 0.010 nats a token, and rlhf.minimum_entropy is 0.02" in (
        breach(figures, Rlhf(kl_budget=5.0, minimum_entropy=0.02)) or ""
    )
    assert breach(figures, Rlhf(kl_budget=5.0, minimum_entropy=0.01)) is None
    assert "was 5.00 nats an answer away from the fine-tuned model, and rlhf.kl_budget is 4.9" in (
        breach(figures, Rlhf(kl_budget=4.9)) or ""
    )
    assert "0.40 of the policy's answers had stood in them before, and rlhf.maximum_repetition is 0.3" in (
        breach(figures, Rlhf(maximum_repetition=0.3)) or ""
    )
    assert breach(figures, Rlhf(maximum_repetition=0.4)) is None
    for times in (2.1, 0.4):
        said = breach({"length_change": times}, Rlhf(maximum_length_change=2))
        assert said is not None
        assert f"{times:.2f} times as long" in said
    assert all(breach({"length_change": times}, Rlhf(maximum_length_change=2)) is None for times in (0.5, 2.0))
    judged = Rlhf(minimum_preference_accuracy=0.5)
    assert "better in 0.45 of pairs at most, and rlhf.minimum_preference_accuracy is 0.5" in (
        breach({"preference_accuracy_high": 0.45}, judged) or ""
    )
    assert breach({}, judged) is None


def test_what_has_not_been_measured_is_not_within_a_limit():
    settings = Rlhf(minimum_preference_accuracy=0.5, minimum_entropy=1.0)
    assert is_within({"entropy": 2.0, "preference_accuracy_high": 0.6}, settings)
    assert not is_within({"entropy": 2.0}, settings)
    assert not is_within({"entropy": 2.0, "preference_accuracy_high": 0.4}, settings)
    assert is_within({}, Rlhf())


def test_the_plan_counts_what_the_learner_keeps_for_every_limit():
    optional = [name for name, field in Rlhf.model_fields.items() if field.default is None]
    # Not validated: fields of other kinds than numbers are among them.
    limits = [name for name in optional if has_limits(Rlhf().model_copy(update={name: 0.5}))]
    assert sorted(limits) == sorted(LIMITS)
