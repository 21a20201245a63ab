"""The stage rlhf: `setup` starts its rollout and reward actors, which evaluate uses too, `stage` trains the policy, and
`evaluation` measures policies on held-out prompts, during the training and for the export of the best."""
