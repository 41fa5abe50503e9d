"""Tiny models, tokenizers and SAEs with random weights, written to disk as real ones are."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TEXT = (
    "The old captain walked slowly along the deck and looked at the grey sea. Nobody spoke for a while. "
    "In the year 1851 a ship left the harbour of Nantucket with thirty men, two dogs and 40 barrels of water. "
    "My fellow citizens, the state of the union is good; peace abroad and plenty at home are our two great aims. "
)
SIZES = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
D, D_FF, LAYERS = 16, 24, 3


@cache
def _configs() -> dict[str, tuple[str, dict]]:
    """Configuration class and options by model type; width 16, 3 blocks."""
    llama_like = {
        "hidden_size": D, "intermediate_size": D_FF, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 128,
    }  # fmt: skip
    return {
        "gpt2": ("GPT2Config", {"n_embd": D, "n_layer": LAYERS, "n_head": 2, "n_positions": 128, "n_inner": D_FF}),
        "llama": ("LlamaConfig", llama_like),
        "gemma3_text": (
            "Gemma3TextConfig", {**llama_like, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 16},
        ),
        "gpt_neox": (
            "GPTNeoXConfig",
            {"hidden_size": D, "intermediate_size": D_FF, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "max_position_embeddings": 128},
        ),
        "gptj": ("GPTJConfig", {"n_embd": D, "n_layer": LAYERS, "n_head": 2, "n_positions": 128, "rotary_dim": 4, "n_inner": D_FF}),
        "opt": (
            "OPTConfig",
            {"hidden_size": D, "ffn_dim": D_FF, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "max_position_embeddings": 128, "word_embed_proj_dim": D},
        ),
        "mamba": ("MambaConfig", {"hidden_size": D, "state_size": 4, "num_hidden_layers": LAYERS, "expand": 2, "time_step_rank": 2}),
    }  # fmt: skip


KINDS = ("gpt2", "llama", "gemma3_text", "gpt_neox", "gptj", "opt", "mamba")


def tiny_tokenizer():
    """A byte-level BPE tokenizer of 300 tokens with BOS, EOS and padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<bos>", "<eos>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", model_max_length=128
    )


def tiny_model(folder: Path, kind: str = "llama", seed: int = 0, **options: object) -> Path:
    """Write a model with random weights and its tokenizer as transformers does.

    Args:
        folder: Where to.
        kind: One of `KINDS`.
        seed: Of the weights.
        options: More options of its configuration.
    """
    import torch
    import transformers

    torch.set_num_threads(1)  # tiny matrices gain nothing from threads, and on a busy machine wait for them
    name, sizes = _configs()[kind]
    config = getattr(transformers, name)(**{**SIZES, **sizes, **options})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # trained models are not near zero, nor are their biases
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_corpus(path: Path, documents: int = 6) -> Path:
    """Write a corpus of a few hundred tokens a document as `.jsonl`."""
    rows = ({"id": f"d{i}", "text": TEXT[i:] + TEXT[:i]} for i in range(documents))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_sae(
    folder: Path,
    architecture: str = "topk",
    *,
    d_in: int = D,
    d_sae: int = 40,
    seed: int = 0,
    metadata: dict | None = None,
    **options: object,
) -> Path:
    """Write an SAE with random weights in sae-lens' format (`cfg.json` and `sae_weights.safetensors`).

    Args:
        folder: Where to.
        architecture: As sae-lens names it.
        d_in: Width of the activations it reads.
        d_sae: Number of latents.
        seed: Of the weights.
        metadata: `hook_name` and so on.
        options: More of its configuration, such as `k`.
    """
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / shape[0] ** 0.5

    transcoder = "transcoder" in architecture
    d_out = int(options.get("d_out", d_in))
    tensors = {"W_enc": random(d_in, d_sae), "W_dec": random(d_sae, d_out), "b_dec": 0.1 * random(d_out)}
    if architecture == "gated":
        tensors |= {"b_gate": random(d_sae), "b_mag": random(d_sae), "r_mag": random(d_sae)}
    else:
        tensors["b_enc"] = random(d_sae)
    if "jumprelu" in architecture:
        tensors["threshold"] = random(d_sae).abs()
    if "skip" in architecture:
        tensors["W_skip"] = random(d_out, d_in)
    config = {
        "architecture": architecture, "d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": not transcoder, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.1.hook_resid_post", "model_name": "tiny", **(metadata or {})},
        **({"k": 4} if architecture in ("topk", "abstopk") else {}), **({"d_out": d_out} if transcoder else {}), **options,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder
