"""Conversations as tokens: one rendering for fine-tuning, the reward model, RLHF and serving.

`chat` renders prompts, answers and rows to train on. `template` applies a tokenizer's chat template, and finds the
token with which it ends a turn; `turn` is the text of an assistant's turn. `recipe_template` sets another template than
the model's own.
"""

from actors.model.chat.chat import Chat, Rendered
from actors.model.chat.template import Messages, ready_for_chat, unlearned_tokens

__all__ = ["Chat", "Messages", "Rendered", "ready_for_chat", "unlearned_tokens"]
