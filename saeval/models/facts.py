"""Reads a model's limits and tokenizer facts from its files, before it is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from saeval._util import InputError

_LIMITED = {
    "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "codegen", "opt", "openai-gpt", "ctrl", "biogpt", "bert", "roberta",
    "electra",
    "camembert", "xlm-roberta", "megatron-bert", "data2vec-text", "ernie", "bert-generation", "bart", "trocr",
}  # fmt: skip
"""Model types with a table of learned positions, which limits their context."""
_ENCODERS = {
    "bert", "roberta", "electra", "camembert", "xlm-roberta", "megatron-bert", "data2vec-text", "ernie", "rembert",
    "roformer",
    "xmod", "big_bird", "bert-generation", "xlm-roberta-xl", "roberta-prelayernorm", "modernbert",
    "roc_bert", "xlnet",
}  # fmt: skip
"""Model types with bidirectional attention, unless their configuration sets `is_decoder`."""
_BLOCKS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_PLAIN = _LIMITED | {"gpt_neox", "bloom", "falcon", "mpt", "phi", "starcoder2"}
"""Model types whose blocks have a plain MLP; most others have a gated one."""
_POSITIONS = ("n_positions", "max_position_embeddings", "max_seq_len", "n_ctx", "context_length", "seq_length")


def local_model(name: str) -> Path | None:
    """Return the local path that a model name refers to; None for a hub id."""
    path = Path(name).expanduser()
    if path.exists() or name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        return path
    return None


class ModelFacts(NamedTuple):
    """Facts from the files of a model folder.

    Attributes:
        kind: Its `model_type`.
        width: Width of the residual stream.
        vocabulary: Number of rows in its embedding.
        blocks: Number of its blocks.
        positions: Maximum tokens per context if positions come from a table; None if there is no such limit.
        made_for: Maximum tokens per context according to its configuration.
        both_ways: Whether attention is bidirectional.
        bos: Text of the BOS token; empty if the tokenizer has none, None if its files do not state it.
        chat: Whether there is a chat template.
        parameters: Number of parameters per token in the blocks, without embeddings; None if unknown.
    """

    kind: str
    width: int | None
    vocabulary: int | None
    blocks: int | None
    positions: int | None
    made_for: int | None
    both_ways: bool
    bos: str | None
    chat: bool
    parameters: int | None = None


def model_facts(name: str) -> ModelFacts | None:
    """Read the facts of a local model folder; return None for hub ids, packages and single files."""
    folder = local_model(name)
    if folder is None or not folder.is_dir():
        return None
    config = json_mapping(folder / "config.json")
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    kind = str(text.get("model_type", config.get("model_type", "")))
    limit = _first(text, *_POSITIONS)
    both = text.get("use_bidirectional_attention") in (True, "all") or text.get("is_causal") is False
    both = both or (kind == "xlm" and not text.get("causal", False))
    both = both or (kind in _ENCODERS and not text.get("is_decoder", False))
    return ModelFacts(
        kind=kind,
        width=_first(text, "hidden_size", "n_embd", "d_model"),
        vocabulary=_first(text, "vocab_size"),
        blocks=_first(text, *_BLOCKS),
        positions=limit if kind in _LIMITED else None,
        made_for=limit,
        both_ways=both,
        bos=_bos(folder),
        chat=_has_chat_template(folder),
        parameters=block_parameters(text),
    )


def block_parameters(config: Mapping[str, Any]) -> int | None:
    """Return the number of active parameters in a transformer's blocks, from its configuration; None if unknown.

    In a mixture of experts, only the experts per token count.
    """
    width, blocks = _first(config, "hidden_size", "n_embd", "d_model"), _first(config, *_BLOCKS)
    if width is None or blocks is None:
        return None
    heads = _first(config, "num_attention_heads", "n_head", "n_heads", "num_heads") or 1
    head = _first(config, "head_dim") or width // heads
    shared = _first(config, "num_key_value_heads") or heads
    attention = 2 * width * head * (heads + shared)
    inner = _first(config, "moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim") or 4 * width
    gated = str(config.get("model_type")) not in _PLAIN
    experts = _first(config, "num_experts_per_tok") or 1
    return blocks * (attention + (3 if gated else 2) * width * inner * experts)


def tokens_outside(name: str, facts: ModelFacts) -> tuple[str, ...]:
    """Return the tokens added to a folder's tokenizer for which the model's embedding has no row."""
    folder = local_model(name)
    if folder is None or facts.vocabulary is None:
        return ()
    added = _added(folder / "tokenizer.json")
    return tuple(token for token, number in added.items() if number >= facts.vocabulary)


def not_causal(name: str) -> InputError:
    """Return the error for a model whose tokens attend to later ones."""
    return InputError(
        f"model {name} attends in both directions, so activations depend on the following text and padding; choose "
        f"a causal language model"
    )


def too_long(name: str, positions: int, tokens: int) -> InputError:
    """Return the error for contexts longer than the model's positions."""
    return InputError(
        f"model {name} has {positions} positions, but each context has {tokens} tokens, including those before the "
        f"text; set source.with.corpus.context to {positions - 1} or less"
    )


def json_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file; empty if the file is missing, damaged or not a mapping."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _added(file: Path) -> dict[str, int]:
    """Return the ids of the tokens added to a fast tokenizer, without parsing its whole vocabulary."""
    try:
        text = file.read_text(encoding="utf-8")
        found, _ = json.JSONDecoder().raw_decode(text[text.index("[", text.index('"added_tokens"')) :])
        return {token["content"]: token["id"] for token in found}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    values = (config.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _has_chat_template(folder: Path) -> bool:
    named = "chat_template" in json_mapping(folder / "tokenizer_config.json")
    return named or (folder / "chat_template.jinja").exists()


def _bos(folder: Path) -> str | None:
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        known = json_mapping(folder / file)
        if "bos_token" in known:
            token = known["bos_token"]
            return str((token.get("content") if isinstance(token, dict) else token) or "")
    # These classes have no default BOS, so there is none if the files name none.
    kind = str(json_mapping(folder / "tokenizer_config.json").get("tokenizer_class", ""))
    return (
        "" if kind in ("PreTrainedTokenizerFast", "TokenizersBackend", "Qwen2Tokenizer", "Qwen2TokenizerFast") else None
    )
