"""The format in which a model writes tool calls, found in its chat template.

A template shows the model its own earlier calls, in the format in which it was trained to write them.
"""

from collections.abc import Container, Mapping

# Parts of templates, and vLLM's name of the parser for their format; the first that is found decides. Formats whose
# mark is a token of its own need that token in the tokenizer: without it vLLM's parser refuses to start.
MARKS = (
    ("[TOOL_CALLS]", "mistral", True),
    ("<|python_tag|>", "llama3_json", True),
    ("<｜tool▁calls▁begin｜>", "deepseek_v3", True),
    ("<|tool_calls_section_begin|>", "kimi_k2", True),
    ("<arg_key>", "glm45", True),
    ("<function=", "qwen3_coder", False),
    ("<tool_call>", "hermes", False),
)
# The format for models whose template knows no tools; forced calls follow it in any case.
DEFAULT = "hermes"


def tool_parser_for(template: str | Mapping[str, str] | None, vocabulary: Container[str]) -> str:
    """Returns vLLM's name of the parser for a model's tool calls.

    Args:
        template: the model's chat template, or several by name.
        vocabulary: the tokens of its tokenizer.
    """
    text = "\n".join(template.values()) if isinstance(template, Mapping) else template or ""
    for mark, parser, is_token in MARKS:
        if mark in text and (not is_token or mark in vocabulary):
            return parser
    return DEFAULT
