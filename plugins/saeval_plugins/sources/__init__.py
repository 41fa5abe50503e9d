"""Built-in sources of activations."""

from __future__ import annotations

from saeval.plugin import ActivationSource, hookimpl
from saeval_plugins.sources.delphi import DelphiSource
from saeval_plugins.sources.frozen import FrozenSource
from saeval_plugins.sources.known import Known
from saeval_plugins.sources.neuronpedia import Neuronpedia
from saeval_plugins.sources.recorded import Recorded
from saeval_plugins.sources.rules import Rules
from saeval_plugins.sources.synthetic import Synthetic
from saeval_plugins.sources.transformers import Transformers


@hookimpl
def saeval_sources() -> list[type[ActivationSource]]:
    """Add the built-in sources."""
    return [Transformers, Rules, Known, Synthetic, Recorded, DelphiSource, Neuronpedia, FrozenSource]
