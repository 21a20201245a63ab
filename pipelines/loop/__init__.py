"""The loop: what people judge while a run serves becomes its next policy, tested before it takes over.

rounds is the state machine: what comes next for a round, by the files of the run alone, and what is written when it is
done. gates judge the reward model of a round, comparison its policy against the live one, and work does both, and runs
stages, on Ray. service waits for judgements and people, holds the locks, and prints.
"""
