"""The reward model's loss on K-way rankings (Ouyang et al. 2022, eq. 1): all pairs of a prompt stay in one batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from actors.model.attention.prefix_sharing import states_at
from actors.model.microbatch import pad_rows
from actors.model.reward_head import scalar_outputs

# The weight of the rewards' mean square.
CENTERING = 0.01


@dataclass(frozen=True)
class RankedBatch:
    """Answers of several prompts, one a row.

    Attributes:
        input_ids: [N, T], prompt and answer, padded at the right.
        lengths: [N], tokens before the padding.
        prompt_lengths: [N], the tokens with which all answers of the ranking begin.
        ranks: [N], 1 is best and ties are equal.
        prompts: [N], the number of the row's ranking, of the batch's P.
        weights: [P], the weight of each ranking.
        good: [P], 0 for a ranking; of a single, unpaired answer 1 if it is good and -1 if it is bad.
        made_from: [N], for a counterexample the place in its ranking of the answer that it is worse than; else -1.
    """

    input_ids: Tensor
    lengths: Tensor
    prompt_lengths: Tensor
    ranks: Tensor
    prompts: Tensor
    weights: Tensor
    good: Tensor
    made_from: Tensor


def ranking_losses(rewards: Tensor, ranks: Tensor) -> Tensor:
    """Computes -log σ(r_better - r_worse) of all pairs of one prompt; a tie counts as half a win each way.

    Args:
        rewards: [K].
        ranks: [K].

    Returns:
        [K(K-1)/2].
    """
    first, second = torch.combinations(torch.arange(len(ranks), device=ranks.device)).T
    difference = rewards[first] - rewards[second]
    wins = 0.5 + 0.5 * torch.sign(ranks[second] - ranks[first]).to(difference.dtype)
    return functional.binary_cross_entropy_with_logits(difference, wins, reduction="none")


def ranking_loss(rewards: Tensor, ranks: Tensor, made_from: Tensor) -> Tensor:
    """Computes the mean loss of the pairs of ranked answers, plus that of the counterexamples of one prompt.

    A counterexample is compared only with the answer that it was made from: its rank among the others is unknown. The
    two means count alike, so that many counterexamples do not outweigh the annotators' rankings.

    Args:
        rewards: [K].
        ranks: [K]; of counterexamples it is not read.
        made_from: [K], as of `RankedBatch`.
    """
    ranked = made_from < 0
    loss = ranking_losses(rewards[ranked], ranks[ranked]).mean()
    if not ranked.all():
        loss = loss + functional.softplus(rewards[~ranked] - rewards[made_from[~ranked]]).mean()
    return loss


def unpaired_losses(rewards: Tensor, good: Tensor) -> Tensor:
    """Computes 1 - σ(r) of good answers and 1 - σ(-r) of bad ones: KTO (Ethayarajh et al. 2024, eq. 7 and 8) with
    λ and β of 1, where the reward is the model's own and not a log-ratio of policies.

    KTO's reference point, a KL divergence of the policy, is 0 here: the centering penalty keeps the mean reward there,
    and no answer's loss depends on the others of its batch.

    Args:
        rewards: [N].
        good: [N], 1 or -1.

    Returns:
        [N].
    """
    return torch.sigmoid(-good.to(rewards.dtype) * rewards)


class BradleyTerryObjective:
    """The loss of each ranking, times its weight, summed: none weighs more for its number of answers. That of an
    unpaired answer is `unpaired_losses`.

    A small penalty on the rewards' mean square (Eisenstein et al. 2023) fixes the constant that pairs leave free.
    """

    unit = "prompts"
    dropout = False

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def collate(self, rows: pa.Table) -> RankedBatch:
        """Makes a batch of rows of `input_ids` (all answers end to end), `lengths`, `ranks` and `weight`, and, where
        there are counterexamples or unpaired answers, `made_from` and `good`."""
        answers, prompt_lengths, ranks, prompts = [], [], [], []
        made_from: list[int] = []
        for prompt, row in enumerate(rows.to_pylist()):
            own = torch.tensor(row["input_ids"]).split(row["lengths"])
            answers += own
            prompt_lengths += [_common_prefix(own)] * len(own)
            ranks += row["ranks"]
            made_from += row.get("made_from") or [-1] * len(own)
            prompts += [prompt] * len(row["ranks"])
        return RankedBatch(
            input_ids=pad_rows(answers, self.padding),
            lengths=torch.tensor([len(answer) for answer in answers]),
            prompt_lengths=torch.tensor(prompt_lengths),
            ranks=torch.tensor(ranks),
            prompts=torch.tensor(prompts),
            weights=torch.tensor(rows["weight"].to_pylist()),
            good=torch.tensor(rows["good"].to_pylist() if "good" in rows.column_names else [0] * len(rows)),
            made_from=torch.tensor(made_from),
        )

    def count(self, batch: RankedBatch) -> int:
        """Returns the number of rankings."""
        return len(batch.prompts.unique())

    def loss(self, model: Any, batch: RankedBatch) -> tuple[Tensor, dict[str, float]]:
        """Returns the summed loss, and the pairs ordered and ordered rightly, for the accuracy."""
        ends = _ends(batch.input_ids, batch.lengths)
        rewards = _rewards(model, states_at(model, batch.input_ids, ends, batch.prompt_lengths, batch.prompts))
        total, right, ordered = rewards.new_zeros(()), 0, 0
        for prompt in batch.prompts.unique():
            own = batch.prompts == prompt
            r, k, made_from = rewards[own], batch.ranks[own], batch.made_from[own]
            good = batch.good[prompt]
            loss = unpaired_losses(r, good).mean() if good else ranking_loss(r, k, made_from)
            total = total + batch.weights[prompt] * (loss + CENTERING * r.square().mean())
            better = (k[:, None] < k[None, :]) & (made_from < 0)[:, None] & (made_from < 0)[None, :]
            ordered += int(better.sum())
            right += int((better & (r[:, None] > r[None, :])).sum())
        return total, {"right_pairs": right, "ordered_pairs": ordered}


def ensemble_rewards(
    models: Sequence[Any], input_ids: Tensor, lengths: Tensor, prompt_lengths: Tensor, groups: Tensor
) -> Tensor:
    """Computes the rewards of rows by every member of an ensemble, in float32. Their mean over M is the ensemble's.

    Args:
        models: M sequence classifiers with one label.
        input_ids: [N, T], padded at the right.
        lengths: [N].
        prompt_lengths: [N], the tokens with which all rows of a group begin.
        groups: [N].

    Returns:
        [M, N].
    """
    ends = _ends(input_ids, lengths)
    return torch.stack([_rewards(model, states_at(model, input_ids, ends, prompt_lengths, groups)) for model in models])


def _ends(input_ids: Tensor, lengths: Tensor) -> Tensor:
    """Marks the last token of each row. [N, T], [N] -> bool [N, T]."""
    return torch.arange(input_ids.shape[1], device=lengths.device) == lengths[:, None] - 1


def _rewards(model: Any, states: Tensor) -> Tensor:
    """Applies the scalar head. [N, H] -> [N], float32."""
    return scalar_outputs(model, states).float()


def _common_prefix(answers: Sequence[Tensor]) -> int:
    """Counts the tokens with which all answers begin, without the last of each, whose state gives its reward."""
    columns = zip(*(answer[:-1].tolist() for answer in answers), strict=False)
    return len(list(takewhile(lambda tokens: len(set(tokens)) == 1, columns)))
