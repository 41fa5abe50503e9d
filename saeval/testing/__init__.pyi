from saeval.testing.contracts import (
    check_coder as check_coder,
    check_explainer as check_explainer,
    check_llm as check_llm,
    check_sampler as check_sampler,
    check_scorer as check_scorer,
    check_source as check_source,
    check_tracker as check_tracker,
)
from saeval.testing.planted import (
    plant as plant,
    planted_explanation as planted_explanation,
    planted_store as planted_store,
    rule_explainer as rule_explainer,
    rule_judge as rule_judge,
    rule_writer as rule_writer,
)
from saeval.testing.plugin_checks import check_package as check_package
from saeval.testing.toys import (
    ScriptedLLM as ScriptedLLM,
    context as context,
    make_example as make_example,
    make_examples as make_examples,
    word_embeddings as word_embeddings,
)
