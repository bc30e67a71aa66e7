"""Networks as ordered lists of blocks, the last of which is the classifier, and the layers they are made of.

The arithmetic below layers is in :mod:`scpl_jax.kernels`. No loss, no device, no data.
"""

from scpl_jax.kernels.onednn import LIBRARIES as LIBRARIES
from scpl_jax.models.cnn import cnn as cnn
from scpl_jax.models.layers import INITIALISERS as INITIALISERS
from scpl_jax.models.layers import LayerOptions as LayerOptions
from scpl_jax.models.lstm import lstm as lstm
from scpl_jax.models.named import MODELS as MODELS
from scpl_jax.models.named import build_model as build_model
from scpl_jax.models.named import paper_cut as paper_cut
from scpl_jax.models.resnet import resnet18 as resnet18
from scpl_jax.models.resnet import resnet34 as resnet34
from scpl_jax.models.resnet import resnet50 as resnet50
from scpl_jax.models.resnet import resnet101 as resnet101
from scpl_jax.models.resnet import resnet152 as resnet152
from scpl_jax.models.sequence import TextMessage as TextMessage
from scpl_jax.models.transformer import transformer as transformer
from scpl_jax.models.vgg import vgg as vgg
from scpl_jax.models.vgg import vgg8 as vgg8
