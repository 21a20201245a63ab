"""Language models in plain PyTorch: no Ray here.

Text becomes token ids in `tokenizer` and the folder chat. `causal_lm` and `reward_head` build, load and save models,
whose parts `parts` finds by name; `start_checks` checks one that training starts from, `dropout` switches its dropout
off, and `lora` adds adapters. `forward` computes hidden states through the folder attention, which become losses in
`chunked_cross_entropy` or log-probabilities in `completion_logprobs`. `microbatch` splits a global batch over workers
and micro-batches, the folder sharding splits the model over them, and `optim` has the optimizers. `perf` measures
speed, and `generation` writes continuations of held-out texts.
"""
