"""The demo's sources and annotator as a recipe names them, for tests of stages."""

from typing import Any

DEMO_CHATS: dict[str, Any] = {"kind": "function", "function": "pipelines.demo.conversations:conversations"}
DEMO_PROMPTS: dict[str, Any] = {"kind": "function", "function": "pipelines.demo.questions:prompts"}
COUNTRIES: dict[str, Any] = {
    "kind": "function",
    "function": "pipelines.demo.facts:country_documents",
    "name": "countries",
}
RANDOM_FACTS: dict[str, Any] = {"kind": "function", "function": "pipelines.corpus.read.packages:random_facts"}
DIALOGUES: dict[str, Any] = {"kind": "function", "function": "pipelines.corpus.read.packages:chatterbot_dialogues"}
DEMO = {"sft": {"sources": [DEMO_CHATS]}, "collect": {"sources": [DEMO_PROMPTS]}}


def demo_annotator(noise: float = 0.05) -> dict[str, Any]:
    """Returns the demo's synthetic annotator, for `collect.annotator`."""
    return {"function": "pipelines.demo.annotator:annotate", "arguments": {"noise": noise}}
