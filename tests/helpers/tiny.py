"""Tiny models, tokenizers and SAEs with random weights, written to disk as real ones are."""

from __future__ import annotations

import json
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


COMMON = {
    "hidden_size": D, "intermediate_size": D_FF, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 8, "max_position_embeddings": 128,
}  # fmt: skip
_HEADS = {name: size for name, size in COMMON.items() if name != "head_dim"}
_GPT = {"n_embd": D, "n_layer": LAYERS, "n_head": 2, "n_positions": 128, "n_inner": D_FF}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}  # fmt: skip
_SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 16}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_num_value_heads": 2, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4,
}  # fmt: skip
_LATENT = {"kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
_MAMBA = {"hidden_size": D, "state_size": 4, "num_hidden_layers": LAYERS, "expand": 2}
_MIXER = {
    "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_chunk_size": 4,
}  # fmt: skip
_FIRST_MAMBA = {"mamba_d_state": 4, "mamba_expand": 2, "mamba_dt_rank": 2}

CONFIGS: dict[str, dict] = {
    # attention
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": {
        "hidden_size": D, "num_layers": LAYERS, "num_heads": 2, "intermediate_size": D_FF, "max_position_embeddings": 128,
        "attention_types": [[["global", "local", "global"], 1]],
    },
    "gpt_neox": COMMON,
    "gptj": {**_GPT, "rotary_dim": 4},
    "codegen": {**_GPT, "n_head": 4, "rotary_dim": 4},
    "opt": {
        "hidden_size": D, "ffn_dim": D_FF, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "max_position_embeddings": 128,
        "word_embed_proj_dim": D,
    },
    "bloom": {"hidden_size": D, "n_layer": LAYERS, "n_head": 2},
    "mpt": {"d_model": D, "n_layers": LAYERS, "n_heads": 2, "max_seq_len": 128, "expansion_ratio": 2},
    "falcon": {"hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "ffn_hidden_size": D_FF},
    "phi": {**_HEADS, "num_key_value_heads": 2},
    "phi3": _HEADS,
    "llama": COMMON,
    "mistral": COMMON,
    "gemma": COMMON,
    "gemma2": {**COMMON, "sliding_window": 16},
    "gemma3_text": {**COMMON, **_SLIDING},
    "gemma3n_text": {
        **COMMON, **_SLIDING, "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 300, "laurel_rank": 4,
        "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0] * LAYERS,
    },
    "gemma4_text": {
        **COMMON, **_SLIDING, "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 300, "global_head_dim": 8, "num_kv_shared_layers": 0,
    },
    "qwen2": _HEADS,
    "qwen3": COMMON,
    "olmo": _HEADS,
    "olmo2": _HEADS,
    "olmo3": _HEADS,
    "smollm3": _HEADS,
    "stablelm": _HEADS,
    "starcoder2": _HEADS,
    "cohere": _HEADS,
    "cohere2": _HEADS,
    "granite": {**_HEADS, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    "glm4": COMMON,
    "exaone4": _HEADS,
    "apertus": _HEADS,
    # mixtures of experts
    "mixtral": {**COMMON, **_EXPERTS},
    "qwen2_moe": {**_HEADS, **_EXPERTS},
    "qwen3_moe": {**COMMON, **_EXPERTS},
    "olmoe": {**_HEADS, **_EXPERTS},
    "granitemoe": {**_HEADS, **_EXPERTS},
    "gpt_oss": {**COMMON, **_EXPERTS, "sliding_window": 16},
    "deepseek_v3": {
        **_HEADS, **_LATENT, "num_key_value_heads": 2, "moe_intermediate_size": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    },
    # recurrent networks
    "mamba": {**_MAMBA, "time_step_rank": 2},
    "mamba2": {**_MAMBA, "head_dim": 8, "num_heads": 4, "n_groups": 1, "chunk_size": 4},
    "falcon_mamba": {**_MAMBA, "time_step_rank": 2},
    "rwkv": {
        "hidden_size": D, "attention_hidden_size": D, "intermediate_size": D_FF, "num_hidden_layers": LAYERS, "context_length": 128,
        "rescale_every": 1,
    },
    "recurrent_gemma": {
        "hidden_size": D, "intermediate_size": 2 * D_FF, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1,
        "lru_width": D, "attention_window_size": 16, "block_types": ["recurrent", "attention", "recurrent"],
    },
    "xlstm": {"hidden_size": 64, "num_hidden_layers": LAYERS, "num_heads": 2, "qk_dim_factor": 1.0, "chunk_size": 4},
    # hybrids
    "jamba": {
        **_HEADS, **_FIRST_MAMBA, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
        "num_experts": 2,
    },
    "zamba": {
        **_HEADS, **_FIRST_MAMBA, "num_key_value_heads": 2, "num_hidden_layers": 5, "attn_layer_period": 2, "attn_layer_offset": 0,
        "n_mamba_heads": 1,
    },
    "zamba2": {
        "hidden_size": D, "intermediate_size": D_FF, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "mamba_d_state": 4,
        "mamba_expand": 2, "mamba_ngroups": 1, "n_mamba_heads": 4, "mamba_headdim": 8, "adapter_rank": 4, "chunk_size": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba"], "num_mem_blocks": 1,
    },
    "bamba": {**_HEADS, **_MIXER, "attn_layer_indices": [1]},
    "falcon_h1": {**COMMON, **_MIXER, "mamba_d_ssm": 32, "lm_head_multiplier": 0.5},
    "granitemoehybrid": {
        **_HEADS, **_MIXER, "layer_types": ["mamba", "attention", "mamba"], "num_local_experts": 0, "shared_intermediate_size": D_FF,
        "logits_scaling": 2.0,
    },
    "nemotron_h": {
        **COMMON, "layers_block_type": ["mamba", "attention", "mlp"], "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 4,
        "n_groups": 1, "chunk_size": 4, "expand": 2,
    },
    "lfm2": {**_HEADS, "layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    "qwen3_next": {**COMMON, **_EXPERTS, **_LINEAR},
    "qwen3_5_text": {**COMMON, **_LINEAR},
    "olmo_hybrid": {**_HEADS, **_LINEAR, "num_key_value_heads": 2},
    "kimi_linear": {
        **_HEADS, **_LATENT, "num_key_value_heads": 2, "layer_types": _LINEAR["layer_types"], "linear_head_dim": 8,
        "linear_num_heads": 2, "mlp_layer_types": ["dense"] * LAYERS,
    },
    "minimax": {**COMMON, "layer_types": _LINEAR["layer_types"], "num_local_experts": 4, "block_size": 4},
    # models that also see
    "gemma3": {
        "text_config": {**COMMON, **_SLIDING, "vocab_size": 300}, "image_token_index": 299, "mm_tokens_per_image": 4,
        "vision_config": {
            "hidden_size": D, "intermediate_size": D_FF, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
        },
    },
}  # fmt: skip
"""Options of a tiny configuration by model type: width 16 (xLSTM's 64, of which its heads need multiples), 3 blocks."""

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
        kind: One of `CONFIGS`.
        seed: Of the weights.
        options: More options of its configuration.
    """
    import torch
    import transformers

    torch.set_num_threads(1)  # tiny matrices gain nothing from threads, and on a busy machine wait for them
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **CONFIGS[kind], **options})
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


def tiny_source(folder: Path) -> dict:
    """Write a model, an SAE and a corpus into a folder, and return a spec's source of them."""
    return {"use": "transformers", "with": {
        "model": str(tiny_model(folder / "model")), "hookpoint": "layers.1", "accept_mismatch": True,
        "coder": {"use": "sae_lens", "with": {"path": str(tiny_sae(folder / "sae"))}},
        "corpus": {"path": str(tiny_corpus(folder / "corpus.jsonl")), "context": 32},
    }}  # fmt: skip


def random_task(folder: Path, *, n_latents: int, window: int, score: int, **changes: object) -> dict:
    """Write a model and a corpus into a folder, and return a spec of a random SAE whose judge names no window.

    Args:
        folder: Where to.
        n_latents: Of the SAE.
        window: Tokens per window.
        score: Activating and non-activating windows per latent to score.
        changes: Other keys of the spec.
    """
    return {
        "saeval": 1, "task": "small", "version": "1.0",
        "source": {"use": "transformers", "with": {
            "model": str(tiny_model(folder / "model")), "hookpoint": "layers.0",
            "coder": {"use": "random_sae", "with": {"n_latents": n_latents, "k": 8}},
            "corpus": {"path": str(tiny_corpus(folder / "corpus.jsonl")), "context": 32},
        }},
        "latents": {"n": 2, "min_windows": 4},
        "sampler": {"use": "random", "with": {
            "window": window, "explain": 5, "score": score, "non_activating": {"n": score},
        }},
        "llms": {"judge": {"model": "scripted/no", "reply": "[0]"}}, "explainer": "top_tokens", "scorers": {"detection": {}},
        **changes,
    }  # fmt: skip


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
