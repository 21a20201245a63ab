"""Translates recipe keys of the version before into today's.

A key that is renamed gets an entry in `RENAMED`. Entries are removed one version later.
"""

import copy
from typing import Any

# Old dotted name to new; `*` stands for each entry of a list.
RENAMED = {
    "corpus.known": "corpus.previous_corpora",
    "corpus.survivor": "corpus.keep_policy",
    "corpus.minimum_words": "corpus.min_words",
    "corpus.maximum_bad_share": "corpus.max_bad_share",
    "corpus.sources.*.licence": "corpus.sources.*.license",
    "corpus.rules.gopher_quality.minimum_words": "corpus.rules.gopher_quality.min_words",
    "corpus.rules.gopher_quality.maximum_words": "corpus.rules.gopher_quality.max_words",
    "corpus.rules.gopher_quality.minimum_mean_word_length": "corpus.rules.gopher_quality.min_mean_word_length",
    "corpus.rules.gopher_quality.maximum_mean_word_length": "corpus.rules.gopher_quality.max_mean_word_length",
    **{
        f"{section}.{old}": f"{section}.{new}"
        for section in ("training", "pretrain", "sft", "reward", "dpo")
        for old, new in (
            ("optimiser", "optimizer"),
            ("minimum_rate_share", "min_rate_share"),
            ("maximum_gradient_norm", "max_gradient_norm"),
        )
    },
    "loop.minimum_new": "loop.min_new",
    "collect.labeller": "collect.annotator",
    "collect.minimum_rankings": "collect.min_rankings",
    "reward.labeller_weights": "reward.annotator_weights",
    **{f"rlhf.{name}": f"rlhf.sampling.{name}" for name in ("samples_per_prompt", "temperature", "max_tokens")},
    "rlhf.kl_coefficient": "rlhf.kl.coefficient",
    "rlhf.kl_in": "rlhf.kl.charged_in",
    "rlhf.kl_estimator": "rlhf.kl.estimator",
    "rlhf.kl_target": "rlhf.kl.target",
    "rlhf.kl_budget": "rlhf.stop.max_kl",
    "rlhf.minimum_entropy": "rlhf.stop.min_entropy",
    "rlhf.maximum_repetition": "rlhf.stop.max_repetition",
    "rlhf.maximum_length_change": "rlhf.stop.max_length_change",
    "rlhf.minimum_preference_accuracy": "rlhf.stop.min_preference_accuracy",
    "rlhf.probe_every": "rlhf.stop.probe_every",
    **{
        f"rlhf.{name}": f"rlhf.fleet.{name}"
        for name in (
            "rollout_actors",
            "reward_actors",
            "learner_workers",
            "max_staleness",
            "swap_in_flight",
            "parity_every",
        )
    },
    "rlhf.most_rollout_actors": "rlhf.fleet.max_rollout_actors",
    "rlhf.most_reward_actors": "rlhf.fleet.max_reward_actors",
}

# Former values of `kind` in corpus.sources, as functions.
TEXT_KINDS = {
    "countries": "pipelines.demo.facts:country_documents",
    "randfacts": "pipelines.corpus.read.packages:random_facts",
    "chatterbot": "pipelines.corpus.read.packages:chatterbot_dialogues",
    "docstrings": "pipelines.corpus.read.packages:docstrings",
}
DEMO_CHATS = "pipelines.demo.conversations:conversations"
DEMO_PROMPTS = "pipelines.demo.questions:prompts"
DEMO_ANNOTATOR = "pipelines.demo.annotator:annotate"
DEMO_EXAM = "pipelines.demo.exam:exam"


def with_new_names(data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Renames the keys of a recipe as read from YAML.

    A key that is given by both names keeps both: validation then refuses the old one as unknown.

    Returns:
        The recipe's data with today's names, and the old name of each renamed key with its new one.
    """
    data = copy.deepcopy(data)
    renamed = {old: new for old, new in RENAMED.items() if _move(data, old.split("."), new.split("."))}
    return data, renamed | _demo_as_functions(data)


def _move(data: Any, old: list[str], new: list[str]) -> bool:
    """Moves the value at `old` to `new`, both split at the dots and equal up to the last `*`; says whether it did."""
    if "*" in old:
        star = old.index("*")
        entries = _at(data, old[:star])
        rest = (old[star + 1 :], new[star + 1 :])
        results = [_move(entry, *rest) for entry in entries] if isinstance(entries, list) else []
        return any(results)
    source = _at(data, old[:-1])
    if not isinstance(source, dict) or old[-1] not in source:
        return False
    target = data
    for name in new[:-1]:
        target = target.setdefault(name, {})
        if not isinstance(target, dict):
            return False
    if new[-1] in target:
        return False
    target[new[-1]] = source.pop(old[-1])
    return True


def _at(data: Any, names: list[str]) -> Any:
    for name in names:
        data = data.get(name) if isinstance(data, dict) else None
    return data


def _demo_as_functions(data: dict[str, Any]) -> dict[str, str]:
    """Replaces the former built-in kinds of sources, and the annotator and exam that came with them, by functions."""
    renamed: dict[str, str] = {}
    for source in _entries(data, "corpus"):
        if source.get("kind") in TEXT_KINDS:
            kind = source["kind"]
            function = TEXT_KINDS[kind]
            source |= {"kind": "function", "function": function, "name": source.get("name") or kind}
            renamed[f"corpus.sources: kind {kind}"] = f"kind function, function {function}"
    misbehavior = _pop(data, "sft", ("misbehaviour_share", "misbehavior_share"))
    noise = _pop(data, "collect", ("label_noise",))
    if misbehavior is not None:
        renamed["sft.misbehaviour_share"] = "arguments.misbehavior_share of the source"
    if noise is not None:
        renamed["collect.label_noise"] = "arguments.noise of collect.annotator"
    uses_demo = False
    for section, function in (("sft", DEMO_CHATS), ("collect", DEMO_PROMPTS)):
        for source in _entries(data, section):
            if source.get("kind") == "guide":
                uses_demo = True
                source |= {"kind": "function", "function": function}
                if section == "sft" and misbehavior is not None:
                    source["arguments"] = {"misbehavior_share": misbehavior}
                renamed[f"{section}.sources: kind guide"] = f"kind function, function {function}"
    collect = data.get("collect")
    if isinstance(collect, dict) and (collect.get("annotator") == "code" or (uses_demo and "annotator" not in collect)):
        collect["annotator"] = {"function": DEMO_ANNOTATOR, "arguments": {} if noise is None else {"noise": noise}}
        renamed["collect.annotator: code"] = f"function {DEMO_ANNOTATOR}"
    if uses_demo and isinstance(evaluate := data.setdefault("evaluate", {}), dict):
        evaluate.setdefault("exam", {"function": DEMO_EXAM})
    return renamed


def _entries(data: dict[str, Any], section: str) -> list[dict[str, Any]]:
    sources = _at(data, [section, "sources"])
    return [source for source in sources if isinstance(source, dict)] if isinstance(sources, list) else []


def _pop(data: dict[str, Any], section: str, names: tuple[str, ...]) -> Any:
    values = data.get(section)
    removed = [values.pop(name) for name in names if name in values] if isinstance(values, dict) else []
    return removed[0] if removed else None
