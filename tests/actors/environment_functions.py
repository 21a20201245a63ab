"""Functions that play the environment in tests of several turns."""

from actors.types import RewardInput


def again(prompt: RewardInput, answers: list[str]) -> str | dict[str, str] | None:
    """Asks two more questions."""
    if len(answers) == 1:
        return f"and {prompt.metadata['next']}?"
    return {"role": "user", "content": "sure?"} if len(answers) == 2 else None


def broken(prompt: RewardInput, answers: list[str]) -> str:
    """Raises an error."""
    raise KeyError(prompt.messages[0]["content"])


def number(prompt: RewardInput, answers: list[str]) -> int:
    """Returns a number, which is no message."""
    return len(answers)


def tool(prompt: RewardInput, answers: list[str]) -> dict[str, str]:
    """Returns a tool's message."""
    return {"role": "tool", "content": "12:00"}
