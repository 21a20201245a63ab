from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.recipe.loading import dump_recipe, load_recipe
from cluster.recipe.model import Model
from cluster.runtime.session import ROOT


def test_an_override_changes_only_its_key(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path, ["reward.learning_rate=5e-5", "rlhf.clip_range=1", "corpus.sources.0.limit=7"])
    assert recipe.reward.learning_rate == 5e-5
    assert recipe.pretrain.learning_rate == 5e-4, "shares a YAML anchor with reward"
    assert recipe.rlhf.clip_range == 1.0
    assert recipe.corpus.sources[0].limit == 7


@pytest.mark.parametrize("path", sorted((ROOT / "infra" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_example_recipes_load(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_a_dumped_recipe_loads_as_an_equal_recipe(recipe_path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_path, ["rlhf.learning_rate=5e-5", "model.size=135M"])
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {size: 5M}\nseed: 1\nmodel: {context: 64}\n")
    with pytest.raises(UserError, match=r"the key model stands twice in one section.*line 3"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a, b]: 1\n", "a list or section stands where a key's name belongs in line 1"),
        ("? {a: 1}\n: 2\n", "a list or section stands where a key's name belongs in line 1"),
        ("model: &model {size: *model}\n", r"the alias \*model stands inside what it names in line 1"),
        ("seed: " + "[" * 3000, "lists or sections lie too deep in each other"),
        ("name: 2024-13-45\n", "holds a value that cannot be read: month must be in 1..12"),
        ("name: own".encode("utf-16"), "save it as UTF-8"),
    ],
)
def test_yaml_that_no_recipe_may_hold_is_refused_in_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


def test_an_anchor_may_be_used_again_beside_what_it_names(tmp_path: Path) -> None:
    recipe = "corpus: {sources: [{path: b}]}\nsft: {sources: &rows [{path: a}]}\ncollect: {sources: *rows}\n"
    (tmp_path / "recipe.yaml").write_text(f"name: own\n{recipe}")
    assert load_recipe(tmp_path / "recipe.yaml", ["rlhf.steps=3"]).collect.sources[0].path.endswith("a")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rlhf.stps=3", "unknown key 'rlhf.stps'; the nearest known key is 'rlhf.steps'"),
        ("corpus.sources.0.pth=x", "the nearest known key is 'corpus.sources.0.path'"),
        (
            "serve.aliases={trial: {models: {policy: 1}, shadw: base}}",
            "'serve.aliases.trial.shadw'; the nearest known key is 'serve.aliases.trial.shadow'",
        ),
        ("serve.adapters={models: {pth: x}}", "the nearest known key is 'serve.adapters.models.path'"),
        ("pretrian.epochs=3", "the nearest known key is 'pretrain'"),
        ("sft.lr=1", "unknown key 'sft.lr'; did you mean sft.learning_rate?"),
        ("lr=1", "unknown key 'lr'; did you mean training.learning_rate or rlhf.learning_rate?"),
        ("model.width=64", "unknown key 'model.width'; did you mean model.hidden?"),
        ("rlhf.max_kl=3", "unknown key 'rlhf.max_kl'; did you mean rlhf.stop.max_kl?"),
        ("stop={max_kl: 3}", "unknown key 'stop'; did you mean rlhf.stop?"),
        ("rlhf.steps=abc", "rlhf.steps: input should be a valid integer, not 'abc'"),
        ('rlhf.steps="20"', "valid integer"),
        ("rlhf.steps=2.5", "valid integer"),
        ("seed=true", "valid integer"),
        ("seed=-1", "seed: input should be greater than or equal to 0, not -1"),
        ("sft.learning_rate=.nan", "finite number"),
        ("sft.sources=[]", "at least 1 item"),
        ("model.size=8X", "model.size"),
        ("model.size=0M", "no parameters"),
        ("model={hidden: 10, heads: 3}", "not a multiple"),
        ("model={hidden: 16}", "not a multiple of 32: set heads too"),
        ("model={hidden: 544}", "not a multiple of 64: set heads too"),
        ("rlhf.sampling.samples_per_prompt=1", "at least 2"),
        ("corpus.extractor=lynx", "corpus.extractor"),
        ("sft.workers=99", "less than workers"),
        ("pretrain={compile_layers: true, workers: 2}", "compile_layers is for one worker"),
        ("sft.lora={rank: 0}", "sft.lora.rank: input should be greater than 0"),
        ("collect.sources.0.kind=files", "needs a path"),
        ("run=s3://bucket/run", "path on this machine"),
        ("rlhf=3", "rlhf:"),
        ("rlhf={algorithm: rloo, sampling: {samples_per_prompt: 1}}", "rloo compares samples"),
        ("rlhf={algorithm: dapo, kl: {target: 3.0}}", "must be above 0"),
        ("rlhf.importance={min: 0.5}", "min is for method mask"),
        ("rlhf.kl.estimator=k2", "needs charged_in"),
        ("rlhf.kl={target: 3.0, coefficient: 0}", "must be above 0"),
        ("rlhf.fleet.swap_in_flight=true", "set max_staleness too"),
        (
            "rlhf={minibatches: 9, prompts_per_step: 2, sampling: {samples_per_prompt: 4}}",
            "minibatches are more than the samples",
        ),
        ("rlhf={stop: {min_preference_accuracy: 0.5}, steps: 10}", "measured every stop.probe_every steps"),
        ("rlhf.rewards=[{kind: http, url: 'http://localhost:PORT/x'}]", "invalid port number"),
        ("rlhf.rewards=[{kind: http, url: 'file:///etc/passwd'}]", "rlhf.rewards.0.url"),
        ("rlhf.rewards=[]", "at least 1 item"),
        ("rlhf.rewards=[{kind: function}]", "needs a function"),
        ("rlhf.rewards=[{function: 'm:f'}]", "function is set and kind is model: add `kind: function`, or remove"),
        ("sft.sources=[{function: 'm:f'}]", "of kind files needs a path; for this function, add `kind: function`"),
        ("rlhf.rewards=[{kind: function, function: len}]", "input should be module:function, such as rewards:brief"),
        ("model.size=2.5m", "model.size: input should be a number with K, M or B behind it, such as 800K or 2.5M"),
        ("experiment={target: [{path: x}], variants: {a b: {}}}", "input should be letters, digits, dots, dashes and"),
        (
            "corpus.sources=[texts]",
            "should be a section with keys such as kind, name, path, not 'texts'",
        ),
        ("corpus.sources=texts", "input should be a list of sections with keys such as kind, name, path, not 'texts'"),
        ("corpus.languages=en", "corpus.languages: input should be a list, such as [en], not 'en'"),
        ("evaluate.exam=mine:exam", "input should be a section with keys such as function, arguments, not 'mine:exam'"),
        ("rlhf.steps=", "rlhf.steps: input should be a valid integer, and nothing is given"),
        (
            "collect.annotator=peopel",
            "recipe.yaml: collect.annotator: input should be 'people' or 'imported', or a section with keys such as "
            "function, arguments, not 'peopel'",
        ),
        (
            "collect.annotator={function: 'mine:rank', argument: {}}",
            "recipe.yaml: unknown key 'collect.annotator.argument'; the nearest known key is "
            "'collect.annotator.arguments'",
        ),
        (
            "evaluate.tasks=[{kind: choise, path: x}]",
            "recipe.yaml: evaluate.tasks.0.kind: input should be 'choice', 'generate', 'pairs' or 'perplexity', not",
        ),
        ("rlhf.sampling.temperature=2.1", "less than or equal to 2"),
        ("rlhf.sampling.top_p=0.9", "rlhf.sampling: top_p is refused: answers would be drawn from a part"),
        ("rlhf.sampling={top_k: 20}", "importance ratios and divergences would be wrong; use temperature"),
        ("rlhf.sampling.min_p=0.1", "min_p is refused"),
        ("collect.temperature=2.1", "less than or equal to 2"),
        ("nonsense", "write key=value"),
        ("corpus.sources.5.kind=files", "has no '5'"),
        ("name.low=1", "not a section"),
        ("seed=[", "not valid YAML"),
    ],
)
def test_errors_name_the_wrong_override(recipe_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe_path, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_in_an_inherited_key_is_reported_once(recipe_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe_path, ["training.learning_rate=-1", "sft.learning_rate=-2"])
    assert str(caught.value) == (
        f"{recipe_path}: training.learning_rate: input should be greater than 0, not -1; "
        "sft.learning_rate: input should be greater than 0, not -2"
    )


def test_wordpiece_needs_two_tokens_per_byte(recipe_path: Path) -> None:
    load_recipe(recipe_path, ["corpus.tokenizer=wordpiece", "model.vocabulary=600"])
    with pytest.raises(UserError, match=r"set model\.vocabulary to 600 or more"):
        load_recipe(recipe_path, ["corpus.tokenizer=wordpiece", "model.vocabulary=599"])


@pytest.mark.parametrize(("size", "parameters"), [("2.5M", 2_500_000), ("135M", 135_000_000), ("8B", 8_000_000_000)])
def test_size_is_a_number_of_parameters(size: str, parameters: int) -> None:
    assert Model(size=size).parameters == parameters


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "name: x"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_recipe(tmp_path / "bad.yaml")
