"""Built-in language model plugins; the prefix of a role's `model` selects one."""

from __future__ import annotations

from saeval.plugin import LLM, hookimpl
from saeval_plugins.llms.frozen import FrozenLLM
from saeval_plugins.llms.hf import HF
from saeval_plugins.llms.litellm import LiteLLM
from saeval_plugins.llms.openai_compatible import OpenAICompatible
from saeval_plugins.llms.oracle import Oracle
from saeval_plugins.llms.replay import Replay
from saeval_plugins.llms.scripted import Scripted
from saeval_plugins.llms.vllm import VLLM


@hookimpl
def saeval_llms() -> list[type[LLM]]:
    return [LiteLLM, OpenAICompatible, HF, VLLM, Scripted, Replay, FrozenLLM, Oracle]
