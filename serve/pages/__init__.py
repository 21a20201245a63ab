"""The web pages for people. Each module holds the routes of one page; `static/` holds its HTML, CSS and JavaScript.

- `render`: turns the files of `static/` into one HTML response without external resources.
- `label`: people rank the answers to prompts; also as a server of its own, without models. `label_tasks` chooses the
  prompt that each of them gets next.
- `compare`: people ask several models at once, blind, and vote.
- `thumbs`: takes the thumbs of the chat page. That page itself needs no routes but those of the OpenAI API.
- `runs`: the stages of a run, their figures, curves and samples.
"""
