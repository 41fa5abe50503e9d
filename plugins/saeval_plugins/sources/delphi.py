"""Reads activations cached by Delphi: safetensors shards, one per range of latents."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, JsonValue

from saeval.plugin import (
    ActivationSource,
    InputError,
    ModelRef,
    SpecPath,
    TokenDataset,
    file_sha256,
    special_ids,
    token_bytes,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from saeval.plugin import ActivationWriter

_SHARD = re.compile(r"(\d{1,9})_(\d{1,9})\.safetensors")
_BLOCK = 1024  # contexts read from all shards and written together


class _Shard(NamedTuple):
    file: Path
    first: int
    last: int


class DelphiSource(ActivationSource):
    """Reads the folder in which Delphi cached one hookpoint's latents (`results/NAME/latents/HOOKPOINT`).

    Delphi omits magnitudes of 1e-5 or less and rounds to half precision; saeval cannot undo this.
    As in other sources, negative activations and those on BOS and other special tokens are dropped. Delphi does not
    record document boundaries, so every context counts as a document: two contexts of one text may appear on both sides
    of the split.
    """

    name = "delphi"

    path: SpecPath
    """The hookpoint's folder: `<first>_<last>.safetensors` files, and `config.json`."""
    tokenizer: ModelRef
    """Folder or hub id of the subject model's tokenizer."""
    n_latents: int | None = Field(default=None, ge=1)
    """Width of the dictionary; default: from the shards' names."""

    def check(self) -> None:
        """Check that the shards exist and are complete and contiguous."""
        for shard in self._shards():
            self._opened(shard)

    def fingerprint(self) -> JsonValue:
        """Return the hashes of the shards and of a local tokenizer."""
        files = sorted(self.path.glob("*.safetensors")) if self.path.is_dir() else []
        local = [file for file in sorted(Path(self.tokenizer).glob("*.json")) if file.is_file()]
        tokenizer: JsonValue = [file_sha256(file) for file in local] or self.tokenizer
        return [self.name, [[file.name, file_sha256(file)] for file in files], tokenizer, self.n_latents]

    def _shards(self) -> list[_Shard]:
        """Return the shards in the order of their latents.

        Raises:
            InputError: If there are none, or one is missing.
        """
        if not self.path.is_dir():
            what = "is a file; set `path` to its folder" if self.path.exists() else "no such folder"
            raise InputError(f"Delphi's latents {self.path}: {what}")
        found = [(file, match) for file in self.path.iterdir() if (match := _SHARD.fullmatch(file.name))]
        shards = sorted((_Shard(f, int(m[1]), int(m[2])) for f, m in found), key=lambda s: s.first)
        if not shards:
            raise InputError(
                f"Delphi's latents {self.path}: no <first>_<last>.safetensors there; set `path` to the folder of one "
                "hookpoint"
            )
        expected = 0
        for shard in shards:
            if shard.first != expected or shard.last < shard.first:
                raise InputError(
                    f"Delphi's latents {self.path}: {shard.file.name} begins at latent {shard.first} instead of "
                    f"{expected}; a shard is missing or duplicated"
                )
            expected = shard.last + 1
        if self.n_latents is not None and self.n_latents < expected:
            raise InputError(f"Delphi's latents {self.path}: hold {expected} latents, more than n_latents")
        return shards

    def _opened(self, shard: _Shard) -> Any:
        """Open a shard; nothing is read yet.

        Raises:
            InputError: If it is truncated, or has other arrays than Delphi writes.
        """
        from safetensors import SafetensorError, safe_open

        try:
            tensors = safe_open(shard.file, framework="numpy")
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
            types = {name: tensors.get_slice(name).get_dtype() for name in shapes}
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{shard.file}: is not a complete safetensors file ({error!s:.80}); copy or create it again"
            ) from None
        locations, activations = shapes.get("locations"), shapes.get("activations")
        if locations is None or activations is None or locations[1:] != [3] or activations != locations[:1]:
            raise InputError(
                f"{shard.file}: should hold locations of shape [n, 3] and activations of shape [n], not "
                + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            )
        if "tokens" in shapes and len(shapes["tokens"]) != 2:
            raise InputError(f"{shard.file}: tokens should be of shape [contexts, length], not {shapes['tokens']}")
        if not types["locations"].startswith(("U", "I")) or not types.get("tokens", "I64").startswith(("U", "I")):
            raise InputError(f"{shard.file}: locations and tokens should be whole numbers")
        return tensors

    def collect(self, writer: ActivationWriter) -> None:
        """Read all shards in parallel, in blocks of contexts, and write their activations."""
        import numpy as np

        shards = self._shards()
        opened = [self._opened(shard) for shard in shards]
        dataset = self._tokens(shards, opened)
        contexts, length = dataset.tokens.shape
        bounds = [_bounds(shard, tensors, contexts) for shard, tensors in zip(shards, opened, strict=True)]
        begin = writer.start(dataset, self.n_latents or shards[-1].last + 1)
        writer.note(**self._facts())
        for low in range(begin // _BLOCK * _BLOCK, contexts, _BLOCK):
            high = min(low + _BLOCK, contexts)
            parts = [
                _read(shard, tensors, bound[low // _BLOCK : low // _BLOCK + 2], dataset)
                for shard, tensors, bound in zip(shards, opened, bounds, strict=True)
            ]
            position, latent, value = (np.concatenate(column) for column in zip(*parts, strict=True))
            keep = position >= begin * length
            order = np.argsort(position[keep], kind="stable")
            writer.add(position[keep][order], latent[keep][order], value[keep][order])
            writer.advance(high)

    def _facts(self) -> dict[str, JsonValue]:
        try:
            config = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
            model = config.get("model_name")
        except (OSError, ValueError, AttributeError):
            model = None
        return {
            "hookpoint": self.path.name,
            "subject": model if isinstance(model, str) else "",
            "architecture": "unknown",
            "made_by": "Delphi",
            "caveat": "Delphi records no document boundaries: contexts of one text may be on both sides of the split.",
        }

    def _tokens(self, shards: list[_Shard], opened: list[Any]) -> TokenDataset:
        """Return the corpus, which every shard contains.

        Raises:
            InputError: If no shard contains tokens, their shapes differ, or the tokenizer does not match.
        """
        import numpy as np

        holding = [(s, t) for s, t in zip(shards, opened, strict=True) if "tokens" in t.keys()]  # noqa: SIM118
        if not holding:
            raise InputError(f"Delphi's latents {self.path}: no shard holds tokens; cache again with save_tokens")
        shapes = {tuple(tensors.get_slice("tokens").get_shape()) for _, tensors in holding}
        if len(shapes) > 1:
            raise InputError(f"Delphi's latents {self.path}: shards differ in the shape of tokens: {sorted(shapes)}")
        tokens = holding[0][1].get_tensor("tokens").astype(np.int32)
        if tokens.size == 0 or tokens.min() < 0:
            raise InputError(f"{holding[0][0].file}: holds no tokens, or negative ones")
        tokenizer = self._tokenizer()
        used = np.unique(tokens)
        if int(used[-1]) >= len(tokenizer):
            raise InputError(
                f"tokenizer {self.tokenizer}: has {len(tokenizer)} tokens, but token {int(used[-1])} occurs; "
                "set `tokenizer` to the subject model's"
            )
        special = special_ids(tokenizer)
        mask = ~np.isin(tokens, sorted(special))
        ordinary = [int(i) for i in used if int(i) not in special]
        vocabulary = {**dict.fromkeys(map(int, used), b""), **token_bytes(tokenizer, ordinary)}
        rows = len(tokens)
        return TokenDataset(
            tokens,
            np.full(rows, tokens.shape[1], dtype=np.int32),
            mask,
            np.arange(rows, dtype=np.int32),
            tuple(map(str, range(rows))),
            vocabulary,
            lead=int(not mask[:, 0].any()),
        )

    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.tokenizer, trust_remote_code=False)
        except Exception as error:  # noqa: BLE001 - transformers raises whatever its parts raise
            raise InputError(
                f"tokenizer {self.tokenizer}: cannot be loaded ({type(error).__name__}); give a folder or hub id"
            ) from None


def _bounds(shard: _Shard, tensors: Any, contexts: int) -> list[int]:
    """Return the offsets in a shard at which each block of contexts begins, and the end.

    Raises:
        InputError: If activations are not in the order of the text.
    """
    import numpy as np

    row = tensors.get_tensor("locations")[:, 0].astype(np.int64)
    if len(row) and (row[0] < 0 or row[-1] >= contexts or (np.diff(row) < 0).any()):
        raise InputError(f"{shard.file}: locations are not in the order of the {contexts} contexts")
    return [int(i) for i in np.searchsorted(row, [*range(0, contexts, _BLOCK), contexts])]


def _read(
    shard: _Shard, tensors: Any, bounds: list[int], dataset: TokenDataset
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return position, latent and value of a shard's activations on ordinary tokens.

    Raises:
        InputError: If a location lies outside the text or the shard's latents, or a value is not finite.
    """
    import numpy as np

    part = slice(*bounds)
    row, offset, latent = tensors.get_slice("locations")[part].astype(np.int64).T
    value = tensors.get_slice("activations")[part].astype(np.float32)
    length = dataset.tokens.shape[1]
    if len(row) and (min(offset.min(), latent.min()) < 0 or offset.max() >= length):
        raise InputError(f"{shard.file}: an activation lies outside the contexts of {length} tokens")
    if len(row) and latent.max() > shard.last - shard.first:
        raise InputError(
            f"{shard.file}: an activation of latent {shard.first + int(latent.max())} does not belong to this shard"
        )
    if not np.isfinite(value).all():
        raise InputError(
            f"{shard.file}: an activation is infinite: it exceeded the half-precision maximum, 65504, in Delphi"
        )
    keep = (value > 0) & dataset.mask[row, offset]
    return (row * length + offset)[keep], (latent + shard.first)[keep], value[keep]
