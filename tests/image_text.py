"""Tiny random image-text models that run on text alone, and where the heads of their text decoders are known to be.

``IMAGE_TEXT`` holds, for each type, a config that builds, the path of the site in the first layer whose attention is
softmax attention, the number of heads there and their width. Left out are types that are causal-LM types as well
(gemma3, llama4, qwen3_5 …), types that want more than token ids or do not decode them, and inkling_mm_model, which
wants scipy. Ids of image tokens keep their defaults: without an image they are tokens like any other. Where a tower
comes from timm, a SigLIP stands in for it. ``MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES`` names every class; the
mapping by config does not find evolla's.
"""

from typing import Any

TOKENS = {"vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
COMMON = {**TOKENS, **SIZE, "num_key_value_heads": 2, "max_position_embeddings": 64}
WIDE = {**COMMON, "head_dim": 16}

# Pieces of text configs.
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
HYBRID = {"layer_types": ["linear_attention", "full_attention"], "linear_conv_kernel_dim": 4}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
LOCAL = {**EXPERTS, "num_local_experts": 4}
ROUTED = {**EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
COUNTED = {"moe_num_experts": 4, "moe_num_shared_experts": 1}
RANKS = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12}
INDEX = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 64}
KEYS = {"linear_num_key_heads": 2, "linear_key_head_dim": 8}
VALUES = {"linear_num_value_heads": 4, "linear_value_head_dim": 8}
SWA = {"sliding_window_size": 16, "swa_num_attention_heads": 2, "swa_num_key_value_heads": 1, "swa_head_dim": 24}
MAMBA = {"ssm_state_size": 8, "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2, "chunk_size": 8}
THETA = {"rope_type": "default", "rope_theta": 10000.0}
ROPES = {"rope_parameters": {"full_attention": THETA, "sliding_attention": THETA}}
ROPE_8 = {"rope_parameters": {**THETA, "partial_rotary_factor": 1.0, "mrope_section": [2, 1, 1]}}
ROPE_16 = {"rope_parameters": {**THETA, "mrope_section": [2, 3, 3]}}

# Text configs.
LLAMA = {**WIDE, "model_type": "llama"}
MISTRAL = {**WIDE, "sliding_window": 16, "model_type": "mistral"}
GEMMA = {**WIDE, "model_type": "gemma"}
GEMMA3 = {**WIDE, **SLIDING, "model_type": "gemma3_text"}
COHERE2 = {**WIDE, **SLIDING, "model_type": "cohere2"}
COMPASS = {**WIDE, **SLIDING, **ROPES}
QWEN2 = {**COMMON, "model_type": "qwen2"}
QWEN3 = {**WIDE, "model_type": "qwen3"}
QWEN3_VL = {**WIDE, **ROPE_16, "model_type": "qwen3_vl_text"}
QWEN3_5 = {**WIDE, **HYBRID, **KEYS, **VALUES, "model_type": "qwen3_5_text"}
HYPERCLOVAX = {**WIDE, "model_type": "hyperclovax"}
EXAONE4 = {**COMMON, **SLIDING, "model_type": "exaone4"}
ERNIE = {**COMMON, **COUNTED, "moe_k": 2, "moe_intermediate_size": [16, 16]}
ERNIE_ROPE = {"rope_parameters": {**THETA, "mrope_section": [1, 1, 2]}}
GLM4V = {**COMMON, **ROPE_8, "model_type": "glm4v_text"}
MLA = {**COMMON, **ROUTED, **RANKS, "num_key_value_heads": 4}
DEEPSEEK = {**MLA, "first_k_dense_replace": 1, "model_type": "deepseek_v3"}
GLM5 = {**MLA, **INDEX, **HYBRID, "qk_rope_head_dim": 0, "linear_num_heads": 4, "linear_head_dim": 8}
LFM2 = {**COMMON, "layer_types": ["conv", "full_attention"], "model_type": "lfm2"}
LFM3_LAYERS = {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "sliding_attention"]}
LFM3 = {**WIDE, **LFM3_LAYERS, "sliding_window": 16, "model_type": "lfm3"}
INKLING = {**WIDE, **ROUTED, **SWA, "unpadded_vocab_size": 128, "layer_types": ["hybrid_sliding", "hybrid"]}
MINIMAX = {**WIDE, **LOCAL, **INDEX, "dense_intermediate_size": 48, "shared_intermediate_size": 16, "rotary_dim": 4}
NEMOTRON_LAYERS = {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]}
NEMOTRON_MOE = {**ROUTED, "moe_shared_expert_intermediate_size": 16}
NEMOTRON = {**WIDE, **NEMOTRON_LAYERS, **NEMOTRON_MOE, **MAMBA, "model_type": "nemotron_h"}
SPARK = {**WIDE, **SLIDING, **LOCAL, "moe_hidden_size": 32}
STEP = {**COMPASS, **ROUTED, "num_sliding_attention_heads": 2, "share_expert_dim": 16}
KOSMOS_SIZE = {"embed_dim": 32, "layers": 2, "attention_heads": 4, "ffn_dim": 48}
KOSMOS = {**TOKENS, **KOSMOS_SIZE, "max_position_embeddings": 64}

# Towers, and what else hangs on them. A key that a tower does not know does nothing.
WIDTHS = {"out_hidden_size": 32, "text_hidden_size": 32, "projection_dim": 32, "embed_dim": 32}
VISION = {**SIZE, **WIDTHS, "image_size": 16, "patch_size": 4}
CLIP = {**VISION, "model_type": "clip_vision_model"}
SIGLIP = {**VISION, "model_type": "siglip_vision_model"}
PIXTRAL = {**VISION, "head_dim": 8, "model_type": "pixtral"}
SAM = {**VISION, "mlp_dim": 48, "output_channels": 32, "window_size": 2, "global_attn_indexes": [1]}
OCR_SAM = {**SAM, "downsample_channels": [32, 32]}
STACKED = {**VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
GROUPED = {**VISION, "num_key_value_heads": 2}
RADIO = {**VISION, "max_img_size": 32, "video_temporal_patch_size": 2, "model_type": "radio"}
MOLMO = {**VISION, "image_size": [16, 16], "head_dim": 8, "num_key_value_heads": 4, "num_position_embeddings": 16}
ADAPTER = {**MOLMO, "vision_feature_layer": [1, 0]}
QFORMER = {**COMMON, "model_type": "blip_2_qformer"}
RESAMPLER = {"hidden_size": 32, "num_key_value_heads": 2, "resampler_depth": 1, "resampler_n_latents": 4}
EVOLLA_SIZE = {"resampler_depth": 1, "resampler_heads": 4, "resampler_dim_head": 8, "aligner_num_add_layers": 1}
GRANITE_SIZE = {"deepstack_layer_map": [[0, 0]], "spatial_target_layers": [1], "downsample_rate": "2/4"}
VQ = {"base_channels": 32, "channel_multiplier": [1], "embed_dim": 8, "latent_channels": 32, "num_embeddings": 16}
JANUS_VQ = {**VQ, "num_patches": 4, "projection_dim": 32, "image_token_embed_dim": 32}
AUDIO = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "output_dim": 32}
OMNI_AUDIO = {**AUDIO, "downsample_hidden_size": 32}
SPARK_AUDIO = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8], "out_hidden_size": 32}

# Types whose heads are at PATH: 4 of width 16 in the one table, 4 of width 8 in the other.
PATH = "model.language_model.layers.0.self_attn.o_proj"
WIDTH_16: dict[str, dict[str, Any]] = {
    "aria": {
        "text_config": {**WIDE, **COUNTED, "moe_topk": 2},
        "vision_config": {**VISION, "model_type": "idefics3_vision"},
    },
    "aya_vision": {"text_config": COHERE2, "vision_config": SIGLIP},
    "cohere2_vision": {"text_config": COHERE2, "vision_config": SIGLIP, "alignment_intermediate_size": 32},
    "cohere_compass": {"text_config": COMPASS, "vision_config": STACKED},
    "cosmos3_edge": {"text_config": {**WIDE, **ROPE_16}, "vision_config": VISION, "projector_hidden_size": 32},
    "cosmos3_omni": {"text_config": QWEN3_VL, "vision_config": {**STACKED, "model_type": "qwen3_vl_vision"}},
    "deepseek_vl": {"text_config": LLAMA, "vision_config": SIGLIP},
    "deepseek_vl_hybrid": {
        "text_config": LLAMA,
        "vision_config": SIGLIP,
        "high_res_vision_config": {**SAM, "model_type": "sam_vision_model"},
    },
    "hunyuan_vl": {"text_config": {**WIDE, **ROPE_16}, "vision_config": {**GROUPED, "max_image_size": 32}},
    "hyperclovax_vision_v2": {
        "text_config": HYPERCLOVAX,
        "vision_config": {**VISION, "model_type": "qwen2_5_vl_vision"},
    },
    "janus": {"text_config": LLAMA, "vision_config": VISION, "vq_config": JANUS_VQ},
    "lighton_ocr": {"text_config": QWEN3, "vision_config": PIXTRAL},
    "llava": {"text_config": LLAMA, "vision_config": CLIP},
    "llava_next": {"text_config": LLAMA, "vision_config": CLIP},
    "llava_next_video": {"text_config": LLAMA, "vision_config": CLIP},
    "minimax_m3_vl": {"text_config": MINIMAX, "vision_config": VISION, "projector_hidden_size": 32},
    "mistral3": {"text_config": MISTRAL, "vision_config": PIXTRAL},
    "molmo2": {"text_config": WIDE, "vision_config": MOLMO, "adapter_config": ADAPTER},
    "muse_glimmer": {"text_config": {**WIDE, **SLIDING}, "vision_config": VISION, "projector_hidden_size": 32},
    "muse_spark": {
        "text_config": SPARK,
        "vision_config": VISION,
        "audio_config": SPARK_AUDIO,
        "projector_hidden_size": 32,
    },
    "paddleocr_vl": {"text_config": {**WIDE, **ROPE_16}, "vision_config": VISION},
    "paligemma": {"text_config": GEMMA, "vision_config": SIGLIP, "projection_dim": 32},
    "perception_lm": {"text_config": LLAMA, "vision_config": {**SIGLIP, "model_args": {"embed_dim": 32}}},
    "qianfan_ocr": {"text_config": QWEN3, "vision_config": VISION},
    "qwen3_vl": {"text_config": {**WIDE, **ROPE_16}, "vision_config": STACKED},
    "qwen3_vl_moe": {"text_config": {**WIDE, **LOCAL, **ROPE_16}, "vision_config": STACKED},
    "shieldgemma2": {"text_config": GEMMA3, "vision_config": SIGLIP, "mm_tokens_per_image": 4},
    "video_llava": {"text_config": LLAMA, "vision_config": CLIP},
    "vipllava": {"text_config": LLAMA, "vision_config": CLIP, "vision_feature_layers": [0, 1]},
}
WIDTH_8: dict[str, dict[str, Any]] = {
    "deepseek_ocr2": {
        "text_config": {**COMMON, **ROUTED, "mlp_layer_types": ["dense", "sparse"]},
        "vision_config": {"sam_config": OCR_SAM, "encoder_config": COMMON},
    },
    "ernie4_5_vl_moe": {"text_config": {**ERNIE, **ERNIE_ROPE}, "vision_config": VISION},
    "exaone4_5": {"text_config": EXAONE4, "vision_config": GROUPED},
    "fast_vlm": {"text_config": QWEN2, "vision_config": SIGLIP},
    "glm46v": {"text_config": GLM4V, "vision_config": {**VISION, "model_type": "glm4v_vision"}},
    "glm4v": {"text_config": GLM4V, "vision_config": VISION},
    "glm4v_moe": {"text_config": {**COMMON, **ROUTED, **ROPE_8}, "vision_config": VISION},
    "glm_ocr": {"text_config": {**COMMON, **ROPE_8}, "vision_config": VISION},
    "glmga": {"text_config": GLM4V, "vision_config": {**VISION, "model_type": "glm4v_vision"}},
    "granite4_vision": {
        "text_config": COMMON,
        "vision_config": {**CLIP, "hidden_size": 64},
        "qformer_config": QFORMER,
        **GRANITE_SIZE,
    },
    "internvl": {"text_config": QWEN2, "vision_config": VISION},
    "llava_onevision": {"text_config": QWEN2, "vision_config": SIGLIP},
    "ovis2": {"text_config": QWEN2, "vision_config": {**VISION, "vocab_size": 64}, "hidden_size": 32},
    "pp_chart2table": {"text_config": QWEN2, "vision_config": SAM},
    "qwen2_5_omni_thinker": {
        "text_config": {**COMMON, **ROPE_8},
        "vision_config": VISION,
        "audio_config": AUDIO,
    },
    "qwen2_5_vl": {"text_config": {**COMMON, **ROPE_8}, "vision_config": VISION},
    "qwen2_vl": {"text_config": {**COMMON, **ROPE_8}, "vision_config": VISION},
    "qwen3_omni_moe_thinker": {
        "text_config": {**COMMON, **LOCAL, **ROPE_8},
        "vision_config": STACKED,
        "audio_config": OMNI_AUDIO,
    },
    "unlimited_ocr": {
        "text_config": {**COMMON, **ROUTED},
        "vision_config": {"sam_config": OCR_SAM, "encoder_config": VISION},
    },
    "video_llama_3": {"text_config": QWEN2, "vision_config": VISION},
}

# The others: heads of another number or width, not in the first layer, or elsewhere.
SECOND = "model.language_model.layers.1.self_attn.o_proj"
TEXT_MODEL = "model.text_model.layers.0.self_attn.o_proj"
BARE = "model.layers.0.self_attn.o_proj"

IMAGE_TEXT: dict[str, tuple[dict[str, Any], str, int, int]] = {
    **{name: (config, PATH, 4, 16) for name, config in WIDTH_16.items()},
    **{name: (config, PATH, 4, 8) for name, config in WIDTH_8.items()},
    "chameleon": ({**COMMON, "vq_config": VQ, "vocabulary_map": {"<image>": 128}}, BARE, 4, 8),
    "evolla": ({**COMMON, **EVOLLA_SIZE, "protein_encoder_config": {**SIZE, "vocab_size": 32}}, BARE, 4, 8),
    "glm5_next": (
        {"text_config": GLM5, "vision_config": {**VISION, "projection_intermediate_size": 32}},
        SECOND,
        4,
        12,
    ),
    "granite_docling": ({"text_config": COMMON, "vision_config": STACKED}, TEXT_MODEL, 4, 8),
    "idefics2": (
        {"text_config": MISTRAL, "vision_config": VISION, "perceiver_config": RESAMPLER},
        TEXT_MODEL,
        4,
        16,
    ),
    "idefics3": ({"text_config": LLAMA, "vision_config": VISION}, TEXT_MODEL, 4, 16),
    "inkling2": ({"text_config": INKLING, "vision_config": {**VISION, "projection_hidden_dim": 32}}, PATH, 2, 24),
    "kimi_k25": ({"text_config": DEEPSEEK, "vision_config": VISION, "projection_hidden_size": 32}, PATH, 4, 12),
    "kosmos-2.5": (
        {"text_config": KOSMOS, "vision_config": {**VISION, "head_dim": 8}, "latent_query_num": 4},
        "text_model.model.layers.0.self_attn.out_proj",
        4,
        8,
    ),
    "lfm2_vl": (
        {"text_config": LFM2, "vision_config": {**VISION, "model_type": "siglip2_vision_model"}},
        "model.language_model.layers.1.self_attn.out_proj",
        4,
        8,
    ),
    "lfm3_vl": ({"text_config": LFM3, "vision_config": GROUPED}, SECOND, 4, 16),
    "minicpm_ocr": ({"text_config": QWEN3_5, "vision_config": VISION, "insert_layer_id": 0}, SECOND, 4, 16),
    "minicpmv4_6": ({"text_config": QWEN3_5, "vision_config": VISION, "insert_layer_id": 0}, SECOND, 4, 16),
    "minicpmv4_7": ({"text_config": QWEN3_5, "vision_config": VISION, "insert_layer_id": 0}, SECOND, 4, 16),
    "mistral4": (MLA, BARE, 4, 12),
    "mistral_large4": ({"text_config": {**MLA, **INDEX}, "vision_config": PIXTRAL}, PATH, 4, 12),
    "nemotron_h_omni": (
        {"text_config": NEMOTRON, "vision_config": RADIO, "projector_hidden_size": 32, "vision_hidden_size": 32},
        "language_model.model.layers.2.mixer.o_proj",
        4,
        16,
    ),
    "smolvlm": ({"text_config": LLAMA, "vision_config": VISION}, TEXT_MODEL, 4, 16),
    "step3p7": ({"text_config": STEP, "vision_config": VISION}, PATH, 2, 16),
}
