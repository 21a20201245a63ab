"""Limits on a policy, and the messages when one is breached."""

from actors.algorithms import guardrails
from actors.algorithms.guardrails import breach, has_limits, is_within
from cluster.recipe.rlhf.regularization import Stop
from tests.helpers import rlhf


def test_a_breached_limit_is_named_and_no_limit_is_set_by_default():
    figures = {"kl_sequence": 5.0, "entropy": 0.01, "repetition": 0.4}
    assert breach(figures, rlhf()) is None
    assert "entropy was 0.010 nats a token, and rlhf.stop.min_entropy is 0.02" in (
        breach(figures, rlhf(max_kl=5.0, min_entropy=0.02)) or ""
    )
    assert breach(figures, rlhf(max_kl=5.0, min_entropy=0.01)) is None
    assert "sequence KL from the fine-tuned model was 5.00 nats, and rlhf.stop.max_kl is 4.9" in (
        breach(figures, rlhf(max_kl=4.9)) or ""
    )
    assert "0.40 of the runs of three tokens in the policy's answers were repetitions, and rlhf.stop.max_repe" in (
        breach(figures, rlhf(max_repetition=0.3)) or ""
    )
    assert breach(figures, rlhf(max_repetition=0.4)) is None
    for times in (2.1, 0.4):
        said = breach({"length_change": times}, rlhf(max_length_change=2))
        assert said is not None
        assert f"{times:.2f} times as long" in said
    assert all(breach({"length_change": times}, rlhf(max_length_change=2)) is None for times in (0.5, 2.0))
    assert "had diverged by 0.31 bits from those of the fine-tuned model's, and rlhf.stop.overoptimization is 0.3" in (
        breach({"overoptimization": 0.31}, rlhf(overoptimization=0.3)) or ""
    )
    judged = rlhf(min_preference_accuracy=0.5)
    assert "better in 0.45 of pairs at most, and rlhf.stop.min_preference_accuracy is 0.5" in (
        breach({"preference_accuracy_high": 0.45}, judged) or ""
    )
    assert breach({}, judged) is None


def test_unmeasured_metrics_are_not_within_limits():
    settings = rlhf(min_preference_accuracy=0.5, min_entropy=1.0)
    assert is_within({"entropy": 2.0, "preference_accuracy_high": 0.6}, settings)
    assert not is_within({"entropy": 2.0}, settings)
    assert not is_within({"entropy": 2.0, "preference_accuracy_high": 0.4}, settings)
    assert is_within({}, rlhf())


def test_every_limit_of_the_recipe_is_checked():
    assert {limit.setting for limit in guardrails.LIMITS} == set(Stop.model_fields) - {"probe_every"}
    optional = [name for name, field in Stop.model_fields.items() if field.default is None]
    assert all(has_limits(rlhf(**{name: 1.5 if name == "max_length_change" else 0.5})) for name in optional)
