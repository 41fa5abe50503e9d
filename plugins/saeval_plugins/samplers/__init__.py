"""Samplers: which windows explain a latent, and which score it."""

from __future__ import annotations

from saeval.plugin import Sampler, hookimpl
from saeval_plugins.samplers.delphi import Delphi
from saeval_plugins.samplers.frozen import Frozen
from saeval_plugins.samplers.saebench import SAEBench
from saeval_plugins.samplers.windows import Mix, Quantiles, Random, Top


@hookimpl
def saeval_samplers() -> list[type[Sampler]]:
    return [Random, Quantiles, Top, Mix, Delphi, SAEBench, Frozen]
