"""Decides the next action of every rollout actor, without Ray, threads or a clock of its own.

coordinator.py  the methods that users of a fleet call and wait for
lifecycle.py    starts, updates, replaces and ends actors
dispatcher.py   gives requests to actors and takes their samples
calls.py        calls that are not answered, and which are late
work_queue.py   prompts that wait for an actor, and samples that wait to be collected
members.py      the actors' states, and which takes the next request
accounting.py   totals and traces of the actors' work
protocols.py    the interfaces of rollout actors, clock, learner and rewards
"""
