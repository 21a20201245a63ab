"""The guide's held-out questions, asked of every model of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from actors.model.chat import Chat
from actors.orchestrator.fleet import Fleet
from actors.types import Prompt, Sample, Sampling
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from pipelines.demo.facts import Country, countries
from pipelines.demo.questions import DemoQuestion, held_out_questions
from pipelines.evaluate.stats import Answer, Proportion, proportion


def is_asked(recipe: Recipe) -> bool:
    """Whether the run learned from the guide. The environment of a conversation knows nothing of its questions."""
    learned_from = [*recipe.sft.sources, *recipe.collect.sources]
    return any(source.kind == "guide" for source in learned_from) and not recipe.rlhf.environment


@dataclass(frozen=True)
class Exam:
    """Held-out questions as each model is asked them: the base model continues the bare question, others see a chat."""

    questions: list[DemoQuestion]
    run: RunFolder
    chat: Chat
    base: PreTrainedTokenizerBase
    sampling: Sampling

    @classmethod
    def of(cls, recipe: Recipe, run: RunFolder) -> "Exam":
        greedy = Sampling(1, 0.0, recipe.evaluate.max_tokens, recipe.seed)
        base = AutoTokenizer.from_pretrained(run.path("base"))
        return cls(held_out_questions(recipe.seed), run, Chat.of(run.path("sft")), base, greedy)

    def answers(self, fleet: Fleet, name: str) -> list[Answer]:
        """What the model of that name, whose weights the fleet holds, answers to every question."""
        model = self.run.path(name)
        if name == "base":
            return _answers(self.questions, fleet.generate(self._bare(), self.sampling), model, self.base)
        asked = [Prompt(q.id, self.chat.prompt([{"role": "user", "content": q.text}])) for q in self.questions]
        return _answers(self.questions, fleet.generate(asked, self.sampling), model, self.chat.tokenizer)

    def capital_completion(self, fleet: Fleet) -> Proportion:
        """How often the weights in the fleet continue "The capital of X is" with the capital, over all countries."""
        asked = countries()
        prompts = [
            Prompt(country.name, self.base.encode(f"The capital of {country.name} is", add_special_tokens=False))
            for country in asked
        ]
        drawn = fleet.generate(prompts, self.sampling)
        return proportion(sum(continues_right(country, drawn[country.name][0].text) for country in asked), len(asked))

    def _bare(self) -> list[Prompt]:
        return [Prompt(q.id, self.base.encode(q.text, add_special_tokens=False)) for q in self.questions]


def continues_right(country: Country, text: str) -> bool:
    """Whether a continuation begins with the capital's name."""
    return text.strip().startswith(country.capital.strip())


def answer_of(question: DemoQuestion, token_ids: Sequence[int], ends: set[int], tokenizer: Any) -> Answer:
    """The answer up to the first token with which this model ends. The engine stops at the chat's token only; greedy
    decoding to a base model's own end is the same as stopping there."""
    end = next((index for index, token in enumerate(token_ids) if token in ends), None)
    text = tokenizer.decode(list(token_ids[:end]), skip_special_tokens=True).strip()
    return Answer(question, text, stopped=end is not None)


def _answers(
    questions: Sequence[DemoQuestion],
    drawn: Mapping[str, list[Sample]],
    model: Path,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Answer]:
    ends = AutoConfig.from_pretrained(model).eos_token_id
    known = set(ends) if isinstance(ends, list) else {ends}
    return [answer_of(question, drawn[question.id][0].token_ids, known, tokenizer) for question in questions]
