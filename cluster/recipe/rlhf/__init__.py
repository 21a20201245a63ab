"""The recipe's section `rlhf`: `section` has its keys, `presets` the numbers of each algorithm's paper, and `fleet` the
keys of the rollout actors."""
