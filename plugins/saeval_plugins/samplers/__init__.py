"""Built-in samplers, which choose the windows that explain and score a latent."""

from __future__ import annotations

from saeval.plugin import Sampler, hookimpl
from saeval_plugins.samplers.delphi import DelphiSampler
from saeval_plugins.samplers.frozen import FrozenSampler
from saeval_plugins.samplers.saebench import SAEBench
from saeval_plugins.samplers.windows import Mix, Quantiles, RandomSampler, Top


@hookimpl
def saeval_samplers() -> list[type[Sampler]]:
    return [RandomSampler, Quantiles, Top, Mix, DelphiSampler, SAEBench, FrozenSampler]
