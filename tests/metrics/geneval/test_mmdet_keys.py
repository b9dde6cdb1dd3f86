"""The key map from mmdet's checkpoint: complete at the true size, and the same function of a picture."""

import pytest
import torch
from torch import Tensor, nn

from metrics.encoders.towers import layout_problem
from metrics.geneval import mask2former
from metrics.geneval.mmdet_keys import from_mmdet, reorder_merge, without_counterpart
from tests.metrics.geneval import mmdet_network
from tests.metrics.geneval.mmdet_network import HEAD, SMALL, SWIN, Size


def transformers_model(tensors: dict[str, Tensor]) -> nn.Module:
    from transformers import Mask2FormerForUniversalSegmentation

    model = Mask2FormerForUniversalSegmentation(mask2former.config())
    assert not layout_problem(
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
    )
    model.load_state_dict(tensors)
    return model.eval()


def test_every_name_and_shape_of_the_true_checkpoint_has_its_place() -> None:
    from accelerate import init_empty_weights
    from transformers import Mask2FormerForUniversalSegmentation

    true = Size.of(mask2former.SWIN_S, mask2former.HEAD)
    names = dict(mmdet_network.shapes(true))
    # As mmdet's modules have them: 24 blocks of 14 tensors each, ...
    assert sum(name.startswith("backbone.stages.") and ".blocks." in name for name in names) == 24 * 14
    assert names["backbone.stages.2.blocks.17.attn.w_msa.qkv.weight"] == (1152, 384)
    assert names["panoptic_head.pixel_decoder.input_convs.0.conv.weight"] == (256, 768, 1, 1)
    assert names["panoptic_head.transformer_decoder.layers.8.attentions.1.attn.in_proj_weight"] == (768, 256)
    found = from_mmdet({name: torch.empty(shape, device="meta") for name, shape in names.items()})
    found |= {name: value.to("meta") for name, value in without_counterpart(found).items()}
    with init_empty_weights(include_buffers=False):
        model = Mask2FormerForUniversalSegmentation(mask2former.config())
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert not layout_problem(expected, {name: tuple(tensor.shape) for name, tensor in found.items()})


def test_the_mapped_weights_are_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask2former, "SWIN_S", SWIN)
    monkeypatch.setattr(mask2former, "HEAD", HEAD)
    weights = mmdet_network.seeded(SMALL)
    mapped = from_mmdet(weights)
    model = transformers_model(mapped | without_counterpart(mapped))
    generator = torch.Generator().manual_seed(1)
    pixels_B3HW = torch.randn((2, 3, 288, 352), generator=generator)
    with torch.no_grad():
        seen = model(pixel_values=pixels_B3HW)
        logits_BQC, masks_BQHW = mmdet_network.forward(weights, SMALL, pixels_B3HW)
    assert logits_BQC.std() > 0.1  # the weights do not kill the signal: pictures and queries differ
    assert (logits_BQC[0] - logits_BQC[1]).abs().max() > 0.01
    torch.testing.assert_close(seen.class_queries_logits, logits_BQC, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.masks_queries_logits, masks_BQHW, rtol=1e-4, atol=1e-3)


def test_merged_patches_change_places_as_their_neighbours_do() -> None:
    torch.manual_seed(0)
    x_BCHW, weight = torch.randn(1, 5, 4, 6), torch.randn(7, 20)
    unfolded_BPD = nn.Unfold(kernel_size=2, stride=2)(x_BCHW).transpose(1, 2)  # mmdet's PatchMerging
    x_BHWC = x_BCHW.permute(0, 2, 3, 1)
    corners = [x_BHWC[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
    stacked_BPD = torch.cat(corners, dim=-1).flatten(1, 2)  # Swin's own, and transformers'
    torch.testing.assert_close(unfolded_BPD @ weight.T, stacked_BPD @ reorder_merge(weight).T)
    norm = torch.randn(20)
    torch.testing.assert_close(
        (unfolded_BPD * norm) @ weight.T, (stacked_BPD * reorder_merge(norm)) @ reorder_merge(weight).T
    )


def test_transformers_computes_the_index_of_relative_positions_that_the_checkpoint_holds() -> None:
    from transformers import SwinConfig
    from transformers.models.swin.modeling_swin import SwinModel

    model = SwinModel(SwinConfig(**{**SWIN, "out_features": None}))
    index = next(value for name, value in model.named_buffers() if name.endswith("relative_position_index"))
    held = mmdet_network.seeded(SMALL)["backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"]
    assert torch.equal(index.reshape(held.shape), held)
