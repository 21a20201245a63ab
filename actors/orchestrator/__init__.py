"""Runs the loop of RLHF: ledger → scheduler → rollout actors → rewards → learner → new weights for the rollout actors.

loop.py         one step of RLHF and its metrics
ledger.py       which prompts are next, and how each ended
verdict_counts.py  how many samples got no reward, and the limit
scheduler.py    prompts in flight, batches of samples with their rewards
admission.py    which samples a step trains on, so that none becomes too stale
fleet.py        the rollout actors as Ray actors, and one thread for their answers
coordinator.py  what users of a fleet call and wait for; pure, so that tests and benches run it in simulated time
lifecycle.py    starts, updates, replaces and ends actors
dispatcher.py   gives requests to actors and takes their samples
calls.py        calls that are not answered, and which are late
work_queue.py   prompts that wait for an actor, and samples that wait to be collected
members.py      the actors' states, and which takes the next request
accounting.py   totals and traces of what actors did
autoscaler.py   how many actors there should be
parity.py       whether engine and learner are the same model, before the first step
protocols.py    what is needed of rollout actors, clock, learner and rewards
"""
