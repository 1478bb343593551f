"""Minority classifiers on disk: ours, guided-diffusion's, and the pair of Um et al. for LSUN.

Ours is one safetensors file: tensors `net.*` and, on a frozen extractor, `extractor.*`; the
header MINORITY_HEADER holds the rest as JSON.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .adm import AdmConfig, AdmTrunk
from .adm_checkpoint import Schedule, without_prefix
from .adm_encoder import AdmEncoder, EncoderConfig
from .adm_encoder_checkpoint import detect_encoder, fill, published_schedule
from .minority_classifier import PIXEL_SPACE, FrozenExtractor, MinorityClassifier
from .time_conditioning import ScheduleTime, time_from_json

MINORITY_HEADER = "uncommon.minority_classifier"
VERSION = 1
EXTENSIONS = (".safetensors", ".pt", ".pth", ".ckpt")


def save_classifier(classifier: MinorityClassifier, path: str | Path,
                    dtype: torch.dtype = torch.float32) -> None:
    """Writes a classifier to a file of its own, or, if that fails, leaves what was there."""
    path = Path(path)
    header = {
        "version": VERSION, "space": classifier.space, "channels": classifier.channels,
        "classes": classifier.classes, "distance": classifier.distance, "sigma": classifier.sigma,
        "thresholds": None if classifier.thresholds is None else classifier.thresholds.tolist(),
        "log_snr_range": list(classifier.log_snr_range), "training": classifier.training,
        "net": asdict(classifier.net.config), "time": classifier.time.as_json(),
        "extractor": None if classifier.extractor is None else {
            "config": asdict(classifier.extractor.trunk.config),
            "time": classifier.extractor.time.as_json()}}
    tensors = {f"net.{k}": v for k, v in classifier.net.state_dict().items()}
    if classifier.extractor is not None:
        tensors |= {f"extractor.{k}": v
                    for k, v in classifier.extractor.trunk.state_dict().items()}
    tensors = {k: v.detach().to("cpu", dtype).clone().contiguous() for k, v in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(tensors, unfinished, {MINORITY_HEADER: json.dumps(header)})
        os.chmod(unfinished, 0o644)
        os.replace(unfinished, path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


def load_classifier(path: str | Path, extractor_path: str | Path | None = None,
                    schedule: Schedule | None = None) -> MinorityClassifier:
    """The classifier in a file; its weights are ordinary float32 tensors on the CPU.

    extractor_path: the frozen network of a head that was published without it. schedule: what a
    classifier of guided-diffusion was trained on; None for what OpenAI used at its size. Code in a
    file is never executed. ValueError if a file cannot be used.
    """
    path = Path(path)
    with torch.inference_mode(False), torch.no_grad():
        state_dict, metadata = _read(path)
        extractor = None
        if extractor_path is not None and MINORITY_HEADER not in metadata:
            tensors = _read(Path(extractor_path))[0]
            with _naming(extractor_path):
                extractor = tensors, detect_encoder(tensors)
        with _naming(path):
            found = (_ours(state_dict, metadata[MINORITY_HEADER]) if MINORITY_HEADER in metadata
                     else _published(state_dict, extractor, schedule))
    return replace(found, name=path.stem)


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """An error within begins with the file that it is of."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Tensors by name, and the header, of a safetensors file or a checkpoint of torch."""
    if not path.is_file():
        raise ValueError(f"{path} is not there. Choose another file.")
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return ({name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
                        file.metadata() or {})
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors: a damaged file, or one with code in it. "
                         "The code was not executed. Use a file from a source you trust, saved as "
                         "safetensors.") from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError,
            AttributeError, IndexError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}). It may be cut off: copy or download it "
                         "again.") from error
    if not isinstance(content, Mapping) or not content or not all(
            isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no table of tensors. Choose a checkpoint of a classifier.")
    return without_prefix(content), {}


def _tuples(config: Mapping) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}


def _ours(state_dict: Mapping[str, Tensor], header: str) -> MinorityClassifier:
    try:
        parts = json.loads(header)
        if parts["version"] > VERSION:
            raise ValueError(f"version {parts['version']} of the file, {VERSION} is known")
        config = EncoderConfig(**_tuples(parts["net"]))
        time = time_from_json(parts["time"])
        extractor_config = parts["extractor"] and AdmConfig(**{
            k: v for k, v in _tuples(parts["extractor"]["config"]).items()
            if k in AdmConfig.__dataclass_fields__})
        extractor_time = parts["extractor"] and time_from_json(parts["extractor"]["time"])
        thresholds = parts["thresholds"] and torch.tensor(parts["thresholds"])
        low, high = parts["log_snr_range"]
        facts = {name: parts[name] for name in ("space", "channels", "distance", "sigma",
                                                "training")}
        for number in (low, high, parts["channels"], parts["sigma"] or 0):
            if not math.isfinite(number):
                raise ValueError(f"the figure {number}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its header '{MINORITY_HEADER}' cannot be read ({error}). If a newer "
                         "version of this pack wrote the file, update the pack.") from error
    if thresholds is not None and thresholds.shape != (config.classes,):
        raise ValueError(f"its header has {len(thresholds)} thresholds for {config.classes} "
                         "classes. The file is damaged: train or download it again.")

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}

    with torch.device("meta"):
        net = AdmEncoder(config)
        trunk = AdmTrunk(extractor_config) if extractor_config else None
    fill(net, part("net."), "the classifier")
    extractor = None
    if trunk is not None:
        fill(trunk, part("extractor."), "its extractor")
        extractor = FrozenExtractor(trunk, extractor_time)
    return MinorityClassifier(net=net, time=time, extractor=extractor, thresholds=thresholds,
                              log_snr_range=(low, high), **facts)


def _published(state_dict: Mapping[str, Tensor],
               extractor: tuple[Mapping[str, Tensor], EncoderConfig] | None,
               schedule: Schedule | None) -> MinorityClassifier:
    """extractor: its tensors, and what they are."""
    config = detect_encoder(state_dict)
    if extractor is None and config.in_channels != 3:
        raise ValueError(
            f"this classifier takes {config.in_channels} channels, not the 3 of an image: it reads "
            "what a frozen extractor sees. Choose the extractor's file as well (for the authors' "
            "mc_lsun.pt it is 256x256_classifier.pt of openai/guided-diffusion).")
    frozen = None
    if extractor is not None:
        tensors, extractor_config = extractor
        if extractor_config.in_channels != 3:
            raise ValueError(f"the extractor takes {extractor_config.in_channels} channels, not "
                             "the 3 of an image. Choose 256x256_classifier.pt, or the network "
                             "that the classifier was trained on.")
        if config.in_channels != extractor_config.widths[-1]:
            raise ValueError(
                f"the classifier reads {config.in_channels} channels, but the extractor gives "
                f"{extractor_config.widths[-1]}. " + (
                    "A classifier of images needs no extractor: choose none."
                    if config.in_channels == 3 else "Choose the extractor it was trained on."))
        schedule = schedule or published_schedule(extractor_config)
        frozen = frozen_part(tensors, extractor_config, ScheduleTime(schedule))
    with torch.device("meta"):
        net = AdmEncoder(config)
    fill(net, state_dict, "the classifier")
    time = ScheduleTime(schedule or published_schedule(config))
    return MinorityClassifier(net=net, time=time, extractor=frozen, space=PIXEL_SPACE, channels=3,
                              log_snr_range=time.log_snr_range)


def frozen_part(state_dict: Mapping[str, Tensor], config: AdmConfig, time) -> FrozenExtractor:
    """The trunk of an ADM network (U-Net or classifier) as an extractor."""
    plain = AdmConfig(**{name: getattr(config, name) for name in AdmConfig.__dataclass_fields__}
                      | {"num_classes": None, "dropout": 0.0})
    with torch.inference_mode(False), torch.no_grad():
        with torch.device("meta"):
            trunk = AdmTrunk(plain)
        fill(trunk, {name: state_dict[name] for name in trunk.state_dict() if name in state_dict},
             "the extractor")
        return FrozenExtractor(trunk, time)
