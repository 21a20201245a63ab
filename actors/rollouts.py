"""Keeps the fleet busy with prompts of the ledger, no further ahead of the learner than the staleness allows."""

from dataclasses import dataclass, field

import numpy as np

from actors.fleet import Fleet
from actors.ledger import Ledger, Ticket
from actors.sample import Prompt, Sample, Sampling
from cluster.recipe import Rlhf


@dataclass
class Rollouts:
    """Turns prompts into batches of samples.

    With `max_staleness` 0, a batch is drawn when it is asked for, by the current weights. With n, n batches more are in
    work meanwhile (capacity as in AReaL, Fu et al. 2025); samples that are older all the same are drawn again.
    """

    fleet: Fleet
    ledger: Ledger
    prompts: dict[str, Prompt]
    settings: Rlhf
    seed: int
    in_work: dict[str, Ticket] = field(default_factory=dict)

    def next_batch(self, version: int) -> tuple[list[Ticket], list[Prompt], list[list[Sample]]]:
        """Samples for the step that makes `version + 1`: their tickets, prompts and groups of samples."""
        size = self.settings.prompts_per_step
        tickets: list[Ticket] = []
        groups: list[list[Sample]] = []
        while len(groups) < size:
            wanted = (self.settings.max_staleness + 1) * size - len(self.in_work) - len(groups)
            self._submit(self.ledger.take(max(0, wanted)), version)
            for group in self.fleet.collect(size - len(groups)):
                ticket = self.in_work.pop(group[0].prompt_id)
                if version - min(v for sample in group for v in sample.weight_versions) > self.settings.max_staleness:
                    self.ledger.give_back([ticket])
                else:
                    tickets.append(ticket)
                    groups.append(group)
        return tickets, [self.prompts[ticket.prompt_id] for ticket in tickets], groups

    def _submit(self, tickets: list[Ticket], version: int) -> None:
        if not tickets:
            return
        settings = self.settings
        seed = int(np.random.SeedSequence([self.seed, version]).generate_state(1)[0])
        sampling = Sampling(settings.samples_per_prompt, settings.temperature, settings.max_tokens, seed)
        named = {f"{ticket.epoch}:{ticket.prompt_id}": ticket for ticket in tickets}
        self.in_work.update(named)
        self.fleet.submit(
            [Prompt(name, self.prompts[ticket.prompt_id].token_ids) for name, ticket in named.items()], sampling
        )
