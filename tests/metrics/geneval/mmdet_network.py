"""mmdet's Mask2Former with a Swin backbone as functions of its own state dict: the oracle of the key map.

Names and shapes follow from the modules of mmdet 2.28 (backbones/swin.py, plugins/msdeformattn_pixel_decoder.py,
dense_heads/mask2former_head.py) and mmcv 1.7 (cnn/bricks/transformer.py, ops/multi_scale_deform_attn.py); the forward
pass is theirs, in evaluation mode, where every dropout and every drop path is the identity. Pictures must leave more
than one window of patches at the last stage, as every picture does after mmdet's resize.

Axes: B pictures, C channels, H x W patches, N patches of a window, L patches of all levels, Q queries, D width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.geneval import mask2former

Weights = Mapping[str, Tensor]
PIXELS, DECODER = "panoptic_head.pixel_decoder", "panoptic_head.transformer_decoder"
WINDOW, LEVELS, POINTS, CLASSES = 7, 3, 4, 80
Shapes = Iterator[tuple[str, tuple[int, ...]]]
SWIN = {**mask2former.SWIN_S, "embed_dim": 12, "depths": [2, 1, 2, 1], "num_heads": [1, 2, 2, 4]}  # shrunken
HEAD = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 64,
    "encoder_layers": 2,
    "dim_feedforward": 48,
    "decoder_layers": 5,  # four of mmdet: the last comes back to the first level
    "num_attention_heads": 4,
    "num_queries": 10,
}


@dataclass(frozen=True)
class Size:
    """How large the network is; `decoder_layers` as mmdet counts, transformers adds the first prediction to them."""

    embed_dim: int
    depths: Sequence[int]
    heads: Sequence[int]
    dim: int
    encoder_layers: int
    encoder_ffn: int
    decoder_layers: int
    decoder_ffn: int
    decoder_heads: int
    queries: int

    @classmethod
    def of(cls, swin: Mapping[str, Any], head: Mapping[str, Any]) -> "Size":
        """Return the size of transformers' two configs."""
        return cls(
            swin["embed_dim"],
            swin["depths"],
            swin["num_heads"],
            head["hidden_dim"],
            head["encoder_layers"],
            head["encoder_feedforward_dim"],
            head["decoder_layers"] - 1,
            head["dim_feedforward"],
            head["num_attention_heads"],
            head["num_queries"],
        )


SMALL = Size.of(SWIN, HEAD)


def shapes(size: Size) -> Shapes:
    """Yield every parameter and buffer of the checkpoint: its name and shape."""
    yield from _backbone_shapes(size)
    yield from _pixel_decoder_shapes(size)
    yield from _decoder_shapes(size)


def _both(name: str, *weight: int) -> Shapes:
    yield f"{name}.weight", weight
    yield f"{name}.bias", weight[:1]


def _ffn(name: str, dim: int, hidden: int) -> Shapes:
    yield from _both(f"{name}.layers.0.0", hidden, dim)
    yield from _both(f"{name}.layers.1", dim, hidden)


def _backbone_shapes(size: Size) -> Shapes:
    yield from _both("backbone.patch_embed.projection", size.embed_dim, 3, 4, 4)
    yield from _both("backbone.patch_embed.norm", size.embed_dim)
    for stage, (depth, heads) in enumerate(zip(size.depths, size.heads, strict=True)):
        c = size.embed_dim * 2**stage
        for block in range(depth):
            at = f"backbone.stages.{stage}.blocks.{block}"
            yield from _both(f"{at}.norm1", c)
            yield f"{at}.attn.w_msa.relative_position_bias_table", ((2 * WINDOW - 1) ** 2, heads)
            yield f"{at}.attn.w_msa.relative_position_index", (WINDOW**2, WINDOW**2)
            yield from _both(f"{at}.attn.w_msa.qkv", 3 * c, c)
            yield from _both(f"{at}.attn.w_msa.proj", c, c)
            yield from _both(f"{at}.norm2", c)
            yield from _ffn(f"{at}.ffn", c, 4 * c)
        if stage < len(size.depths) - 1:
            yield from _both(f"backbone.stages.{stage}.downsample.norm", 4 * c)
            yield f"backbone.stages.{stage}.downsample.reduction.weight", (2 * c, 4 * c)
        yield from _both(f"backbone.norm{stage}", c)


def _pixel_decoder_shapes(size: Size) -> Shapes:
    dim, points = size.dim, size.decoder_heads * LEVELS * POINTS
    for level in range(LEVELS):  # from the coarsest
        yield from _both(f"{PIXELS}.input_convs.{level}.conv", dim, size.embed_dim * 2 ** (LEVELS - level), 1, 1)
        yield from _both(f"{PIXELS}.input_convs.{level}.gn", dim)
    for layer in range(size.encoder_layers):
        at = f"{PIXELS}.encoder.layers.{layer}"
        yield from _both(f"{at}.attentions.0.sampling_offsets", 2 * points, dim)
        yield from _both(f"{at}.attentions.0.attention_weights", points, dim)
        yield from _both(f"{at}.attentions.0.value_proj", dim, dim)
        yield from _both(f"{at}.attentions.0.output_proj", dim, dim)
        yield from _ffn(f"{at}.ffns.0", dim, size.encoder_ffn)
        for norm in range(2):
            yield from _both(f"{at}.norms.{norm}", dim)
    yield f"{PIXELS}.level_encoding.weight", (LEVELS, dim)
    yield f"{PIXELS}.lateral_convs.0.conv.weight", (dim, size.embed_dim, 1, 1)  # a norm follows: no bias
    yield from _both(f"{PIXELS}.lateral_convs.0.gn", dim)
    yield f"{PIXELS}.output_convs.0.conv.weight", (dim, dim, 3, 3)
    yield from _both(f"{PIXELS}.output_convs.0.gn", dim)
    yield from _both(f"{PIXELS}.mask_feature", dim, dim, 1, 1)


def _decoder_shapes(size: Size) -> Shapes:
    dim = size.dim
    for layer in range(size.decoder_layers):
        at = f"{DECODER}.layers.{layer}"
        for attention in range(2):  # across, then self
            yield f"{at}.attentions.{attention}.attn.in_proj_weight", (3 * dim, dim)
            yield f"{at}.attentions.{attention}.attn.in_proj_bias", (3 * dim,)
            yield from _both(f"{at}.attentions.{attention}.attn.out_proj", dim, dim)
        yield from _ffn(f"{at}.ffns.0", dim, size.decoder_ffn)
        for norm in range(3):
            yield from _both(f"{at}.norms.{norm}", dim)
    yield from _both(f"{DECODER}.post_norm", dim)
    for name, rows in (("query_embed", size.queries), ("query_feat", size.queries), ("level_embed", LEVELS)):
        yield f"panoptic_head.{name}.weight", (rows, dim)
    yield from _both("panoptic_head.cls_embed", CLASSES + 1, dim)
    for index in (0, 2, 4):
        yield from _both(f"panoptic_head.mask_embed.{index}", dim, dim)


def seeded(size: Size) -> dict[str, Tensor]:
    """Return random weights in mmdet's layout, with the index of relative positions that mmdet computes."""
    generator = torch.Generator().manual_seed(0)

    def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
        spread = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            return spread / spread[0].numel() ** 0.5  # by the number of inputs: every layer stays alive
        return spread / 4 if name.endswith("bias") else 1 + spread / 4

    row, column = torch.arange(WINDOW**2).div(WINDOW, rounding_mode="floor"), torch.arange(WINDOW**2) % WINDOW
    down, right = (here[:, None] - here[None] + WINDOW - 1 for here in (row, column))
    return {
        name: down * (2 * WINDOW - 1) + right if name.endswith("index") else drawn(name, shape)
        for name, shape in shapes(size)
    }


def forward(w: Weights, size: Size, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """Return class logits [B, Q, 81] and mask logits [B, Q, H/4, W/4]."""
    feats = backbone(w, size, pixels_B3HW)
    mask_feature_BDHW, levels = pixel_decoder(w, size, feats)
    return decoder(w, size, mask_feature_BDHW, levels)


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def _norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def _convolved(w: Weights, name: str, x_BCHW: Tensor, padding: int = 0) -> Tensor:
    y = F.conv2d(x_BCHW, w[f"{name}.conv.weight"], w.get(f"{name}.conv.bias"), padding=padding)
    return F.group_norm(y, 32, w[f"{name}.gn.weight"], w[f"{name}.gn.bias"])


def backbone(w: Weights, size: Size, pixels_B3HW: Tensor) -> list[Tensor]:
    """Return the maps [B, C, H, W] of the four stages, finest first."""
    name = "backbone.patch_embed"
    x = F.conv2d(pixels_B3HW, w[f"{name}.projection.weight"], w[f"{name}.projection.bias"], stride=4)
    x_BHWC = _norm(w, f"{name}.norm", x.permute(0, 2, 3, 1))
    found = []
    for stage, (depth, heads) in enumerate(zip(size.depths, size.heads, strict=True)):
        for block in range(depth):
            at = f"backbone.stages.{stage}.blocks.{block}"
            shift = WINDOW // 2 if block % 2 else 0
            x_BHWC = x_BHWC + _window_attention(w, f"{at}.attn.w_msa", _norm(w, f"{at}.norm1", x_BHWC), heads, shift)
            hidden = F.gelu(_linear(w, f"{at}.ffn.layers.0.0", _norm(w, f"{at}.norm2", x_BHWC)))
            x_BHWC = x_BHWC + _linear(w, f"{at}.ffn.layers.1", hidden)
        found.append(_norm(w, f"backbone.norm{stage}", x_BHWC).permute(0, 3, 1, 2))
        if stage < len(size.depths) - 1:
            x_BHWC = _merged(w, f"backbone.stages.{stage}.downsample", x_BHWC)
    return found


def _merged(w: Weights, name: str, x_BHWC: Tensor) -> Tensor:
    """Return neighbours 2 x 2 as one patch: unfolded channel by channel."""
    rows, columns = x_BHWC.shape[1:3]
    x_BCHW = F.pad(x_BHWC.permute(0, 3, 1, 2), (0, columns % 2, 0, rows % 2))
    unfolded = F.unfold(x_BCHW, kernel_size=2, stride=2).transpose(1, 2)
    grid = unfolded.unflatten(1, (x_BCHW.shape[2] // 2, x_BCHW.shape[3] // 2))
    return _linear(w, f"{name}.reduction", _norm(w, f"{name}.norm", grid))


def _window_attention(w: Weights, name: str, x_BHWC: Tensor, heads: int, shift: int) -> Tensor:
    rows, columns = x_BHWC.shape[1:3]
    below, right = -rows % WINDOW, -columns % WINDOW
    x = F.pad(x_BHWC, (0, 0, 0, right, 0, below)).roll((-shift, -shift), (1, 2))
    down, across = (_region(side, shift) for side in x.shape[1:3])
    region_1HW1 = (3 * down[:, None] + across)[None, :, :, None]

    def windows(map_BHWC: Tensor) -> Tensor:  # [B, windows, N, C]
        tiles = map_BHWC.unflatten(2, (-1, WINDOW)).unflatten(1, (-1, WINDOW))  # [B, rows, 7, columns, 7, C]
        return tiles.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)

    seen_BTNC = windows(x)
    q, k, v = _linear(w, f"{name}.qkv", seen_BTNC).unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5)
    bias = w[f"{name}.relative_position_bias_table"][w[f"{name}.relative_position_index"]].permute(2, 0, 1)
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + bias
    if shift:
        of_patch = windows(region_1HW1)[..., 0]
        scores = scores + torch.where(of_patch[..., None, :] == of_patch[..., None], 0.0, -100.0)[:, :, None]
    out = _linear(w, f"{name}.proj", (scores.softmax(-1) @ v).transpose(2, 3).flatten(3))
    tiles = out.unflatten(1, (x.shape[1] // WINDOW, -1)).unflatten(3, (WINDOW, WINDOW))  # [B, rows, columns, 7, 7, C]
    whole = tiles.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
    return whole.roll((shift, shift), (1, 2))[:, :rows, :columns]


def _region(side: int, shift: int) -> Tensor:
    """Return which of the three strips of a rolled map each row (or column) lies in."""
    place = torch.arange(side)
    return (place >= side - WINDOW).int() + (place >= side - shift)


def _sine(rows: int, columns: int, dim: int) -> Tensor:
    """Return the normalised sine encoding [H * W, D] of places: rows first, then columns."""
    wave = 10000.0 ** (2 * torch.arange(dim // 4) / (dim // 2))
    encoded = []
    for side in (rows, columns):
        place = torch.arange(1, side + 1) / (side + 1e-6) * 2 * torch.pi
        angle = place[:, None] / wave
        encoded.append(torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1))
    y, x = encoded
    return torch.cat([y[:, None].expand(-1, columns, -1), x[None].expand(rows, -1, -1)], dim=-1).flatten(0, 1)


def pixel_decoder(w: Weights, size: Size, feats: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the map that masks are read from [B, D, H/4, W/4], and the three levels, coarsest first."""
    projected = [_convolved(w, f"{PIXELS}.input_convs.{i}", feats[LEVELS - i]) for i in range(LEVELS)]
    sides = [tuple(level.shape[2:]) for level in projected]
    x_BLD = torch.cat([level.flatten(2).transpose(1, 2) for level in projected], dim=1)
    levels = w[f"{PIXELS}.level_encoding.weight"]
    places_LD = torch.cat([_sine(*side, size.dim) + levels[i] for i, side in enumerate(sides)])
    centres_L2 = torch.cat([_centres(*side) for side in sides])
    for layer in range(size.encoder_layers):
        at = f"{PIXELS}.encoder.layers.{layer}"
        seen = _deformable(w, f"{at}.attentions.0", size.decoder_heads, x_BLD, places_LD, centres_L2, sides)
        x_BLD = _norm(w, f"{at}.norms.0", x_BLD + seen)
        x_BLD = _norm(w, f"{at}.norms.1", x_BLD + _relu_ffn(w, f"{at}.ffns.0", x_BLD))
    parts = x_BLD.split([rows * columns for rows, columns in sides], dim=1)
    outs = [part.transpose(1, 2).unflatten(2, side) for part, side in zip(parts, sides, strict=True)]
    fine = _convolved(w, f"{PIXELS}.lateral_convs.0", feats[0])
    fine = fine + F.interpolate(outs[-1], fine.shape[2:], mode="bilinear", align_corners=False)
    fine = F.relu(_convolved(w, f"{PIXELS}.output_convs.0", fine, padding=1))
    return F.conv2d(fine, w[f"{PIXELS}.mask_feature.weight"], w[f"{PIXELS}.mask_feature.bias"]), outs


def _relu_ffn(w: Weights, name: str, x: Tensor) -> Tensor:
    return _linear(w, f"{name}.layers.1", F.relu(_linear(w, f"{name}.layers.0.0", x)))


def _centres(rows: int, columns: int) -> Tensor:
    y, x = (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns
    return torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], dim=-1).flatten(0, 1)


def _deformable(
    w: Weights,
    name: str,
    heads: int,
    x_BLD: Tensor,
    places_LD: Tensor,
    centres_L2: Tensor,
    sides: Sequence[tuple[int, ...]],
) -> Tensor:
    """Multi-scale deformable attention: every place looks at four points of each level, around its own centre."""
    asked = x_BLD + places_LD
    offsets = _linear(w, f"{name}.sampling_offsets", asked).unflatten(-1, (heads, LEVELS, POINTS, 2))
    shares = _linear(w, f"{name}.attention_weights", asked).unflatten(-1, (heads, LEVELS * POINTS)).softmax(-1)
    shares = shares.unflatten(-1, (LEVELS, POINTS))
    values = _linear(w, f"{name}.value_proj", x_BLD).split([rows * columns for rows, columns in sides], dim=1)
    looked = torch.zeros_like(x_BLD)
    for level, (rows, columns) in enumerate(sides):
        at = centres_L2[:, None, None] + offsets[:, :, :, level] / torch.tensor([columns, rows])
        maps = values[level].transpose(1, 2).unflatten(2, (rows, columns)).unflatten(1, (heads, -1)).flatten(0, 1)
        grid = (2 * at - 1).transpose(1, 2).flatten(0, 1)
        sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        weighted = (
            sampled * shares[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        )  # [B * heads, D / heads, L, P]
        looked = looked + weighted.sum(-1).unflatten(0, (-1, heads)).permute(0, 3, 1, 2).flatten(2)
    return _linear(w, f"{name}.output_proj", looked)


def decoder(w: Weights, size: Size, mask_feature_BDHW: Tensor, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return class logits and mask logits after the last layer."""
    embed_QD = w["panoptic_head.query_embed.weight"]
    x_BQD = w["panoptic_head.query_feat.weight"].expand(len(mask_feature_BDHW), -1, -1)
    memories = [
        level.flatten(2).transpose(1, 2) + w["panoptic_head.level_embed.weight"][i] for i, level in enumerate(levels)
    ]
    places = [_sine(*level.shape[2:], size.dim) for level in levels]
    logits, masks_BQHW = _predicted(w, x_BQD, mask_feature_BDHW)
    for layer in range(size.decoder_layers):
        at, level = f"{DECODER}.layers.{layer}", layer % LEVELS
        small = F.interpolate(masks_BQHW, levels[level].shape[2:], mode="bilinear", align_corners=False)
        hidden_BQL = small.sigmoid().flatten(2) < 0.5
        hidden_BQL = hidden_BQL & ~hidden_BQL.all(dim=-1, keepdim=True)  # who would see nothing sees everything
        memory = memories[level]
        seen = _attention(
            w, f"{at}.attentions.0", size.decoder_heads, x_BQD + embed_QD, memory + places[level], memory, hidden_BQL
        )
        x_BQD = _norm(w, f"{at}.norms.0", x_BQD + seen)
        asked = x_BQD + embed_QD
        x_BQD = _norm(
            w, f"{at}.norms.1", x_BQD + _attention(w, f"{at}.attentions.1", size.decoder_heads, asked, asked, x_BQD)
        )
        x_BQD = _norm(w, f"{at}.norms.2", x_BQD + _relu_ffn(w, f"{at}.ffns.0", x_BQD))
        logits, masks_BQHW = _predicted(w, x_BQD, mask_feature_BDHW)
    return logits, masks_BQHW


def _predicted(w: Weights, x_BQD: Tensor, mask_feature_BDHW: Tensor) -> tuple[Tensor, Tensor]:
    normed = _norm(w, f"{DECODER}.post_norm", x_BQD)
    y = F.relu(_linear(w, "panoptic_head.mask_embed.0", normed))
    y = _linear(w, "panoptic_head.mask_embed.4", F.relu(_linear(w, "panoptic_head.mask_embed.2", y)))
    return _linear(w, "panoptic_head.cls_embed", normed), torch.einsum("bqd,bdhw->bqhw", y, mask_feature_BDHW)


def _attention(
    w: Weights, name: str, heads: int, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None = None
) -> Tensor:
    weights, biases = w[f"{name}.attn.in_proj_weight"].chunk(3), w[f"{name}.attn.in_proj_bias"].chunk(3)
    q, k, v = (
        F.linear(x, weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if hidden is not None:
        scores = scores.masked_fill(hidden[:, None], float("-inf"))
    return _linear(w, f"{name}.attn.out_proj", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
