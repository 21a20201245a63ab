"""Policy-gradient algorithms on plain tensors.

`losses` has the batch and the surrogates that algorithms share, `divergence` estimates the KL divergence from the
reference, `normalization` centers and scales advantages, `base` describes an algorithm as data, and `grpo`,
`reinforce`, `ppo` and `distill` hold the algorithms, which `registry` names. Before a step `shaping` turns the reward
of an answer into rewards of its tokens; after it `guardrails` says whether the policy is within the recipe's limits.
"""
