"""The options of image classification."""

import dataclasses
from pathlib import Path

from scpl_jax.cli.run_options import RunOptions


@dataclasses.dataclass
class Options(RunOptions):
    """Train an image classifier in stages with local supervised-contrastive losses.

    Without --dataset, CIFAR-10 is used if it is at hand, otherwise scikit-learn's digits, which need no download.
    """

    dataset: str = "auto"
    """auto, cifar10, cifar100, tiny-imagenet, fashion-mnist, digits, imagefolder, npz or synthetic."""
    image_size: int | None = None
    """Resize images to this side, in pixels. Default: as they come (tiny-imagenet: 32)."""
    model: str = "vgg8"
    """vgg8, resnet18, resnet34, resnet50, resnet101, resnet152 or cnn."""
    width: float | None = None
    """Multiplier of the numbers of channels and hidden units. Default: 1.0; for the digits 0.125."""
    shortcut: str = "1x1"
    """ResNets: kernel of the shortcut convolutions, 1x1 or 3x3 (the reference's ResNet-18)."""
    head_pool: int = 2
    """Average a feature map to this side before the head, in pixels; 0: not at all, as in the paper."""
    epochs: int | None = None
    """Number of epochs. Default: 200; for the digits 20."""
    batch_size: int | None = None
    """Source images a batch; strong augmentation trains on twice as many views. Default: 1024; for the digits 128."""
    augment: str | None = None
    """none, basic (crop, flip) or strong (two views, one with colour jitter). Default: strong; for the digits none."""
    limit_train: int | None = None
    """Train on the first N images only."""
    limit_test: int | None = None
    """Test on the first N images only."""
    out_dir: Path | None = None
    """Run directory. Default: runs/cifar/DATE-TIME."""

    def choices(self) -> dict[str, tuple[str, ...]]:
        """Kinds of shortcuts."""
        return {"shortcut": ("1x1", "3x3")}

    def least(self) -> dict[str, int]:
        """Sides of images."""
        return {"image_size": 1, "head_pool": 0}
