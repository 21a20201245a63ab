"""Real chat templates, each with five kinds of conversation: accepted and trained exactly, or refused with the reason.

python -m infra.bench.templates FOLDER
    FOLDER of NAME.jinja, a template each, and perhaps ends.json: {NAME: [its eos_token, other ends of generation …]}

Each template gets a tokenizer of bytes in which the special tokens that it writes are tokens, and a tiny model with
random weights. Of an accepted conversation three things are compared: the tokens before each answer with what the
template gives as the prompt of that turn; the answer with what the template writes of the whole conversation up to
there; and the mean loss of the packed rows with that of each answer behind its prompt alone, in float64, to 1e-5.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from jinja2 import TemplateError
from transformers import LlamaConfig, LlamaForCausalLM

from actors.model.chat import Chat, Rendered
from actors.model.tokenizer import load_tokenizer
from actors.objectives.lm import LanguageObjective
from cluster.errors import UserError
from pipelines.corpus.tokens.train import save_tokenizer, train_tokenizer
from pipelines.data.pack_chats import packed
from pipelines.data.render_chats import rendered_batch

CONTEXT, TOLERANCE = 1 << 15, 1e-5
# Marks that templates write as one token: <|x|>, <x|>, <|x>, <｜x｜>, [INST], and some without a bar.
SPECIAL = re.compile(
    r"<\|[^\s|<>]{1,40}\|>|<\|[a-z_]{1,20}>|<[a-z_]{1,20}\|>|<｜[^｜<>]{1,40}｜>|\[/?[A-Z_]{3,20}\]"
    r"|</?s>|<bos>|<eos>|</?(?:start|end)_of_turn>|<end_of_utterance>|<extra_id_\d>"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "Tells the time.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string", "description": "A zone."}}},
    },
}
CALL = {"type": "function", "id": "call00001", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
SINGLE = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SEVERAL = [*SINGLE, {"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]
TOOLS = [
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "clock", "tool_call_id": "call00001", "content": "12:00"},
    {"role": "assistant", "content": "Noon."},
]
CASES: dict[str, tuple[list[dict[str, Any]], list[Any] | None]] = {
    "single": (SINGLE, None),
    "several": (SEVERAL, None),
    "tools": (TOOLS, [TOOL]),
    "reasoning": ([SINGLE[0], {**SINGLE[1], "reasoning_content": "A greeting."}, *SEVERAL[2:]], None),
    "system": ([{"role": "system", "content": "be kind"}, *SEVERAL], None),
}
ACCEPTED = "accepted"


def main() -> None:
    """Prints a row a template, the reasons below, and how many take conversations of one and of several turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    files = sorted(parser.parse_args().folder.glob("*.jinja"))
    if not files:
        sys.exit("the folder holds no *.jinja")
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="triptych-templates-") as folder:
        save_tokenizer(train_tokenizer(["to train and to serve the same tokens"], 300), Path(folder), CONTEXT)
        for file in files:
            found[file.stem] = {case: tried(file, case, Path(folder)) for case in CASES}
    print("| template | " + " | ".join(CASES) + " |\n|---|" + "---|" * len(CASES))
    reasons: dict[str, int] = {}
    for name, results in found.items():
        cells = [one if one == ACCEPTED else f"[{number(one, reasons)}]" for one in results.values()]
        print(f"| {name} | {' | '.join(cells)} |")
    print()
    for reason, place in reasons.items():
        print(f"[{place}] {reason}")
    whole = sum(one["single"] == one["several"] == ACCEPTED for one in found.values())
    print(f"\n{whole} of {len(found)} templates are accepted for one and for several turns")


def number(reason: str, reasons: dict[str, int]) -> int:
    """Returns the number of a reason's note."""
    return reasons.setdefault(reason, len(reasons) + 1)


def tried(file: Path, case: str, folder: Path) -> str:
    """Returns `ACCEPTED`, why a template refuses a conversation, or the fault that was found."""
    tokenizer, template = load_tokenizer(folder), file.read_text(encoding="utf-8")
    special = sorted(set(SPECIAL.findall(template)))
    known = file.with_name("ends.json")
    ends = json.loads(known.read_text(encoding="utf-8")).get(file.stem) if known.exists() else None
    ends = ends or ["</s>"]
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.add_special_tokens({"eos_token": ends[0], "bos_token": "<s>"})
    home = folder / file.stem
    home.mkdir(exist_ok=True)
    settings = {"eos_token_id": tokenizer.convert_tokens_to_ids(ends)}
    (home / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer.chat_template, tokenizer.name_or_path = template, str(home)
    messages, tools = CASES[case]
    try:
        chat = Chat(tokenizer)
        rows = chat.training_rows(messages, tools)
    except UserError as error:
        return re.sub(r"a conversation that begins '[^']*'", "it", str(error)).replace(f" of {home}", "")
    turns = answers(rows)
    return wrong_turn(chat, messages, tools, turns) or wrong_loss(chat, rows, turns) or ACCEPTED


def answers(rows: Sequence[Rendered]) -> list[tuple[list[int], list[int]]]:
    """Returns the text before each trained turn, and the turn."""
    turns = []
    for row in rows:
        mask = [False, *row.loss_mask, False]
        for start in (place for place in range(len(row.loss_mask)) if mask[place + 1] and not mask[place]):
            end = mask.index(False, start + 1) - 1
            turns.append((row.token_ids[:start], row.token_ids[start:end]))
    return turns


def wrong_turn(chat: Chat, messages: list[dict[str, Any]], tools: Any, turns: list[tuple[list[int], list[int]]]) -> str:
    """Names the turn that is trained on other tokens than it is served with; empty where there is none."""
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if len(turns) != len(places):
        return f"WRONG: {len(turns)} turns are trained, of {len(places)}"
    for place, (before, answer) in zip(places, turns, strict=True):
        message, text = messages[place], str(chat.tokenizer.decode(answer))
        before_it = as_parts(messages[:place]) if takes_parts(chat.tokenizer) else messages[:place]
        prompt = chat.tokenizer.apply_chat_template(before_it, tools=tools, add_generation_prompt=True)
        if before != list(prompt["input_ids"]):
            return f"WRONG: before turn {place} stands {chat.tokenizer.decode(before)!r}"
        if answer[-1] not in chat.end_ids:
            return f"WRONG: turn {place} ends with {text!r}"
        calls = ["clock" for _ in message.get("tool_calls", [])]
        wanted = [message["content"], message.get("reasoning_content", ""), *calls]
        if not all(part in text for part in wanted):
            return f"WRONG: turn {place} is {text!r}"
    return ""


def takes_parts(tokenizer: Any) -> bool:
    """Tells whether a template ignores content that is no list of parts."""
    try:
        return "hello" not in str(tokenizer.apply_chat_template(SINGLE, tokenize=False))
    except TemplateError:
        return True


def as_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns messages whose content is a list of one part."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def wrong_loss(chat: Chat, rows: list[Rendered], turns: list[tuple[list[int], list[int]]]) -> str:
    """Describes how far the loss of packed rows is from that of each answer by itself; empty where they are equal."""
    torch.manual_seed(0)
    size = len(chat.tokenizer)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=size, **shape, max_position_embeddings=CONTEXT, initializer_range=0.3)
    model = LlamaForCausalLM(config).eval()
    objective = LanguageObjective()
    table = pa.table({name: list(column) for name, column in packed_rows(chat, rows).items()})
    batch = objective.collate(table)
    with torch.no_grad():
        trained = float(objective.loss(model, batch)[0]) / objective.count(batch)
        model = model.double()
        apart = torch.cat([losses(model, before, answer) for before, answer in turns])
    off = abs(trained - float(apart.mean()))
    return "" if off < TOLERANCE else f"WRONG: the loss is off by {off:.2g}"


def packed_rows(chat: Chat, rows: list[Rendered]) -> dict[str, Any]:
    """Packs two such conversations into rows, of which one holds several."""
    length = 2 * max(len(row.token_ids) for row in rows) + 1
    return packed(pa.Table.from_batches([rendered_batch([rows, rows])]), length, chat.padding_id)


def losses(model: Any, before: list[int], answer: list[int]) -> torch.Tensor:
    """Computes the cross-entropy of each token of an answer behind its prompt, without any of the trainer's code."""
    ids = torch.tensor([[*before, *answer]])
    scores = model(input_ids=ids).logits[0].log_softmax(-1)[len(before) - 1 : -1]
    return -scores.gather(1, ids[0, len(before) :, None]).squeeze(1)


if __name__ == "__main__":
    main()
