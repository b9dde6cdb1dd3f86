"""From the layout of mmdet's Mask2Former checkpoint (Swin backbone) to that of transformers' class.

Same architecture, other names; three things are stored otherwise:
- the backbone's queries, keys and values are one matrix in mmdet and three in transformers;
- so are those of the decoder's self-attention (its cross-attention is one in both);
- where patches are merged, mmdet unfolds 2 x 2 neighbours channel by channel (c, row, column), transformers stacks
  whole maps in the order (0, 0), (1, 0), (0, 1), (1, 1): columns of `reduction` and entries of `norm` change places.

Source: modules of mmdet 2.28 (models/backbones/swin.py, dense_heads/mask2former_head.py, plugins/
msdeformattn_pixel_decoder.py) and transformers 5. Axes: C channels.
"""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

BACKBONE, PIXELS, QUERIES = (
    "model.pixel_level_module.encoder",
    "model.pixel_level_module.decoder",
    "model.transformer_module",
)
_FFN = {"ffns.0.layers.0.0": "fc1", "ffns.0.layers.1": "fc2"}
_RENAMED = (  # pattern of a module of mmdet, transformers' name of it
    (r"backbone\.patch_embed\.projection", f"{BACKBONE}.swin.embeddings.patch_embeddings.projection"),
    (r"backbone\.patch_embed\.norm", f"{BACKBONE}.swin.embeddings.norm"),
    (r"backbone\.norm0", f"{BACKBONE}.hidden_states_norms.stage1"),
    (r"backbone\.norm1", f"{BACKBONE}.hidden_states_norms.stage2"),
    (r"backbone\.norm2", f"{BACKBONE}.hidden_states_norms.stage3"),
    (r"backbone\.norm3", f"{BACKBONE}.hidden_states_norms.stage4"),
    (r"panoptic_head\.pixel_decoder\.input_convs\.(\d)\.conv", rf"{PIXELS}.input_projections.\1.0"),
    (r"panoptic_head\.pixel_decoder\.input_convs\.(\d)\.gn", rf"{PIXELS}.input_projections.\1.1"),
    (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.conv", f"{PIXELS}.adapter_1.0"),
    (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.gn", f"{PIXELS}.adapter_1.1"),
    (r"panoptic_head\.pixel_decoder\.output_convs\.0\.conv", f"{PIXELS}.layer_1.0"),
    (r"panoptic_head\.pixel_decoder\.output_convs\.0\.gn", f"{PIXELS}.layer_1.1"),
    (r"panoptic_head\.pixel_decoder\.mask_feature", f"{PIXELS}.mask_projection"),
    (r"panoptic_head\.query_embed", f"{QUERIES}.queries_embedder"),
    (r"panoptic_head\.query_feat", f"{QUERIES}.queries_features"),
    (r"panoptic_head\.level_embed", f"{QUERIES}.level_embed"),
    (r"panoptic_head\.transformer_decoder\.post_norm", f"{QUERIES}.decoder.layernorm"),
    (r"panoptic_head\.mask_embed\.0", f"{QUERIES}.decoder.mask_predictor.mask_embedder.0.0"),
    (r"panoptic_head\.mask_embed\.2", f"{QUERIES}.decoder.mask_predictor.mask_embedder.1.0"),
    (r"panoptic_head\.mask_embed\.4", f"{QUERIES}.decoder.mask_predictor.mask_embedder.2.0"),
    (r"panoptic_head\.cls_embed", "class_predictor"),
)
_BLOCK = re.compile(r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.(.+)")
_MERGE = re.compile(r"backbone\.stages\.(\d+)\.downsample\.(norm|reduction)\.(weight|bias)")
_PIXEL_LAYER = re.compile(r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_QUERY_LAYER = re.compile(r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.(.+?)[._](weight|bias)")
_IN_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.w_msa.proj": "attention.o_proj",
    "ffn.layers.0.0": "mlp.fc1",
    "ffn.layers.1": "mlp.fc2",
}
_IN_PIXEL_LAYER = {"norms.0": "self_attn_layer_norm", "norms.1": "final_layer_norm", **_FFN}
_IN_QUERY_LAYER = {
    "attentions.0.attn.out_proj": "cross_attn.out_proj",
    "attentions.1.attn.out_proj": "self_attn.out_proj",
    "norms.0": "cross_attn_layer_norm",
    "norms.1": "self_attn_layer_norm",
    "norms.2": "final_layer_norm",
    **_FFN,
}


def from_mmdet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return mmdet's state dict under transformers' names; what has none keeps its own, for the loader to refuse."""
    return {new: tensor for name, value in tensors.items() for new, tensor in _convert(name, value)}


def _convert(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    if name.endswith("relative_position_index"):
        return  # a constant, which transformers computes
    if name == "panoptic_head.pixel_decoder.level_encoding.weight":
        yield f"{PIXELS}.level_embed", value
    elif block := _BLOCK.fullmatch(name):
        yield from _in_block(f"{BACKBONE}.swin.encoder.layers.{block[1]}.blocks.{block[2]}", block[3], value)
    elif merge := _MERGE.fullmatch(name):
        yield f"{BACKBONE}.swin.encoder.layers.{merge[1]}.downsample.{merge[2]}.{merge[3]}", reorder_merge(value)
    elif layer := _PIXEL_LAYER.fullmatch(name):
        inner = _IN_PIXEL_LAYER.get(layer[2], layer[2].replace("attentions.0", "self_attn"))
        yield f"{PIXELS}.encoder.layers.{layer[1]}.{inner}.{layer[3]}", value
    elif layer := _QUERY_LAYER.fullmatch(name):
        yield from _in_query_layer(f"{QUERIES}.decoder.layers.{layer[1]}", layer[2], layer[3], value)
    else:
        module, _, kind = name.rpartition(".")
        for pattern, new in _RENAMED:
            if re.fullmatch(pattern, module):
                name = f"{re.sub(pattern, new, module)}.{kind}"
        yield name, value


def _in_block(prefix: str, inner: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    module, _, kind = inner.rpartition(".")
    if module == "attn.w_msa.qkv":
        for letter, part in zip("qkv", value.chunk(3), strict=True):
            yield f"{prefix}.attention.{letter}_proj.{kind}", part
    elif kind == "relative_position_bias_table":
        yield f"{prefix}.attention.relative_position_bias.{kind}", value
    else:
        yield f"{prefix}.{_IN_BLOCK.get(module, module)}.{kind}", value


def _in_query_layer(prefix: str, module: str, kind: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    if module == "attentions.0.attn.in_proj":
        yield f"{prefix}.cross_attn.in_proj_{kind}", value
    elif module == "attentions.1.attn.in_proj":
        for letter, part in zip("qkv", value.chunk(3), strict=True):
            yield f"{prefix}.self_attn.{letter}_proj.{kind}", part
    else:
        yield f"{prefix}.{_IN_QUERY_LAYER.get(module, module)}.{kind}", value


def reorder_merge(value: Tensor) -> Tensor:
    """Return weights over 4C merged channels [..., 4C] in transformers' order instead of mmdet's."""
    by_channel = value.unflatten(-1, (-1, 2, 2))  # [..., C, row, column]
    stacked = by_channel.movedim(-3, -1)  # [..., row, column, C]
    return stacked.transpose(-3, -2).flatten(-3)  # column first: (0, 0), (1, 0), (0, 1), (1, 1)


def without_counterpart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what transformers' class holds beyond the checkpoint and never reads when it detects."""
    width = tensors[f"{BACKBONE}.hidden_states_norms.stage4.weight"].shape[0]
    classes = tensors["class_predictor.bias"].shape[0]
    return {
        f"{BACKBONE}.swin.layernorm.weight": torch.ones(width),
        f"{BACKBONE}.swin.layernorm.bias": torch.zeros(width),
        "criterion.empty_weight": torch.ones(classes),  # of the training loss
    }
