"""Training jobs on Ray Train, the same for pre-training, fine-tuning, the reward model, DPO and KTO.

The driver describes a job (`job`) and hands it to workers, which run `loop`: rows come in the order of `data`, state is
kept by `checkpoint`, and `watchdog` ends a worker that waits for too long.
"""
