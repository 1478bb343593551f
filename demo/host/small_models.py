"""The host's own model classes made tiny, with random weights: every kind of prediction it knows.

Each is built as the host's loaders build it (configuration, its model class, patcher; weights that
are inference tensors), only with a few channels and blocks in place of many. They draw nonsense,
in a few milliseconds a step; what a sampler, a schedule and guidance do around them is real.

Import this module when the host is there: after an `InProcessHost` was made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling as sampling
import comfy.supported_models as supported
import torch
from torch import Tensor

WIDTH = 32  # of prompts, pooled and token by token
SIZE = 8  # latent pixels a side


@dataclass(frozen=True, kw_only=True)
class SmallModel:
    """config: the host's class of this kind of model; net: what it is made of; markers: tensors by
    which the host tells the kind of prediction from a checkpoint; settings: its noise schedule, in
    place of its own; patch: what a node sets on the MODEL; shape: of one latent; conditioning: what
    its text encoders put beside the prompt's tokens."""

    config: type
    net: dict
    shape: tuple[int, ...] = (4, SIZE, SIZE)
    markers: dict[str, Tensor] = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    patch: Callable | None = None
    conditioning: dict[str, Tensor] = field(default_factory=dict)

    @property
    def video(self) -> bool:
        """Whether it samples several frames, which Minority Guidance leaves alone."""
        return len(self.shape) == 4 and self.shape[1] > 1

    def load(self, seed: int = 0):
        """The MODEL, as the host's loaders give it."""
        device = comfy.model_management.get_torch_device()
        config = self.config(self.net)
        config.sampling_settings = config.sampling_settings | self.settings
        config.set_inference_dtype(torch.float32, None)
        with torch.inference_mode():
            base = config.get_model(dict(self.markers), device=torch.device("cpu"))
            fill(base.diffusion_model, seed)
        model = comfy.model_patcher.CoreModelPatcher(
            base, load_device=device, offload_device=torch.device("cpu"))
        if self.patch is not None:
            model = model.clone()
            model.add_object_patch("model_sampling", self.patch(base))
        return model

    def latent(self, batch: int = 1, size: int | None = None) -> Tensor:
        """An empty latent, as a node gives it."""
        shape = self.shape if size is None else self.shape[:-2] + (size, size)
        return torch.zeros(batch, *shape)

    def prompt(self, seed: int) -> list:
        """A CONDITIONING for it."""
        (tokens, more), = prompt(seed)
        return [[tokens, more | self.conditioning]]


def fill(net: torch.nn.Module, seed: int) -> None:
    """Random weights that keep the size of what passes through them; outputs are a quarter as
    large, so that x0-hat stays near x_t, as with a model that has learnt something."""
    generator = torch.Generator().manual_seed(seed)
    positions = [(name, buffer) for name, buffer in net.named_buffers()
                 if name.endswith("pos_embed")]  # SD 3's, which a checkpoint brings as well
    for name, weight in [*net.named_parameters(), *positions]:
        if weight.ndim > 1:
            values = torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5
        elif name.endswith(("weight", "scale")):
            values = torch.ones(weight.shape)
        else:
            values = 0.05 * torch.randn(weight.shape, generator=generator)
        weight.data.copy_(values.to(weight))
    last = [module for module in net.modules() if hasattr(module, "weight")
            and getattr(module.weight, "ndim", 0) > 1][-1]
    last.weight.data.mul_(0.25)


def prompt(seed: int) -> list:
    """A CONDITIONING, as text encoders give it."""
    generator = torch.Generator().manual_seed(seed)
    tokens, pooled = (torch.randn(1, *shape, generator=generator)
                      for shape in ((4, WIDTH), (WIDTH,)))
    return [[tokens, {"pooled_output": pooled}]]


UNET = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32,
        "num_res_blocks": [1, 1], "channel_mult": [1, 1], "transformer_depth": [0, 1],
        "transformer_depth_output": [0, 0, 1, 0], "transformer_depth_middle": 1,
        "context_dim": WIDTH, "use_spatial_transformer": True, "legacy": False,
        "use_linear_in_transformer": False, "adm_in_channels": None,
        "use_temporal_attention": False}
UNET_XL = UNET | {"use_linear_in_transformer": True, "num_classes": "sequential",
                  "adm_in_channels": WIDTH + 6 * 256, "channel_mult": [1, 2]}
MMDIT = {"in_channels": 16, "patch_size": 2, "input_size": None, "depth": 1, "num_blocks": 1,
         "pos_embed_scaling_factor": None, "pos_embed_max_size": 16, "num_patches": 256,
         "adm_in_channels": WIDTH, "qk_norm": "rms", "context_embedder_config": {
             "target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": 64}}}
FLUX = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": WIDTH,
        "context_in_dim": WIDTH, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
        "depth_single_blocks": 1, "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2,
        "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []}
WAN = {"image_model": "wan2.1", "model_type": "t2v", "dim": 32, "ffn_dim": 64, "freq_dim": 32,
       "text_dim": WIDTH, "text_len": 4, "num_heads": 2, "num_layers": 1, "in_dim": 16,
       "out_dim": 16}
COSMOS = {"image_model": "cosmos_predict2", "max_img_h": 16, "max_img_w": 16, "max_frames": 8,
          "in_channels": 16, "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1,
          "model_channels": 32, "num_blocks": 1, "num_heads": 2, "mlp_ratio": 2.0,
          "crossattn_emb_channels": WIDTH, "pos_emb_cls": "rope3d", "use_adaln_lora": True,
          "adaln_lora_dim": 8}
STAGE_C = {"stable_cascade_stage": "c", "c_cond": 32, "c_r": 16,
           "c_hidden": [32, 32], "nhead": [2, 2], "blocks": [[1, 1], [1, 1]],
           "block_repeat": [[1, 1], [1, 1]], "c_clip_text": WIDTH, "c_clip_text_pooled": WIDTH}


def continuous_v(base):
    """What the host's node ModelSamplingContinuousEDM sets for v_prediction."""
    class Sampling(sampling.ModelSamplingContinuousV, sampling.V_PREDICTION):
        pass

    made = Sampling(base.model_config)
    made.set_parameters(0.03, 500.0, 1.0)
    return made


def discrete_v(base, zsnr: bool = False):
    """What the host's node ModelSamplingDiscrete sets for v_prediction."""
    class Sampling(sampling.ModelSamplingDiscrete, sampling.V_PREDICTION):
        pass

    return Sampling(base.model_config, zsnr=zsnr)


MARK = torch.zeros(1)
MODELS = {
    "sd15-eps": SmallModel(config=supported.SD15, net=UNET),
    "sd15-v": SmallModel(config=supported.SD15, net=UNET, patch=discrete_v),
    "sd15-v-continuous": SmallModel(config=supported.SD15, net=UNET, patch=continuous_v),
    "sdxl-eps": SmallModel(config=supported.SDXL, net=UNET_XL),
    "sdxl-v-zsnr": SmallModel(config=supported.SDXL, net=UNET_XL,
                              markers={"v_pred": MARK, "ztsnr": MARK}),
    "sdxl-edm": SmallModel(config=supported.SDXL, net=UNET_XL,
                           markers={"edm_mean": MARK, "edm_std": MARK}),
    "sdxl-v-edm": SmallModel(config=supported.SDXL, net=UNET_XL,
                             markers={"edm_vpred.sigma_max": MARK + 120.0}),
    "cascade": SmallModel(config=supported.Stable_Cascade_C, net=STAGE_C, shape=(16, SIZE, SIZE)),
    "sd3-flow": SmallModel(config=supported.SD3, net=MMDIT, shape=(16, SIZE, SIZE)),
    "flux": SmallModel(config=supported.Flux, net=FLUX, shape=(16, SIZE, SIZE)),
    "cosmos-flow": SmallModel(config=supported.CosmosT2IPredict2, net=COSMOS,
                              shape=(16, 1, SIZE, SIZE)),
    "wan-flow": SmallModel(config=supported.WAN21_T2V, net=WAN, shape=(16, 1, SIZE, SIZE)),
    "wan-video": SmallModel(config=supported.WAN21_T2V, net=WAN, shape=(16, 3, SIZE, SIZE)),
}

LTXAV = {"image_model": "ltxav", "in_channels": 8, "audio_in_channels": 128, "num_layers": 1,
         "attention_head_dim": 16, "audio_attention_head_dim": 16, "num_attention_heads": 2,
         "audio_num_attention_heads": 2, "cross_attention_dim": WIDTH,
         "audio_cross_attention_dim": WIDTH, "caption_channels": WIDTH // 2,
         "connector_num_layers": 1, "connector_attention_head_dim": 16,
         "connector_num_attention_heads": 2}
HUNYUAN_3D = {"image_model": "hunyuan3d2", "in_channels": 64, "context_in_dim": WIDTH,
              "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
              "depth_single_blocks": 1, "qkv_bias": True, "guidance_embed": False}
SVD = UNET_XL | {"in_channels": 8, "adm_in_channels": 768, "use_temporal_attention": True,
                 "use_temporal_resblock": True, "extra_ff_mix_layer": True,
                 "video_kernel_size": [3, 1, 1], "merge_strategy": "learned_with_images"}
LOTUS = UNET_XL | {"adm_in_channels": 4}

UNGUIDED = {
    "image-to-image": SmallModel(config=supported.LotusD, net=LOTUS),
    "image-to-image-flow": SmallModel(config=supported.WAN21_FlowRVS, net=WAN | {
        "model_type": "flow_rvs"}, shape=(16, 1, SIZE, SIZE)),
    "frames-as-batch": SmallModel(config=supported.SVD_img2vid, net=SVD),
    "3d": SmallModel(config=supported.Hunyuan3Dv2, net=HUNYUAN_3D, shape=(64, 12)),
    "video-and-sound": SmallModel(config=supported.LTXAV, net=LTXAV, shape=(8, 3, SIZE, SIZE)),
}
"""Models that no guidance of ours is for."""
