"""A transformers model in this process: generates, and scores continuations, computing shared beginnings once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from saeval import (
    LLM, FinishReason, LiveModel, LLMError, LogprobReply, LogprobRequest, Message, ModelRef, Reply, Request,
    TokenLogprobs, Usage, content_hash, derive_rng,
)  # fmt: skip

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 32  # rows that go through the model at a time; cut by number alone, so that a request always rounds alike
_POSITIONS = 64  # hidden states that are turned into logits at a time: vocabularies are large
_KEPT = 4  # prefixes whose keys and values are kept
_PROMPTS_KEPT = 3  # batches of prompts whose keys and values are kept
_ATTENTION_ONLY = {
    "gemma", "gemma2", "gemma3", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi", "phi3", "qwen2", "qwen3", "smollm3",
}  # fmt: skip
_TURN_END = "\n\n"  # between turns for models without a chat template, which would go on inventing turns


class HF(LLM):
    """Runs a causal language model of the hub, a folder, a GGUF file or a package in this process.

    Prompts are sent through the tokenizer's chat template where it has one; else as plain text, the turns apart by a
    blank line, which also ends an answer. To score continuations, BOS (where there is one), prefix, prompt and
    continuation are tokenized apart and joined. Prefixes, and all turns of a conversation but the last, are computed
    once and kept for the next request.
    """

    name = "hf"
    in_process = True

    model: ModelRef
    """Hub id, model folder, `.gguf` file, or `package:NAME` of a model that comes in a package."""
    revision: str | None = None
    """Revision of the hub id."""
    device: str = "auto"
    """Torch device; `auto` for CUDA where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision; `auto` for bfloat16 on CUDA and float32 elsewhere."""

    @property
    def can_score(self) -> bool:
        """A model in process can always score."""
        return True

    def check(self) -> None:
        """Look whether the model is there, without loading it."""
        LiveModel.check(self.model)

    async def complete(self, request: Request) -> Reply:
        """Generate an answer: the likeliest token each time at temperature 0, else drawn by the request's own seed."""
        return await asyncio.to_thread(self._locked, self._complete, request)

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        """Score continuations, one batch for the whole request."""
        return await asyncio.to_thread(self._locked, self._logprobs, request)

    def _locked(self, work: Any, request: Any) -> Any:
        import torch

        with self._live.lock, torch.inference_mode():
            return work(request)

    @cached_property
    def _live(self) -> LiveModel:
        return LiveModel.load(self.model, revision=self.revision, device=self.device, dtype=self.dtype)

    @cached_property
    def _prefixes(self) -> OrderedDict[tuple[int, ...], Any]:
        return OrderedDict()

    def _ids(self, text: str) -> list[int]:
        return list(self._live.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @property
    def _bos(self) -> list[int]:
        tokenizer = self._live.tokenizer
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return [] if first is None else [first]

    # --- keys and values of prefixes ---

    def _prefix(self, ids: Sequence[int]) -> Any | None:
        """Return the cache of a prefix, computed at most once while it is among the last few; None if there can be none."""
        key = tuple(ids)
        if not key:
            return None
        if key not in self._prefixes:
            out = self._live.model.base_model(self._tensor([key]), use_cache=True)
            self._prefixes[key] = getattr(out, "past_key_values", None)
            while len(self._prefixes) > _KEPT:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(key)
        return self._prefixes[key]

    def _tensor(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Pad rows on the right: a causal model's earlier tokens never see what comes after.  [rows, longest] int64"""
        import torch

        longest = max(map(len, rows))
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self._live.device)

    # --- scoring ---

    def _logprobs(self, request: LogprobRequest) -> LogprobReply:
        prefix = self._bos + self._ids(request.prefix)
        prompts = [self._ids(p) for p in request.prompts]
        continuations = [tuple(self._ids(c)) for c in request.continuations]
        if not all(continuations):
            raise LLMError(f"hf/{self.model}: a continuation without tokens cannot be scored")
        columns = [self._score(prefix, prompts, c) for c in continuations]
        usage = Usage(
            sum(len(prefix) + len(p) + len(c) for p in prompts for c in continuations), 0,
            len(prefix) * (len(prompts) * len(continuations) - 1), 0.0, "local",
        )  # fmt: skip
        return LogprobReply(tuple(zip(*columns, strict=True)), usage)

    def _score(self, prefix: list[int], prompts: list[list[int]], continuation: tuple[int, ...]) -> list[tuple[float, ...]]:
        """Return the log-probabilities of one continuation's tokens after every prompt."""
        found: list[tuple[float, ...]] = []
        for begin in range(0, len(prompts), _ROWS):
            found += self._score_rows(prefix, prompts[begin : begin + _ROWS], continuation)
        return found

    def _score_rows(self, prefix: list[int], prompts: list[list[int]], continuation: tuple[int, ...]) -> list[tuple[float, ...]]:
        import torch

        # The prefix's last token is run with each prompt, so that an empty prompt has a token to predict from.
        head, rows = prefix[:-1], [[*prefix[-1:], *p] for p in prompts]
        longest = len(head) + max(map(len, rows)) + len(continuation)
        if self._keeps_all(longest):
            hidden = self._after_prompts(head, rows, continuation)
        else:
            past = self._prefix(head)
            full = [[*([] if past is not None else head), *row, *continuation[:-1]] for row in rows]
            shift = 0 if past is not None else len(head)
            states = self._hidden(full, past)
            hidden = torch.stack(
                [s[shift + len(row) - 1 : shift + len(row) - 1 + len(continuation)] for s, row in zip(states, rows, strict=True)]
            )
        values = self._read_off(hidden, continuation)
        return [tuple(row) for row in values.tolist()]

    def _keeps_all(self, tokens: int) -> bool:
        """Tell whether keys and values of every token are kept by every layer, so that prompts can be gone on from."""
        config = self._live.model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        recurrent = getattr(config, "model_type", "") not in _ATTENTION_ONLY
        return not recurrent and (not window or tokens <= window)

    def _after_prompts(self, head: list[int], rows: list[list[int]], continuation: tuple[int, ...]) -> Tensor:
        """Return the hidden states from which the continuation's tokens are predicted, going on from kept prompts.

        Several explanations are scored on the same windows, so the windows' keys and values are kept for the next
        request.  [rows, continuation, width]
        """
        import torch

        key = (tuple(head), tuple(map(tuple, rows)))
        if self._prompts.get(key) is None:
            past = self._prefix(head)
            past = deepcopy(past) if past is not None else None
            if past is not None:
                past.batch_repeat_interleave(len(rows))
            out = self._live.model.base_model(self._tensor(rows), past_key_values=past, use_cache=True)
            ends = torch.tensor([len(row) - 1 for row in rows], device=self._live.device)
            last = out.last_hidden_state[torch.arange(len(rows), device=ends.device), ends]
            while len(self._prompts) >= _PROMPTS_KEPT:
                self._prompts.popitem(last=False)
            self._prompts[key] = (out.past_key_values, last)
        self._prompts.move_to_end(key)
        kept, last = self._prompts[key]
        if len(continuation) == 1:
            return last[:, None]
        lengths = torch.tensor([len(row) for row in rows], device=self._live.device)
        longest, more = int(lengths.max()), len(continuation) - 1
        # Padding lies between a short prompt and the continuation: it is masked, and positions leave it out.
        seen = torch.arange(longest, device=lengths.device) < lengths[:, None]
        ones = seen.new_ones
        mask = torch.cat([ones(len(rows), len(head)), seen, ones(len(rows), more)], dim=1)
        positions = len(head) + lengths[:, None] + torch.arange(more, device=lengths.device)
        states = self._live.model.base_model(
            self._tensor([continuation[:-1]] * len(rows)), past_key_values=deepcopy(kept), attention_mask=mask.long(),
            position_ids=positions, use_cache=True,
        ).last_hidden_state  # fmt: skip
        return torch.cat([last[:, None], states], dim=1)

    @cached_property
    def _prompts(self) -> OrderedDict[Any, Any]:
        return OrderedDict()

    def _read_off(self, hidden: Tensor, continuation: tuple[int, ...]) -> Tensor:
        """Return the log-probability of each token of the continuation.  hidden [rows, tokens, width] -> [rows, tokens]"""
        import torch

        flat = hidden.flatten(0, 1)
        targets = torch.tensor(continuation, device=flat.device).repeat(len(hidden))
        values = []
        for some, wanted in zip(flat.split(_POSITIONS), targets.split(_POSITIONS), strict=True):
            logits = self._head(some)
            values.append(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(1))
        return torch.cat(values).view(len(hidden), -1)

    def _hidden(self, rows: Sequence[Sequence[int]], past: Any | None) -> Tensor:
        """Return the final hidden states of rows, run after a kept prefix or by themselves.  [rows, longest, width]"""
        tokens = self._tensor(rows)
        if past is None:
            return self._live.model.base_model(tokens, use_cache=False).last_hidden_state
        past = deepcopy(past)  # running after it would write into it
        past.batch_repeat_interleave(len(rows))
        return self._live.model.base_model(tokens, past_key_values=past, use_cache=True).last_hidden_state

    def _head(self, hidden: Tensor) -> Tensor:
        """Return logits of hidden states: only where they are needed, vocabularies are large.  [positions, vocabulary]"""
        import torch

        logits = self._live.model.get_output_embeddings()(hidden).float()
        cap, scale = self._logit_rules
        if scale is not None:
            logits = logits * scale
        return torch.tanh(logits / cap) * cap if cap is not None else logits

    @cached_property
    def _logit_rules(self) -> tuple[float | None, float | None]:
        """What the model does to logits: a soft cap, a scale. Checked once against its own forward pass."""
        config = self._live.model.config.get_text_config()
        cap, scale = getattr(config, "final_logit_softcapping", None), getattr(config, "logit_scale", None)
        tokens = self._tensor([[*self._bos, *self._ids("So it was.")]])
        expected = self._live.model(tokens).logits[0, -1].float()
        logits = self._live.model.get_output_embeddings()(self._live.model.base_model(tokens).last_hidden_state[0, -1]).float()
        logits = logits * scale if scale is not None else logits
        logits = (logits / cap).tanh() * cap if cap is not None else logits
        if float((logits - expected).abs().max()) > 1e-2 * max(1.0, float(expected.abs().max())):
            raise LLMError(f"hf/{self.model}: this model makes its logits in a way that is not known here; it cannot score")
        return cap, scale

    # --- generating ---

    def _complete(self, request: Request) -> Reply:
        before, last, chat = self._conversation(request.messages)
        past = self._prefix(before)
        rest = last if past is not None else before + last
        past = deepcopy(past)
        stops = request.stop if chat else (*request.stop, _TURN_END)
        rng = derive_rng(0, "sample", content_hash(asdict(request)))
        ended = self._ends()
        made: list[int] = []
        logprobs: list[TokenLogprobs] = []
        text, reason = "", "length"
        for _ in range(request.max_tokens or 256):
            out = self._live.model(self._tensor([rest]), past_key_values=past, use_cache=True, logits_to_keep=1)
            past = getattr(out, "past_key_values", None)
            logits = out.logits[0, -1].float()
            token = self._pick(logits, request.temperature or 0.0, rng)
            if token in ended:
                reason = "stop"
                break
            made.append(token)
            rest = [token] if past is not None else [*before, *last, *made]  # recurrent models keep their state elsewhere
            if request.top_logprobs:
                logprobs.append(self._alternatives(logits, token, request.top_logprobs))
            text = self._live.tokenizer.decode(made, skip_special_tokens=True)
            if cut := _first(text.lstrip(), stops):
                text, reason = text.lstrip()[: cut[0]], "stop"
                break
        finish: FinishReason = "stop" if reason == "stop" else "length"
        if not text.strip():
            raise LLMError(f"hf/{self.model}: the answer is empty")
        usage = Usage(len(before) + len(last), len(made), len(before) if past is not None else 0, 0.0, "local")
        return Reply(text.strip(), usage, finish, tuple(logprobs) or None)

    def _conversation(self, messages: Sequence[Message]) -> tuple[list[int], list[int], bool]:
        """Return the tokens of all turns but the last, those of the last, and whether a chat template made them."""
        tokenizer = self._live.tokenizer
        if getattr(tokenizer, "chat_template", None):
            turns = [asdict(m) for m in messages]
            begun = messages[-1].role == "assistant"  # the answer's beginning, to be continued
            whole = str(
                tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
                )
            )
            begin = str(tokenizer.apply_chat_template(turns[:-1], tokenize=False)) if turns[1:] else ""
            begin = begin if whole.startswith(begin) else ""
            return self._ids(begin), self._ids(whole[len(begin) :]), True
        begin = "".join(m.content + _TURN_END for m in messages[:-1])
        last = messages[-1]
        end = "" if last.role == "assistant" else _TURN_END
        return self._bos + self._ids(begin), self._ids(last.content + end), False

    def _ends(self) -> set[int]:
        """Tokens that end an answer."""
        configured = getattr(self._live.model.generation_config, "eos_token_id", None)
        ends = configured if isinstance(configured, list) else [configured]
        return {e for e in (*ends, self._live.tokenizer.eos_token_id) if e is not None}

    def _pick(self, logits: Tensor, temperature: float, rng: Any) -> int:
        if temperature == 0:
            return int(logits.argmax())
        weights = (logits / temperature).softmax(-1).double().cpu().numpy()
        return int(rng.choice(len(weights), p=weights / weights.sum()))

    def _alternatives(self, logits: Tensor, token: int, n: int) -> TokenLogprobs:
        values, ids = logits.log_softmax(-1).topk(n)
        decode = self._live.tokenizer.decode
        pairs = zip(ids.tolist(), values.tolist(), strict=True)
        return TokenLogprobs(decode([token]), tuple((decode([i]), value) for i, value in pairs))


def _first(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """Return where the first stop string stands, and which it is."""
    places = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    return min(places) if places else None
