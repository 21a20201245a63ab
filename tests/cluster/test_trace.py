from pathlib import Path

from cluster.trace import MOST, STEPS, ActorStatus, PromptTrace, Span, StepTrace, TraceWriter, read_trace


def test_the_newest_steps_are_kept_with_times_relative_to_the_first(tmp_path: Path):
    writer = TraceWriter(tmp_path)
    assert read_trace(tmp_path) is None
    for step in range(STEPS + 2):
        begin = 1000.0 + step
        spans = [
            Span("rollout 0", "draw", begin - 0.25, begin + 0.5, ["0:a"], 12),
            Span("learner", "learn", begin, begin),
        ]
        handed = [PromptTrace("0:a", begin - 0.5, begin + 0.75, 12, 1, "a long conversation")]
        writer.write(StepTrace(step, begin, begin + 1, 4, spans, handed, [ActorStatus("rollout 0", "ready", step)]))
    found = read_trace(tmp_path)
    assert found is not None
    assert [row["step"] for row in found] == [2, 3, 4]
    assert [(row["begin"], row["end"], row["waiting"]) for row in found] == [(0, 1, 4), (1, 2, 4), (2, 3, 4)]
    draw, learn = found[1]["spans"]
    assert (draw["begin"], draw["end"], draw["prompts"], draw["tokens"]) == (0.75, 1.5, ["0:a"], 12)
    assert (learn["who"], learn["lost"]) == ("learner", False)
    (prompt,) = found[1]["prompts"]
    assert prompt.pop("name") == "a long conversation"
    assert prompt == {"id": "0:a", "given": 0.5, "handed_out": 1.75, "tokens": 12, "behind": 1}
    assert found[1]["actors"] == [{"who": "rollout 0", "state": "ready", "version": 3}]


def test_a_step_with_very_many_prompts_is_cut(tmp_path: Path):
    handed = [PromptTrace(str(number), 0.0, 1.0, 1, 0) for number in range(MOST + 9)]
    TraceWriter(tmp_path).write(StepTrace(0, 0.0, 1.0, prompts=handed))
    found = read_trace(tmp_path)
    assert found is not None
    assert len(found[0]["prompts"]) == MOST
