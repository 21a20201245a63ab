"""Win rates by a judge, a served model or people.

`pairs` reads pairs of answers, `asking` asks a judge about them, `statistics` counts wins and agreement with people,
and `run` does all of it for `triptych judge`.
"""
