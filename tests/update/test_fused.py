"""Hand-written gradients against autograd through PyTorch's own operators."""

import pytest
import torch
import torch.nn.functional as F

from engrain.update import fused


def _both(ours, theirs, *inputs):
    """Values and gradients of two functions of the same inputs."""
    found = []
    for function in (ours, theirs):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(*leaves)
        torch.manual_seed(1)
        dy = torch.randn_like(out)
        given = dy.clone()
        found.append([out.detach(), *torch.autograd.grad(out, leaves, dy)])
        assert torch.equal(dy, given) and all(map(torch.equal, leaves, inputs)), "changed in place"
    return zip(*found, strict=True)


def test_rms_norm():
    torch.manual_seed(0)
    weight = torch.rand(48)
    pairs = _both(
        lambda x: fused.rms_norm(x, weight, 1e-5), lambda x: F.rms_norm(x, (48,), weight, 1e-5), torch.randn(7, 48)
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_gated_silu():
    torch.manual_seed(0)

    def theirs(both):
        gate, up = both.chunk(2, -1)
        return F.silu(gate) * up

    for ours, expected in _both(fused.gated_silu, theirs, torch.randn(7, 48)):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("first", [0, 4])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_softmax_attention(first, softcap):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 10, 16), torch.randn(3, 2, 6, 16), torch.randn(3, 2, 6, 16)
    first_k, first_v = torch.randn(3, first, 16), torch.randn(3, first, 16)
    mask = torch.zeros(10, first + 6).masked_fill_(torch.rand(10, first + 6) < 0.4, -torch.inf)
    mask[:, 0] = 0

    def theirs(q, k, v, first_k, first_v):
        keys, values = (torch.cat((a[:, None].expand(-1, 2, -1, -1), b), 2) for a, b in ((first_k, k), (first_v, v)))
        if not softcap:
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=0.3)
        scores = softcap * torch.tanh(q @ keys.transpose(-1, -2) * 0.3 / softcap)
        return (scores + mask).softmax(-1) @ values

    pairs = _both(
        lambda q, k, v, *both: fused.softmax_attention(q, k, v, both, mask, 0.3, softcap),
        theirs,
        *(q, k, v, first_k, first_v),
    )
    for ours, expected in pairs:
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adjacent", [True, False])
@pytest.mark.parametrize("turned", [8, 6])
def test_rotate_multiplies_complex_numbers(adjacent, turned):
    torch.manual_seed(0)
    angle = torch.rand(5, 1, turned // 2)

    def theirs(x):
        head = x[..., :turned]
        pairs = head.unflatten(-1, (-1, 2)) if adjacent else head.unflatten(-1, (2, -1)).transpose(-1, -2)
        product = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angle), angle)
        parts = torch.view_as_real(product)
        parts = parts if adjacent else parts.transpose(-1, -2)
        return torch.cat((parts.flatten(-2), x[..., turned:]), -1)

    pairs = _both(lambda x: fused.rotate(x, angle.cos(), angle.sin(), adjacent), theirs, torch.randn(5, 3, 8))
    for ours, them in pairs:
        torch.testing.assert_close(ours, them, rtol=1e-5, atol=1e-6)
