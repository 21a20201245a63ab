"""Tests of rewards against answers that game them.

`hacks` makes such answers, `cases` chooses prompts with honest answers and scores by the recipe's rewards, and `audit`
compares the scores.
"""
