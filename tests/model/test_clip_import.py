"""CLIP's weights come in whole or not at all, and answer as CLIP does."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch import Tensor, nn

from model.checkpoint import from_clip
from model.image_encoder import ClipResNet
from model.import_report import ImportReport
from model.segvlm import SegVLM
from tests.model.small_networks import small

START = 49406


END = 49407


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    """open_clip's RN50 with random weights, rounded to half precision as OpenAI's are."""
    torch.manual_seed(0)
    clip = open_clip.create_model("RN50-quickgelu", pretrained=None).eval()
    with torch.no_grad():
        for module in clip.modules():
            if isinstance(module, nn.BatchNorm2d):
                # open_clip zeroes the last one of each block, which would hide the block.
                module.weight.uniform_(0.5, 1.0)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
        for value in clip.state_dict().values():
            value.copy_(value.half())
    return clip


@pytest.fixture(scope="module")
def archive(clip: nn.Module) -> dict[str, Tensor]:
    """What an OpenAI archive of `clip` holds: half precision, and sizes among the weights."""
    state = {n: v.half() if v.is_floating_point() else v for n, v in clip.state_dict().items()}
    return {**state, "vocab_size": torch.tensor(49408)}


@pytest.fixture(scope="module")
def imported(archive: dict[str, Tensor]) -> tuple[SegVLM, ImportReport]:
    model, report = from_clip(archive, "cris-rn50")
    assert model.training  # what fine-tuning starts from
    return model.eval(), report


def test_clip_import_reports_what_it_did(
    archive: dict[str, Tensor], imported: tuple[SegVLM, ImportReport]
) -> None:
    model, report = imported
    assert report.left_over == ("vocab_size",)
    assert len(report.loaded) == len(archive) - 1
    assert set(report.loaded) | set(report.made_new) == set(model.state_dict())
    blocks = {name.split(".")[0] for name in report.made_new}
    assert blocks == {"image_encoder", "neck", "decoder", "projector"}
    connect = [name for name in report.made_new if name.startswith("image_encoder.")]
    assert all(name.startswith("image_encoder.attnpool.connect.") for name in connect)
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_clip_import_is_strict(archive: dict[str, Tensor]) -> None:
    config = small("cris-rn50")
    with pytest.raises(ValueError, match="another shape"):
        from_clip(archive, config)
    with pytest.raises(ValueError, match=r"unknown names .* ln_extra"):
        from_clip({**archive, "ln_extra": torch.zeros(1)}, config)
    # The whole model of ViT: a projection that a ResNet does not have.
    with pytest.raises(ValueError, match=r"unknown: image_encoder\.proj"):
        from_clip({**archive, "visual.proj": torch.zeros(1)}, config)
    cut = {name: v for name, v in archive.items() if name != "visual.layer3.4.conv2.weight"}
    with pytest.raises(ValueError, match=r"missing: image_encoder\.layer3\.4\.conv2\.weight"):
        from_clip(cut, config)


def test_image_features_are_clips(clip: nn.Module, imported: tuple[SegVLM, ImportReport]) -> None:
    encoder = imported[0].image_encoder
    assert isinstance(encoder, ClipResNet)
    ours: list[Tensor] = []
    hook = encoder.layer4.register_forward_hook(lambda _, __, output: ours.append(output))
    image = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        encoder(image)
        visual = clip.visual
        x = visual.stem(image)
        theirs = visual.layer4(visual.layer3(visual.layer2(visual.layer1(x))))
    hook.remove()
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours[0], theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("length", [77, 17])
def test_sentence_state_is_clips(
    clip: nn.Module, imported: tuple[SegVLM, ImportReport], length: int
) -> None:
    tokens = torch.zeros(3, 77, dtype=torch.int64)
    for row, count in enumerate((1, 5, 15)):
        tokens[row, : count + 2] = torch.tensor([START, *range(300, 300 + count), END])
    with torch.no_grad():
        theirs = clip.encode_text(tokens, normalize=False)
        words, state, pad_mask = imported[0].encode_text(tokens[:, :length])
    torch.testing.assert_close(state, theirs, rtol=1e-4, atol=1e-5)
    assert words.shape == (3, length, 512)
    assert pad_mask.sum(dim=1).tolist() == [length - 3, length - 7, length - 17]
