"""Rankings that came from files as what the reward model learns from: nothing is sampled, and nobody is waited for."""

from dataclasses import dataclass
from typing import Any

from actors.model.chat import Chat
from cluster.failures import UserError
from cluster.feedback import Feedback, is_person
from pipelines.preferences import ranking_row


@dataclass(frozen=True)
class Imported:
    """Rows of rankings.parquet, and how many rankings were left out because the model cannot read as much."""

    rows: list[dict[str, Any]]
    too_long: int


def imported_rankings(database: Feedback, chat: Chat, context: int) -> Imported:
    """Every ranking by people of prompts that `triptych feedback import` added, on the side of the split that it gave.

    Args:
        chat: writes prompts and answers as the model's tokens.
        context: most tokens of a prompt with any of its answers.

    Raises:
        UserError: there is none that fits.
    """
    prompts = {prompt.id: prompt for prompt in database.prompts() if "import" in prompt.details}
    rows, too_long = [], 0
    for ranking in sorted(database.rankings(), key=lambda row: (row.prompt_id, row.labeller)):
        prompt = prompts.get(ranking.prompt_id)
        if prompt is None or not is_person(ranking.labeller):
            continue
        completions = sorted(prompt.completions, key=lambda row: row.index)
        for completion in completions:
            completion.token_ids = chat.answer(completion.text)
        row = ranking_row(prompt, completions, ranking, chat.prompt(prompt.messages), chat.end_of_turn_id)
        if len(row["prompt_token_ids"]) + max(map(len, row["answers"])) <= context:
            rows.append(row)
        else:
            too_long += 1
    if not rows:
        raise UserError(
            f"the database holds no imported rankings of at most {context} tokens ({too_long} are longer): "
            "`triptych feedback import FORMAT FILE --run RUN` adds a file"
        )
    return Imported(rows, too_long)
