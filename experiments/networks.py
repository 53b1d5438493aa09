"""Networks of the experiments by a short description, so that a file of weights can say what they belong to."""

from itertools import pairwise

from torch import nn

from indexer.recipes.cifar10 import ResNet9
from indexer.recipes.image_recipe import bias_free_mlp
from indexer.training import TrainingSettings, seeded

#: How the paper trains ResNet-9 on CIFAR-10.
RESNET9_TRAINING = TrainingSettings(
    epochs=24, batch_size=512, peak_rate=0.5, weight_decay=5e-4, peak_epoch=5.0, augment="crop-flip"
)


def initial_network(description: str, seed: int) -> nn.Module:
    """Return a network with random weights.

    Args:
        description: ``mlp 784 512 256 10``: ReLU layers of these widths without biases, on flat inputs; ``cnn 1 16 32
            64 10``: input channels, channels of three stages of convolution, ReLU and pooling, classes; ``resnet9``.
        seed: Seed of the weights.

    Returns:
        The network in eval mode.

    Raises:
        ValueError: If the description is none of these.
    """
    kind, *numbers = description.split()
    sizes = [int(number) for number in numbers]
    with seeded(seed):
        if kind == "mlp" and len(sizes) >= 2:
            return bias_free_mlp(sizes).eval()
        if kind == "cnn" and len(sizes) >= 3:
            return small_convolutional(sizes).eval()
        if description == "resnet9":
            return ResNet9().eval()
    raise ValueError(f"network {description!r}; allowed are 'mlp WIDTH…', 'cnn CHANNELS… CLASSES' and 'resnet9'")


def small_convolutional(sizes: list[int]) -> nn.Sequential:
    """Return 3 × 3 convolutions with ReLU, each halving the image, the largest of what is left, and a linear layer.

    No biases, no normalisation: every example's gradient is its own. NTK scales take Kaiming's gain √2 of every layer;
    the last one, which no ReLU follows, is initialised with gain 1, so that its scale is √2 of its own deviation.

    Args:
        sizes: Input channels, channels of each stage, classes.
    """
    *channels, classes = sizes
    modules: list[nn.Module] = []
    for before, after in pairwise(channels):
        convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        modules += [convolution, nn.ReLU(), nn.MaxPool2d(2)]
    linear = nn.Linear(channels[-1], classes, bias=False)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="linear")
    return nn.Sequential(*modules, nn.AdaptiveMaxPool2d(1), nn.Flatten(1), linear)


def is_flat(description: str) -> bool:
    """Say whether a network reads flat vectors instead of images."""
    return description.startswith("mlp ")
