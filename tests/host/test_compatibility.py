"""What else is in a graph: masks, sizes, guiders, caches, ControlNets, LoRAs, merges, regions.

On the host's own model classes made small. Wherever an image is drawn, each push is compared with
its closed form; see benchmarks/matrix_case.py.
"""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

KINDS = pytest.mark.parametrize("name", ["sd15-eps", "sdxl-edm", "flux", "wan-flow"])
BOTH = "novelty+minority"


@pytest.fixture(scope="module")
def matrix(host, tmp_path_factory):
    from benchmarks.matrix_case import Matrix

    for extra in ("nodes_perpneg", "nodes_easycache", "nodes_context_windows", "nodes_cond",
                  "nodes_model_merging"):
        host.load_extra(extra)
    yield Matrix(host, tmp_path_factory.mktemp("compatibility"))
    gc.unfreeze()


@pytest.fixture(autouse=True)
def told(matrix):
    """What the nodes told the user in this test."""
    matrix.told = []
    with matrix.listening():
        yield matrix.told


def case(name: str, guidance: str = BOTH, **changes):
    from benchmarks.matrix_case import Case

    return Case(**{"model": name, "sampler": "euler", "scheduler": "normal", "cfg": 3.0,
                   "guidance": guidance} | changes)


def node(name: str, **inputs) -> tuple:
    """The outputs of one of the host's nodes."""
    import nodes

    kind = nodes.NODE_CLASS_MAPPINGS[name]
    with torch.inference_mode():
        if hasattr(kind, "PREPARE_CLASS_CLONE"):
            return kind.PREPARE_CLASS_CLONE(None).execute(**inputs).args
        return getattr(kind(), kind.FUNCTION)(**inputs)


def draw(matrix, one, *, model=None, **more) -> Tensor:
    """Draws a guided case, and compares every push of it."""
    from benchmarks.matrix_case import Outcome

    guided, outer, inner = matrix.guided(one, model=model)
    drawn = matrix.draw(guided, one, steps=4, **more)
    outcome = matrix.compare(one, outer, inner, Outcome())
    assert not outcome.failures and outcome.pushed
    assert drawn.isfinite().all()
    return drawn


def image(matrix, name: str, size: int = 8) -> Tensor:
    """A latent that the model itself has drawn."""
    from demo.host.small_models import MODELS
    one = case(name, cfg=1.0)
    return matrix.draw(matrix.model(name), one, latent=MODELS[name].latent(2, size))


# Where there is an image already

@KINDS
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde", "heun"])
def test_a_masked_area_is_kept(matrix, name, sampler):
    one, start = case(name, sampler=sampler), image(matrix, name)
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    filled = draw(matrix, one, latent=start, noise_mask=mask)
    plain = matrix.draw(matrix.model(name), one, steps=4, latent=start, noise_mask=mask)
    assert torch.allclose(filled[..., 4:], plain[..., 4:], rtol=1e-5, atol=1e-5)
    assert (filled[..., :4] - plain[..., :4]).abs().max() > 1e-3 * plain.std()


@KINDS
@pytest.mark.parametrize("denoise", [0.3, 0.7])
def test_partial_denoise(matrix, name, denoise):
    draw(matrix, case(name), latent=image(matrix, name), denoise=denoise)


@KINDS
def test_a_second_pass_at_another_size_with_the_latent_scaled_between(matrix, name):
    first = draw(matrix, case(name))
    scaled, = node("LatentUpscale", samples={"samples": first}, upscale_method="bilinear",
                   width=96, height=96, crop="disabled")
    assert scaled["samples"].shape[-2:] == (12, 12)
    draw(matrix, case(name, sampler="dpmpp_2m"), latent=scaled["samples"], denoise=0.6)


# Guiders

def guiders(model) -> dict:
    from demo.host.small_models import prompt

    one, two, three = prompt(1), prompt(2), prompt(3)
    dual = {"model": model, "cond1": one, "cond2": three, "negative": two, "cfg_conds": 3.0,
            "cfg_cond2_negative": 2.0}
    return {
        "basic": lambda: node("BasicGuider", model=model, conditioning=one),
        "cfg": lambda: node("CFGGuider", model=model, positive=one, negative=two, cfg=3.0),
        "dual": lambda: node("DualCFGGuider", **dual, style="regular"),
        "dual, nested": lambda: node("DualCFGGuider", **dual, style="nested"),
        "two models": lambda: node("DualModelGuider", model=model, positive=one, cfg=3.0,
                                   model_negative=model, negative=two),
        "two models, cfg 1": lambda: node("DualModelGuider", model=model, positive=one, cfg=1.0,
                                          model_negative=model, negative=two),
        "perp-neg": lambda: node("PerpNegGuider", model=model, positive=one, negative=two,
                                 empty_conditioning=three, cfg=3.0, neg_scale=1.0)}


@KINDS
@pytest.mark.parametrize("kind", [
    "basic", "cfg", "dual", "dual, nested", "two models", "two models, cfg 1", "perp-neg"])
def test_guiders(matrix, name, kind):
    """Through SamplerCustomAdvanced; each adds the pushes once, whatever it does inside."""
    from benchmarks.matrix_case import Outcome
    from demo.host.small_models import MODELS
    one = case(name)
    model, outer, inner = matrix.guided(one)
    guider, = guiders(model)[kind]()
    noise, = node("RandomNoise", noise_seed=0)
    sampler, = node("KSamplerSelect", sampler_name="dpmpp_2s_ancestral")
    sigmas, = node("BasicScheduler", model=model, scheduler="normal", steps=4, denoise=1.0)
    drawn = node("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler,
                 sigmas=sigmas, latent_image={"samples": MODELS[name].latent(2)})[0]["samples"]
    outcome = matrix.compare(one, outer, inner, Outcome())
    assert not outcome.failures and outcome.pushed and drawn.isfinite().all()


# Other patches of the model, and what conditionings carry

def controlled(conditioning: list) -> list:
    """With a ControlNet made of the host's own class, with random weights."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    from demo.host.small_models import UNET, fill
    config = {key: value for key, value in UNET.items() if key not in (
        "out_channels", "use_temporal_attention", "transformer_depth_output")}
    with torch.inference_mode():
        net = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, dtype=torch.float32,
                                         operations=comfy.ops.disable_weight_init, num_heads=8)
        fill(net, 1)
        net.dtype = torch.float32
    control = comfy.controlnet.ControlNet(net, load_device=torch.device("cpu"))
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    return node("ControlNetApplyAdvanced", positive=conditioning, negative=conditioning,
                control_net=control, image=hint, strength=1.0, start_percent=0.0,
                end_percent=1.0)[0]


def test_a_controlnet(matrix):
    from demo.host.small_models import prompt
    one, positive = case("sd15-eps"), controlled(prompt(1))
    plain = matrix.draw(matrix.model("sd15-eps"), one, steps=4)
    with_control = matrix.draw(matrix.model("sd15-eps"), one, steps=4, positive=positive)
    assert not torch.allclose(plain, with_control, rtol=1e-2)
    guided = draw(matrix, one, positive=positive)
    assert not torch.allclose(guided, with_control, rtol=1e-3)


@KINDS
@pytest.mark.parametrize("after", [False, True])
def test_a_lora(matrix, name, after):
    """Before our nodes in the graph, and after them."""
    import comfy.sd
    model = matrix.model(name)
    key = next(key for key, weight in model.model.state_dict().items()
               if key.startswith("diffusion_model.") and key.endswith("weight")
               and weight.ndim == 2)
    rows, columns = model.model.state_dict()[key].shape
    name_in_file = "diffusion_model." + key.removeprefix("diffusion_model.").removesuffix(
        ".weight")
    generator = torch.Generator().manual_seed(0)
    lora = {f"{name_in_file}.lora_A.weight": torch.randn(2, columns, generator=generator),
            f"{name_in_file}.lora_B.weight": torch.randn(rows, 2, generator=generator)}

    def patched(model):
        with torch.inference_mode():
            made, _ = comfy.sd.load_lora_for_models(model, None, dict(lora), 1.0, 0.0)
        assert made.patches
        return made

    one = case(name)
    if after:
        from benchmarks.matrix_case import Outcome
        guided, outer, inner = matrix.guided(one)
        matrix.draw(patched(guided), one)
        outcome = matrix.compare(one, outer, inner, Outcome())
        assert not outcome.failures and outcome.pushed
    else:
        draw(matrix, one, model=patched(model))


@KINDS
def test_merged_models(matrix, name):
    """Guidance on one of the two stays with the merged model."""
    from benchmarks.matrix_case import Outcome
    from demo.host.small_models import MODELS
    one, other = case(name), MODELS[name].load(seed=7)
    guided, outer, inner = matrix.guided(one)
    merged, = node("ModelMergeSimple", model1=guided, model2=other, ratio=0.5)
    matrix.draw(merged, one)
    outcome = matrix.compare(one, outer, inner, Outcome())
    assert not outcome.failures and outcome.pushed
    merged, = node("ModelMergeSimple", model1=matrix.model(name), model2=other, ratio=0.5)
    draw(matrix, one, model=merged)


@pytest.mark.parametrize("name", ["sd15-eps", "sdxl-edm", "flux"])
def test_regions(matrix, name):
    from demo.host.small_models import prompt
    left, = node("ConditioningSetArea", conditioning=prompt(3), width=32, height=64, x=0, y=0,
                 strength=1.0)
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    right, = node("ConditioningSetMask", conditioning=prompt(4), mask=mask, strength=1.0,
                  set_cond_area="default")
    draw(matrix, case(name), positive=prompt(1) + left + right)


def test_context_windows(matrix):
    """Long video in windows: the guidance sees the whole of it."""
    from demo.host.small_models import MODELS
    one = case("wan-video", "novelty")
    windows, = node("ContextWindowsManual", model=matrix.model("wan-video"), context_length=4,
                    context_overlap=2, context_schedule="standard_static", context_stride=1,
                    closed_loop=False, fuse_method="pyramid", dim=2, freenoise=False)
    latent = MODELS["wan-video"].latent(1).repeat(1, 1, 3, 1, 1)
    drawn = draw(matrix, one, model=windows, latent=latent)
    assert drawn.shape[2] == 9


@KINDS
def test_a_compiled_model(matrix, name):
    """As TorchCompileModel makes it, but for the backend, which would need a compiler."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    compiled = matrix.model(name).clone(disable_dynamic=True)
    set_torch_compile_wrapper(model=compiled, backend="eager",
                              options={"guard_filter_fn": skip_torch_compile_dict})
    assert torch.equal(draw(matrix, case(name), model=compiled), draw(matrix, case(name)))


# Caches

@pytest.mark.parametrize("name", ["sd15-eps", "flux"])
@pytest.mark.parametrize("cache", ["LazyCache", "EasyCache"])
@pytest.mark.parametrize("before", [True, False])
def test_caches(matrix, name, cache, before):
    """Where the guidance node comes first, the guidance runs at every step, skipped or not."""
    from benchmarks.matrix_case import Outcome
    settings = {"reuse_threshold": 3.0, "start_percent": 0.1, "end_percent": 1.0,
                "verbose": False}
    one, calls = case(name), []
    base = matrix.model(name).clone()

    def counted(apply_model, arguments):
        calls.append(arguments["timestep"])
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    base.set_model_unet_function_wrapper(counted)
    if before:
        base, = node(cache, model=base, **settings)
    guided, outer, inner = matrix.guided(one, model=base)
    if not before:
        guided, = node(cache, model=guided, **settings)
    drawn = matrix.draw(guided, one, steps=10)
    assert drawn.isfinite().all()
    outcome = matrix.compare(one, outer, inner, Outcome())
    assert not outcome.failures and outcome.pushed
    if cache == "LazyCache":
        assert len(calls) < 10
        assert (outcome.evaluations < 10) == before
    else:
        assert outcome.evaluations == 10


@pytest.mark.parametrize("name", ["sd15-eps", "flux"])
@pytest.mark.parametrize("cache", ["LazyCache", "EasyCache"])
def test_evaluations_of_our_own_do_not_disturb_a_cache(matrix, name, cache):
    """Self-Guided Minority asks the model at another noise level; at almost no scale, the cache
    must do what it does without."""
    one, drawn = case(name, cfg=1.0), []
    for guided in (False, True):
        model = matrix.model(name)
        if guided:
            model = matrix.node("UncommonSelfGuidedMinority", model=model, mode="free",
                                scale=1e-12, start_percent=0.0, end_percent=1.0, every_n_steps=1)
        model, = node(cache, model=model, reuse_threshold=1.0, start_percent=0.1, end_percent=1.0,
                      verbose=False)
        drawn.append(matrix.draw(model, one, steps=10))
    assert "Pushed at" in matrix.told[-1][1]
    assert torch.allclose(*drawn, rtol=1e-3, atol=1e-3 * drawn[0].std().item())


# Self-Guided Minority through the model itself

def backprop(matrix, name: str) -> Tensor:
    from demo.host.small_models import MODELS

    model = matrix.node("UncommonSelfGuidedMinority", model=matrix.model(name), mode="backprop",
                        scale=0.4, start_percent=0.3, end_percent=1.0, every_n_steps=1)
    return matrix.draw(model, case(name), steps=4, latent=MODELS[name].latent(1))


@pytest.mark.parametrize("name", ["sd15-eps", "sdxl-edm", "cascade", "sd3-flow", "flux",
                                  "wan-flow"])
def test_backprop_is_the_gradient_of_the_model(matrix, first_slopes, name):
    assert backprop(matrix, name).isfinite().all()
    steepest, found, expected = first_slopes
    assert steepest > 0
    assert torch.allclose(found, expected, atol=0.05 * steepest.item())


# What no guidance is for

NODES = pytest.mark.parametrize("guide", ["novelty", "minority", "self"])


def unguided(matrix, name: str, guide: str, latent) -> tuple[Tensor, Tensor]:
    """The same drawn without guidance, and with."""
    import comfy.sample

    from demo.host.small_models import UNGUIDED, prompt
    model = UNGUIDED[name].load()
    made = {"novelty": lambda: matrix.with_novelty(model, name),
            "minority": lambda: matrix.with_minority(model),
            "self": lambda: matrix.node("UncommonSelfGuidedMinority", model=model, mode="free",
                                        scale=0.4, start_percent=0.0, end_percent=1.0)}[guide]()
    with torch.inference_mode():
        noise = comfy.sample.prepare_noise(latent, 0)
        return tuple(comfy.sample.sample(one, noise, 3, 1.0, "euler", "normal", prompt(1),
                                         prompt(2), latent, disable_pbar=True, seed=0)
                     for one in (model, made))


@NODES
@pytest.mark.parametrize("name", ["image-to-image", "image-to-image-flow"])
def test_models_that_map_images_to_images_are_refused_with_a_reason(matrix, told, name, guide):
    from demo.host.small_models import UNGUIDED
    plain, drawn = unguided(matrix, name, guide, UNGUIDED[name].latent(1))
    assert torch.equal(plain, drawn)
    (_, text), = told
    assert "maps one image to another" in text and "Bypass this node" in text


@NODES
def test_several_latents_at_once_are_passed_through_with_one_notice(matrix, told, guide):
    import comfy.nested_tensor

    from demo.host.small_models import UNGUIDED
    latent = comfy.nested_tensor.NestedTensor(
        [UNGUIDED["video-and-sound"].latent(1), torch.zeros(1, 8, 5, 16)])
    plain, drawn = unguided(matrix, "video-and-sound", guide, latent)
    for one, other in zip(plain.unbind(), drawn.unbind(), strict=True):
        assert torch.equal(one, other)
    (_, text), = told
    assert "several latents at once" in text


@NODES
def test_latents_that_are_no_images_are_passed_through_with_one_notice(matrix, told, guide):
    from demo.host.small_models import UNGUIDED
    plain, drawn = unguided(matrix, "3d", guide, UNGUIDED["3d"].latent(1))
    assert torch.equal(plain, drawn)
    (_, text), = told
    assert "neither images nor video" in text


@NODES
def test_frames_of_a_video_are_not_driven_apart(matrix, told, guide):
    """Stable Video Diffusion has them where others have the images of a batch."""
    from demo.host.small_models import UNGUIDED
    plain, drawn = unguided(matrix, "frames-as-batch", guide, UNGUIDED["frames-as-batch"].latent(4))
    assert torch.equal(plain, drawn)
    (_, text), = told
    assert "frames of one video as a batch" in text


def test_video_is_passed_through_by_minority_guidance(matrix, told):
    one = case("wan-video", "minority")
    model, outer, inner = matrix.guided(one)
    assert torch.equal(matrix.draw(model, one), matrix.draw(matrix.model("wan-video"), one))
    (_, text), = told
    assert "samples video" in text
