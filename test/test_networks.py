"""The networks of systems B and D: sizes, shapes, formulas, and the patches that they can process."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from conftest import one_line_about
from pantherseg.errors import ModelError
from pantherseg.networks import AUXILIARY, build_network
from pantherseg.networks.attention_unet import AttentionUnet
from pantherseg.networks.blocks import AttentionGate, SpatialAndChannelExcitation, SqueezeExcitation
from pantherseg.networks.registry import Architecture
from pantherseg.networks.segformer3d import SegFormer3D
from pantherseg.networks.segformer3d_layers import MixedFeedForward, ReducedAttention, as_features, as_tokens

WHERE = Path("plans.json")
SMALL_B = AttentionUnet(base_features=4, depth=2, squeeze=4)
SMALL_D = SegFormer3D(embeddings=(8, 12, 20, 16), depths=(1, 1, 2, 1), decoder_features=8, squeeze=4)
small = pytest.mark.parametrize("settings", [SMALL_B, SMALL_D], ids=["attention_unet", "segformer3d"])


def parameters(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def built(settings: Architecture, classes: int = 3, *, trainable: bool = False) -> nn.Module:
    torch.manual_seed(0)
    build = settings.build_trainable if trainable else settings.build
    return build(WHERE, classes=classes).eval()


def on_meta(settings: Architecture, classes: int) -> nn.Module:
    with torch.device("meta"):
        return settings.build(WHERE, classes=classes)


def block_size(inputs: int, outputs: int, squeeze: int, *, halves: bool = False) -> int:
    """Return the parameters of a residual block: convolutions without bias, norms with scale and shift."""
    narrow = max(1, outputs // squeeze)
    main = 27 * inputs * outputs + 2 * outputs + 27 * outputs**2 + 2 * outputs
    shortcut = inputs * outputs + 2 * outputs if inputs != outputs or halves else 0
    return main + 2 * outputs * narrow + narrow + outputs + shortcut


@pytest.mark.parametrize(("settings", "classes"), [(AttentionUnet(), 2), (SMALL_B, 3)])
def test_the_attention_unet_has_the_parameters_of_its_formula(settings: AttentionUnet, classes: int) -> None:
    features = [settings.base_features * 2**level for level in range(settings.depth + 1)]
    total = block_size(1, features[0], settings.squeeze)
    for above, below in pairwise(features):
        total += block_size(above, below, settings.squeeze, halves=True)
        total += 8 * below * above + above  # the transposed convolution
        middle = above // 2
        total += above * middle + (below * middle + middle) + (middle + 1)  # the attention gate
        total += block_size(2 * above, above, settings.squeeze)
    total += features[0] * classes + classes
    assert parameters(on_meta(settings, classes)) == total
    if settings == AttentionUnet():
        assert total == 23_116_578


def stage_size(width: int, blocks: int, reduction: int, expansion: int) -> int:
    """Return the parameters of the blocks and the last norm of a stage, by equations 1 to 3 of SegFormer3D."""
    coarsen = width**2 * reduction**3 + width + 2 * width if reduction > 1 else 0
    attention = (width**2 + width) + 2 * (width**2 + width) + (width**2 + width) + coarsen
    hidden = expansion * width
    feed_forward = (width * hidden + hidden) + (27 * hidden + hidden) + (hidden * width + width)
    return blocks * (attention + feed_forward + 4 * width) + 2 * width


def stages_size(settings: SegFormer3D) -> int:
    each = zip(settings.embeddings, settings.depths, settings.reductions, strict=True)
    return sum(stage_size(*values, settings.expansion) for values in each)


def embeddings_size(inputs: tuple[int, ...], widths: tuple[int, ...]) -> int:
    """Return the parameters of the patch embeddings: a convolution of 3 voxels and a norm each."""
    return sum(27 * before * width + width + 2 * width for before, width in zip(inputs, widths, strict=True))


@pytest.mark.parametrize("settings", [SegFormer3D(), SMALL_D])
def test_the_segformer_has_the_parameters_of_its_formula(settings: SegFormer3D) -> None:
    classes, width, stem = 3, settings.decoder_features, settings.embeddings[0] // 2
    inputs = (stem, *settings.embeddings[:-1])
    last, rates = settings.embeddings[-1], len(settings.rates)
    total = (27 * stem + 2 * stem) + (27 * stem**2 + 2 * stem)
    total += stages_size(settings) + embeddings_size(inputs, settings.embeddings)
    total += (1 + 27 * rates) * last * width + (1 + rates) * 2 * width  # the branches of the ASPP
    total += last * width + width + (2 + rates) * width**2 + 2 * width  # its mean, and the convolution that joins all
    for skip in inputs:
        narrow = max(1, skip // settings.squeeze)
        total += 2 * skip * narrow + narrow + skip + (skip + 1)  # the scSE
        total += skip * width + width  # the lateral convolution
        middle = width // 2
        total += width * middle + (width * middle + middle) + (middle + 1)  # the attention gate
        total += 27 * width + width**2 + 2 * width  # the depthwise-separable smoothing
    total += width * classes + classes
    assert parameters(on_meta(settings, classes)) == total
    if settings == SegFormer3D():
        assert total == 7_086_476


def test_the_stages_with_the_papers_own_stem_and_decoder_have_the_papers_number_of_parameters() -> None:
    """The paper's table 1 says 4.5 million, for 4 channels and 3 classes and a decoder of 256 features."""
    settings, channels, classes, width = SegFormer3D(), 4, 3, 256
    network = on_meta(settings, classes)
    # The first embedding has 7 voxels in place of the stem and of an embedding of 3; the others are the same.
    stem = settings.embeddings[0] // 2
    first = 343 * channels * settings.embeddings[0] - 27 * stem * settings.embeddings[0]
    joined = 4 * width * width + 2 * width  # without bias, and a batch norm
    decoder = sum(each * width + width for each in settings.embeddings) + joined + width * classes + classes
    assert parameters(network.stages) + first + decoder == pytest.approx(4.5e6, rel=0.01)  # type: ignore[arg-type]


@small
def test_maps_patches_to_logits_and_to_more_only_in_training(settings: Architecture) -> None:
    patches = torch.rand(2, 1, 16, 32, 48)
    network = built(settings, trainable=True)
    with torch.no_grad():
        logits = network(patches)
        assert logits.shape == (2, 3, 16, 32, 48)
        full, *others = network.train()(patches)
    assert torch.equal(full, logits)  # no layer computes in another way in training
    halves = 2 if settings is SMALL_B else 4
    assert [tuple(other.shape) for other in others] == [(2, 3, *(side // halves for side in (16, 32, 48)))]


@small
def test_what_inference_needs_is_the_trained_network_without_its_auxiliary_heads(settings: Architecture) -> None:
    plain, trained = built(settings), built(settings, trainable=True)
    kept = {name: value for name, value in trained.state_dict().items() if not name.startswith(AUXILIARY)}
    assert {name: value.shape for name, value in kept.items()} == {
        name: value.shape for name, value in plain.state_dict().items()
    }
    plain.load_state_dict(kept)
    patch = torch.rand(1, 1, 16, 32, 48)
    with torch.no_grad():
        assert torch.equal(plain(patch), trained(patch))


@small
def test_every_weight_learns(settings: AttentionUnet | SegFormer3D) -> None:
    """Also those of excitations: the mean of a channel right after an instance norm would not depend on the input."""
    wider = msgspec.structs.replace(settings, squeeze=1)  # few units may all give 0 for this input
    torch.manual_seed(1)
    network = wider.build_trainable(WHERE, classes=3).train()
    sum(output.square().mean() for output in network(torch.rand(1, 1, 16, 32, 48))).backward()
    idle = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert idle == []


def test_a_unet_has_a_head_at_every_level_between_the_first_and_the_last() -> None:
    network = built(AttentionUnet(base_features=2, depth=3, squeeze=2), classes=2, trainable=True).train()
    shapes = [tuple(output.shape[2:]) for output in network(torch.rand(1, 1, 16, 16, 24))]
    assert shapes == [(16, 16, 24), (8, 8, 12), (4, 4, 6)]


def test_attention_without_reduction_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = ReducedAttention(12, 3, 1), nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.in_proj_weight.data = torch.cat([ours.query.weight, ours.key_value.weight]).detach()
    theirs.in_proj_bias.data = torch.cat([ours.query.bias, ours.key_value.bias]).detach()
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    tokens = torch.rand(2, 24, 12)
    expected, _ = theirs(tokens, tokens, tokens)
    torch.testing.assert_close(ours(tokens, (2, 3, 4)), expected)


def test_keys_come_from_coarser_features() -> None:
    attention = ReducedAttention(8, 2, 2)
    sizes: list[torch.Size] = []
    attention.key_value.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape))
    assert attention(torch.rand(1, 4 * 4 * 6, 8), (4, 4, 6)).shape == (1, 96, 8)
    assert sizes == [(1, 2 * 2 * 3, 8)]


def test_tokens_keep_the_places_of_voxels() -> None:
    features = torch.rand(2, 5, 2, 3, 4)
    tokens = as_tokens(features)
    assert torch.equal(tokens[1, 1 * 12 + 2 * 4 + 3], features[1, :, 1, 2, 3])
    assert torch.equal(as_features(tokens, (2, 3, 4)), features)


def test_a_feed_forward_layer_sees_the_neighbours_of_a_voxel() -> None:
    layer = MixedFeedForward(4, 8)
    first, second = torch.zeros(1, 27, 4), torch.zeros(1, 27, 4)
    second[0, 13] = 1  # the middle of 3 x 3 x 3 voxels
    changed = (layer(first, (3, 3, 3)) != layer(second, (3, 3, 3))).any(2)
    assert changed.all()


def test_an_attention_gate_weighs_the_skip_as_in_the_paper() -> None:
    torch.manual_seed(0)
    gate = AttentionGate(4, 6)
    skip, coarse = torch.rand(1, 4, 2, 4, 4), torch.rand(1, 6, 2, 4, 4)
    added = torch.einsum("mc,nczyx->nmzyx", gate.theta.weight[..., 0, 0, 0], skip)
    added += torch.einsum("mc,nczyx->nmzyx", gate.phi.weight[..., 0, 0, 0], coarse) + gate.phi.bias.view(1, -1, 1, 1, 1)
    weights = torch.sigmoid(
        torch.einsum("mc,nczyx->nmzyx", gate.psi.weight[..., 0, 0, 0], added.relu()) + gate.psi.bias
    )
    torch.testing.assert_close(gate(skip, coarse), weights * skip)
    assert gate(skip, coarse[:, :, ::2, ::2, ::2]).shape == skip.shape


def test_excitations_weigh_channels_and_voxels() -> None:
    torch.manual_seed(0)
    both, x = SpatialAndChannelExcitation(6, 2), torch.rand(2, 6, 2, 3, 4)
    channel: Any = both.channel
    assert isinstance(channel, SqueezeExcitation)
    weights = channel(x) / x
    assert torch.allclose(weights, weights[..., :1, :1, :1].expand_as(weights))
    assert ((weights > 0) & (weights < 1)).all()
    spatial = (both(x) - channel(x)) / x
    assert torch.allclose(spatial, spatial[:, :1].expand_as(spatial), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "patch"),
    [
        (AttentionUnet(), (96, 96, 96)),
        (AttentionUnet(), (16, 16, 32)),
        (SegFormer3D(), (32, 160, 208)),  # published; the last stage ends in half a block
        (SegFormer3D(reductions=(1, 1, 1, 1)), (16, 48, 16)),
    ],
)
def test_accepts_patches(settings: Architecture, patch: tuple[int, int, int]) -> None:
    settings.check_patch(patch)
    with torch.device("meta"), torch.no_grad():
        assert settings.build(WHERE, classes=2)(torch.empty(1, 1, *patch)).shape == (1, 2, *patch)


@pytest.mark.parametrize(
    ("settings", "patch", "message"),
    [
        (
            AttentionUnet(),
            (96, 96, 100),
            "the patch must be a multiple of 16 along each axis for this network, got 96, 96, 100",
        ),
        (AttentionUnet(depth=3), (4, 32, 32), "the patch must be a multiple of 8"),
        (AttentionUnet(), (16, 16, 16), "the patch must be more than 16 along an axis"),
        (SegFormer3D(), (32, 160, 200), "the patch must be a multiple of 16"),
        (SegFormer3D(reductions=(4, 2, 1, 2)), (32, 160, 208), "the patch must be a multiple of 64"),
        (SegFormer3D(), (32, 32, 32), "the patch must be more than 32 along an axis"),
    ],
)
def test_refuses_patches(settings: Architecture, patch: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings.check_patch(patch)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"family": "attention_unet", "base_features": 0}, "Expected `int` >= 1 - at `$.base_features`"),
        ({"family": "attention_unet", "width": 8}, "unknown key 'width', expected one of family, base_features, "),
        ({"family": "segformer3d", "embeddings": [32, 64, 160]}, "Expected `array` of length 4, got 3"),
        ({"family": "segformer3d", "heads": [3, 2, 5, 8]}, "embeddings must be multiples of heads"),
        ({"family": "segformer3d", "rates": []}, "Expected `array` of length >= 1"),
        ({"family": "segformer"}, "Unknown network family 'segformer', expected one of "),
    ],
)
def test_refuses_settings_of_which_no_network_can_be_built(architecture: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_network(WHERE, architecture, classes=2)
    assert message in one_line_about(WHERE, caught.value)


def test_a_head_for_every_class() -> None:
    for settings in (SMALL_B, SMALL_D):
        assert math.prod(built(settings, classes=5)(torch.rand(1, 1, 16, 16, 48)).shape) == 5 * 16 * 16 * 48
