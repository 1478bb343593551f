"""The other families of models that the host knows, made tiny: networks of their own around kinds
of prediction that small_models.MODELS has already.

Import this module when the host is there: after an `InProcessHost` was made.
"""

from __future__ import annotations

import comfy.supported_models as supported
import torch

from demo.host.small_models import COSMOS, FLUX, MMDIT, SIZE, UNET, WIDTH, SmallModel

IMAGE = (16, SIZE, SIZE)
FRAME, VIDEO = ((16, frames, SIZE, SIZE) for frames in (1, 3))
MASK = {"attention_mask": torch.ones(1, 4, dtype=torch.int64)}
TOKENS = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(0))

LUMINA = {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 48, "n_layers": 1,
          "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 1, "multiple_of": 16, "qk_norm": True,
          "cap_feat_dim": WIDTH, "axes_dims": (8, 8, 8), "axes_lens": (32, 32, 32)}
Z_IMAGE = LUMINA | {"dim": 256, "n_kv_heads": 2, "axes_dims": (32, 48, 48),
                    "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32}
CHROMA = {"image_model": "chroma", "in_channels": 64, "out_channels": 64, "context_in_dim": WIDTH,
          "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
          "depth_single_blocks": 1, "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2,
          "qkv_bias": True, "in_dim": 64, "out_dim": 32, "hidden_dim": 32, "n_layers": 1,
          "txt_ids_dims": [], "vec_in_dim": None}
HUNYUAN = {"image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16,
           "vec_in_dim": WIDTH, "context_in_dim": WIDTH, "hidden_size": 32, "mlp_ratio": 4.0,
           "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 6, 6],
           "theta": 256, "patch_size": [1, 2, 2], "qkv_bias": True, "guidance_embed": True,
           "byt5": False, "meanflow": False, "use_cond_type_embedding": False,
           "vision_in_dim": None, "meanflow_sum": False}
HUNYUAN_IMAGE = HUNYUAN | {"in_channels": 64, "out_channels": 64, "vec_in_dim": None,
                           "patch_size": [1, 1], "axes_dim": [8, 8], "guidance_embed": False}
KANDINSKY = {"image_model": "kandinsky5", "in_text_dim": WIDTH, "in_text_dim2": WIDTH,
             "time_dim": 32, "model_dim": 64, "ff_dim": 64, "num_text_blocks": 1,
             "num_visual_blocks": 1, "axes_dims": (8, 12, 12), "visual_embed_dim": 132}

FAMILIES = {
    "sd2": SmallModel(config=supported.SD20, net=UNET | {"model_channels": 64}),
    "aura-flow": SmallModel(config=supported.AuraFlow, net={
        "cond_seq_dim": WIDTH, "dim": 32, "n_layers": 2, "n_double_layers": 1, "n_heads": 2,
        "global_conddim": 32, "max_seq": 256}),
    "pixart": SmallModel(config=supported.PixArtSigma, shape=(4, 40, 40), net={
        "image_model": "pixart_sigma", "hidden_size": 32, "depth": 1, "num_heads": 2,
        "caption_channels": WIDTH, "micro_condition": False, "model_max_length": 4,
        "pe_interpolation": 1.0}),
    "hunyuan-dit": SmallModel(config=supported.HunyuanDiT, net={
        "image_model": "hydit", "hidden_size": 32, "depth": 2, "num_heads": 2,
        "text_states_dim": WIDTH, "text_states_dim_t5": WIDTH, "text_len": 4, "text_len_t5": 4,
        "size_cond": False, "use_style_cond": False, "attn_precision": None},
        conditioning=MASK | {"conditioning_mt5xl": TOKENS[:1],
                             "attention_mask_mt5xl": torch.ones(1, 4)}),
    "noise-scale": SmallModel(config=supported.SD3, shape=IMAGE, net=MMDIT,
                              settings={"noise_scale": 8.0}),  # as HiDream-O1 has it
    "lumina2": SmallModel(config=supported.Lumina2, shape=IMAGE, net=LUMINA),
    "z-image": SmallModel(config=supported.ZImage, shape=IMAGE, net=Z_IMAGE),
    "omnigen2": SmallModel(config=supported.Omnigen2, shape=IMAGE, conditioning=MASK, net={
        "image_model": "omnigen2", "hidden_size": 48, "num_layers": 1, "num_refiner_layers": 1,
        "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16,
        "axes_dim_rope": (8, 8, 8), "axes_lens": (64, 64, 64), "text_feat_dim": WIDTH,
        "timestep_scale": 1000.0}),
    "hidream": SmallModel(config=supported.HiDream, shape=IMAGE,
                          conditioning={"conditioning_llama3": TOKENS[None]}, net={
        "image_model": "hidream", "patch_size": 2, "in_channels": 16, "out_channels": 16,
        "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "caption_channels": [WIDTH, WIDTH], "text_emb_dim": WIDTH,
        "num_routed_experts": 2, "num_activated_experts": 1, "axes_dims_rope": (8, 4, 4),
        "max_resolution": (32, 32), "llama_layers": [0, 0]}),
    "chroma": SmallModel(config=supported.Chroma, shape=IMAGE, net=CHROMA),
    "chroma-radiance": SmallModel(config=supported.ChromaRadiance, shape=(3, 64, 64),
                                  net=CHROMA | {
        "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 16,
        "nerf_hidden_size": 16, "nerf_mlp_ratio": 2, "nerf_depth": 1, "nerf_max_freqs": 4,
        "nerf_tile_size": 0, "nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32,
        "use_x0": False, "use_sequential_txt_ids": False}),
    "flux2": SmallModel(config=supported.Flux2, shape=(128, SIZE, SIZE), net=FLUX | {
        "image_model": "flux2", "in_channels": 128, "out_channels": 128, "vec_in_dim": None,
        "hidden_size": 64, "mlp_ratio": 3.0, "axes_dim": [8, 8, 8, 8], "theta": 2000,
        "patch_size": 1, "qkv_bias": False, "txt_ids_dims": [3], "global_modulation": True,
        "mlp_silu_act": True, "ops_bias": False}),
    "longcat": SmallModel(config=supported.LongCatImage, shape=IMAGE, net=FLUX | {
        "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]}),
    "lens": SmallModel(config=supported.Lens, shape=(128, SIZE, SIZE), conditioning=MASK, net={
        "image_model": "lens", "num_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "enc_hidden_dim": WIDTH, "axes_dims_rope": (4, 6, 6),
        "multi_layer_encoder_feature": False}),
    "joy-image": SmallModel(config=supported.JoyImage, shape=FRAME, conditioning=MASK, net={
        "image_model": "joyimage", "hidden_size": 128, "num_attention_heads": 1,
        "text_dim": WIDTH, "num_layers": 1}),
    "hunyuan-image": SmallModel(config=supported.HunyuanImage21, shape=(64, SIZE, SIZE),
                                net=HUNYUAN_IMAGE),
    "ernie": SmallModel(config=supported.ErnieImage, shape=(128, SIZE, SIZE), net={
        "image_model": "ernie", "hidden_size": 128, "num_attention_heads": 1, "num_layers": 1,
        "ffn_hidden_size": 64, "text_in_dim": WIDTH}),
    "mage-flow": SmallModel(config=supported.MageFlow, shape=(128, SIZE, SIZE), net={
        "image_model": "mage_flow", "num_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 6, 6)}),
    "qwen-image": SmallModel(config=supported.QwenImage, shape=FRAME, net={
        "image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 1,
        "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": WIDTH,
        "axes_dims_rope": (4, 6, 6)}),
    "krea2": SmallModel(config=supported.Krea2, shape=FRAME, net={
        "image_model": "krea2", "features": 64, "tdim": 32, "txtdim": WIDTH, "heads": 2,
        "kvheads": 1, "multiplier": 2, "layers": 1, "txtlayers": 1, "txtheads": 2,
        "txtkvheads": 2}),
    "anima": SmallModel(config=supported.Anima, shape=FRAME, net=COSMOS | {
        "image_model": "anima"}),
    "kandinsky5-image": SmallModel(config=supported.Kandinsky5Image, shape=FRAME,
                                   net=KANDINSKY | {"visual_embed_dim": 64}),
    "kandinsky5": SmallModel(config=supported.Kandinsky5, shape=VIDEO, net=KANDINSKY),
    "hunyuan-video": SmallModel(config=supported.HunyuanVideo, shape=VIDEO, net=HUNYUAN),
    "mochi": SmallModel(config=supported.GenmoMochi, shape=(12, 3, SIZE, SIZE), net={
        "image_model": "mochi_preview", "depth": 1, "patch_size": 2, "num_heads": 2,
        "hidden_size_x": 48, "hidden_size_y": 32, "mlp_ratio_x": 256.0, "mlp_ratio_y": 4.0,
        "in_channels": 12, "learn_sigma": False, "qk_norm": True, "qkv_bias": False,
        "out_bias": True, "attn_drop": 0.0, "patch_embed_bias": True,
        "posenc_preserve_area": True, "timestep_mlp_bias": True, "attend_to_padding": False,
        "timestep_scale": 1000.0, "use_t5": True, "t5_feat_dim": WIDTH, "t5_token_length": 4,
        "rope_theta": 10000.0}, conditioning=MASK),
    "ltxv": SmallModel(config=supported.LTXV, shape=(128, 3, SIZE, SIZE), conditioning=MASK, net={
        "image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 32,
        "attention_head_dim": 16, "num_attention_heads": 2, "caption_channels": WIDTH,
        "num_layers": 1}),
    "cogvideox": SmallModel(config=supported.CogVideoX_T2V, shape=VIDEO, net={
        "image_model": "cogvideox", "num_attention_heads": 2, "attention_head_dim": 32,
        "time_embed_dim": 32, "text_embed_dim": WIDTH, "num_layers": 1,
        "max_text_seq_length": 4, "sample_width": SIZE, "sample_height": SIZE,
        "sample_frames": 9, "use_rotary_positional_embeddings": True}),
    "cosmos1": SmallModel(config=supported.CosmosT2V, shape=VIDEO, net=COSMOS | {
        "image_model": "cosmos", "block_x_format": "THWBD",
        "extra_per_block_abs_pos_emb": True, "extra_per_block_abs_pos_emb_type": "learnable"}),
}
