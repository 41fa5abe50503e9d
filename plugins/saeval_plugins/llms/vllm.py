"""Runs a model with vLLM in this process, in batches of waiting requests."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, JsonValue

from saeval.plugin import (
    LLM,
    FillReply,
    FillRequest,
    InputError,
    LLMError,
    LogprobReply,
    LogprobRequest,
    Reply,
    Request,
    TokenLogprobs,
    Usage,
    derive_rng,
    finish_reason,
)
from saeval_plugins.llms._gathering import Gathering

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST = 1024  # maximum requests per batch
_ALTERNATIVES = 20  # vLLM's default maximum of alternatives per token


class _Waiting(NamedTuple):
    """A request in the form that vLLM takes."""

    prompt: Any
    options: dict[str, Any]
    continues: bool


class VLLM(LLM):
    """Runs a causal language model from the hub or a folder with vLLM, which needs a GPU: `pip install 'saeval[vllm]'`.

    Waiting requests are answered in batches, with prefix caching. Prompts use the tokenizer's chat template.
    Continuations and gaps are scored with vLLM's prompt log-probabilities: BOS, prefix, prompt and continuation are
    tokenized separately and joined. The composition of a batch changes the last digits of log-probabilities, as with
    any server that batches.
    """

    name = "vllm"
    in_process = True

    model: str
    """Hub id or model folder."""
    revision: str | None = None
    """Revision on the hub."""
    dtype: str = "auto"
    """Precision, in vLLM's notation."""
    max_model_len: int | None = Field(default=None, gt=0)
    """Maximum tokens of prompt and answer together; default: the model's context length."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of the GPU's memory that vLLM uses."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Number of GPUs for tensor parallelism."""
    engine: dict[str, Any] = {}
    """Further arguments of `vllm.LLM`, such as `{quantization: awq}`."""

    @property
    def batches(self) -> bool:
        """True: vLLM batches requests, so the number in flight is not limited."""
        return True

    @property
    def can_score(self) -> bool:
        """True: vLLM returns log-probabilities of the prompt."""
        return True

    @property
    def follows_schemas(self) -> bool:
        """True: vLLM constrains generation to a schema."""
        return True

    def check(self) -> None:
        """Check that vLLM is installed."""
        if importlib.util.find_spec("vllm") is None:
            raise InputError(
                "vllm is not installed; run `pip install 'saeval[vllm]'` on a machine with a GPU, or start "
                "`vllm serve` and set model: openai_compatible/…"
            )

    def fingerprint(self) -> JsonValue:
        """Return what answers depend on: all options except memory share and number of GPUs."""
        options = self.model_dump(mode="json", exclude={"gpu_memory_utilization", "tensor_parallel_size"})
        return [self.name, options, []]

    async def complete(self, request: Request) -> Reply:
        """Generate an answer: greedily at temperature 0, otherwise sampled with a seed derived from the request."""
        options: dict[str, Any] = {
            "temperature": request.temperature or 0.0,
            "max_tokens": request.max_tokens,
            "stop": list(request.stop) or None,
            "logprobs": request.top_logprobs or None,
            "seed": int(derive_rng(0, "vllm", repr(request)).integers(2**31)),
        }
        if request.schema is not None:
            options["schema"] = request.schema.text
        messages = [{"role": m.role, "content": m.content} for m in request.messages]
        continues = request.messages[-1].role == "assistant"
        return self._reply(await self._ask(messages, options, continues=continues))

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        """Score continuations."""
        ends = [self._ids(text) for text in request.continuations]
        if not all(ends) or not ends:
            raise self._error("at least one continuation is needed, and none may be empty")
        prefix = self._begin(request.prefix)
        starts = [prefix + self._ids(prompt) for prompt in request.prompts]
        if not all(starts):
            raise self._error("a prompt is empty, and the model has no BOS token to predict from")
        answers = await asyncio.gather(*(self._echo(start + end, 0) for start in starts for end in ends))
        found = iter(answers)
        rows = [tuple(tuple(_chosen(next(found), len(end))) for end in ends) for _ in starts]
        return LogprobReply(tuple(rows), sum(map(_usage, answers), Usage(usd=None)))

    async def fill(self, request: FillRequest) -> FillReply:
        """Return log-probabilities of the choices at each gap, minus infinity for those not among the 20 likeliest."""
        choices = [self._ids(choice) for choice in request.choices]
        filler = self._ids(request.filler)
        if not filler or any(len(ids) != 1 for ids in choices):
            raise self._error("each choice must be a single token of the model, and the filler must not be empty")
        prefix = self._begin(request.prefix)
        texts, gaps = [], []
        for parts in request.texts:
            ids, places = list(prefix), []
            for part in parts:
                ids += self._ids(part)
                places.append(len(ids))
                ids += filler
            if 0 in places:
                raise self._error("a text begins with a gap, and the model has no BOS token to predict it from")
            texts.append(ids)
            gaps.append(places)
        answers = await asyncio.gather(*(self._echo(ids, _ALTERNATIVES) for ids in texts))
        rows = []
        wanted = [ids[0] for ids in choices]
        for answer, places in zip(answers, gaps, strict=True):
            known = [answer.prompt_logprobs[place] for place in places]
            rows.append(tuple(self._weights(each, wanted, request.choices) for each in known))
        return FillReply(tuple(rows), sum(map(_usage, answers), Usage(usd=None)))

    def _weights(self, known: Mapping[int, Any], ids: Sequence[int], choices: Sequence[str]) -> tuple[float, ...]:
        if not any(i in known for i in ids):
            raise self._error(
                f"none of the choices {', '.join(choices)} is among the {_ALTERNATIVES} most likely tokens"
            )
        return tuple(float(known[i].logprob) if i in known else -math.inf for i in ids)

    def _error(self, what: str) -> LLMError:
        return LLMError(f"vllm/{self.model}: {what}")

    # --- the engine ---

    @cached_property
    def _engine(self) -> Any:
        import vllm

        return vllm.LLM(
            model=self.model,
            revision=self.revision,
            dtype=self.dtype,
            max_model_len=self.max_model_len,
            gpu_memory_utilization=self.gpu_memory_utilization,
            tensor_parallel_size=self.tensor_parallel_size,
            **{"enable_prefix_caching": True, **self.engine},
        )

    @cached_property
    def _tokenizer(self) -> Any:
        with self._lock:
            return self._engine.get_tokenizer()

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _begin(self, prefix: str) -> list[int]:
        bos = self._tokenizer.bos_token_id
        return [*([] if bos is None else [bos]), *self._ids(prefix)]

    @cached_property
    def _lock(self) -> threading.RLock:
        return threading.RLock()

    @cached_property
    def _gathering(self) -> Gathering[_Waiting, Any]:
        return Gathering(self._answers, _MOST)

    def _echo(self, ids: list[int], alternatives: int) -> Any:
        """Ask for the log-probabilities of a prompt, given as tokens."""
        options = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": alternatives}
        return self._ask({"prompt_token_ids": ids}, options, continues=False)

    async def _ask(self, prompt: Any, options: dict[str, Any], *, continues: bool) -> Any:
        """Queue a request and return vLLM's output for it."""
        return await self._gathering.ask(_Waiting(prompt, options, continues))

    def _answers(self, batch: Sequence[_Waiting]) -> list[Any]:
        """Return vLLM's output for each request, or the exception that it raised."""
        with self._lock:
            found: dict[int, Any] = {}
            for ask, chosen in (
                (self._score, lambda request: isinstance(request.prompt, dict)),
                (self._chat, lambda request: isinstance(request.prompt, list) and not request.continues),
                (self._continue, lambda request: request.continues),
            ):
                places = [place for place, request in enumerate(batch) if chosen(request)]
                found |= zip(places, self._together(ask, [batch[place] for place in places]), strict=True)
            answers = [found[place] for place in range(len(batch))]
        return [self._named(answer) if isinstance(answer, Exception) else answer for answer in answers]

    def _named(self, error: Exception) -> LLMError:
        return self._error(f"{type(error).__name__}: {error}")

    def _together(self, ask: Callable[[Sequence[_Waiting]], list[Any]], some: Sequence[_Waiting]) -> list[Any]:
        """Answer requests in one batch; if it fails, one by one, because one oversized request fails the batch."""
        try:
            return ask(some) if some else []
        except Exception as error:  # noqa: BLE001 - vLLM raises many kinds
            if len(some) == 1:
                return [error]
            return [answer for request in some for answer in self._together(ask, [request])]

    def _params(self, some: Sequence[_Waiting]) -> list[Any]:
        import vllm

        return [vllm.SamplingParams(**_of_schema(request.options)) for request in some]

    def _score(self, some: Sequence[_Waiting]) -> list[Any]:
        return list(self._engine.generate([r.prompt for r in some], self._params(some), use_tqdm=False))

    def _chat(self, some: Sequence[_Waiting], **options: Any) -> list[Any]:
        return list(self._engine.chat([r.prompt for r in some], self._params(some), use_tqdm=False, **options))

    def _continue(self, some: Sequence[_Waiting]) -> list[Any]:
        return self._chat(some, add_generation_prompt=False, continue_final_message=True)

    def _reply(self, output: Any) -> Reply:
        answer, usage = output.outputs[0], _usage(output)
        finish = finish_reason(answer.finish_reason)
        if not answer.text.strip():
            cut = finish == "length"
            raise LLMError(f"vllm/{self.model}: the answer is empty (finish reason {finish})", usage=usage, cut=cut)
        logprobs = None
        if answer.logprobs:
            pairs = zip(answer.token_ids, answer.logprobs, strict=True)
            logprobs = tuple(TokenLogprobs(_text(known[i]), _alternatives(known)) for i, known in pairs)
        return Reply(answer.text, usage, finish, logprobs, served=self.model)


def _of_schema(options: dict[str, Any]) -> dict[str, Any]:
    """Return options with the schema under the name that the installed vLLM uses (it changed in 0.11)."""
    if "schema" not in options:
        return options
    from vllm import sampling_params

    rest = {name: value for name, value in options.items() if name != "schema"}
    if hasattr(sampling_params, "StructuredOutputsParams"):
        return {**rest, "structured_outputs": sampling_params.StructuredOutputsParams(json=options["schema"])}
    return {**rest, "guided_decoding": sampling_params.GuidedDecodingParams(json=options["schema"])}


def _chosen(output: Any, n: int) -> list[float]:
    """Return the log-probabilities of a prompt's last tokens."""
    ids = output.prompt_token_ids[-n:]
    return [float(known[i].logprob) for i, known in zip(ids, output.prompt_logprobs[-n:], strict=True)]


def _alternatives(known: Mapping[int, Any]) -> tuple[tuple[str, float], ...]:
    return tuple((_text(entry), float(entry.logprob)) for entry in known.values())


def _text(entry: Any) -> str:
    return entry.decoded_token or ""


def _usage(output: Any) -> Usage:
    generated = sum(len(answer.token_ids) for answer in output.outputs)
    return Usage(len(output.prompt_token_ids), generated, getattr(output, "num_cached_tokens", None) or 0)
