"""The loop: judgements that people give while a run serves train its next policy, which is tested before it takes over.

rounds is the state machine: it finds the next step of a round from the files of the run alone, and records each
finished step. gates judge the reward model of a round, comparison its policy against the live one, trial tries the
policy on a share of the requests, and work runs stages, gates and the comparison on Ray. service waits for judgements
and people, holds the locks, and prints.
"""
