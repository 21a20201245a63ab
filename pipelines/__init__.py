"""The stages of a run, and the command line.

A stage is a function of a recipe, a run folder and an output folder: corpus → pretrain → sft → collect → reward_model →
rlhf → evaluate, and dpo, which trains on the rankings directly. stage_table lists them by name; each leaves an artifact
that later ones read. sft_data makes the shards of sft; train runs a training job for pretrain, sft, reward_model and
dpo; collect_answers samples answers for collect to have ranked; score applies a reward model to a file; export writes a
model for other programs, gguf_format for llama.cpp. Packages: cli (commands), corpus (text), data (conversations,
prompts and rankings, from and to files), rlhf (the policy's training), evaluate (report, benchmarks, tests of the
reward model), loop (rounds from new judgements), experiment (variants of the corpus), story (training on a visitor's
rankings), demo and assistant (the functions that the recipes demo.yaml and smollm2.yaml name).
"""
