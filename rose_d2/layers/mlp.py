"""The two-layer projector used by every patch head."""

from torch import Tensor, nn


class MLP(nn.Module):
    """Two linear layers with a ReLU between them, the projector of the paper's section 4.1."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int) -> None:
        """
        Args:
            input_dim: size of the last axis of the input.
            hidden_dim: width between the two layers (3584 in the paper).
            output_dim: size of the last axis of the output.
        """
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(input_dim, hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, output_dim),
        )

    def forward(self, features: Tensor) -> Tensor:
        """
        Args:
            features: (..., input_dim).

        Returns:
            (..., output_dim), unbounded.
        """
        return self.layers(features)
