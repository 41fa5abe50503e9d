"""Base classes of plugins, and the context they are given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import ConfigDict, Field, JsonValue

from saeval._util import Documented, InputError, content_hash
from saeval.models import MadeFor
from saeval.records import (
    CLASSIFICATION,
    Examples,
    Explanation,
    LanguageModel,
    LatentId,
    LatentRecord,
    Measure,
    Metric,
    RunResult,
    Score,
)

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from saeval.activations import ActivationStore, ActivationWriter
    from saeval.models import HookPoint, SparseCoder, Subject
    from saeval.records import Prompt

Need = Literal["logprobs", "subject", "coder", "text", "decoy", "in_corpus", "cofiring"]
"""What a step may need beyond its examples: an LLM that scores continuations, the live model, the SAE's weights, a
source that reads any text (`Context.read`), windows of one other latent (`Examples.decoy`), how the latent fires in
the whole corpus (`Examples.in_corpus`), or which others fire with it (`Examples.cofiring`); the last three are made
only where a step needs them."""


class Plugin(Documented, ABC):
    """A part that a task spec names with `use:`; its fields are the options listed under `with:`.

    Give the class a `name` (without annotation), each option a default and a docstring beneath it, and fill in the
    one abstract method of its kind. Instances are frozen; keep heavy state in `functools.cached_property`.
    """

    model_config = ConfigDict(protected_namespaces=(), allow_inf_nan=False)

    name: ClassVar[str]
    """The name in task specs, without namespace: lower-case letters, digits and underscores."""
    prompts: ClassVar[tuple[Prompt, ...]] = ()
    """Prompts this plugin sends; their hashes are written into the results."""
    contract_options: ClassVar[Mapping[str, Any]] = {}
    """Options for checking its contract (`saeval plugins check`), if defaults do not suffice."""

    def check(self) -> None:
        """Check, cheaply, that everything the options name exists. Called by `validate` and before expensive work.

        Raises:
            InputError: If it is not, saying what to do.
        """

    def needs(self) -> frozenset[Need]:
        """Return what these options need beyond examples, so that `validate` can refuse bad combinations."""
        return frozenset()

    def fingerprint(self) -> JsonValue:
        """Return what results depend on: the options, and hashes of prompts and of files the options name."""
        options: JsonValue = self.model_dump(mode="json")
        return [type(self).name, options, [prompt.sha for prompt in self.prompts]]


class Embed(Protocol):
    """Turns texts into unit vectors with a sentence-transformers model that all plugins share."""

    def __call__(self, model: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one unit vector per text.  [texts, dimensions]"""


@dataclass(frozen=True)
class Context:
    """What saeval lends a plugin for one latent. Grows by new fields only.

    Attributes:
        latent: The current latent.
        rng: A generator of this step's own; depends on seed, label and latent alone.
        llm: The language model of the role that the spec gives this step; asking it when there is none raises.
        embed: Sentence embeddings, shared and cached.
        source: Where the latent's activations came from; None in tests that lend nothing.
    """

    latent: LatentId
    rng: np.random.Generator
    llm: LanguageModel
    embed: Embed
    source: ActivationSource | None = None

    @property
    def subject(self) -> Subject:
        """The live model at the latent's hookpoint, for steps whose `needs()` include "subject".

        Loaded on first use, which takes seconds: reach for it in a thread (`asyncio.to_thread`).

        Raises:
            InputError: If the source has none.
        """
        return _source(self).subject()

    @property
    def coder(self) -> SparseCoder:
        """The weights of the latent's coder, for steps whose `needs()` include "coder".

        Raises:
            InputError: If the source has none.
        """
        return _source(self).weights()

    def read(self, text: str) -> list[tuple[tuple[str, ...], NDArray[np.float32]]]:
        """Return the latent's activations on a text, for steps whose `needs()` include "text".

        It runs the live model, which takes a moment: call it in a thread (`asyncio.to_thread`).

        Args:
            text: The text.

        Returns:
            As `ActivationSource.activations_on`: tokens and an activation per token, for each context.

        Raises:
            InputError: If the source reads no text.
        """
        return _source(self).activations_on(text, self.latent.index)


def _source(context: Context) -> ActivationSource:
    if context.source is None:
        raise InputError("this step has no source, so there is neither a live model nor a coder")
    return context.source


class ActivationSource(Plugin):
    """Gives the activations of one set of latents over one corpus (paper §3.1)."""

    synthetic: ClassVar[bool] = False
    """Whether the activations are synthetic; such results are marked and stay off leaderboards."""
    sharded: ClassVar[bool] = False
    """Whether `collect` asks the writer at each shard where to begin (`ActivationWriter.turn_to`), so that processes
    can divide the corpus among them."""
    measures: ClassVar[tuple[Measure, ...]] = ()
    """Facts that leaderboards show, whose values `collect` notes: `writer.note(measures={"name": value})`."""

    @abstractmethod
    def collect(self, writer: ActivationWriter) -> None:
        """Write tokens and every activation above 0 to the writer; special tokens are masked out."""

    @classmethod
    def collect_many(cls, sources: Sequence[ActivationSource], writers: Sequence[ActivationWriter]) -> None:
        """Collect several sources that share a subject and corpus. By default, one after another."""
        for source, writer in zip(sources, writers, strict=True):
            source.collect(writer)

    def shares(self) -> JsonValue:
        """Return a key; sources of one class with equal keys are given to `collect_many` together."""
        return content_hash(self.fingerprint())

    def offers(self) -> frozenset[Need]:
        """Return what this source can lend to steps.

        That is "subject" if `subject` works, "coder" if `weights` works, and "text" if `activations_on` works.
        """
        return frozenset()

    def subject(self) -> Subject:
        """Return the live model at the place that this source reads; the same object as long as it is in use.

        Raises:
            InputError: If this source has no model.
        """
        raise InputError(f"the source {type(self).name!r} has no live model")

    def weights(self) -> SparseCoder:
        """Return the coder's weights; the same object as long as it is in use.

        Raises:
            InputError: If this source has no coder.
        """
        raise InputError(f"the source {type(self).name!r} has no coder")

    def activations_on(self, text: str, latent: int) -> list[tuple[tuple[str, ...], NDArray[np.float32]]]:
        """Return a latent's activations on any text, as `collect` would find them in a document.

        Args:
            text: The text.
            latent: Number of the latent.

        Returns:
            For each context that the text is cut into, its tokens as text and an activation per token; BOS and other
            special tokens are not among them.

        Raises:
            InputError: If this source has no model, or no such latent.
        """
        raise InputError(f"the source {type(self).name!r} has no live model to read a text")

    def check_window(self, window: int) -> None:
        """Check, cheaply, whether local text has windows of this many tokens.

        Raises:
            InputError: If no document is as long.
        """

    def cautions(self) -> list[str]:
        """Return what a reader of the results must know about this source, one sentence each.

        They are shown by `validate`, and appear among the warnings of the results.
        """
        return []

    def text_options(self) -> dict[str, JsonValue]:
        """Return options about the text that the spec leaves to the coder's files, with their values.

        Keys are those below `source.with`, such as `corpus.context`. Boards and `validate` note coders for which they
        differ, since part of a difference between scores may then come from the text.
        """
        return {}

    def only(self, latents: Sequence[int]) -> ActivationSource:
        """Return a source restricted to these latents, if that is less work; otherwise itself.

        Asked where a task lists its latents and wants nothing that takes the others, too.
        """
        return self

    def with_coder(self, coder: Coder) -> ActivationSource:
        """Return this source with another coder at the same hookpoint, as coder baselines need.

        Raises:
            InputError: If this source has no coder that could be replaced.
        """
        raise InputError(f"the source {type(self).name!r} has no coder that a baseline could replace")


class Coder(Plugin):
    """Loads one sparse coder: an SAE, transcoder, neurons, random directions, a single direction."""

    measures: ClassVar[tuple[Measure, ...]] = ()
    """Facts that leaderboards show, whose values the loaded coder has in `SparseCoder.measures`."""

    @classmethod
    def by_name(cls, name: str) -> Mapping[str, Any] | None:
        """Return the options for a coder that `saeval run --sae NAME` names: a folder, or an id on the hub.

        Args:
            name: Value of `--sae`.

        Returns:
            The options, or None if a coder of this kind is not named like this.
        """
        return None

    def hookpoint(self) -> str | None:
        """Return the module path that the coder was made for; None if its files do not state it."""
        return None

    def made_for(self, *, fetch: bool = True) -> MadeFor:
        """Return what the coder was trained on, as far as its files state it.

        Args:
            fetch: Whether to download files for it; otherwise only local ones are read.
        """
        return MadeFor(place=self.hookpoint())

    def beside(self, other: Coder) -> Coder:
        """Return this coder as a baseline for another coder, whose size it may copy."""
        return self

    def incomplete(self) -> bool:
        """Return whether this baseline still needs a measured size of the coder it is compared with."""
        return False

    def completed(self, measured: MadeFor) -> Coder:
        """Return an incomplete baseline with the measured width and L0 of the coder it is compared with."""
        return self

    def fit(self, beside: SparseCoder, x: Tensor) -> Mapping[str, NDArray[np.float32]]:
        """Return arrays that fit a baseline, incomplete even with that size, to the coder beside it and to activations.

        Sources keep them, and give them to `fitted`.

        Args:
            beside: The coder that it is compared with.
            x: Activations that both read, of 16,000 tokens spread over the corpus.  [tokens, d_in]
        """
        return {}

    def fitted(self, fit: Mapping[str, NDArray[np.float32]]) -> Coder:
        """Return the baseline with the arrays that `fit` found."""
        return self

    def width(self) -> int | None:
        """Return the width of the activations it reads; None if its files do not state it, or any width will do."""
        return None

    def separable(self) -> bool:
        """Return whether its files tell that each latent can be encoded without the others; see `SparseCoder.only`."""
        return False

    def site(self, module: str, modules: Sequence[str]) -> HookPoint:
        """Return the exact hookpoint to read, given the module that the spec names and the model's module paths."""
        from saeval.models import HookPoint

        return HookPoint(module)

    @abstractmethod
    def load(self, device: str, d_in: int) -> SparseCoder:
        """Load the weights.

        Args:
            device: Torch device to put them on.
            d_in: Width of the activations at the hookpoint.

        Raises:
            InputError: If files are missing or malformed, or the coder reads another width.
        """


def load_coder(coder: Coder, device: str, d_in: int) -> SparseCoder:
    """Load a coder's weights, for sources whose options name a coder.

    Args:
        coder: The coder.
        device: Torch device to put them on.
        d_in: Width of the activations at the hookpoint.

    Raises:
        InputError: If its `load` returned something else than a `SparseCoder`, or raised this itself.
    """
    from saeval.models import SparseCoder

    loaded: object = coder.load(device, d_in)
    if not isinstance(loaded, SparseCoder):
        raise InputError(
            f"the coder {type(coder).name!r}: its `load` returned {type(loaded).__name__} instead of SparseCoder; "
            "return a LinearCoder, a ModuleCoder, or an object of a class that derives from SparseCoder"
        )
    return loaded


class Sampler(Plugin):
    """Chooses the windows that explain a latent and separate ones that score it (paper §3.1)."""

    window: int = Field(default=32, ge=4)
    """Tokens per window."""

    def reads_one_latent(self) -> bool:
        """Return whether a latent's windows depend on its own activations alone."""
        return False

    def silent_windows(self) -> int | None:
        """Return the number of non-activating windows per latent for scoring; None if it varies."""
        return None

    def prepare(self, store: ActivationStore, latents: Sequence[int]) -> None:
        """Prepare `sample` for these latents, which are sampled next.

        Such as other latents that resemble them, found in one pass over the store. What `sample` returns must not
        depend on it.
        """

    @abstractmethod
    def sample(self, store: ActivationStore, latent: LatentId, rng: np.random.Generator) -> LatentRecord | None:
        """Return the latent's windows, or None when it has too few to be explained and scored.

        A sampler whose `needs()` hold "coder" finds the weights at `store.coder()`.
        """


class Step(Plugin):
    """A step that runs on one latent at a time: explainers and scorers."""

    llm_role: ClassVar[str | None] = None
    """Role of the spec's `llms` that this step asks, unless the spec gives another; None for no LLM."""


class Explainer(Step):
    """Describes in words what makes a latent fire (paper §3.2)."""

    uninformed: ClassVar[bool] = False
    """Whether its explanations are made without seeing the latent, so that their scores are a floor for lifts."""
    measures: ClassVar[tuple[Measure, ...]] = ()
    """Facts that it finds of latents, which boards show as a mean over latents with its 95 % interval; each explanation
    has its own in `notes`, under the measure's name."""

    @abstractmethod
    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Explain a latent from its `explain` windows; it never sees those it will be scored on."""


class Scorer(Step):
    """Measures how well an explanation predicts when a latent fires (paper §3.3)."""

    metrics: ClassVar[tuple[Metric, ...]] = CLASSIFICATION
    """What the score's values mean; the first is the headline."""
    reads_explanation: ClassVar[bool] = True
    """Whether the score measures the explanation; if not, the scorer is not run on explanation baselines and has no
    lift."""

    def marks_from(self) -> float:
        """Return the share of its window's maximum from which a token is marked; a decoy's marks are matched at it.

        Used if `needs()` contain "decoy". Such scorers of a cell must agree, because they get the same decoys.
        """
        return 0.3

    def cautions(self, values: Mapping[str, float], latents: Sequence[LatentId]) -> list[str]:
        """Return what a reader of a cell's scores must know.

        Args:
            values: Mean of each metric over the latents that have it.
            latents: The cell's latents.
        """
        return []

    @abstractmethod
    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Score an explanation on the latent's `score` windows."""


class LLM(Plugin, LanguageModel):
    """A way to reach language models; a role's `model: name/rest` picks the plugin by its name."""

    reproducible: ClassVar[bool] = True
    """Whether the same request gives the same reply everywhere; replayed and scripted models are not real runs."""
    synthetic: ClassVar[bool] = False
    """Whether replies are synthetic; such results are marked and stay off leaderboards."""
    recorded: ClassVar[bool] = False
    """Whether replies are a real model's, recorded earlier; such results are marked and do not rank beside live
    ones."""

    in_process: ClassVar[bool] = False
    """Whether the model runs in this process; such calls are free, and are made one at a time unless it `batches`."""

    scores_singly: ClassVar[bool] = False
    """Whether `logprobs` and `fill` send one request to the server per prompt and continuation, or per text. saeval
    then asks for each separately, so that concurrency, retries, cache and spending limit apply to each."""

    model: str
    """Name of the model, without this plugin's prefix."""

    @property
    def batches(self) -> bool:
        """Whether requests are gathered and answered together, perhaps hours later; their number and time are then
        not bounded."""
        return False

    @property
    def merges_system_turn(self) -> bool:
        """Whether the server refused a system turn, so that its text is sent in the first user turn."""
        return False

    def waiting_for(self) -> str:
        """Say in a few words what the calls under way wait for; nothing if there is nothing to tell."""
        return ""

    def prices(self) -> tuple[float, float] | None:
        """Return the provider's prices, in dollars per million tokens of prompts and generated; None if unknown."""
        return None

    async def aclose(self) -> None:
        """Release connections."""


@dataclass(frozen=True)
class RunProgress:
    """How far a run has got.

    Attributes:
        task: Name of the task.
        spec_sha: Hash of the resolved spec.
        run_id: Name of the run directory.
        folder: The run directory.
        seconds: Time since the run was started.
        numbers: `done/<stage>`, `calls`, `usd` (unless a price is unknown), and mean scores so far by
            `so_far/<cell>/<scorer>.<metric>`, with `.n`.
    """

    task: str
    spec_sha: str
    run_id: str
    folder: Path
    seconds: float
    numbers: Mapping[str, float]


class Tracker(Plugin):
    """Reports runs to an experiment tracker; `run.trackers` of a spec names those that are notified."""

    def follow(self, progress: RunProgress) -> None:
        """Log how far a run has got. Does nothing unless overridden.

        Called every few seconds while the run lasts, outside of its main thread. After the first exception it is not
        called again for this run; `track` still is.
        """

    @abstractmethod
    def track(self, result: RunResult, folder: Path) -> None:
        """Log a run in the tracker, replacing the entries of an earlier session of the same run (`result.run_id`).

        Called when a run ends, whole or not. Whatever it raises becomes a warning; it never fails the run.

        Args:
            result: The result; `partial` when latents are missing.
            folder: The run directory, with its reports.
        """


BASE_CLASSES: Mapping[str, type[Plugin]] = {
    "source": ActivationSource, "coder": Coder, "sampler": Sampler, "explainer": Explainer, "scorer": Scorer,
    "llm": LLM,
    "tracker": Tracker,
}  # fmt: skip
"""The base class of every kind of plugin."""


def kind_of(cls: object) -> str | None:
    """Return the kind of plugin that a class is; None for anything else."""
    return next((kind for kind, base in BASE_CLASSES.items() if isinstance(cls, type) and issubclass(cls, base)), None)
