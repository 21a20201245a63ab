"""The recipe's settings of an engine: vLLM's arguments, and values refused before a model is loaded."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from cluster.errors import UserError
from cluster.recipe.serve import Engine, NgramSpeculation
from cluster.runtime.plan import Allocation
from serve.compat.vllm_engine import limit_white_space
from serve.compat.vllm_openai import TOOL_MARKS, parser_options, tool_parser_for
from tests.templates import CHATML

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs

CPU, GPU = Allocation(cpus=1, gpus=0, threads=1), Allocation(cpus=1, gpus=2, threads=1)


def engine_arguments(*given: Any) -> "AsyncEngineArgs":
    # Importing vLLM takes seconds, also of the processes that collect these tests and run none of them.
    from serve.replica import vllm_engine

    return vllm_engine.engine_arguments(*given)


def test_vllm_gets_the_settings_by_its_own_names() -> None:
    usual = engine_arguments(Path("model"), 64, CPU)
    assert (usual.enable_prefix_caching, usual.quantization, usual.speculative_config) == (True, None, None)
    set_ones = Engine(
        enable_prefix_caching=False, quantization="fp8", speculative_config=NgramSpeculation(prompt_lookup_max=3)
    )
    given = engine_arguments(Path("model"), 64, GPU, set_ones, "qwen3")
    assert (given.enable_prefix_caching, given.quantization, given.tensor_parallel_size) == (False, "fp8", 2)
    assert given.speculative_config == {
        "method": "ngram",
        "num_speculative_tokens": 3,
        "prompt_lookup_max": 3,
        "prompt_lookup_min": 2,
    }
    assert given.structured_outputs_config.reasoning_parser == "qwen3"


def test_names_that_vllm_does_not_know_are_refused_with_those_that_it_knows() -> None:
    with pytest.raises(UserError, match=r"serve\.engine\.quantization: vLLM has no 'fp3'; it has .*fp8"):
        engine_arguments(Path("model"), 64, CPU, Engine(quantization="fp3"))
    with pytest.raises(UserError, match=r"serve\.tool_parser: vLLM has no 'x'; it has .*hermes"):
        parser_options("x", None)
    with pytest.raises(UserError, match=r"serve\.reasoning_parser: vLLM has no 'x'; it has .*qwen3"):
        parser_options(None, "x")
    assert parser_options(None, None) == {}
    with pytest.raises(ValidationError, match="prompt_lookup_min is more"):
        NgramSpeculation(prompt_lookup_min=5)


def test_the_format_of_tool_calls_is_found_in_the_template() -> None:
    """vLLM has a parser for each, and a template without tools gets the usual one."""
    for mark, parser, is_token in TOOL_MARKS:
        template = f"{{% if tools %}}{mark}{{% endif %}}"
        assert parser_options(tool_parser_for(template, {mark}), None)["tool_parser"] == parser
        assert tool_parser_for({"default": CHATML, "tools": template}, {mark}) == parser
        if is_token:
            assert tool_parser_for(template, ()) == "hermes"
    for template in (None, CHATML):
        assert tool_parser_for(template, ()) == "hermes"


def test_a_forced_call_has_one_white_space_character_at_a_time() -> None:
    """A property may have the name of xgrammar's field."""
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams
    from vllm.v1.structured_output.backend_xgrammar import xgr

    schema = {"type": "object", "properties": {"type": {"const": "json_schema"}}, "required": ["type"]}
    content = {"type": "json_schema", "json_schema": schema}
    tag = {"type": "structural_tag", "format": {"type": "tag", "begin": "<a>", "content": content, "end": "</a>"}}
    form = StructuredOutputsParams(structural_tag=json.dumps(tag))
    limit_white_space(SamplingParams(structured_outputs=form))
    grammar = xgr.Grammar.from_structural_tag(form.structural_tag)
    for text, accepted in (("", True), (" ", True), ("\n", True), ("  ", False), ("\t\n", False)):
        assert xgr.testing._is_grammar_accept_string(grammar, f'<a>{{"type":{text}"json_schema"}}</a>') == accepted
    assert json.loads(form.structural_tag)["format"]["content"]["json_schema"] == schema


def test_a_structural_tag_that_is_no_json_is_left_to_vllm() -> None:
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams

    for given in (None, StructuredOutputsParams(json={}), StructuredOutputsParams(structural_tag="{")):
        limit_white_space(parameters := SamplingParams(structured_outputs=given))
        assert parameters.structured_outputs == given
