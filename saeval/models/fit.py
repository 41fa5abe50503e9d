"""Checks, from files only, whether a coder and a model match."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from saeval._util import InputError, counted
from saeval.activations import CONTEXT, no_such_lead
from saeval.models.facts import ModelFacts, local_model, model_facts, not_causal, tokens_outside, too_long
from saeval.models.made_for import MadeFor, block_number, certainly_different, other_model, other_tuning
from saeval.models.place_check import check_place

_SHORTEST = 8
_SMALLEST_WINDOW = 4
_LONG = 12  # texts with this many characters per token are long enough for certain


class Fit(NamedTuple):
    """A coder's training facts, and the model and contexts it is used on.

    Attributes:
        made_for: The coder's training facts.
        model: The model: hub id, folder, file or package.
        place: The hookpoint in the spec; None if the coder's files name it.
        context: Text tokens per context.
        bos: Whether contexts begin with BOS, or the token to use instead.
    """

    made_for: MadeFor
    model: str
    place: str | None
    context: int
    bos: bool | str

    @classmethod
    def of(cls, made_for: MadeFor, model: str, place: str | None, context: int | None, bos: bool | str | None) -> Fit:
        """Return a fit with BOS and context length filled in as the coder was trained, within the model's limits.

        Args:
            made_for: The coder's training facts.
            model: The model.
            place: The hookpoint.
            context: Text tokens per context, if the spec sets it.
            bos: BOS setting, if the spec sets it.
        """
        bos = bos if bos is not None else made_for.prepend_bos is not False
        if context is None:
            lead, facts = int(bool(bos)), model_facts(model)
            context = made_for.context_size - lead if made_for.context_size is not None else CONTEXT
            limit = None if facts is None else facts.positions or facts.made_for
            if limit is not None:
                context = min(context, limit - lead)
        return cls(made_for, model, place, max(context, _SHORTEST), bos)

    @property
    def width(self) -> int | None:
        """Width of the model's residual stream; None if its files do not state it."""
        return None if (facts := self._facts) is None else facts.width

    def check_model(self, texts: Sequence[str] = (), *, chat: bool = False) -> None:
        """Check that the model is causal, has the hookpoint, and can read the corpus.

        Args:
            texts: First texts of the corpus, which are searched for tokens that the embedding lacks.
            chat: Whether the corpus contains conversations, which require a chat template.

        Raises:
            InputError: If not.
        """
        facts, place = self._facts, self.place or self.made_for.place or ""
        if facts is not None and facts.both_ways:
            raise not_causal(self.model)
        block = block_number(place)
        if facts is not None and facts.blocks is not None and block is not None and block >= facts.blocks:
            raise InputError(
                f"model {self.model} has {facts.blocks} blocks, 0 to {facts.blocks - 1}, but the hookpoint is {place}; "
                "change `hookpoint` or `model`"
            )
        if place:
            check_place(self.model, place)
        if facts is None:
            return
        tokens = self.context + self._leads(facts)
        if facts.positions is not None and tokens > facts.positions:
            raise too_long(self.model, facts.positions, tokens)
        if chat and not facts.chat:
            raise InputError(
                f"the corpus holds conversations, but the tokenizer of model {self.model} has no chat template; use "
                "the tokenizer of an instruction-tuned model, or write each conversation into a field `text`"
            )
        self._check_lead()
        for token in tokens_outside(self.model, facts):
            if any(token in text for text in texts):
                raise InputError(
                    f"model {self.model}: the corpus contains {token!r}, a token that was added to the tokenizer but "
                    f"is missing in the embedding ({facts.vocabulary} rows); use the tokenizer that the model was "
                    "trained with"
                )

    def _check_lead(self) -> None:
        """Check that the tokenizer of a local model has the lead token.

        Raises:
            InputError: If not.
        """
        file = (local_model(self.model) or Path()) / "tokenizer.json"
        if not isinstance(self.bos, str) or not file.is_file():
            return
        from tokenizers import Tokenizer

        if Tokenizer.from_file(str(file)).token_to_id(self.bos) is None:
            raise no_such_lead(self.bos)

    def check_context(self, window: int) -> None:
        """Check that a context is as long as a window.

        Args:
            window: Tokens per window.

        Raises:
            InputError: If it is shorter.
        """
        if self.context < window and not self.made_for.partial:
            raise InputError(
                f"contexts of {self.context} tokens are shorter than a window of {window}; set sampler.with.window to "
                f"{self.context} or less, or corpus.context to {window} or more"
            )

    def check_window(self, texts: Sequence[str], window: int) -> None:
        """Check that at least one text of the corpus is as long as a window.

        Args:
            texts: All texts of the corpus.
            window: Tokens per window.

        Raises:
            InputError: If all are shorter.
        """
        folder = local_model(self.model)
        file = folder / "tokenizer.json" if folder is not None else None
        suspicious = texts and all(len(text) < _LONG * window for text in texts)
        if file is None or not suspicious or not file.is_file():
            return
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        longest = max(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
        if longest < window:
            smaller = (
                f"set sampler.with.window to {longest // 2} or less, or " if longest // 2 >= _SMALLEST_WINDOW else ""
            )
            raise InputError(
                f"no text is as long as a window of {window} tokens: the longest of "
                f"{counted(len(texts), 'document')} has {longest}; {smaller}join short rows"
            )

    def conflicts(self) -> list[str]:
        """Return definite mismatches between the coder's training and its use."""
        made, found = self.made_for, list[str]()
        if self.place is not None:
            own = made.place or (f"blocks.{made.layer}.hook_resid_post" if made.layer is not None else None)
            if own is not None and certainly_different(own, self.place):
                found.append(f"the coder's files say that it reads {own}, but the spec reads {self.place}")
        kind = self._facts.kind if self._facts is not None else None
        if made.model is not None and other_model(made.model, self.model, kind):
            used = f"{self.model} (a {kind})" if kind else self.model
            found.append(f"the coder's files say that it was trained on {made.model}, but the spec uses {used}")
        return found

    def cautions(self) -> list[str]:
        """Return warnings for the results about smaller differences between training and use."""
        made, facts, found = self.made_for, self._facts, list[str]()
        if made.model is not None and other_tuning(made.model, self.model):
            found.append(f"The coder was trained on {made.model}, but is used on {self.model}.")
        tokens = self.context + (self._leads(facts) if facts is not None else 0)
        if made.context_size is not None and tokens > made.context_size:
            found.append(
                f"Contexts take {tokens} tokens, more than the {made.context_size} that the coder was trained on "
                "(`corpus.context`)."
            )
        if facts is not None and facts.made_for is not None and facts.positions is None and tokens > facts.made_for:
            found.append(
                f"Contexts take {tokens} tokens, more than the {facts.made_for} positions in the model's configuration "
                "(`corpus.context`)."
            )
        if made.prepend_bos is True and self.bos is False:
            found.append("The coder was trained on contexts that begin with BOS, but here they do not (`corpus.bos`).")
        if made.prepend_bos is False and self.bos is not False:
            found.append("The coder was trained on contexts without BOS, but here they begin with it (`corpus.bos`).")
        if made.prepend_bos is True and self.bos is True and facts is not None and facts.bos == "":
            found.append(no_bos())
        return found

    @property
    def _facts(self) -> ModelFacts | None:
        return model_facts(self.model)

    def _leads(self, facts: ModelFacts) -> int:
        """Return the number of tokens that certainly precede the text."""
        return int(bool(self.bos) and (isinstance(self.bos, str) or bool(facts.bos)))


def no_bos() -> str:
    """Return the warning for a coder trained with BOS if the tokenizer has no BOS token."""
    return (
        "The coder was trained on contexts that begin with BOS, but the tokenizer has none; set the token that was "
        "used in training, such as `corpus: {bos: '<|endoftext|>'}` (the default of TransformerLens)."
    )
