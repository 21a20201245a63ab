"""The web pages for people. Each module holds the routes of one page; `static/` holds its HTML, CSS and JavaScript.

- `render`: turns the files of `static/` into one HTML response without external resources.
- `chat`: people talk to a model. `markdown` parses complete answers, and `thumbs` stores what people think of them; all
  else that the page needs is the OpenAI API.
- `label`: people rank the answers to prompts; also as a server of its own, without models. `label_tasks` chooses the
  prompt that each of them gets next.
- `compare`: people ask several models at once, blind, and vote.
- `runs`: the stages of a run, their figures, curves and samples; `run_list` lists its rounds and the runs
  beside it, and `file_cache` keeps the values read from its files.
- `story`: the three steps of training for newcomers, who train a small policy on their own rankings.
"""
