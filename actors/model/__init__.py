"""Language models in plain PyTorch: no Ray here.

Text becomes token ids in `tokenizer` and `chat`. `causal_lm` and `reward_head` build, load and save models; `lora` adds
adapters. A forward pass goes through the room attention, and its states become losses in `chunked_cross_entropy` or
log-probabilities in `completion_logprobs`. `microbatch` splits a global batch over workers and micro-batches, the room
sharding splits the model over them, `optim` has the optimizers. `perf` measures speed, and `generation` writes
continuations of held-out texts.
"""
