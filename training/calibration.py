"""The scales with which activations become bytes: found on texts, fixed for good.

SmoothQuant: a few channels of a transformer's activations are a hundred times larger than the others, and one scale for
all would round the others away. So each channel is divided by a smoothing factor, and the weights that read it are
multiplied by it: smoothing = (largest activation)^α / (largest weight)^(1-α). How much of it is good differs from layer
to layer, and so does whether the very largest values are worth their room: both are chosen for each matrix product by
what it then gives for tokens of the calibration texts.

all-MiniLM-L6-v2, 600 sentences, mean cosine to float32: without smoothing 0.989; the same α everywhere 0.983 (0.5),
0.995 (0.7), 0.994 (0.9).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from service.recipe.tokens import TokenBatch
from training.fused_graph import WEIGHT_MAX, InputScale
from training.graph_weights import Encoder, Floats
from training.quantize import quantize_symmetric

BYTE_MAX = 255
ALPHAS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)
CUTS = (1.0, 0.9, 0.8, 0.65, 0.5)
# A channel that is always zero, or that nothing reads, is left as it is; no factor outside of this range is any use.
SMOOTHING_MIN, SMOOTHING_MAX = 1e-3, 1e3
# Tokens and output channels with which a choice is tried. More of them choose the same.
SAMPLE_TOKENS = 256
SAMPLE_CHANNELS = 384

Activations = Callable[[TokenBatch], Mapping[str, Floats]]


@dataclass(frozen=True)
class Seen:
    """What one activation of N channels was seen to hold.   least, most: [N].   sample: [S, N], some of the tokens."""

    least: Floats
    most: Floats
    sample: Floats


def observe(activations: Activations, batches: list[TokenBatch]) -> dict[str, Seen]:
    """The range of each channel over all real tokens of the batches; padding is nobody's text."""
    seen: dict[str, list[Seen]] = {}
    chance = np.random.default_rng(0)
    for batch in batches:
        real = batch.mask.astype(bool)
        share = -(-SAMPLE_TOKENS // len(batches))
        chosen = chance.permutation(int(real.sum()))[:share]
        for name, values in activations(batch).items():
            tokens = values[real]
            seen.setdefault(name, []).append(Seen(tokens.min(axis=0), tokens.max(axis=0), tokens[chosen]))
    return {name: _joined(parts) for name, parts in seen.items()}


def _joined(parts: list[Seen]) -> Seen:
    return Seen(
        np.min([part.least for part in parts], axis=0),
        np.max([part.most for part in parts], axis=0),
        np.concatenate([part.sample for part in parts]),
    )


def input_scales(encoder: Encoder, seen: Mapping[str, Seen]) -> dict[str, InputScale]:
    """For each activation the scale with which its matrix product comes closest to that of float32."""
    return {name: _best(seen[name], weight) for name, weight in _reading_weights(encoder)}


def _best(seen: Seen, weight: Floats) -> InputScale:
    largest_weight = np.abs(weight).max(axis=1)
    columns = weight[:, :: -(-weight.shape[1] // SAMPLE_CHANNELS)]
    wanted = seen.sample @ columns
    tried: list[tuple[float, InputScale]] = []
    for alpha in ALPHAS:
        smoothing = _smoothing(np.maximum(-seen.least, seen.most), largest_weight, alpha)
        rounded, scales = quantize_symmetric(columns * smoothing[:, None], axis=0, largest_byte=WEIGHT_MAX)
        for cut in CUTS:
            found = _input_scale(seen, smoothing, cut)
            error = np.square(_as_bytes(seen.sample, found) @ (rounded * scales) - wanted).mean()
            tried.append((float(error), found))
    return min(tried, key=lambda item: item[0])[1]


def _smoothing(largest: Floats, largest_weight: Floats, alpha: float) -> Floats:
    smoothing = np.ones_like(largest)
    used = (largest > 0) & (largest_weight > 0)
    if alpha == 0 or not used.any():
        return smoothing
    factors = largest[used] ** alpha / largest_weight[used] ** (1 - alpha)
    smoothing[used] = factors / np.exp(np.log(factors).mean())
    return smoothing.clip(SMOOTHING_MIN, SMOOTHING_MAX).astype(np.float32)


def _input_scale(seen: Seen, smoothing: Floats, cut: float) -> InputScale:
    # Zero has to be a byte of its own.
    least = min(float((seen.least / smoothing).min()), 0.0) * cut
    most = max(float((seen.most / smoothing).max()), 0.0) * cut
    scale = (most - least) / BYTE_MAX or 1.0
    return InputScale(smoothing, scale, round(-least / scale))


def _as_bytes(values: Floats, chosen: InputScale) -> Floats:
    """What is left of the values, smoothed, after rounding."""
    rounded = np.rint(values / chosen.smoothing / chosen.scale) + chosen.zero
    return (rounded.clip(0, BYTE_MAX) - chosen.zero) * np.float32(chosen.scale)


def _reading_weights(encoder: Encoder) -> Iterable[tuple[str, Floats]]:
    """Each activation, and all the weights that read it: [N, M]."""
    for number, layer in enumerate(encoder.layers):
        first = [layer.query.weight, layer.key.weight, layer.value.weight]
        yield f"layer.{number}.attention_in", np.concatenate(first, axis=1)
        yield f"layer.{number}.attended_in", layer.attended.weight
        yield f"layer.{number}.inner_in", layer.inner.weight
        yield f"layer.{number}.outer_in", layer.outer.weight
