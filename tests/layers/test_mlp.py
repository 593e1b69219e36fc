import torch

from rose_d2.modeling.patch_analyzer import MLP


def test_mlp_is_linear_relu_linear():
    mlp = MLP(2, 3, 1)
    first, _, last = mlp.layers
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        first.bias.zero_()
        last.weight.copy_(torch.tensor([[1.0, 2.0, 4.0]]))
        last.bias.fill_(0.5)
    out = mlp(torch.tensor([[[1.0, 3.0], [-1.0, -2.0]]]))
    torch.testing.assert_close(out, torch.tensor([[[7.5], [12.5]]]))
