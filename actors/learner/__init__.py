"""RLHF's learner, in Ray actors of its own.

The orchestrator calls `remote`, which holds one `learner` a worker. A step makes tensors of samples and rewards
(`batch`), takes optimizer steps (`learner`) and leaves models, optimizers and checkpoints as `state` holds them.
"""
