"""Checks from files whether a coder and a model fit together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from saeval._util import InputError
from saeval.activations import CONTEXT, no_such_lead
from saeval.models.facts import ModelFacts, local_model, model_facts, not_causal, tokens_outside, too_long
from saeval.models.made_for import MadeFor, apart, block_number, other_model, other_tuning
from saeval.models.place_check import check_place

_SHORTEST = 8
_SMALLEST_WINDOW = 4
_LONG = 12  # characters per token of text that is surely long enough


class Fit(NamedTuple):
    """A coder's training facts, and the model and text it is used on.

    Attributes:
        made_for: What the coder was made for.
        model: The model: hub id, folder, file or package.
        place: Where it is read, by the spec's name; None if the coder's files name the place.
        context: Text tokens per context.
        bos: Whether BOS, or which other token, precedes them.
    """

    made_for: MadeFor
    model: str
    place: str | None
    context: int
    bos: bool | str

    @classmethod
    def of(cls, made_for: MadeFor, model: str, place: str | None, context: int | None, bos: bool | str | None) -> Fit:
        """Fill in BOS and the context length as the coder was trained, within the model's limits.

        Args:
            made_for: What the coder was made for.
            model: The model.
            place: Where it is read.
            context: Text tokens per context, where the spec says.
            bos: What precedes them, where the spec says.
        """
        bos = bos if bos is not None else made_for.prepend_bos is not False
        if context is None:
            lead, facts = int(bool(bos)), model_facts(model)
            context = made_for.context_size - lead if made_for.context_size is not None else CONTEXT
            limit = None if facts is None else facts.positions or facts.made_for
            if limit is not None:
                context = min(context, limit - lead)
        return cls(made_for, model, place, max(context, _SHORTEST), bos)

    def check_model(self, texts: Sequence[str] = (), *, chat: bool = False) -> None:
        """Refuse a model that cannot read the text from left to right.

        Args:
            texts: First texts of the corpus, which are searched for tokens that the embedding lacks.
            chat: Whether the corpus holds conversations, which take a chat template.

        Raises:
            InputError: If it cannot.
        """
        facts, place = self._facts, self.place or self.made_for.place or ""
        if facts is not None and facts.both_ways:
            raise not_causal(self.model)
        block = block_number(place)
        if facts is not None and facts.blocks is not None and block is not None and block >= facts.blocks:
            raise InputError(
                f"model {self.model} has {facts.blocks} blocks, 0 to {facts.blocks - 1}, and {place} names another; "
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
                f"the corpus holds conversations, and the tokenizer of model {self.model} has no chat template; take "
                "the tokenizer of an instruction-tuned model, or write each conversation into a field `text`"
            )
        self._check_lead()
        for token in tokens_outside(self.model, facts):
            if any(token in text for text in texts):
                raise InputError(
                    f"model {self.model}: the corpus holds {token!r}, a token that was added to the tokenizer and "
                    f"that the embedding of {facts.vocabulary} rows lacks; take the tokenizer that the model was "
                    "trained with"
                )

    def _check_lead(self) -> None:
        """Refuse a lead token that the tokenizer of a model on this machine lacks.

        Raises:
            InputError: If it does.
        """
        file = (local_model(self.model) or Path()) / "tokenizer.json"
        if not isinstance(self.bos, str) or not file.is_file():
            return
        from tokenizers import Tokenizer

        if Tokenizer.from_file(str(file)).token_to_id(self.bos) is None:
            raise no_such_lead(self.bos)

    def check_window(self, texts: Sequence[str], window: int) -> None:
        """Refuse a corpus whose texts are all shorter than a window.

        Args:
            texts: All texts of the corpus.
            window: Tokens per window.

        Raises:
            InputError: If they are.
        """
        folder = local_model(self.model)
        file = folder / "tokenizer.json" if folder is not None else None
        suspicious = texts and all(len(text) < _LONG * window for text in texts)
        if file is None or not suspicious or not file.is_file():
            return
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        longest = max(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
        if min(longest, self.context) < window:
            smaller = (
                f"set sampler.with.window to {longest // 2} or less, or " if longest // 2 >= _SMALLEST_WINDOW else ""
            )
            raise InputError(
                f"no text is as long as a window of {window} tokens: the longest of {len(texts)} documents has "
                f"{longest}; {smaller}join short rows"
            )

    def conflicts(self) -> list[str]:
        """Return definite mismatches between the coder's training and its use."""
        made, found = self.made_for, list[str]()
        if self.place is not None:
            own = made.place or (f"blocks.{made.layer}.hook_resid_post" if made.layer is not None else None)
            if own is not None and apart(own, self.place):
                found.append(f"the coder's files say that it reads {own}, and the spec reads {self.place}")
        kind = self._facts.kind if self._facts is not None else None
        if made.model is not None and other_model(made.model, self.model, kind):
            used = f"{self.model} (a {kind})" if kind else self.model
            found.append(f"the coder's files say that it was made for the model {made.model}, and the spec uses {used}")
        return found

    def cautions(self) -> list[str]:
        """Return cautions for readers of results that are not contradictions."""
        made, facts, found = self.made_for, self._facts, list[str]()
        if made.model is not None and other_tuning(made.model, self.model):
            found.append(f"The coder was trained on {made.model}, and is used on {self.model}.")
        if made.context_size is not None and self.context > made.context_size:
            found.append(
                f"Contexts have {self.context} tokens, more than the {made.context_size} that the coder was trained on "
                "(`corpus.context`)."
            )
        tokens = self.context + (self._leads(facts) if facts is not None else 0)
        if facts is not None and facts.made_for is not None and facts.positions is None and tokens > facts.made_for:
            found.append(
                f"Contexts take {tokens} tokens, more than the {facts.made_for} positions that the model was made for "
                "(`corpus.context`)."
            )
        if made.prepend_bos is True and self.bos is False:
            found.append("The coder was trained on contexts that begin with BOS, and here they do not (`corpus.bos`).")
        if made.prepend_bos is False and self.bos is not False:
            found.append("The coder was trained on contexts without BOS, and here they begin with it (`corpus.bos`).")
        if made.prepend_bos is True and self.bos is True and facts is not None and facts.bos == "":
            found.append(no_bos())
        return found

    @property
    def _facts(self) -> ModelFacts | None:
        return model_facts(self.model)

    def _leads(self, facts: ModelFacts) -> int:
        """Return how many tokens surely precede the text."""
        return int(bool(self.bos) and (isinstance(self.bos, str) or bool(facts.bos)))


def no_bos() -> str:
    """Return the caution for a coder trained with a leading token that the tokenizer does not have as BOS."""
    return (
        "The coder was trained on contexts that begin with BOS, and the tokenizer has none; name the token that "
        "was there, such as `corpus: {bos: '<|endoftext|>'}`, which TransformerLens takes."
    )
