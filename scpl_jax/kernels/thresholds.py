r"""Sizes from which on one form of a computation is faster than another, by class of processor.

They were measured; another kind of processor may need a row of its own. These are the commands. Each compares the forms
or times a step in which a size counts; experiments/single/README.md has the machines and the numbers::

  convolutions  python -m scpl_jax.benchmarks.convolutions --repeats 5
                python -m scpl_jax.benchmarks.convolutions --repeats 9 \
                    --shapes "32,3,32 32,16,16 16,32,32 8,64,64 4,128,128"
                (with ONEDNN_MAX_CPU_ISA=AVX2 before the second, for processors without AVX-512)
  small calls   python -m scpl_jax.benchmarks.throughput --single --stages 4 --cut paper --no-memory --repeats 7 \
                    --method "scpl,scpl separate,bp" --model vgg8 --width 0.03 --image-size 16 --batch-size 8 --steps 40
  LSTM          python -m scpl_jax.benchmarks.throughput --single --stages 4 --cut paper --no-memory --repeats 7 \
                    --method "scpl,scpl separate,bp" --model lstm --width 0.25 --embedding-size 75 --length 60 \
                    --batch-size 64 --steps 8
  contrastive   python -m scpl_jax.benchmarks.contrastive
  updates       the program under "Updates"

A size that names none of them has no recorded command.
"""

import dataclasses
import math

from scpl_jax.kernels import onednn

_NEVER = math.inf


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """The sizes for one class of processor, by default with AVX-512; in brackets the name of the command.

    That of the first ones, up to ``winograd_bytes``, is [convolutions], for the last of them with --chunks.

    Attributes:
      patches_pixels: the least output pixels of an image for which products over copies give a kernel's gradient faster
        than XLA does.
      shifts_pixels: the same of products over shifted copies by oneDNN.
      convolved_pixels: the same of oneDNN's convolution.
      shifted_channels: the least channels for copies of shifted cotangents; with fewer they cost more than they save.
      convolved_channels: the least channels, both in and out, with which oneDNN's convolution is as fast as its
        products over shifted copies, or faster.
      few_into: with too few channels in for shifts, the most channels out with which oneDNN's convolution is faster
        than products over patches.
      winograd_channels: the least channels for Winograd's form; with fewer its transforms cost more than they save.
      winograd_kernel_work: the least pixels times channels in times channels out for its kernel gradient.
      winograd_kernel_work_onednn: the same where oneDNN computes convolutions.
      winograd_work: the least channels times pixels for its forward pass and image gradient instead of XLA's.
      winograd_always: the least channels in times channels out for all of its passes, also instead of oneDNN's.
      winograd_bytes: of transformed images and products at a time: few enough to stay in the cache, enough to keep all
        cores busy.
      copied_bytes: of copies at a time in kernel gradients; a quarter or four times as much is slower.
      convolved_bytes: of cotangents that are convolved with at a time; oneDNN copies them into another order first.
      onednn_convolution: the least operations for which a call of oneDNN takes less time than it saves [small calls].
      onednn_few_channels: with fewer channels XLA's convolution is so slow that every call pays [small calls].
      onednn_product: the least operations of a product [small calls].
      xla_outputs: over more outputs XLA's gradient of a layer's kernel is faster than oneDNN's.
      lstm_rows: the least rows a step with which one product of inputs and states is as fast as two [LSTM].
      pooled_bytes: of the gradient of inputs of a normalised max pool at a time.
      contrastive_rows: the least rows whose matrix of similarities is computed in blocks [contrastive].
      contrastive_elements: of a block, 32 MiB in float32; smaller ones cost time for starting them, larger ones leave
        the caches [contrastive].
      contrastive_columns: of a block, at least.
      update_parameters: the least parameters for which a program of its own for the update saves more than it costs
        [updates].
    """

    patches_pixels: float = 256
    shifts_pixels: float = 64
    convolved_pixels: float = 16
    shifted_channels: int = 8
    convolved_channels: int = 16
    few_into: int = 32
    winograd_channels: int = 32
    winograd_kernel_work: float = 1 << 19
    winograd_kernel_work_onednn: float = _NEVER
    winograd_work: int = 1 << 14
    winograd_always: int = 1 << 15
    winograd_bytes: int = 24 << 20
    copied_bytes: int = 8 << 20
    convolved_bytes: int = 32 << 20
    onednn_convolution: int = 1 << 23
    onednn_few_channels: int = 8
    onednn_product: int = 1 << 22
    xla_outputs: int = 512
    lstm_rows: int = 256
    pooled_bytes: int = 16 << 20
    contrastive_rows: int = 4096
    contrastive_elements: int = 1 << 23
    contrastive_columns: int = 64
    update_parameters: int = 1 << 19


# Class of processor -> its sizes. Without AVX-512 oneDNN's convolution is the faster kernel gradient in half of the
# shapes only, so it is used in none; nothing else was measured there.
TABLE = {
    "AVX-512": Thresholds(),
    "other": Thresholds(convolved_pixels=_NEVER, winograd_kernel_work_onednn=Thresholds.winograd_kernel_work),
}


def here() -> Thresholds:
    """The row of :data:`TABLE` for this processor, as oneDNN sees it.

    Example:
      >>> here().patches_pixels
      256
    """
    return TABLE["AVX-512" if onednn.has_avx512() else "other"]
