"""Human feedback: prompts, the completions shown for them, and the judgements of annotators and users.

`tables` defines the rows and migrates older schemas, `store` opens the database (SQLite or PostgreSQL) and runs
transactions, `queries` is the class `Feedback` with every query (those on judgements in `judgements`, on annotators in
`annotators`, on prompts of live traffic in `live`, on the order in which people are asked in `order`), and `judged`
tells which judgements are new. Three modules compute figures from rows: `agreement`, of annotators with each other and
with themselves; `quality`, the report on agreement; and `bradley_terry`, the ratings of models from votes between them.
"""

from cluster.feedback.judgements import PeoplesJudgements
from cluster.feedback.queries import Feedback, FeedbackCounts, open_feedback
from cluster.feedback.tables import (
    AT_RANDOM,
    CODE,
    COMPARED,
    GOLD,
    LIVE,
    Annotator,
    Completion,
    FeedbackPrompt,
    LivePrompt,
    Ranking,
    Repeat,
    Thumb,
    distinct_completions,
    is_person,
)

__all__ = [
    "AT_RANDOM",
    "CODE",
    "COMPARED",
    "GOLD",
    "LIVE",
    "Annotator",
    "Completion",
    "Feedback",
    "FeedbackCounts",
    "FeedbackPrompt",
    "LivePrompt",
    "PeoplesJudgements",
    "Ranking",
    "Repeat",
    "Thumb",
    "distinct_completions",
    "is_person",
    "open_feedback",
]
