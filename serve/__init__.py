"""Serving: a run's finished models behind an OpenAI-compatible HTTP server, and web pages for people.

`server` (`triptych serve`) deploys the gateway and the replicas on Ray Serve. A chat request then passes these files,
and its response passes them in reverse:

1. `http.listener`: the socket.
2. `http.middleware`: authorization (`http.auth`) and limits (`http.limits`) on the way in, safe headers, metrics
   (`http.metrics`) and the access log on the way out.
3. `router`: reads the body (`http.request_context`), bounds its size and reserves tokens (`request_size`), and finds
   the model by its name or alias (`routes`).
4. `transport.pool`: picks the least busy replica; `transport.gateway_end`, `transport.frames` and
   `transport.replica_end` carry the request to the model.
5. `replica.vllm_engine`: the model. `compat.vllm_openai` has vLLM's OpenAI serving classes, `replica.async_llm` the
   engine.

`replica.replica` is the process with the models. `gateway` assembles the HTTP application from `router`, `admin` and
`pages`. `promotions` changes the weights that are served, `canary` tries new ones on a share of the requests, and
`peers` connects the gateways of one server. `errors` has the format of all errors, and `compat` all that depends on the
versions of vLLM and Ray Serve.
"""
