"""ADM diffusion models as the host's own kind of model."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ..guidance.adm import NO_CLASS, AdmConfig, AdmUNet
from ..guidance.adm_checkpoint import AdmChoices, Schedule, read_adm, without_prefix

CLASS_KEY = "uncommon_class"  # of a conditioning's dictionary

# What the host calls the schedules; its "linear" is linear in the square root of beta.
HOST_SCHEDULES = {"linear": "sqrt_linear", "scaled_linear": "linear", "cosine": "cosine"}


class PixelSpace(comfy.latent_formats.LatentFormat):
    """RGB images in [-1, 1] in place of latents."""

    latent_channels = 3
    spacial_downscale_ratio = 1
    latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


class AdmHostConfig(comfy.supported_models_base.BASE):
    """What the host must know of an ADM model."""

    unet_extra_config = {}
    latent_format = PixelSpace
    supported_inference_dtypes = [torch.float16, torch.float32]

    def __init__(self, config: AdmConfig, schedule: Schedule):
        super().__init__({"config": config})
        scale = 1000 / schedule.steps if schedule.kind == "linear" else 1
        self.sampling_settings = {"beta_schedule": HOST_SCHEDULES[schedule.kind],
                                  "linear_start": scale * schedule.start,
                                  "linear_end": scale * schedule.end,
                                  "timesteps": schedule.steps}
        self.timestep_scale = schedule.timestep_scale
        # In the host's unit: about 16 activations of base width and full resolution at a time.
        self.memory_usage_factor = config.model_channels / 640

    def choose_dtype(self, state_dict: dict[str, Tensor], device: torch.device) -> None:
        """Lets the host choose how weights are kept, and in what it computes."""
        dtype = comfy.model_management.unet_dtype(
            model_params=comfy.utils.calculate_parameters(state_dict),
            supported_dtypes=self.supported_inference_dtypes,
            weight_dtype=comfy.utils.weight_dtype(state_dict))
        self.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(
            dtype, device, self.supported_inference_dtypes), device=device)

    def get_model(self, state_dict, prefix="", device=None) -> AdmModel:
        return AdmModel(self, device=device)


class AdmNet(AdmUNet):
    """ADM U-Net with the host's layers, calling the host's wrappers and middle-block patches."""

    def __init__(self, config: AdmConfig, dtype: torch.dtype, device=None, operations=None):
        layers = ("Conv1d", "Conv2d", "Embedding", "GroupNorm", "Linear")
        super().__init__(config, SimpleNamespace(**{
            name: partial(getattr(operations, name), dtype=dtype, device=device)
            for name in layers}))
        self.dtype = dtype

    def forward(self, x: Tensor, timesteps: Tensor, context=None, y: Tensor | None = None,
                control=None, transformer_options: dict | None = None, **kwargs) -> Tensor:
        """Predicted noise `[batch, 3, height, width]`; y: class labels `[batch]`."""
        transformer_options = {} if transformer_options is None else transformer_options
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        return WrapperExecutor.new_class_executor(self._forward, self, wrappers).execute(
            x, timesteps, context, y, control, transformer_options, **kwargs)

    def _forward(self, x, timesteps, context, y, control, transformer_options, **kwargs) -> Tensor:
        height, width = x.shape[-2:]
        multiple = 2 ** (len(self.config.channel_mult) - 1)
        if height % multiple or width % multiple:
            raise ValueError(f"The image, or an area of it, is {width} x {height} pixels, but this "
                             f"model needs multiples of {multiple}. Change width and height.")

        def after_middle(h: Tensor, embedding: Tensor) -> Tensor:
            transformer_options["block"] = ("middle", 0)
            for patch in transformer_options.get("patches", {}).get("middle_block_after_patch", []):
                h = patch({"h": h, "x": x, "emb": embedding, "context": context, "y": y,
                           "timesteps": timesteps, "transformer_options": transformer_options})["h"]
            return h

        prediction = super().forward(x, timesteps, y, after_middle)
        return prediction[:, :self.config.in_channels]  # the rest is the learned variance


class AdmSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """Noise prediction on a schedule of any number of steps."""

    def percent_to_sigma(self, percent: float) -> float:
        if 0 < percent < 1:
            return self.sigma(torch.tensor((1 - percent) * (len(self.sigmas) - 1))).item()
        return super().percent_to_sigma(percent)


class AdmModel(comfy.model_base.BaseModel):
    """ADM U-Net and its schedule; takes the class from each conditioning."""

    def __init__(self, model_config: AdmHostConfig, device=None):
        super().__init__(model_config, device=device, unet_model=AdmNet)
        self.model_sampling = AdmSampling(model_config)

    def process_timestep(self, timestep: Tensor, **kwargs) -> Tensor:
        return timestep * self.model_config.timestep_scale

    def extra_conds(self, cross_attn: Tensor | None = None, **kwargs) -> dict:
        classes = self.diffusion_model.config.num_classes
        if classes is None:
            return {}
        label = kwargs.get(CLASS_KEY, NO_CLASS)
        if label >= classes:
            raise ValueError(f"Class {label} was asked for, but this model has {classes} classes, "
                             f"0 to {classes - 1}. Choose one of these in Class Conditioning, or "
                             f"{NO_CLASS} for no class.")
        if cross_attn is not None and not cross_attn.any():  # the host's ConditioningZeroOut
            label = NO_CLASS
        return {"y": comfy.conds.CONDRegular(torch.tensor([label]))}


def load_adm(path: str, choices: AdmChoices, disable_dynamic: bool = False):
    """The model in a file, as the host's patcher; ValueError if the file is none or unreadable.

    Its weights are ordinary tensors, so that gradients can pass through the model.
    """
    with torch.inference_mode(False):
        try:
            state_dict, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
            state_dict = without_prefix(state_dict)
        except Exception as error:
            raise ValueError(f"{path} cannot be read as a model ({error}). Download it again, or "
                             "choose another file.") from error
        try:
            host_config = AdmHostConfig(*read_adm(state_dict, metadata, choices))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

        load_device = comfy.model_management.get_torch_device()
        offload_device = comfy.model_management.unet_offload_device()
        host_config.choose_dtype(state_dict, load_device)
        base = host_config.get_model(state_dict)
        patcher_class = (comfy.model_patcher.ModelPatcher if disable_dynamic
                         else comfy.model_patcher.CoreModelPatcher)
        patcher = patcher_class(base, load_device=load_device, offload_device=offload_device)
        if not comfy.model_management.is_device_cpu(offload_device):
            base.to(offload_device)
        base.load_model_weights(state_dict, assign=patcher.is_dynamic())
        patcher.cached_patcher_init = (load_adm, (path, choices))
        return patcher
