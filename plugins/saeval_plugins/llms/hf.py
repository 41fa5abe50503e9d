"""Runs a transformers model in this process: generates text, scores continuations and fills gaps."""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field

from saeval.plugin import (
    LLM,
    FillReply,
    FillRequest,
    FinishReason,
    InputError,
    LiveModel,
    LLMError,
    LogprobReply,
    LogprobRequest,
    Message,
    ModelRef,
    Reply,
    Request,
    TokenLogprobs,
    Usage,
    content_hash,
    derive_rng,
)
from saeval_plugins.llms._gathering import Gathering

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue
    from torch import Tensor

_ROWS = 32  # rows per forward pass; a fixed number, so that a request always has the same rounding errors
_POSITIONS = 64  # hidden states that are unembedded at a time, because vocabularies are large
_PREFIXES_KEPT = 4
_PROMPT_BYTES = 1 << 29  # memory for keys and values of prompts; a sixteenth of the weights if that is more
_PLAIN_LAYERS = {"DynamicLayer", "DynamicSlidingWindowLayer"}  # cache layers with keys and values, no recurrent state
_EXPLICIT_POSITIONS = {
    "gemma", "gemma2", "gemma3", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi", "phi3",
    "qwen2", "qwen3", "smollm3",
}  # fmt: skip
"""Model types that respect explicit position ids, so that padding between prompt and continuation has no effect."""
_TURN_END = "\n\n"  # separates turns for models without a chat template; as a stop string, it prevents invented turns


def _batches(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield batches of row indices; rows of similar length share a batch, to reduce padding."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for begin in range(0, len(order), _ROWS):
        yield order[begin : begin + _ROWS]


@dataclass
class _Answer:
    """An answer during generation.

    Attributes:
        request: The request it belongs to.
        prompt: Tokens of the conversation.
        shared: Tokens of the conversation before its last question.
        most: Maximum number of tokens to generate.
        stops: Strings that end the answer.
        rng: Random generator for sampling, seeded by the request.
        made: Tokens generated so far.
        logprobs: Alternatives to each of them.
        text: The decoded answer so far.
        finish: Why generation ended; None until it has.
    """

    request: Request
    prompt: list[int]
    shared: list[int]
    most: int
    stops: tuple[str, ...]
    rng: Any
    made: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    text: str = ""
    finish: FinishReason | None = None


class HF(LLM):
    """Runs a causal language model in this process, from the hub, a folder, a GGUF file or a package.

    Prompts use the tokenizer's chat template. Without a template, turns are plain text separated by a blank line, which
    also ends an answer. Text in a prompt that looks like a special token is treated as ordinary text. To score
    continuations, saeval tokenizes BOS (if the model has one), prefix, prompt and continuation separately and joins
    them; the same holds for the parts of texts with gaps. Prefixes, and everything before a conversation's last
    question, are computed once and reused without changing results.
    """

    name = "hf"
    in_process = True

    model: ModelRef
    """Hub id, model folder, `.gguf` file, or `package:NAME` for a model inside a package."""
    revision: str | None = None
    """Revision on the hub."""
    device: str = "auto"
    """Torch device; `auto` uses CUDA if available, `balanced` spreads the model over all GPUs."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision; `auto` is bfloat16 on CUDA and float32 elsewhere."""
    frequency_penalty: float = Field(default=0.0, ge=0, le=2)
    """Subtracted from a token's logit for each time it has been generated, as providers define it. About 1 keeps small
    base models from repeating themselves up to the token limit."""
    batch: int = Field(default=1, ge=1, le=256)
    """How many answers are generated together. Batches are faster, but an answer's logits then depend, in their last
    digits, on the other prompts in its batch, so another run may give another answer."""

    @property
    def batches(self) -> bool:
        """Whether requests are collected into batches; their number is then not limited."""
        return self.batch > 1

    @property
    def can_score(self) -> bool:
        """A model in process can always score."""
        return True

    def check(self) -> None:
        """Check that the model exists, without loading it."""
        LiveModel.check(self.model)

    def fingerprint(self) -> JsonValue:
        """Return what answers depend on: the model's files (independent of location), device, precision and penalty."""
        return [
            self.name,
            LiveModel.fingerprint(self.model, self.revision),
            *LiveModel.resolved(self.device, self.dtype),
            *([self.frequency_penalty] if self.frequency_penalty else []),
            *([{"batch": self.batch}] if self.batch > 1 else []),
        ]

    async def complete(self, request: Request) -> Reply:
        """Generate an answer: greedily at temperature 0, otherwise sampled with a seed derived from the request."""
        if self.batch > 1:
            return await self._gathering.ask(request)
        return await asyncio.to_thread(self._locked, self._complete, request)

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        """Score continuations. A batch contains prompts of one request only."""
        return await asyncio.to_thread(self._locked, self._logprobs, request)

    async def fill(self, request: FillRequest) -> FillReply:
        """Return log-probabilities of the choices at each gap. A batch contains texts of one request only."""
        return await asyncio.to_thread(self._locked, self._fill, request)

    def _locked(self, work: Any, request: Any) -> Any:
        import torch

        with self._live.lock, torch.inference_mode():
            try:
                return work(request)
            except torch.cuda.OutOfMemoryError:
                smaller = "model, a smaller batch" if self.batch > 1 else "model"
                raise self._error(f"out of GPU memory; choose a smaller {smaller} or set device: cpu") from None
            except InputError as error:
                raise self._error(str(error)) from None

    @cached_property
    def _gathering(self) -> Gathering[Request, Reply]:
        return Gathering(lambda requests: self._locked(self._complete_together, requests), self.batch)

    def _error(self, what: str) -> LLMError:
        return LLMError(f"hf/{self.model}: {what}")

    @cached_property
    def _live(self) -> LiveModel:
        live = LiveModel.load(self.model, revision=self.revision, device=self.device, dtype=self.dtype)
        live.head  # noqa: B018 - raises if the model has no output head
        return live

    @cached_property
    def _config(self) -> Any:
        return self._live.model.config.get_text_config()

    # --- tokens ---

    def _ids(self, text: str, *, marks: bool = False) -> list[int]:
        """Return a text's token ids. Only with `marks` (chat templates) do special tokens count as such."""
        made = self._live.tokenizer(text, add_special_tokens=False, split_special_tokens=not marks, verbose=False)
        return list(made["input_ids"])

    @property
    def _bos(self) -> list[int]:
        bos = self._live.tokenizer.bos_token_id
        return [] if bos is None else [bos]

    def _tensor(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Pad rows on the right: a causal model's earlier tokens never see what comes after.  [rows, longest] int64"""
        import torch

        longest = max(map(len, rows))
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self._live.device)

    def _free_positions(self, tokens: int) -> int:
        """Return how many more tokens fit into the model's context.

        Raises:
            LLMError: If `tokens` already exceeds the context.
        """
        most = getattr(self._config, "max_position_embeddings", None) or sys.maxsize
        if tokens > most:
            raise self._error(f"the prompt has {tokens} tokens, but the model's context is {most}; show fewer examples")
        return int(most - tokens)

    # --- keys and values of prefixes ---

    @cached_property
    def _prefixes(self) -> OrderedDict[tuple[int, ...], Any]:
        return OrderedDict()

    @cached_property
    def _plain(self) -> bool:
        """Whether the cache holds keys and values only, so that several tokens and rows can continue from it."""
        cache = getattr(self._live.model.base_model(self._tensor([[0]]), use_cache=True), "past_key_values", None)
        layers = {type(layer).__name__ for layer in getattr(cache, "layers", ())}
        return bool(layers) and layers <= _PLAIN_LAYERS

    def _prefix(self, ids: Sequence[int]) -> Any | None:
        """Return a copy of a prefix's key-value cache, or None if it cannot be cached. Recent prefixes are kept."""
        key = tuple(ids)
        if not key or not self._plain:
            return None
        if key not in self._prefixes:
            self._prefixes[key] = self._live.model.base_model(self._tensor([key]), use_cache=True).past_key_values
            if len(self._prefixes) > _PREFIXES_KEPT:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(key)
        return deepcopy(self._prefixes[key])  # the model writes into a cache that it continues from

    def _prefix_rows(self, ids: Sequence[int], rows: int) -> Any | None:
        """Return a prefix's cache, repeated for a batch of rows."""
        past = self._prefix(ids)
        if past is not None:
            past.batch_repeat_interleave(rows)
        return past

    # --- scoring ---

    def _logprobs(self, request: LogprobRequest) -> LogprobReply:
        prefix = self._bos + self._ids(request.prefix)
        prompts = [self._ids(p) for p in request.prompts]
        continuations = [self._ids(c) for c in request.continuations]
        if not prompts or not all(continuations) or not continuations:
            raise self._error("at least one prompt and one continuation are required, and no continuation may be empty")
        if not prefix and not all(prompts):
            raise self._error("a prompt is empty, and the model has no BOS token to predict from")
        self._free_positions(len(prefix) + max(map(len, prompts)) + max(map(len, continuations)) - 1)
        found: dict[int, tuple[tuple[float, ...], ...]] = {}
        if len(continuations) > len(prompts) and max(map(len, continuations)) > 1:
            found.update(enumerate(self._score_continuations(prefix + prompt, continuations) for prompt in prompts))
        else:
            for some in _batches(prompts):
                # The prefix's last token is run with each prompt, so that an empty prompt has a token to predict from.
                rows = [[*prefix[-1:], *prompts[i]] for i in some]
                found.update(zip(some, self._score(prefix[:-1], rows, continuations), strict=True))
        asked = len(prompts) * len(continuations)
        usage = Usage(
            sum(len(prefix) + len(p) + len(c) for p in prompts for c in continuations),
            0,
            len(prefix) * (asked - 1),
            0.0,
            "local",
        )
        return LogprobReply(tuple(found[i] for i in range(len(prompts))), usage)

    def _score(
        self, head: list[int], rows: list[list[int]], continuations: list[list[int]]
    ) -> list[tuple[tuple[float, ...], ...]]:
        """Return log-probabilities of a batch.  [rows][continuations][tokens]"""
        import torch

        longest = max(map(len, continuations))
        if longest == 1:  # one distribution per row covers all continuations
            targets = torch.tensor([c[0] for c in continuations]).expand(len(rows), -1)
            values = self._token_logprobs(self._run_whole(head, rows, continuations[0])[:, 0], targets)
            return [tuple((value,) for value in row) for row in values.tolist()]
        window = getattr(self._config, "sliding_window", None) or sys.maxsize
        fits = len(head) + max(map(len, rows)) + longest <= window  # otherwise some layers no longer see the beginning
        split = fits and self._plain and self._config.model_type in _EXPLICIT_POSITIONS
        run = self._run_after_prompts if split else self._run_whole
        columns = []
        for continuation in continuations:
            hidden = run(head, rows, continuation)
            targets = torch.tensor(continuation).repeat(len(rows))[:, None]
            values = self._token_logprobs(hidden.flatten(0, 1), targets).view(len(rows), -1)
            columns.append([tuple(row) for row in values.tolist()])
        return list(zip(*columns, strict=True))

    def _score_continuations(self, prompt: list[int], continuations: list[list[int]]) -> tuple[tuple[float, ...], ...]:
        """Return log-probabilities of many continuations of one prompt, batched over them.  [continuations][tokens]"""
        import torch

        found: dict[int, tuple[float, ...]] = {}
        for some in _batches(continuations):
            states = self._states(prompt[:-1], [[prompt[-1], *continuations[i][:-1]] for i in some])
            hidden = torch.cat([s[: len(continuations[i])] for s, i in zip(states, some, strict=True)])
            targets = torch.tensor([token for i in some for token in continuations[i]])[:, None]
            values = iter(self._token_logprobs(hidden, targets)[:, 0].tolist())
            found.update((i, tuple(islice(values, len(continuations[i])))) for i in some)
        return tuple(found[i] for i in range(len(continuations)))

    def _states(self, head: list[int], rows: list[list[int]]) -> Tensor:
        """Return the last layer's hidden states of rows that continue from a head.  [rows, longest, width]"""
        past = self._prefix_rows(head, len(rows))
        before = head if past is None else []
        tokens = self._tensor([[*before, *row] for row in rows])
        states = self._live.model.base_model(tokens, past_key_values=past, use_cache=past is not None).last_hidden_state
        return cast("Tensor", states[:, len(before) :])

    def _run_whole(self, head: list[int], rows: list[list[int]], continuation: list[int]) -> Tensor:
        """Return the hidden states from which the continuation's tokens are predicted.  [rows, continuation, width]"""
        import torch

        states = self._states(head, [[*row, *continuation[:-1]] for row in rows])
        ends = [len(row) - 1 for row in rows]
        return torch.stack([s[end : end + len(continuation)] for s, end in zip(states, ends, strict=True)])

    def _run_after_prompts(self, head: list[int], rows: list[list[int]], continuation: list[int]) -> Tensor:
        """Return the same as `_run_whole`, reusing cached prompts: many explanations are scored on the same windows."""
        import torch

        base, device = self._live.model.base_model, self._live.device
        past, last = self._prompts_cache(head, rows)
        if len(continuation) == 1:
            return last[:, None]
        lengths = torch.tensor([len(row) for row in rows], device=device)
        longest, more = int(lengths.max()), len(continuation) - 1
        # Padding between a short prompt and the continuation is masked, and positions do not count it.
        seen = torch.arange(longest, device=device) < lengths[:, None]
        ones = seen.new_ones
        mask = torch.cat([ones(len(rows), len(head)), seen, ones(len(rows), more)], dim=1)
        positions = len(head) + lengths[:, None] + torch.arange(more, device=device)
        states = base(
            self._tensor([continuation[:-1]] * len(rows)),
            past_key_values=past,
            attention_mask=mask.long(),
            position_ids=positions,
            use_cache=True,
        ).last_hidden_state
        return torch.cat([last[:, None], states], dim=1)

    @cached_property
    def _prompts(self) -> OrderedDict[Any, tuple[list[tuple[Tensor, Tensor]], Tensor]]:
        """Keys and values of batches of prompts (without their prefix), and each prompt's last hidden state."""
        return OrderedDict()

    def _prompts_cache(self, head: list[int], rows: list[list[int]]) -> tuple[Any, Tensor]:
        """Return a cache of prefix and prompts, and each prompt's last hidden state.  [rows, width]"""
        import torch
        from transformers import DynamicCache

        past = self._prefix_rows(head, len(rows))
        if past is None:
            past = DynamicCache(config=self._live.model.config)
        key = (tuple(head), tuple(map(tuple, rows)))
        if key in self._prompts:
            self._prompts.move_to_end(key)
            kept, last = self._prompts[key]
            for layer, (keys, values) in enumerate(kept):
                past.update(keys, values, layer)
            return past, last
        states = self._live.model.base_model(self._tensor(rows), past_key_values=past, use_cache=True).last_hidden_state
        last = torch.stack([s[len(row) - 1] for s, row in zip(states, rows, strict=True)])
        own = slice(len(head), None)
        kept = [(layer.keys[:, :, own].clone(), layer.values[:, :, own].clone()) for layer in past.layers]
        self._prompts[key] = kept, last
        sizes = [sum(tensor.nbytes for layer in batch for tensor in layer) for batch, _ in self._prompts.values()]
        while sizes and sum(sizes) > self._prompt_bytes:
            self._prompts.popitem(last=False)
            del sizes[0]
        return past, last

    @cached_property
    def _prompt_bytes(self) -> int:
        weights = sum(weight.nbytes for weight in self._live.model.parameters())
        return max(_PROMPT_BYTES, weights // 16)

    def _token_logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return log-probabilities of tokens.  hidden [positions, width], targets [positions, n] -> [positions, n]"""
        import torch

        values = []
        for some, wanted in zip(hidden.split(_POSITIONS), targets.split(_POSITIONS), strict=True):
            logits = self._live.unembed(some)
            values.append(logits.gather(1, wanted.to(logits.device)) - logits.logsumexp(1, keepdim=True))
        return torch.cat(values)

    # --- filling gaps ---

    def _fill(self, request: FillRequest) -> FillReply:
        import torch

        prefix, filler = self._bos + self._ids(request.prefix), self._ids(request.filler)
        choices = torch.tensor([[self._choice(choice) for choice in request.choices]])
        texts = [[self._ids(part) for part in text] for text in request.texts]
        if not texts or not all(texts) or not request.choices:
            raise self._error("at least one text with gaps and one choice are required")
        if not prefix and not all(text[0] for text in texts):
            raise self._error("a text begins with a gap, and the model has no BOS token to predict it from")
        rows, gaps = [], []  # a row ends with the token from which its last gap is predicted
        for text in texts:
            row = [*prefix[-1:], *text[0]]
            places = [len(row) - 1]
            for part in text[1:]:
                row += [*filler, *part]
                places.append(len(row) - 1)
            rows.append(row)
            gaps.append(places)
        head = prefix[:-1]
        self._free_positions(len(head) + max(map(len, rows)))
        found: dict[int, tuple[tuple[float, ...], ...]] = {}
        for some in _batches(rows):
            states = self._states(head, [rows[i] for i in some])
            hidden = torch.cat([s[gaps[i]] for s, i in zip(states, some, strict=True)])
            values = iter(self._token_logprobs(hidden, choices.expand(len(hidden), -1)).tolist())
            found.update((i, tuple(tuple(value) for value in islice(values, len(gaps[i])))) for i in some)
        tokens = sum(len(head) + len(row) for row in rows)
        usage = Usage(tokens, 0, len(head) * (len(rows) - 1), 0.0, "local")
        return FillReply(tuple(found[i] for i in range(len(rows))), usage)

    def _choice(self, text: str) -> int:
        """Return the token id of a choice.

        Raises:
            LLMError: If the choice is not exactly one known token.
        """
        # Some tokenizers put a space before every text, but not before what follows a tab.
        tab = self._ids("\t")
        for ids in (self._ids(text), self._ids("\t" + text)[len(tab) :]):
            if len(ids) == 1 and ids[0] != self._live.tokenizer.unk_token_id:
                return ids[0]
        raise self._error(f"the choice {text!r} is not a single token of this model")

    # --- generating ---

    def _complete(self, request: Request) -> Reply:
        answer = self._begun(request)
        cached = len(answer.shared) if tuple(answer.shared) in self._prefixes else 0
        past = self._prefix(answer.shared)
        rest = answer.prompt if past is None else answer.prompt[len(answer.shared) :]
        while not answer.finish:
            out = self._live.model(self._tensor([rest]), past_key_values=past, use_cache=True, logits_to_keep=1)
            past = getattr(out, "past_key_values", None)
            self._extend(answer, out.logits[0, -1].float())
            # Without a cache, the whole text is run again.
            rest = [*answer.prompt, *answer.made] if past is None else answer.made[-1:]
        return self._reply(answer, cached)

    def _complete_together(self, requests: Sequence[Request]) -> list[Reply | Exception]:
        """Generate several answers in one batch; return the error of each request that fails."""
        found: dict[int, Reply | Exception] = {}
        answers: dict[int, _Answer] = {}
        for place, request in enumerate(requests):
            try:
                if self._places_tokens:
                    answers[place] = self._begun(request)
                else:
                    found[place] = self._complete(request)
            except LLMError as error:
                found[place] = error
        cached = self._generate(list(answers.values())) if answers else 0
        for place, answer in answers.items():
            try:
                found[place] = self._reply(answer, cached)
            except LLMError as error:
                found[place] = error
        return [found[place] for place in range(len(requests))]

    def _generate(self, answers: list[_Answer]) -> int:
        """Generate answers in one batch; return how many tokens of each prompt came from the prefix cache."""
        import torch

        shared, past, cached = self._shared_cache(answers)
        rows = [answer.prompt[len(shared) :] for answer in answers]
        longest, device = max(map(len, rows)), self._live.device
        padding = torch.tensor([longest - len(row) for row in rows], device=device)
        # Rows are padded on the left, so that all of them grow at the end; padding is masked and has no position.
        seen = torch.arange(longest, device=device) >= padding[:, None]
        mask = torch.cat([seen.new_ones(len(rows), len(shared)), seen], dim=1).long()
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, len(shared) :]
        tokens = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
        while True:
            out = self._live.model(
                tokens,
                past_key_values=past,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
            )
            past = out.past_key_values
            for answer, logits in zip(answers, out.logits[:, -1].float(), strict=True):
                if not answer.finish:
                    self._extend(answer, logits)
            going_on = [row for row, answer in enumerate(answers) if not answer.finish]
            if not going_on:
                return cached
            if len(going_on) < len(answers):
                kept = torch.tensor(going_on, device=device)
                past.batch_select_indices(kept)
                mask, positions = mask[kept], positions[kept]
                answers = [answers[row] for row in going_on]
            tokens = torch.tensor([answer.made[-1:] for answer in answers], device=device)
            mask = torch.cat([mask, mask.new_ones(len(answers), 1)], dim=1)
            positions = positions[:, -1:] + 1

    def _shared_cache(self, answers: Sequence[_Answer]) -> tuple[list[int], Any, int]:
        """Return the tokens that all conversations share, their cache for a batch, and how many were cached."""
        from transformers import DynamicCache

        shared = answers[0].shared
        window = getattr(self._config, "sliding_window", None) or sys.maxsize
        # Padding after the shared tokens shifts distances, which is wrong for layers with a sliding window.
        fits = max(len(answer.prompt) for answer in answers) + max(answer.most for answer in answers) <= window
        if not shared or not fits or any(answer.shared != shared for answer in answers):
            return [], DynamicCache(config=self._live.model.config), 0
        cached = len(shared) if tuple(shared) in self._prefixes else 0
        return shared, self._prefix_rows(shared, len(answers)), cached

    @property
    def _places_tokens(self) -> bool:
        """Whether prompts of different lengths can be generated in one batch."""
        return self._plain and self._config.model_type in _EXPLICIT_POSITIONS

    def _begun(self, request: Request) -> _Answer:
        """Return an empty answer to a request.

        Raises:
            LLMError: If the prompt is longer than the model's context.
        """
        prompt, shared, chat = self._conversation(request.messages)
        most = min(request.max_tokens or 256, self._free_positions(len(prompt)) + 1)
        stops = request.stop if chat else (*request.stop, _TURN_END)
        return _Answer(request, prompt, shared, most, stops, derive_rng(0, "sample", content_hash(request.content())))

    def _extend(self, answer: _Answer, logits: Tensor) -> None:
        """Add the next token to an answer, or end it.  logits [vocabulary]"""
        token = self._pick(self._penalised(logits, answer.made), answer.request.temperature or 0.0, answer.rng)
        if token in self._end_tokens():
            answer.finish = "stop"
            return
        answer.made.append(token)
        if answer.request.top_logprobs:
            answer.logprobs.append(self._alternatives(logits, token, answer.request.top_logprobs))
        answer.text = self._live.tokenizer.decode(answer.made, skip_special_tokens=True).lstrip()
        if places := [at for stop in answer.stops if (at := answer.text.find(stop)) >= 0]:
            answer.text, answer.finish = answer.text[: min(places)], "stop"
        elif len(answer.made) == answer.most:
            answer.finish = "length"

    def _reply(self, answer: _Answer, cached: int) -> Reply:
        if not answer.text.strip():
            raise self._error("the answer is empty")
        usage = Usage(len(answer.prompt), len(answer.made), cached, 0.0, "local")
        return Reply(answer.text.strip(), usage, answer.finish or "stop", tuple(answer.logprobs) or None)

    def _conversation(self, messages: Sequence[Message]) -> tuple[list[int], list[int], bool]:
        """Return a conversation's tokens, the part of them before its last question, and whether it uses a template."""
        begun = messages[-1].role == "assistant"  # the beginning of an answer, which the model continues
        shared = messages[: -2 if begun else -1]
        if chat := bool(getattr(self._live.tokenizer, "chat_template", None)):
            whole = self._templated(messages, add_generation_prompt=not begun, continue_final_message=begun)
            ids = self._ids(whole, marks=True)
            try:
                begin = self._ids(self._templated(shared), marks=True) if shared else []
            except LLMError:
                begin = []  # some templates require a question in every conversation
        else:
            text = _TURN_END.join(message.content for message in messages)
            ids = self._bos + self._ids(text if begun else text + _TURN_END)
            begin = self._bos + self._ids("".join(message.content + _TURN_END for message in shared))
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(begin, ids[:-1], strict=False)))
        return ids, ids[:same], chat

    def _templated(self, messages: Sequence[Message], **options: bool) -> str:
        from jinja2 import TemplateError

        turns = [
            {"role": message.role, "content": self._without_special_tokens(message.content)} for message in messages
        ]
        try:
            return str(self._live.tokenizer.apply_chat_template(turns, tokenize=False, **options))
        except (TemplateError, ValueError) as error:
            raise self._error(f"the chat template rejects this conversation ({error})") from error

    def _without_special_tokens(self, text: str) -> str:
        """Return a text with a space inside every special token, so that the text cannot end its turn."""
        for token in self._live.tokenizer.added_tokens_decoder.values():
            if token.special:
                text = text.replace(token.content, f"{token.content[0]} {token.content[1:]}")
        return text

    def _end_tokens(self) -> set[int]:
        """Return the tokens that end an answer."""
        configured = getattr(self._live.model.generation_config, "eos_token_id", None)
        ends = configured if isinstance(configured, list) else [configured]
        return {e for e in (*ends, self._live.tokenizer.eos_token_id) if e is not None}

    def _penalised(self, logits: Tensor, made: Sequence[int]) -> Tensor:
        """Return the logits minus the frequency penalty.  [vocabulary]"""
        if not self.frequency_penalty or not made:
            return logits
        counts = logits.new_zeros(len(logits))
        counts.index_add_(0, logits.new_tensor(made).long(), logits.new_ones(len(made)))
        return logits - self.frequency_penalty * counts

    def _pick(self, logits: Tensor, temperature: float, rng: Any) -> int:
        if temperature == 0:
            return int(logits.argmax())
        weights = (logits / temperature).softmax(-1).double().cpu().numpy()
        return int(rng.choice(len(weights), p=weights / weights.sum()))

    def _alternatives(self, logits: Tensor, token: int, n: int) -> TokenLogprobs:
        """Return the n most likely tokens, plus the sampled one if it is not among them."""
        logprobs = logits.log_softmax(-1)
        ids = logprobs.topk(min(n, len(logprobs))).indices.tolist()
        ids += [] if token in ids else [token]
        decode = self._live.tokenizer.decode
        return TokenLogprobs(decode([token]), tuple((decode([i]), float(logprobs[i])) for i in ids))
