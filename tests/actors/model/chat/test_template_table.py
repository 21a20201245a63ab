"""Templates of the kinds that models come with, each with five kinds of conversation: accepted with the tokens that are
trained, or refused with the reason."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from actors.model.chat import Chat
from actors.model.chat import recipe_template as own
from actors.model.chat.recipe_template import set_template
from cluster.errors import UserError
from tests import templates
from tests.tiny import tiny_tokenizer

TOOL = {"type": "function", "function": {"name": "clock", "description": "Tells the time.", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
SINGLE = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SEVERAL = [*SINGLE, {"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]
SYSTEM = [{"role": "system", "content": "be kind"}, *SEVERAL]
TOOLS = [
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "12:00"},
    {"role": "assistant", "content": "Noon."},
]
REASONING = [SINGLE[0], {**SINGLE[1], "reasoning_content": "A greeting."}, *SEVERAL[2:]]
CASES: dict[str, tuple[list[dict[str, Any]], list[Any] | None]] = {
    "single": (SINGLE, None),
    "several": (SEVERAL, None),
    "system": (SYSTEM, None),
    "tools": (TOOLS, [TOOL]),
    "reasoning": (REASONING, None),
}
NO_TOOLS = "has (a tool's turn|tools), and the chat template of .* has no place for it"
NO_REASONING = "has reasoning_content, and the chat template of .* has no place for it"

Expected = dict[str, list[str] | str]


def plain(end: str, before: str = "", after: str = "", **others: list[str] | str) -> Expected:
    """Returns the results of most templates: the answers with the end, and no place for tools or reasoning."""
    hello, so = (f"{before}{answer}{after}{end}" for answer in ("hello", "so"))
    turns: Expected = {"single": [hello], "several": [hello, so], "system": [hello, so]}
    return {**turns, "tools": NO_TOOLS, "reasoning": NO_REASONING, **others}


# The template, its special tokens (the eos_token first), and for each case the trained turns, or why it is refused.
TABLE: dict[str, tuple[str, list[str], Expected]] = {
    "chatml": (templates.CHATML, ["<|im_end|>", "<|im_start|>"], plain("<|im_end|>")),
    "llama 2": (templates.LLAMA_2, ["</s>", "<s>"], plain("</s>", " ", " ")),
    "llama 3": (templates.LLAMA_3, ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"], plain("<|eot_id|>")),
    "llama 3 base": (templates.LLAMA_3, ["<|end_of_text|>", "<|eot_id|>"], plain("<|eot_id|>")),
    "gemma 2": (
        templates.GEMMA_2,
        ["<eos>", "<start_of_turn>", "<end_of_turn>"],
        plain("<end_of_turn>", system="System role not supported"),
    ),
    "gemma 3": (templates.GEMMA_3, ["<eos>", "<start_of_turn>", "<end_of_turn>"], plain("<end_of_turn>")),
    "qwen 2.5": (
        templates.QWEN_2_5,
        ["<|im_end|>", "<|im_start|>"],
        plain(
            "<|im_end|>",
            tools=[
                '<tool_call>{"name": "clock", "arguments": {"zone": "UTC"}}</tool_call><|im_end|>',
                "Noon.<|im_end|>",
            ],
        ),
    ),
    "qwen 3": (
        templates.QWEN_3,
        ["<|im_end|>", "<|im_start|>"],
        {
            "single": ["<think>\n\n</think>\n\nhello<|im_end|>"],
            "several": ["<think>\n\n</think>\n\nhello<|im_end|>", "<think>\n\n</think>\n\nso<|im_end|>"],
            "system": ["<think>\n\n</think>\n\nhello<|im_end|>", "<think>\n\n</think>\n\nso<|im_end|>"],
            "tools": [
                '<think>\n\n</think>\n\n<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'
                "<|im_end|>",
                "<think>\n\n</think>\n\nNoon.<|im_end|>",
            ],
            "reasoning": ["<think>\nA greeting.\n</think>\n\nhello<|im_end|>", "<think>\n\n</think>\n\nso<|im_end|>"],
        },
    ),
    "mistral": (templates.MISTRAL, ["</s>", "<s>"], plain("</s>", " ")),
    "phi 3": (templates.PHI_3, ["<|endoftext|>", "<|end|>"], plain("<|end|>", reasoning=NO_REASONING)),
    "glm": (
        templates.GLM,
        ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"],
        plain("<|endoftext|>", "\n"),
    ),
    "nemotron": (
        templates.NEMOTRON,
        ["<|eot_id|>", "<|start_header_id|>"],
        plain("<|eot_id|>", reasoning=["<think>\nA greeting.\n</think>\n\nhello<|eot_id|>", "so<|eot_id|>"]),
    ),
    "deepseek v3": (templates.DEEPSEEK_V3, ["<|eos|>", "<|User|>", "<|Assistant|>"], plain("<|eos|>")),
    "deepseek r1": (
        templates.DEEPSEEK_R1,
        ["<|eos|>", "<|User|>", "<|Assistant|>"],
        plain(
            "<|eos|>",
            "\n</think>\n\n",
            reasoning=["A greeting.\n</think>\n\nhello<|eos|>", "\n</think>\n\nso<|eos|>"],
        ),
    ),
    "gpt-oss": (
        templates.GPT_OSS,
        ["<|return|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>"],
        plain(
            "<|return|>",
            "<|channel|>final<|message|>",
            reasoning=[
                "<|channel|>analysis<|message|>A greeting.<|end|><|start|>assistant<|channel|>final<|message|>hello"
                "<|return|>",
                "<|channel|>final<|message|>so<|return|>",
            ],
        ),
    ),
    "command r": (templates.COMMAND_R, ["<eos>", "<|START|>", "<|STOP|>"], plain("<|STOP|>")),
    "vicuna": (templates.VICUNA, ["</s>"], plain("</s>", " ")),
    "mistral v3": (templates.MISTRAL_V3, ["</s>", "[INST]", "[/INST]"], plain("</s>", " ")),
    "gemma 4": (
        templates.GEMMA_4,
        ["<eos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>"],
        plain(
            "<turn|>",
            tools=['<|tool_call>call:clock{"zone": "UTC"}<tool_call|><turn|>', "Noon.<turn|>"],
        ),
    ),
    "nemotron 3": (
        templates.NEMOTRON_3,
        ["<|im_end|>", "<|im_start|>"],
        plain(
            "<|im_end|>",
            "\n</think>\n\n",
            tools=[
                '\n</think>\n\n<tool_call>\nclock{"zone": "UTC"}\n</tool_call><|im_end|>',
                "\n</think>\n\nNoon.<|im_end|>",
            ],
            reasoning=["A greeting.\n</think>\nhello<|im_end|>", "\n</think>\n\nso<|im_end|>"],
        ),
    ),
    "command a": (
        templates.COMMAND_A,
        ["<|STOP|>", "<|START|>", "<|RESPONSE|>", "<|END_RESPONSE|>"],
        plain("<|END_RESPONSE|><|STOP|>", tools="leaves out the tool_calls"),
    ),
    "idefics 3": (templates.IDEFICS_3, ["<end_of_utterance>"], plain("<end_of_utterance>", " ")),
    "marked": (own.CHATML, ["<|im_end|>", "<|im_start|>"], plain("<|im_end|>")),
    "marked without the end": (
        templates.MARKED_WITHOUT_END,
        ["<|im_end|>", "<|im_start|>"],
        dict.fromkeys(CASES, r"without the token that ends it, <\|im_end\|>: the model would never learn to stop")
        | {"tools": NO_TOOLS, "reasoning": NO_REASONING},
    ),
}


def tokenizer_of(template: str, special: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"eos_token": special[0], "bos_token": "<s>"})
    tokenizer.add_tokens(special[1:], special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def require_as_served(chat: Chat, case: str) -> list[str]:
    """Returns the text of every trained turn of a case, after comparing the tokens before it with its prompt."""
    messages, tools = CASES[case]
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    targets: list[str] = []
    for row in chat.training_rows(messages, tools):
        mask = [False, *row.loss_mask, False]
        starts = [place for place in range(len(row.loss_mask)) if mask[place + 1] and not mask[place]]
        for start in starts:
            end = mask.index(False, start + 1) - 1
            prompt = chat.prompt(messages[: turns[len(targets)]], tools)
            assert row.token_ids[:start] == prompt
            assert row.token_ids[end - 1] == chat.end_of_turn_id
            targets.append(chat.tokenizer.decode(row.token_ids[start:end]))
    assert len(targets) == len(turns)
    return targets


@pytest.mark.parametrize("name", TABLE)
def test_each_kind_of_conversation_is_trained_as_it_is_served_or_refused_with_the_reason(name: str):
    template, special, expected = TABLE[name]
    chat = Chat(tokenizer_of(template, special))
    for case, (messages, tools) in CASES.items():
        wanted = expected[case]
        if isinstance(wanted, str):
            with pytest.raises(UserError, match=wanted):
                chat.training_rows(messages, tools)
        else:
            assert require_as_served(chat, case) == wanted, case


def test_a_call_may_end_with_another_token_at_which_the_model_stops(tmp_path: Path):
    tokenizer = tokenizer_of(templates.GPT_OSS_CALLS, ["<|return|>", "<|start|>", "<|message|>", "<|end|>", "<|call|>"])
    with pytest.raises(UserError, match=r"does not end .* with <\|return\|>, nor with another eos_token_id of"):
        Chat(tokenizer).training_rows(*CASES["tools"])
    ends = tokenizer.convert_tokens_to_ids(["<|return|>", "<|call|>"])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    tokenizer.name_or_path = str(tmp_path)
    rows = Chat(tokenizer).training_rows(*CASES["tools"])
    trained = [token for row in rows for token, counts in zip(row.token_ids, row.loss_mask, strict=True) if counts]
    assert tokenizer.decode(trained) == ' to=clock<|message|>{"zone": "UTC"}<|call|><|message|>Noon.<|return|>'


def test_a_template_that_writes_no_answer_is_refused():
    with pytest.raises(UserError, match="does not write the assistant's turns"):
        Chat(tokenizer_of("{{ 'nothing' }}", ["</s>"])).training_rows(SINGLE)


SHIPPED = Path(find_spec("vllm").origin).parent / "transformers_utils" / "chat_templates"  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize(
    ("file", "special"),
    [("template_chatml.jinja", ["<|im_end|>"]), ("template_minicpmv45.jinja", ["<|im_end|>", "<|im_start|>"])],
)
def test_templates_that_ship_with_vllm_are_trained_as_they_are_served(file: str, special: list[str]):
    if not (SHIPPED / file).is_file():
        pytest.skip(f"this vLLM has no {file}")
    chat = Chat(tokenizer_of((SHIPPED / file).read_text(encoding="utf-8"), special))
    for case in ("single", "several", "system"):
        targets = require_as_served(chat, case)
        assert [target.removesuffix("<|im_end|>").split()[-1] for target in targets] == ["hello", "so"][: len(targets)]


def test_the_recipe_can_set_the_template_and_the_end(tmp_path: Path):
    tokenizer = tokenizer_of("{{ 'nothing' }}", ["</s>"])
    set_template(tokenizer, "chatml", None)
    assert require_as_served(Chat(tokenizer), "several") == ["hello<|im_end|>", "so<|im_end|>"]
    assert own.new_tokens(tokenizer, tokenizer_of("", ["</s>"])) == tokenizer.convert_tokens_to_ids(
        ["<|im_start|>", "<|im_end|>"]
    )
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}")
    # The template ends no turn: the token that is given does, and is a special one from then on.
    set_template(tokenizer, str(file), "?")
    assert Chat(tokenizer).end_of_turn_id == tokenizer.convert_tokens_to_ids("?") == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("template", "end", "reason"),
    [
        ("{{ messages[", None, r"^sft\.chat_template: .* does not take a conversation"),
        (templates.CHATML, "no such token", r"^sft\.end_token: 'no such token' is not one token of"),
        (
            templates.CHATML,
            "</s>",
            r"^sft\.end_token: .* ends .* turn with <\|im_end\|>, and never writes",
        ),
        (None, None, r"^sft\.chat_template: cannot read .*missing\.jinja: .*No such file"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(tmp_path: Path, template: str | None, end: str | None, reason: str):
    file = tmp_path / "missing.jinja"
    if template:
        file = tmp_path / "own.jinja"
        file.write_text(template)
    with pytest.raises(UserError, match=reason):
        set_template(tokenizer_of("", ["<|im_end|>", "</s>"]), str(file), end)
