"""What the tests of environments have said after an answer."""

from actors.types import RewardInput


def again(question: RewardInput, answers: list[str]) -> str | dict[str, str] | None:
    """Asks on twice."""
    if len(answers) == 1:
        return f"and {question.metadata['next']}?"
    return {"role": "user", "content": "sure?"} if len(answers) == 2 else None


def broken(question: RewardInput, answers: list[str]) -> str:
    """Has a defect."""
    raise KeyError(question.messages[0]["content"])


def number(question: RewardInput, answers: list[str]) -> int:
    """Gives no message."""
    return len(answers)


def tool(question: RewardInput, answers: list[str]) -> dict[str, str]:
    """Answers as a tool."""
    return {"role": "tool", "content": "12:00"}
