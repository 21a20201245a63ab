"""The HTTP layers that all routes share: checks of a request before a route gets it, and of its response afterwards.

- `listener`: the socket, and uvicorn on it.
- `middleware`: the way in and out of every request; it creates the `request_context`, asks `auth` who the caller is
  and `limits` whether they may send so much, and afterwards adds headers, counts in `metrics` and writes the log.
- `budgets`: the tokens that keys have used in all.
- `application`: FastAPI with all errors in one format.
- `openapi`: the paths of the OpenAI endpoints, and the description of the whole API.
"""
