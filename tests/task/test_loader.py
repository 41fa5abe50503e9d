"""Every mistake of a spec is told at once, in its keys and in its plugins."""

from __future__ import annotations

import pytest

from saeval import SpecError
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task


def test_misspelt_plugins_and_options_are_told_beside_keys_that_are_wrong():
    task = {
        "saeval": 1, "task": "t", "version": "1", "latents": {"n": "many"}, "source": ["synthetic"],
        "sampler": {"use": "random", "with": {"windw": 3}}, "explainer": "knwn", "scorers": {"detecton": {}, 3: [1]},
        "llms": {"judge": {"model": "openai_compatible/m", "temprature": 0}, "writer": 3},
    }  # fmt: skip
    with pytest.raises(SpecError) as error:
        load_task(task, registry=Registry())
    told = "\n".join(error.value.problems)
    for sentence in (
        "latents.n",
        "unknown explainer 'knwn'",
        "did you mean 'window'",
        "unknown scorer 'detecton'",
        "temprature",
    ):
        assert told.count(sentence) == 1
