"""Holds models in memory, in this process or in Ray actors.

model/         load, save and run language models and reward heads; chat template, adapters, sharding, attention
objectives/    losses of supervised training: next-token prediction, reward model, DPO, KTO
algorithms/    losses and advantages of reinforcement learning, each algorithm as data
trainer/       the loop of supervised training, its checkpoints and its Ray job
learner/       the policy in RLHF: one step on a batch of rollouts
rollout/       vLLM engines that sample completions, and weights on their way to them
functions/     functions that recipes name, called in processes of their own
rewards/       reward model, Python functions and HTTP endpoints that score completions
orchestrator/  the RLHF loop over learner, rollout actors and rewards
overoptimization/  signs that a policy exploits its reward
types.py       data types that pass between the folders of RLHF
compat.py      uses of libraries that depend on their versions
"""
