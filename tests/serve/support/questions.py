"""A question, and the tools that go with it, for the tests of the HTTP surface."""

ASK = [{"role": "user", "content": "What is the capital of Peru?"}]
MODEL = "policy"
# Without `strict`: clients seldom set it.
PLACE = {
    "type": "object",
    "properties": {"place": {"enum": ["Lima", "Quito"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["place", "days"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PLACE}}]
