"""Decodes tokens: the bytes that each contributes to a text, and the strings of successive tokens."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a byte token of SentencePiece
_WORD_END = re.compile(r'BPEDecoder\(suffix="(.+?)"\)')  # GPT-1's decoder: the suffix ends a word


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of all special tokens: the tokenizer's named ones, and those added as special."""
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    marks = {i for i, token in added.items() if token.special and not _BYTE.fullmatch(str(token))}
    return marks | {i for i in tokenizer.all_special_ids if i is not None}


@cache
def _byte_of() -> dict[str, int]:
    """Return the byte of each character in a byte-level BPE vocabulary (GPT-2's printable alphabet)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def token_bytes(tokenizer: Any, ids: Sequence[int]) -> dict[int, bytes]:
    """Return the bytes that each token contributes to a text, its leading space included.

    The concatenated bytes of successive tokens, decoded as UTF-8, give the text, even if one character spans several
    tokens.

    Args:
        tokenizer: A transformers tokenizer: byte-level BPE, SentencePiece-like, WordPiece, BPE that marks ends of
            words, or one that splits text at white space and has no decoder (its tokens are separated by spaces); with
            any other kind, tokens are decoded one by one.
        ids: Token ids.
    """
    names = tokenizer.convert_ids_to_tokens(list(ids))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # A tokenizer without decoder spells tokens as its pre-tokenizer does.
    decoder = repr(getattr(backend, "decoder", None) or getattr(backend, "pre_tokenizer", None))
    if "ByteLevel" in decoder:
        table = _byte_of()
        added = set(getattr(tokenizer, "added_tokens_decoder", {}))  # plain text, not in the byte alphabet
        found: dict[int, bytes] = {}
        for i, name in zip(ids, names, strict=True):
            spelt = i not in added and all(c in table for c in name)
            found[i] = bytes(table[c] for c in name) if spelt else name.encode()
        return found
    if "WordPiece" in decoder:
        return {
            i: name[2:].encode() if name.startswith("##") else b" " + name.encode()
            for i, name in zip(ids, names, strict=True)
        }
    if backend is not None and _loses_spaces(backend):
        return {i: _word_bytes(backend.model, name) for i, name in zip(ids, names, strict=True)}
    if any(name.startswith("▁") for name in names) or "▁" in decoder:
        return {i: _sentencepiece_bytes(name) for i, name in zip(ids, names, strict=True)}
    if end := _WORD_END.search(decoder):
        return {i: name.replace(end[1], " ").encode() for i, name in zip(ids, names, strict=True)}
    return {i: tokenizer.decode([i]).encode() for i in ids}


def _loses_spaces(backend: Any) -> bool:
    """Return whether a fast tokenizer splits text at white space, drops it, and has no decoder to restore it."""
    splitter = backend.pre_tokenizer
    if splitter is None or backend.decoder is not None:
        return False
    return "".join(piece for piece, _ in splitter.pre_tokenize_str("a b")) == "ab"


def _word_bytes(model: Any, name: str) -> bytes:
    """Return a token with the space between words, where the tokenizer's model marks words; else before each token."""
    end, inner = getattr(model, "end_of_word_suffix", None), getattr(model, "continuing_subword_prefix", None)
    if end:
        return name.replace(end, " ").encode()
    if inner and name.startswith(inner):
        return name.removeprefix(inner).encode()
    return f" {name}".encode()


def _sentencepiece_bytes(name: str) -> bytes:
    if _BYTE.fullmatch(name):
        return bytes([int(name[3:5], 16)])
    return name.replace("▁", " ").encode()


def token_strings(pieces: Iterable[bytes]) -> tuple[str, ...]:
    """Decode successive tokens' bytes; a character belongs to the token that begins it.

    A token that only continues a character is an empty string (`saeval.records.shown_at`). A window may begin or end
    inside a character; its broken bytes become U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    strings: list[str] = []
    pending, begun = b"", 0  # bytes of an incomplete character, and the token that begins it
    for i, piece in enumerate(pieces):
        text = decoder.decode(piece)
        if pending and text:
            strings[begun] += text[0]
            pending, text = b"", text[1:]
        strings.append(text)
        if not pending:
            begun = i
        pending = decoder.getstate()[0]
    if pending:
        strings[begun] += decoder.decode(b"", final=True)
    return tuple(strings)
