"""Evaluation: whether RLHF improved the model, and how far the reward model can be trusted.

stage runs the comparison of a run's models: held_out (rewards on prompts that RLHF did not train on), perplexity (of
held-out text) and exam (questions with a grader, which exam_runner asks) measure; statements helps graders to read what
an answer states; stats has the intervals, verdict the sentences, charts the curves, report the page and the printed
tables. The reward stage uses reward_trust, which scores a reward model, best_of_n, and reward_probes, which look for
flaws that a policy could exploit. RLHF uses preference_drift and token_ratios, which measure the policy as it trains.
tasks runs benchmarks; judge compares two models by a judge or by votes; gaming audits reward functions and endpoints
with answers that cost nothing to find. A new figure of the report is a `Measure` in held_out or a `Figure` of an exam;
a new learning curve is an entry in charts.
"""
