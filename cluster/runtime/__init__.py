"""Machines: how much memory a recipe needs, who gets which share, and the connection to Ray.

Before anything starts, `memory` estimates the needs of every stage, with `start_model` for the model that a recipe
starts from, `machine_memory` for main memory, and `training_memory` and `rlhf_memory` for GPUs. `plan` divides the
machine's resources, as `cgroup` and `gpus` find them, or refuses. `session` then starts or joins a Ray cluster, `nodes`
checks its nodes, `placement` waits until it has room, and `network` finds the interface between its workers. `jobs`
instead sends the whole command to somebody else's cluster, with the files of `shipping`.
"""
