"""Runs a transformers language model over a corpus and encodes its activations with a sparse coder."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, JsonValue, PrivateAttr, SerializeAsAny

from saeval.plugin import (
    ActivationSource,
    Coder,
    Corpus,
    Fit,
    HookPoint,
    InputError,
    LiveModel,
    MadeFor,
    ModelRef,
    Need,
    Subject,
    content_hash,
    encoding_pass,
    load_coder,
    special_ids,
    token_bytes,
    token_strings,
)
from saeval_plugins.sources._batches import NotEnoughMemory, as_many_as_fit, free_memory, in_batches, release_memory
from saeval_plugins.sources._fits import cached_fit
from saeval_plugins.sources._forward import batch_tokens, captured, groups, text_by_length, text_of
from saeval_plugins.sources._on_device import Nonzeros, WriterThread, to_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from saeval.plugin import ActivationWriter, Sparse, SparseCoder, TokenDataset
    from saeval_plugins.sources._on_device import Copy

_CHECKED = 2000  # documents read for a check
_MEMORY_FOR_BATCHES = 4 << 30  # bytes of GPU memory that are kept free for activations when coders are loaded
_MAX_ON_DEVICE = 4_000_000  # nonzeros that the coders of a pass hold on the device, about 80 bytes each while sorting
_IN_SMALLER_BATCHES = "contexts_in_smaller_batches"
_L0_TOKENS = 1 << 14  # tokens on which the L0 of a coder is measured, for baselines that copy it
IN_RESIDUAL = re.compile(
    r"((model|transformer|gpt_neox|backbone)\.)?(layers|h|blocks)\.\d+(\.(input|output|hook_resid_(pre|mid|post)))?"
)


class Transformers(ActivationSource):
    """Runs a language model over a corpus and encodes its activations (paper §3.1).

    Each context begins with BOS, as models expect. Activations at BOS, other special tokens and padding are dropped.
    Sources that differ only in coder and hookpoint share one forward pass, which stops after the last hookpoint. Only
    positive activations are stored; negative activations of signed latents count as not firing.
    """

    name = "transformers"
    sharded = True
    _shard_tokens: ClassVar[int] = 1 << 17

    model: ModelRef
    """Hub id, model folder, `.gguf` file, or `package:NAME` for a model inside a package."""
    revision: str | None = None
    """Revision on the hub."""
    device: str = "auto"
    """Torch device; `auto` uses CUDA if available, `balanced` spreads the model over all GPUs."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the model; `auto` is bfloat16 on CUDA and float32 elsewhere."""
    hookpoint: str | None = None
    """Where to read activations: a module path (`layers.9`, `layers.9.mlp.input`) or TransformerLens' name for it
    (`blocks.9.hook_resid_post`). Default: the hookpoint in the coder's files."""
    coder: SerializeAsAny[Coder]
    """The coder: `{use: sae_lens, with: {path: …}}`."""
    randomise: Literal["weights", "embeddings", "all"] | None = None
    """Shuffle the entries within each matrix of the model, as a control: `weights` (all but the embeddings),
    `embeddings`, or `all`. Norms and biases stay unchanged."""
    randomise_seed: int = 0
    """Seed of the shuffled order."""
    corpus: Corpus
    """The text."""
    accept_mismatch: bool = False
    """Whether to run although the coder's files name another model or hookpoint; results carry a warning."""
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = 2048
    """Tokens per forward pass; halved when memory runs out. With `auto`, contexts of similar length share a batch, and
    a GPU gets 2,048 to 32,768 tokens, depending on its free memory; not yet measured on a GPU."""
    compile: bool = False
    """Whether to compile the coder's encoder with `torch.compile`, on CUDA only; results then round differently."""
    sort_on_device: bool = False
    """Whether to sort nonzero activations by latent on the device and write them in a thread. Meant for GPUs, but not
    yet measured on one. Does not change the store."""
    fvu: bool = True
    """Whether to measure the fraction of variance unexplained by reconstructions. If false, decoders do not stay on the
    device, and the store gets a different name."""
    _latents: tuple[int, ...] | None = PrivateAttr(default=None)
    """The latents to encode; None for all."""
    _replaced_coder: Coder | None = PrivateAttr(default=None)
    """The coder that this baseline replaces, if its files lack something that the baseline copies."""

    def check(self) -> None:
        """Check that model, coder and corpus exist and match, as far as their files show."""
        LiveModel.check(self.model)
        self.coder.check()
        self.corpus.check()
        fit, place, reads = self._fit(), self._place, self.coder.width()
        width = fit.width
        if reads is not None and width is not None and reads != width and IN_RESIDUAL.fullmatch(place):
            raise _width_mismatch(reads, place, self.model, width)
        if (conflicts := fit.conflicts()) and not self.accept_mismatch:
            raise _mismatch(conflicts)
        fit.check_model(self.corpus.first_texts(), chat=self.corpus.holds_chats())

    def check_window(self, window: int) -> None:
        """Check that contexts are long enough for windows, and the texts of a small corpus, if the model is local."""
        fit, most = self._fit(), self.corpus.per_document
        fit.check_context(window)
        if most is not None and most < window:
            raise InputError(
                f"corpus.per_document reads {most} tokens of a document, less than a window of {window}; set it to "
                f"{window} or more, or sampler.with.window to {most} or less"
            )
        texts = self.corpus.first_texts(_CHECKED)
        if len(texts) < _CHECKED:
            fit.check_window(texts, window)

    def cautions(self) -> list[str]:
        """Return warnings about differences between the coder's use and its training."""
        fit = self._fit()
        conflicts = [f"Accepted as it is: {conflict}." for conflict in fit.conflicts()]
        return conflicts + fit.cautions()

    def text_options(self) -> dict[str, JsonValue]:
        """Return context length and BOS, unless the spec sets them or the coder's files are not downloaded yet."""
        if self.coder.made_for(fetch=False).partial:
            return {}
        fit, given = self._fit(), self.corpus
        found: dict[str, JsonValue] = {"corpus.context": fit.context, "corpus.bos": fit.bos}
        set_by_spec = {"corpus.context": given.context, "corpus.bos": given.bos}
        return {key: value for key, value in found.items() if set_by_spec[key] is None}

    def fingerprint(self) -> JsonValue:
        """Return what activations depend on: model, precision, corpus, hookpoint, and the coder's weights."""
        latents = [] if self._latents is None else [list(self._latents)]
        compiled = ["compiled"] if self.compile else []
        less = [] if self.fvu else ["without fvu"]
        return [self.name, self._text(), self._place, self.coder.fingerprint(), *latents, *compiled, *less]

    def shares(self) -> JsonValue:
        """Return a hash of everything except coder and hookpoint; sources with the same hash share a pass."""
        return content_hash(self._text(), self.batch_tokens)

    def offers(self) -> frozenset[Need]:
        """Return what this source offers: the live model, the coder's weights, and activations on any text."""
        return frozenset({"subject", "coder", "text"})

    def subject(self) -> Subject:
        """Return the model together with the hookpoint."""
        return self._subject_at_place

    def weights(self) -> SparseCoder:
        """Return the coder's weights, on the CPU."""
        return self._weights

    def activations_on(self, text: str, latent: int) -> list[tuple[tuple[str, ...], NDArray[np.float32]]]:
        """Run model and coder over any text; return tokens and the latent's activations per context."""
        import torch

        coder, subject = self.weights(), self.subject()
        if not 0 <= latent < coder.n_latents:
            raise InputError(f"there is no latent {latent} in a dictionary of {coder.n_latents} latents")
        tokenizer, special = subject.live.tokenizer, special_ids(subject.live.tokenizer)
        lead, found = len(self._corpus.lead(tokenizer)), []
        for ids in self._corpus.contexts(text, tokenizer):
            with subject.live.lock, torch.inference_mode():
                caught = subject.live.capture(torch.tensor([ids]), [subject.point])[subject.point].cpu()
            sparse = coder.encode(caught.flatten(0, 1) if coder.token_wise else caught)
            values, mine = torch.zeros(len(ids)), sparse.latents == latent
            values[sparse.rows[mine]] = sparse.values[mine].float()
            shown = [k for k, token in enumerate(ids) if k >= lead and token not in special]
            pieces = token_bytes(tokenizer, [ids[k] for k in shown])
            words = token_strings(pieces[ids[k]] for k in shown)
            found.append((words, values[shown].clamp(min=0.0).numpy()))
        return found

    @cached_property
    def _subject_at_place(self) -> Subject:
        live = self._live()
        return Subject(live, _hookpoint(self, live), self._corpus.lead(live.tokenizer))

    @cached_property
    def _weights(self) -> SparseCoder:
        coder = self._complete(self._live)
        return load_coder(coder, "cpu", coder.width() or self.subject().width)

    def _complete(self, live: Callable[[], LiveModel], data: TokenDataset | None = None) -> Coder:
        """Return the coder; for an incomplete baseline, measure what is missing on the coder that it replaces.

        The model is not asked for if the measurement is in the cache.
        """
        if not self.coder.incomplete():
            return self.coder
        sized = self.coder.completed(self._width_and_l0(live, data))
        if not sized.incomplete():
            return sized
        return sized.fitted(cached_fit(self, lambda: sized.fit(*self._original_and_activations(live(), data))))

    def _original_and_activations(self, live: LiveModel, data: TokenDataset | None) -> tuple[SparseCoder, Tensor]:
        """Return the coder that this baseline replaces, and activations at its hookpoint.  [tokens, d_in]"""
        import torch

        original = self.model_copy(update={"coder": self._replaced_coder or self.coder})
        point = _hookpoint(original, live)
        data = data or self._corpus.tokenize(live.tokenizer, live.vocabulary)
        found = [x.flatten(0, 1)[mask.flatten()].cpu() for x, mask in _samples(live, point, data, self._sampled)]
        return load_coder(original.coder, "cpu", live.width(point)), torch.cat(found)

    def _width_and_l0(self, load: Callable[[], LiveModel], data: TokenDataset | None = None) -> MadeFor:
        """Return width and L0 of the coder that this baseline replaces, from its files or measured on the corpus."""
        import numpy as np

        original = self.model_copy(update={"coder": self._replaced_coder or self.coder})
        made = original.coder.made_for()
        if made.latents is not None and made.l0 is not None:
            return made

        def measure() -> dict[str, NDArray[np.float64]]:
            live = load()
            tokens = data or self._corpus.tokenize(live.tokenizer, live.vocabulary)
            point = _hookpoint(original, live)
            coder = load_coder(original.coder, live.device, live.width(point))
            return {
                "latents": np.array(coder.n_latents, float),
                "l0": np.array(_l0(coder, live, point, tokens, self._sampled)),
            }

        found = cached_fit(original, measure)
        return MadeFor(latents=int(found["latents"]), l0=float(found["l0"]))

    def _live(self) -> LiveModel:
        return LiveModel.load(
            self.model,
            revision=self.revision,
            device=self.device,
            dtype=self.dtype,
            randomise=self.randomise,
            randomise_seed=self.randomise_seed,
        )

    def only(self, latents: Sequence[int]) -> Transformers:
        """Return this source encoding only these latents, if its coder can encode latents separately."""
        if not self.coder.separable():
            return self
        narrowed = self.model_copy()
        narrowed._latents = tuple(sorted(set(latents)))
        return narrowed

    def with_coder(self, coder: Coder) -> Transformers:
        """Return this source with another coder at the same hookpoint."""
        changes: dict[str, Any] = {"coder": coder, "hookpoint": self._place}
        lacking = False
        with suppress(InputError):  # `check` reports missing files
            changes["coder"] = beside = coder.beside(self.coder)
            partial = self.coder.made_for(fetch=False).partial
            changes |= {} if partial else {"corpus": self._corpus}
            lacking = partial or beside.incomplete()
        other = self.model_copy(update=changes)
        other._replaced_coder = self.coder if lacking else None
        return other

    def collect(self, writer: ActivationWriter) -> None:
        """Collect this source alone."""
        self.collect_many([self], [writer])

    @classmethod
    def collect_many(cls, sources: Sequence[ActivationSource], writers: Sequence[ActivationWriter]) -> None:
        """Collect sources that share model and corpus in one pass."""
        mine = [source for source in sources if isinstance(source, Transformers)]
        first = mine[0]
        live = first._live()
        keep = writers[0].stream
        data = writers[0].tokens(lambda: first._corpus.tokenize(live.tokenizer, live.vocabulary, keep))
        length = data.tokens.shape[1]
        with live.lock:
            live.check_contexts(length)
        fixed = None if first.batch_tokens == "auto" else max(1, first.batch_tokens // length)
        # A shard consists of whole batches, so that batches, and therefore rounding, are the same on every machine and
        # after every interruption. With `auto`, batches depend on free memory but shards do not, so that processes can
        # divide them.
        of, each = fixed or 1, length if fixed else -(-int(data.lengths.sum()) // max(1, len(data.lengths)))
        shard = of * max(1, cls._shard_tokens // (of * each))
        waiting = list(zip(mine, writers, strict=True))
        with encoding_pass():
            while waiting:
                readings = as_many_as_fit(
                    lambda i, some=waiting: _Reading(some[i][0], live, data, some[i][1], shard),
                    len(waiting),
                    live.device,
                    _MEMORY_FOR_BATCHES,
                )
                while not _read(live, data, readings, fixed, shard):
                    del readings[(len(readings) + 1) // 2 :]  # with all coders loaded, not even one context fits
                    release_memory()
                waiting = waiting[len(readings) :]
                del readings

    @property
    def _sampled(self) -> int:
        """Tokens per forward pass when a sample of the corpus is read."""
        return batch_tokens(None) if self.batch_tokens == "auto" else self.batch_tokens

    @property
    def _place(self) -> str:
        """The hookpoint from the spec or the coder's files.

        Raises:
            InputError: If neither names one.
        """
        place = self.hookpoint or self.coder.hookpoint()
        if place is None:
            raise InputError("the coder's files name no hookpoint; set `hookpoint` under source.with, such as layers.9")
        return place

    def _text(self) -> JsonValue:
        """Return what activations depend on besides hookpoint and coder: model, precision and corpus."""
        precision = LiveModel.resolved(self.device, self.dtype)
        shuffled: list[JsonValue] = [[self.randomise, self.randomise_seed]] if self.randomise else []
        return [LiveModel.fingerprint(self.model, self.revision), *precision, self._corpus.fingerprint(), *shuffled]

    @property
    def _corpus(self) -> Corpus:
        """The corpus; context length and BOS default to those of the coder's training."""
        made = (self._replaced_coder or self.coder).made_for()
        fit = Fit.of(made, self.model, self.hookpoint, self.corpus.context, self.corpus.bos)
        return self.corpus.model_copy(update={"context": fit.context, "bos": fit.bos})

    def _fit(self, *, fetch: bool = False) -> Fit:
        """Return how well coder and model match.

        Args:
            fetch: Whether to download files of the coder if needed.
        """
        made = self.coder.made_for(fetch=fetch)
        return Fit.of(made, self.model, self.hookpoint, self.corpus.context, self.corpus.bos)


def _read(live: LiveModel, data: TokenDataset, readings: list[_Reading], fixed: int | None, shard: int) -> bool:
    """Pass over the corpus once for some coders; return whether memory sufficed.

    Args:
        live: The model.
        data: The corpus.
        readings: The coders.
        fixed: Contexts per batch; None for as many as memory allows.
        shard: Contexts per shard.

    Raises:
        NotEnoughMemory: If memory does not suffice for a single coder.
    """
    import numpy as np

    contexts, length = data.tokens.shape
    points = [reading.point for reading in readings]
    tokens = fixed * length if fixed else batch_tokens(free_memory(live.device))
    by_length = fixed is None and all(reading.coder.token_wise for reading in readings)
    batch, passed, padded = max(1, tokens // length), 0, 0

    def read(low: int, high: int) -> None:
        nonlocal passed, padded
        whole = (low, high) in batches
        if not by_length:
            take(captured(live, data, np.arange(low, high), points), low, high, whole)
            return
        text = text_by_length(live, data, low, high, points, tokens)
        passed += text.computed
        padded += text.computed - int(data.lengths[low:high].sum())
        for begin, stop in text.parts:
            rows = slice(int(data.mask[low:begin].sum()), int(data.mask[low:stop].sum()))
            take({point: x[rows] for point, x in text.activations.items()}, begin, stop, whole)

    def take(found: dict[HookPoint, Tensor], low: int, high: int, whole: bool) -> None:
        for reading in readings:
            reading.take(found[reading.point], low, high, whole=whole)
            if reading.held >= _MAX_ON_DEVICE // len(readings) or high == end:
                reading.write(thread)

    try:
        with WriterThread() as thread:
            for first in range(0, contexts, shard):
                end = min(first + shard, contexts)
                begin = min(reading.turn_to(first) for reading in readings)
                if by_length:
                    batches = [(first + low, first + high) for low, high in groups(data.lengths[first:end], tokens)]
                else:
                    batches = [(low, min(low + batch, end)) for low in range(first, end, batch)]
                in_batches(read, [(low, high) for low, high in batches if high > begin])
    except NotEnoughMemory:
        if len(readings) == 1:
            raise
        return False
    cut: dict[str, float] = {"contexts_a_batch": batch}
    if by_length:
        cut = {"tokens_a_batch": tokens, "padding": round(padded / max(1, passed), 4)}
    for reading in readings:
        reading.writer.note(**cut)
        reading.finish()
    return True


class _Reading:
    """Encodes activations with one coder at one hookpoint, and writes them to one store, during a pass."""

    def __init__(self, source: Transformers, live: LiveModel, data: TokenDataset, writer: ActivationWriter, shard: int):
        self.point = _hookpoint(source, live)
        conflicts, cautions = _compare_with_files(source, live, self.point)
        if conflicts and not source.accept_mismatch:
            raise _mismatch(conflicts)
        width = live.width(self.point)
        coder = source._complete(lambda: live, data)
        self.coder: SparseCoder = load_coder(coder, live.device, width)
        if self.coder.d_in != width:
            raise _width_mismatch(self.coder.d_in, str(self.point), live.name, width)
        self.data = data
        self.writer = writer
        some = None if source._latents is None else _some(self.coder, source._latents)
        if some is not None:
            self.coder = some
            writer.only(source._latents)
        self.fvu = source.fvu
        if not source.fvu:
            self.coder = self.coder.encoding_only()
        compiled = source.compile and live.device.startswith("cuda") and self.coder.compile()
        precision = f"{live.model.dtype} {live.device}"
        self.done = writer.start(data, self.coder.n_latents, shard, made_with=precision)  # contexts
        places = shard * data.tokens.shape[1]
        self._nonzeros = Nonzeros(self.coder.n_latents, places, writer.pair_type) if source.sort_on_device else None
        writer.note(
            subject=live.name,
            hookpoint=str(self.point),
            architecture=self.coder.architecture,
            d_in=width,
            d_sae=self.coder.n_latents,
            device=live.device,
            dtype=str(live.model.dtype).removeprefix("torch."),
            compiled=compiled,
            metadata=dict(self.coder.metadata),
            l0_of_files=coder.made_for().l0,
            warnings=[*data.warnings, *cautions],
            roles=list(source.corpus.roles or ()),
        )
        self.device = live.device
        self.data_type = live.model.dtype
        self.named = f"{self.point} of {live.name}, read by {source.coder.name} in {live.model.dtype}".replace(
            "torch.", ""
        )
        if self.coder.measures:
            writer.note(measures=dict(self.coder.measures))

    @property
    def held(self) -> int:
        """Number of nonzeros that are still on the device."""
        return 0 if self._nonzeros is None else self._nonzeros.held

    def turn_to(self, low: int) -> int:
        """Resume the shard that begins at context `low`, and return the first context still to be read."""
        self.done = self.writer.turn_to(low)
        self._begin_block()
        return self.done

    def _begin_block(self) -> None:
        self._block, self._counted = self.done, dict.fromkeys(("tokens", _IN_SMALLER_BATCHES), 0.0)
        if self._nonzeros is not None:
            self._nonzeros.begin(self._block * self.data.tokens.shape[1])

    def take(self, activations: Tensor, low: int, high: int, *, whole: bool) -> None:
        """Encode the activations of contexts low to high, and write them or hold them on the device until `write`.

        Args:
            activations: Activations of all tokens, [contexts, tokens, width], or of text tokens, [text, width].
            low: The first context.
            high: The context after the last one.
            whole: Whether this is a full batch, not one that was made smaller because memory ran out.
        """
        import torch

        # Contexts that an interrupted run, or a pass that ran out of memory, has already written are skipped.
        begin = max(low, self.done)
        if high <= begin:
            return
        known = begin - low if activations.ndim == 3 else int(self.data.mask[low:begin].sum())
        activations, low = activations[known:], begin
        with torch.inference_mode():
            sparse, positions, sums = self._encoded(activations, low, high)
            found = positions[sparse.rows], sparse.latents, sparse.values.float()
            counted = {} if whole else {_IN_SMALLER_BATCHES: float(high - low)}
            if sums is not None:
                counted["tokens"] = float(len(positions))
            if self._nonzeros is not None:
                self._nonzeros.add(*found, sums)
                for name, number in counted.items():
                    self._counted[name] += number
            else:
                self._write(*(tensor.cpu() for tensor in found))
                self.writer.tally(**counted, **({} if sums is None else _named(sums.cpu().numpy())))
                self.writer.advance(high)
        self.done = high

    def _encoded(self, activations: Tensor, low: int, high: int) -> tuple[Sparse, Tensor, Tensor | None]:
        """Return the latent activations of contexts, each row's position (-1 if not text), and sums for the FVU."""
        import numpy as np
        import torch

        mask, length = self.data.mask[low:high], self.data.tokens.shape[1]
        if not self.coder.token_wise:
            n_tokens = activations.shape[1]
            place = np.arange(low, high)[:, None] * length + np.arange(n_tokens)
            place = np.where(mask[:, :n_tokens], place, -1).ravel()
            return self.coder.encode(activations), to_device(torch.from_numpy(place), activations.device), None
        x = activations if activations.ndim == 2 else text_of(activations, mask)
        positions = to_device(torch.from_numpy(low * length + np.flatnonzero(mask)), x.device)
        sparse, sums = self.coder.encode(x), None
        if self.fvu and self.coder.autoencoder and (predicted := self.coder.reconstruct(x, sparse)) is not None:
            sums = _squares(x, predicted)
        return sparse, positions, sums

    def _write(self, position: Tensor, latent: Tensor, value: Tensor) -> None:
        """Pass positive activations on text tokens to the writer."""
        if not value.isfinite().all():
            raise self._not_finite()
        keep = (position >= 0) & (value > 0)
        self.writer.add(position[keep].numpy(), latent[keep].numpy(), value[keep].numpy())

    def write(self, thread: WriterThread) -> None:
        """Sort the nonzeros on the device, and write them in the thread."""
        if self._nonzeros is None or self._block == self.done:
            return
        copy = self._nonzeros.sorted(self.device)
        thread.call(self._write_block, copy, self._block, self.done, self._counted)
        self._begin_block()

    def _write_block(self, copy: Copy, low: int, high: int, counted: dict[str, float]) -> None:
        block = copy.block()
        if not block.finite:
            raise self._not_finite()
        totals = {name: number for name, number in counted.items() if number} | _named(block.sums)
        self.writer.add_sorted(low, high, block.bounds, block.pairs, totals)

    def _not_finite(self) -> InputError:
        full = str(self.data_type) == "torch.float32"
        remedy = "check the coder's and the model's weights for damage" if full else "set source.with.dtype to float32"
        return InputError(f"an activation at {self.named}, is NaN or infinite; {remedy}")

    def finish(self) -> None:
        """Record how many contexts were read in smaller batches, and the fraction of variance unexplained."""
        totals = self.writer.totals() or {}
        if smaller := int(totals.get(_IN_SMALLER_BATCHES, 0)):
            self.writer.note(contexts_in_smaller_batches=smaller)
        if (tokens := float(totals.get("tokens", 0))) > 1:
            from_mean = totals["square"] - (totals["sum"] ** 2).sum() / tokens
            self.writer.note(fvu=float(totals["residual"] / from_mean))


def _squares(x: Tensor, predicted: Tensor) -> Tensor:
    """Return the sums from which the fraction of variance unexplained is computed; see `_named`.  [2 + width]"""
    import torch

    residual, square = (v.square().sum(dtype=torch.float64) for v in (x - predicted, x))
    return torch.cat([residual[None], square[None], x.sum(dim=0, dtype=torch.float64)])


def _named(sums: NDArray[np.float64]) -> dict[str, Any]:
    """Return the sums of `_squares` by name; empty if there are none."""
    return {"residual": float(sums[0]), "square": float(sums[1]), "sum": sums[2:]} if len(sums) else {}


def _l0(coder: SparseCoder, live: LiveModel, point: HookPoint, data: TokenDataset, batch_tokens: int) -> float:
    """Return the mean number of latents that fire per token, in contexts spread evenly over a corpus."""
    import torch

    fired = counted = 0
    for x, mask in _samples(live, point, data, batch_tokens):
        with torch.inference_mode():
            sparse = coder.encode(x.flatten(0, 1) if coder.token_wise else x)
        fired += int((mask.flatten()[sparse.rows.cpu()] & (sparse.values.cpu() > 0)).sum())
        counted += int(mask.sum())
    return fired / max(1, counted)


def _samples(
    live: LiveModel, point: HookPoint, data: TokenDataset, batch_tokens: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield activations [contexts, length, width] and their text mask [contexts, length], spread over a corpus."""
    import numpy as np
    import torch

    contexts, length = data.tokens.shape
    chosen = np.unique(np.linspace(0, contexts - 1, max(1, _L0_TOKENS // length)).astype(np.int64))
    for part in np.array_split(chosen, max(1, len(chosen) * length // batch_tokens)):
        with live.lock, torch.inference_mode():
            x = live.capture(torch.from_numpy(data.tokens[part].astype(np.int64)), [point])[point]
        yield x, torch.from_numpy(data.mask[part])


def _some(coder: SparseCoder, latents: Sequence[int]) -> SparseCoder | None:
    if bad := [i for i in latents if not 0 <= i < coder.n_latents]:
        raise InputError(f"latents {bad[:5]} are not in a dictionary of {coder.n_latents} latents")
    return coder.only(latents)


def _width_mismatch(reads: int, place: str, model: str, width: int) -> InputError:
    return InputError(
        f"the coder reads activations of width {reads}, but at {place} of {model} they have width {width}; "
        "change `hookpoint`, `model` or `coder` under source.with"
    )


def _mismatch(conflicts: Sequence[str]) -> InputError:
    return InputError(
        f"{'; '.join(conflicts)}: change the spec, or set `accept_mismatch: true` under source.with to run anyway and "
        "mark the row"
    )


def _compare_with_files(source: Transformers, live: LiveModel, point: HookPoint) -> tuple[list[str], list[str]]:
    """Compare a source with its coder's files, once the model is loaded.

    Returns:
        Certain conflicts, and warnings for readers of results.
    """
    fit = source._fit(fetch=True)
    conflicts, own = fit.conflicts(), source.coder.hookpoint()
    if not conflicts and source.hookpoint is not None and own is not None:
        try:
            theirs = _hookpoint(source, live, own)
        except InputError:
            theirs = point  # the model has no module of this name; what the name implies was compared before
        with live.lock:
            if not live.same(point, theirs):
                conflicts = [f"the coder's files name the hookpoint {own}, but the spec names {source.hookpoint}"]
    known = set(source.cautions())
    later = [*fit.cautions(), *live.cautions(fit)]
    accepted = [f"Accepted as it is: {conflict}." for conflict in conflicts]
    return conflicts, [text for text in dict.fromkeys([*accepted, *later]) if text not in known]


def _hookpoint(source: Transformers, live: LiveModel, place: str | None = None) -> HookPoint:
    """Return where a source reads: the named hookpoint, adjusted to the site that the coder requires."""
    place = place or source._place
    named = live.hookpoint(place)
    wanted = source.coder.site(named.path, live.modules())
    center = wanted.center and live.centring  # TransformerLens centers weights only if the model has LayerNorm
    if wanted.path != named.path:
        return HookPoint(wanted.path, wanted.site, center)
    reads_input = "in" in (named.site, wanted.site) and not place.endswith(".output")
    return HookPoint(named.path, "in" if reads_input else "out", center)
