"""Training jobs on Ray Train, the same for pre-training, fine-tuning, the reward model, DPO and KTO.

The driver describes a job (`job`) and hands it to its workers, which run `loop`: rows come in the order of `data`,
`held_out` measures the model at checkpoints, which `checkpoint` keeps, `proof` compares the exported model with the one
in memory, and `watchdog` ends a worker that waits for too long.
"""
