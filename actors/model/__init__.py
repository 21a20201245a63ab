"""Language models in plain PyTorch: no Ray here.

Text becomes token ids in `tokenizer` and the room chat. `causal_lm` and `reward_head` build, load and save models,
`start_checks` checks one that training starts from; `lora` adds adapters. `forward` computes hidden states through the
room attention, which become losses in `chunked_cross_entropy` or log-probabilities in `completion_logprobs`.
`microbatch` splits a global batch over workers and micro-batches, the room sharding splits the model over them, `optim`
has the optimizers. `perf` measures speed, and `generation` writes continuations of held-out texts.
"""
