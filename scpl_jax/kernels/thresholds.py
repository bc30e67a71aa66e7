"""Sizes from which on one form of a computation is faster than another, by class of processor.

They were measured; another kind of processor may need a row of its own. Their commands, each of which compares the
forms or times a step in which they count, with machines and numbers in experiments/single/README.md, are these::

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

What is named under none of them has no recorded command.
"""

import dataclasses
import math

from scpl_jax.kernels import onednn


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """The sizes for one class of processor; the names of the commands are those above.

    Attributes:
      patches_pixels: convolutions: below this many output pixels an image XLA's own kernel gradient is as fast as
        matrix products over copies,
      shifts_pixels: below this as those over shifted copies by oneDNN,
      convolved_pixels: below this as oneDNN's convolution.
      shifted_channels: convolutions: with fewer channels the copies of shifted cotangents cost more than they save.
      convolved_channels: convolutions: from so many channels in and out on, oneDNN's convolution is as fast as its
        products over shifted copies or faster.
      few_into: convolutions: where there are too few channels in for shifts, oneDNN's convolution is faster than
        products over patches up to so many channels out.
      winograd_channels: convolutions: with fewer channels the transforms of Winograd's form cost more than they save in
        any case.
      winograd_kernel_work: convolutions: its kernel gradient pays from so many pixels times channels in times channels
        out on,
      winograd_kernel_work_onednn: where oneDNN computes convolutions, from so many.
      winograd_work: convolutions: forward and to the images it pays, instead of XLA's convolution, from so many
        channels times pixels on.
      winograd_always: convolutions: from so many channels in times channels out on it pays in all passes, and instead
        of oneDNN's convolution too.
      winograd_bytes: convolutions, ``--chunks``: of transformed images and products at a time, few enough to stay in
        the cache, enough to keep all cores busy.
      copied_bytes: of copies at a time in kernel gradients; a quarter or four times as much is slower.
      convolved_bytes: of cotangents that are convolved with at a time; oneDNN copies them into another order first.
      onednn_convolution: small calls: with fewer operations a call of oneDNN takes longer than it saves,
      onednn_few_channels: but over fewer channels XLA's own convolution is so slow that it pays nevertheless.
      onednn_product: small calls: the operations of a product.
      xla_outputs: over more outputs XLA's gradient of a layer's kernel is faster than oneDNN's.
      lstm_rows: LSTM: from so many rows a step on, one product of inputs and states is as fast.
      pooled_bytes: of the gradient of inputs of a normalised max pool at a time.
      contrastive_rows: contrastive: from so many rows on the matrix of similarities is computed in blocks.
      contrastive_elements: contrastive: of a block, 32 MiB in float32; smaller ones cost time for starting them, larger
        ones leave the caches.
      contrastive_columns: of a block, at least.
      update_parameters: updates: from so many parameters on a program of its own for the update saves more than it
        costs.
    """

    patches_pixels: float
    shifts_pixels: float
    convolved_pixels: float
    shifted_channels: int
    convolved_channels: int
    few_into: int
    winograd_channels: int
    winograd_kernel_work: float
    winograd_kernel_work_onednn: float
    winograd_work: int
    winograd_always: int
    winograd_bytes: int
    copied_bytes: int
    convolved_bytes: int
    onednn_convolution: int
    onednn_few_channels: int
    onednn_product: int
    xla_outputs: int
    lstm_rows: int
    pooled_bytes: int
    contrastive_rows: int
    contrastive_elements: int
    contrastive_columns: int
    update_parameters: int


_NEVER = math.inf
_AVX512 = Thresholds(
    patches_pixels=256,
    shifts_pixels=64,
    convolved_pixels=16,
    shifted_channels=8,
    convolved_channels=16,
    few_into=32,
    winograd_channels=32,
    winograd_kernel_work=1 << 19,
    winograd_kernel_work_onednn=_NEVER,
    winograd_work=1 << 14,
    winograd_always=1 << 15,
    winograd_bytes=24 << 20,
    copied_bytes=8 << 20,
    convolved_bytes=32 << 20,
    onednn_convolution=1 << 23,
    onednn_few_channels=8,
    onednn_product=1 << 22,
    xla_outputs=512,
    lstm_rows=256,
    pooled_bytes=16 << 20,
    contrastive_rows=4096,
    contrastive_elements=1 << 23,
    contrastive_columns=64,
    update_parameters=1 << 19,
)
# Class of processor -> its sizes. Without AVX-512 oneDNN's convolution is the faster kernel gradient in half of the
# shapes only, so it is used in none; nothing else was measured there.
TABLE = {
    "AVX-512": _AVX512,
    "other": dataclasses.replace(
        _AVX512, convolved_pixels=_NEVER, winograd_kernel_work_onednn=_AVX512.winograd_kernel_work
    ),
}


def here() -> Thresholds:
    """The row of :data:`TABLE` for this processor, as oneDNN sees it.

    Example:
      >>> here().patches_pixels
      256
    """
    return TABLE["AVX-512" if onednn.has_avx512() else "other"]
