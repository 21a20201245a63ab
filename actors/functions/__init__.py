"""Calls the functions that recipes name in processes of their own, so that none can stop a run.

values.py    numbers that functions return
conversations.py  environments: an object for each conversation
child.py     the process of a function
process.py   its parent's side
caller.py    many calls side by side, each with a deadline and retries
"""
