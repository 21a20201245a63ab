"""Detectors of over-optimization: fit on half of the settings, tested on the other half."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# The numbers of steps over which the true reward, and over which a sign, is averaged.
TRUTH_WINDOW, SIGN_WINDOW = 5, 3
# The least steps that a fall lasts: one that is seen in the run's last steps alone may be chance.
LEAST_FALLEN = 3
# The least fall that counts, as a share of the deviation of the true reward over the fine-tuned model's answers.
FALL = 0.25
# The most false alarms a run that a threshold may give on the settings that it is fit on.
FALSE_ALARMS = 0.1
RIDGE, NEWTON_STEPS = 1.0, 30

Run = Mapping[str, Any]


@dataclass(frozen=True)
class Course:
    """The true reward of a run.

    Attributes:
        truth: [T], averaged over `TRUTH_WINDOW` steps around each.
        fall: the smallest fall that counts.
        fell: the first step from which on the truth stays below its peak by `fall`; None if it does not.
    """

    truth: np.ndarray
    fall: float
    fell: int | None

    @classmethod
    def of(cls, run: Run) -> "Course":
        """Reads the course of the `gold` scores of a run."""
        gold, side = [step["gold"] for step in run["steps"]], TRUTH_WINDOW // 2
        truth = np.array([np.mean(gold[max(0, n - side) : n + side + 1]) for n in range(len(gold))])
        fall = FALL * run["gold_deviation"]
        below = truth < np.maximum.accumulate(truth) - fall
        # The last step at which it was not below its peak, plus one.
        fell = len(truth) - int(np.argmin(below[::-1])) if below[-1] else len(truth)
        return cls(truth, fall, fell if fell <= len(truth) - LEAST_FALLEN else None)

    def is_false(self, alarm: int) -> bool:
        """Tells whether an alarm at that step is false: the run has no fall, or stopping it there loses more than
        `fall` of reward to come."""
        return self.fell is None or float(self.truth[alarm:].max() - self.truth[alarm]) > self.fall


@dataclass(frozen=True)
class DetectorResult:
    """The results of a detector on some runs.

    Attributes:
        falls: runs whose true reward falls.
        found: the falls with an alarm that is not false, before the fall is complete or after.
        in_time: the falls whose alarm comes before the fall.
        false: false alarms, at most one a run.
        runs: all runs.
        leads: steps from each alarm that is not false to the fall.
        kept: mean true reward where the alarm ends the run, else at its end.
    """

    falls: int
    found: int
    in_time: int
    false: int
    runs: int
    leads: list[int]
    kept: float


@dataclass(frozen=True)
class Detector:
    """Raises an alarm at the first step at which a sign, averaged, is above a threshold.

    Attributes:
        name: the name in the tables.
        values: [T] of a run, larger is worse.
        threshold: fit by `fitted`.
    """

    name: str
    values: Callable[[Run], np.ndarray]
    threshold: float = np.inf

    def alarm(self, run: Run) -> int | None:
        """Finds the step of the first alarm; None without one."""
        above = np.flatnonzero(self.values(run) > self.threshold)
        return int(above[0]) if len(above) else None

    def outcome(self, runs: Sequence[Run]) -> DetectorResult:
        """Counts falls, alarms and false alarms over runs."""
        falls = found = in_time = false = 0
        leads, kept = [], []
        for run in runs:
            course, alarm = Course.of(run), self.alarm(run)
            falls += course.fell is not None
            kept.append(float(course.truth[-1 if alarm is None else alarm]))
            if alarm is None:
                continue
            if course.is_false(alarm):
                false += 1
            elif course.fell is not None:
                found += 1
                in_time += alarm < course.fell
                leads.append(course.fell - alarm)
        return DetectorResult(falls, found, in_time, false, len(runs), leads, float(np.mean(kept)))

    def fitted(self, runs: Sequence[Run]) -> "Detector":
        """Takes the threshold with the most alarms in time among those with at most `FALSE_ALARMS` a run."""
        levels = np.unique(np.concatenate([np.maximum.accumulate(self.values(run)) for run in runs]))
        tried = [Detector(self.name, self.values, float(level)) for level in levels[:: max(1, len(levels) // 200)]]

        def quality(one: Detector) -> tuple[float, float, float]:
            outcome = one.outcome(runs)
            return outcome.in_time, outcome.found, -outcome.false

        allowed = [one for one in tried if one.outcome(runs).false <= FALSE_ALARMS * len(runs)]
        return max(allowed, key=quality) if allowed else self


def averaged(values: Sequence[float], window: int) -> np.ndarray:
    """Averages each value with those before it. [T] -> [T]."""
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(0, ends - window)
    return (sums[ends] - sums[begins]) / (ends - begins)


def sign(name: str, change: Callable[[np.ndarray], np.ndarray] = lambda values: values) -> Callable[[Run], np.ndarray]:
    """Makes a function of a run to the averaged values of a metric; where it is not measured, the last one counts."""

    def values(run: Run) -> np.ndarray:
        found: list[float] = []
        for step in run["steps"]:
            found.append(float(step.get(name, found[-1] if found else 0.5)))
        return averaged(list(change(np.array(found))), SIGN_WINDOW)

    return values


# The alarms that other projects use, then the signs of `actors.overoptimization`.
SINGLE: dict[str, Callable[[Run], np.ndarray]] = {
    "KL": sign("kl_sequence"),
    "entropy": sign("entropy", lambda values: -values),
    "length, either way": sign("length_change", lambda values: np.abs(np.log(np.maximum(values, 1e-3)))),
    "repetition": sign("repetition"),
    "reward": sign("reward"),
    "reward deviation": sign("reward_deviation", lambda values: -values),
    "held-out pairs": sign("preference_accuracy", lambda values: -values),
    "held-out pairs, upper end": sign("preference_accuracy_high", lambda values: -values),
    "members' disagreement": sign("disagreement"),
    "members' agreement": sign("disagreement", lambda values: -values),
    "token divergence": sign("token_divergence"),
    "token rise": sign("token_rise"),
    "opening rise": sign("opening_rise"),
    "reward explained": sign("cheap_explained"),
}
# The signs of the joint detector, none of which needs an ensemble; in ranges that models share.
JOINT: dict[str, Callable[[Run], np.ndarray]] = {
    "log KL": sign("kl_sequence", lambda values: np.log1p(np.maximum(values, 0))),
    **{
        name: SINGLE[name]
        for name in (
            "length, either way",
            "repetition",
            "held-out pairs",
            "token divergence",
            "token rise",
            "opening rise",
            "reward explained",
        )
    },
}


def joint(runs: Sequence[Run], signs: Mapping[str, Callable[[Run], np.ndarray]]) -> tuple[Detector, dict[str, float]]:
    """Fits a logistic regression of "the true reward has fallen by half of `FALL`" on signs, each run weighing alike.

    Returns:
        The detector, without a threshold, and its weights for standardized signs.
    """
    tables = [np.stack([values(run) for values in signs.values()], axis=1) for run in runs]
    whole = np.concatenate(tables)
    mean, deviation = whole.mean(0), whole.std(0) + 1e-9
    labels = []
    for run in runs:
        course = Course.of(run)
        fallen = course.truth < np.maximum.accumulate(course.truth) - course.fall / 2
        labels.append(fallen & (course.fell is not None))
    design = np.c_[(whole - mean) / deviation, np.ones(len(whole))]
    weights = _logistic(design, np.concatenate(labels).astype(float))

    def values(run: Run) -> np.ndarray:
        table = np.stack([values(run) for values in signs.values()], axis=1)
        found: np.ndarray = np.c_[(table - mean) / deviation, np.ones(len(table))] @ weights
        return found

    return Detector("jointly", values), dict(zip(signs, weights[:-1].tolist(), strict=True))


def _logistic(design: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Fits a ridge-penalized logistic regression by Newton's method; the constant is not penalized. [N, F], [N] ->
    [F]."""
    weights = np.zeros(design.shape[1])
    penalty = RIDGE * np.diag([*[1.0] * (len(weights) - 1), 0.0])
    for _ in range(NEWTON_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (chance - labels) + penalty @ weights
        curvature = (design * (chance * (1 - chance) + 1e-9)[:, None]).T @ design + penalty
        weights = weights - np.linalg.solve(curvature, gradient)
    return weights


def split(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Splits runs by setting, so that every bias and every algorithm is in both halves."""
    halves: tuple[list[Run], list[Run]] = ([], [])
    for run in runs:
        halves[(run["number"] // 5 + run["number"] % 5 + run["number"] // 25) % 2].append(run)
    return halves
