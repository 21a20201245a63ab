"""The stages of a run, and the command line.

A stage is a function of a recipe, a run folder and an output folder: corpus → pretrain → sft → collect → reward_model →
rlhf → evaluate, and dpo, which trains on the rankings directly. stage_table lists them by name; each leaves an artifact
that later ones read. train runs a training job for pretrain, sft, reward_model and dpo; collect_rankings has collect's
annotators rank; score applies a reward model to a file. Rooms: cli (commands), corpus (text), data (conversations,
prompts and rankings, from and to files), rlhf (the policy's training), evaluate (report, tests of the reward model),
demo (the world of the demo recipe).
"""
