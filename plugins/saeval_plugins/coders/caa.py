"""Contrastive activation addition: the direction from negative to positive texts."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from saeval.plugin import Coder, InputError, LinearCoder, LiveModel, ModelRef, SpecPath, file_sha256

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue
    from torch import Tensor

_BATCH = 16  # texts per forward pass


class Caa(Coder):
    """The mean difference of activations at the last token of contrasting texts, as one latent (arXiv 2312.06681).

    The latent's activation is the projection onto that difference, measured from the midpoint between the two means.
    It fires on tokens on the positive side of the midpoint, about half of all tokens; with `share`, only on those with
    the largest projections. Set the same `model`, `device` and `dtype` as in the source, so that the model is loaded
    only once.
    """

    name = "caa"

    pairs: SpecPath
    """Contrast pairs: `.jsonl`, each line with the texts `positive` and `negative`."""
    model: ModelRef
    """The model that reads the texts, named as in the source."""
    at: str
    """Hookpoint where the direction is computed, such as `layers.9`; also the source's default hookpoint."""
    midpoint: bool = True
    """Whether projections are measured from the midpoint between the two means; otherwise from 0."""
    share: float | None = Field(default=None, gt=0, lt=1)
    """Share of the pairs' tokens on which the latent fires, those with the largest projections; default: all on the
    positive side. A latent that fires on many tokens has no non-activating windows."""
    revision: str | None = None
    """Revision on the hub."""
    device: str = "auto"
    """Torch device of the model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the model."""

    def check(self) -> None:
        """Check that the pairs can be read and the model is available."""
        self._texts  # noqa: B018 - raises
        LiveModel.check(self.model)

    def fingerprint(self) -> JsonValue:
        """Return what the direction depends on: texts, model, precision, hookpoint and options."""
        model = LiveModel.fingerprint(self.model, self.revision)
        self._texts  # noqa: B018 - raises
        return [self.name, file_sha256(self.pairs), model, self.dtype, self.at, self.midpoint, self.share]

    def hookpoint(self) -> str:
        """Return the hookpoint at which the direction is computed."""
        return self.at

    def load(self, device: str, d_in: int) -> LinearCoder:
        """Return the direction between the means of the pairs; the first call runs the model over them."""
        positive, negative = self._means.positive.to(device), self._means.negative.to(device)
        direction = positive - negative
        if len(direction) != d_in:
            raise InputError(
                f"{self._label}: activations at {self.at} have width {len(direction)}, but at the source's hookpoint "
                f"{d_in}; set `at` and `hookpoint` to the same place"
            )
        if not direction.any():
            raise InputError(
                f"{self._label}: both sides have the same activations at {self.at}, so there is no direction"
            )
        bias = -(direction @ (positive + negative))[None] / 2 if self.midpoint else None
        return LinearCoder(
            encoder=direction[:, None],
            decoder=direction[None],
            encoder_bias=bias,
            threshold=self._threshold(direction, bias),
            architecture="caa",
            autoencoder=False,
            metadata={"pairs": len(self._texts), "hook_name": self.at},
        )

    def _threshold(self, direction: Tensor, bias: Tensor | None) -> Tensor | None:
        """Return the projection that a `share` of the pairs' tokens exceed, at least 0.  [1]"""
        if self.share is None:
            return None
        projections = self._means.tokens.to(direction.device) @ direction + (0 if bias is None else bias)
        return projections.quantile(1 - self.share).clamp(min=0)[None]

    @property
    def _label(self) -> str:
        return f"contrast pairs {self.pairs}"

    @cached_property
    def _texts(self) -> list[tuple[str, str]]:
        """The pairs, positive first.

        Raises:
            InputError: If there are none, or a line is malformed.
        """
        try:
            lines = self.pairs.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self._label} cannot be read ({type(error).__name__})") from None
        pairs = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                positive, negative = row["positive"], row["negative"]
            except (ValueError, TypeError, KeyError):
                positive = negative = None
            if not (isinstance(positive, str) and isinstance(negative, str) and positive.strip() and negative.strip()):
                raise InputError(f"{self._label}, line {number}: it must have the texts `positive` and `negative`")
            pairs.append((positive, negative))
        if not pairs:
            raise InputError(f"{self._label}: it contains no pairs")
        return pairs

    @cached_property
    def _means(self) -> _Means:
        import torch

        live = LiveModel.load(self.model, revision=self.revision, device=self.device, dtype=self.dtype)
        with live.lock:
            positive, negative = (self._read([pair[side] for pair in self._texts], live) for side in (0, 1))
        last, tokens = zip(positive, negative, strict=True)
        return _Means(last[0].mean(dim=0), last[1].mean(dim=0), torch.cat(tokens))

    def _read(self, texts: Sequence[str], live: LiveModel) -> tuple[Tensor, Tensor]:
        """Return activations at each text's last token [texts, width] and at all but BOS [tokens, width]."""
        import torch

        point, bos = live.hookpoint(self.at), live.tokenizer.bos_token_id
        last, every = [], []
        for start in range(0, len(texts), _BATCH):
            rows = [
                [*([] if bos is None else [bos]), *live.tokenizer(text, add_special_tokens=False)["input_ids"]]
                for text in texts[start : start + _BATCH]
            ]
            lengths = torch.tensor([len(row) for row in rows])
            tokens = torch.zeros((len(rows), int(lengths.max())), dtype=torch.int64)
            for row, ids in zip(tokens, rows, strict=True):
                row[: len(ids)] = torch.tensor(ids)
            caught = live.capture(tokens, [point], lengths)[point].cpu()
            last.append(caught[torch.arange(len(rows)), lengths - 1])
            every += [row[bos is not None : n] for row, n in zip(caught, lengths.tolist(), strict=True)]
        return torch.cat(last), torch.cat(every)


class _Means(NamedTuple):
    """Activations of the model on the pairs.

    Attributes:
        positive: Mean activation at the positive texts' last tokens.  [width]
        negative: Mean activation at the negative texts' last tokens.  [width]
        tokens: Activations at all tokens of both except BOS.  [tokens, width]
    """

    positive: Tensor
    negative: Tensor
    tokens: Tensor
