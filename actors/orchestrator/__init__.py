"""Runs the loop of RLHF: ledger → scheduler → rollout actors → rewards → learner → new weights for the rollout actors.

loop.py         one step of RLHF and its metrics
ledger.py       the order of prompts, and the outcome of each
oversampling.py  how many prompts dynamic sampling draws at once
verdict_counts.py  how many samples got no reward, and the limit
scheduler.py    prompts in flight, batches of samples with their rewards
admission.py    which samples a step trains on, so that none becomes too stale
fleet.py        the rollout actors as Ray actors, and one thread for their answers
coordination/   decides the next action of every actor; pure, so that tests and benches run it in simulated time
autoscaler.py   how many actors there should be
parity.py       whether engine and learner are the same model, before the first step
"""
