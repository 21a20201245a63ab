"""Triptych's own chat template and its tokens.

Apart from `chat`, which imports transformers: 10 s of processor time in every task of the corpus stage.
"""

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|end|>"
SPECIAL_TOKENS = (END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>", END_OF_TURN)

# `generation` marks what is trained: the assistant's words and the token that ends its turn. A space is put into every
# `<|` that people write: whoever types a special token gets its characters and cannot speak as the assistant. It is
# done here because every reader of the template (transformers, vLLM) then does the same.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% set words = message['content'] | replace('<|', '< |') %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ words + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ words + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
