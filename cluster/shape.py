"""A model's shape from one dial."""

from dataclasses import dataclass

from cluster.recipe import Model, head_size


@dataclass(frozen=True)
class Shape:
    """The numbers that make a Llama."""

    hidden: int
    layers: int
    heads: int
    intermediate: int

    def parameters(self, vocabulary: int) -> int:
        """With tied embeddings: V·h + L·(4h² + 3·h·i + 2h) + h."""
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return vocabulary * self.hidden + self.layers * layer + self.hidden


def shape_of(model: Model) -> Shape:
    """The shape nearest in parameters to `model.size`; fields the recipe sets are kept.

    Rules: width over depth between 40 and 128, as in GPT-2 to Llama (Kaplan et al. 2020 find loss flat there), hidden a
    multiple of 64, head size 32 below 512 and 64 above, SwiGLU of 8/3 the width rounded up to 64.
    """
    widths = [model.hidden] if model.hidden else list(range(64, 16385, 64))
    depths = [model.layers] if model.layers else list(range(2, 129))
    free = not (model.hidden or model.layers)
    shapes = [_shape(h, n, model.heads) for h in widths for n in depths if not free or 40 <= h / n <= 128]
    return min(shapes, key=lambda shape: abs(shape.parameters(model.vocabulary) - model.parameters))


def _shape(hidden: int, layers: int, heads: int | None) -> Shape:
    return Shape(hidden, layers, heads or hidden // head_size(hidden), -(-hidden * 8 // 3 // 64) * 64)
