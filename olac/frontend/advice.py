"""What to do about an operation that can't be compiled."""

from __future__ import annotations

import re

# Advice by a pattern that occurs in the name of the operation; the first that matches is given.
_ADVICE: tuple[tuple[str, str], ...] = (
    ("^torchscript", "Call the Python function, without torch.jit.script"),
    ("fractional|max_?unpool", "Use MaxPool2d"),
    ("local_?response", "Use BatchNorm2d, GroupNorm or LayerNorm"),
    ("softmax2d|softmin|softmax", "Give the axis, e.g. dim=1"),
    ("decoder|^transformer$|nn.transformer", "Use TransformerEncoderLayer, MultiheadAttention and Linear"),
    ("embedding|one_hot", "Look embeddings up before encryption, or give one-hot columns and multiply by the table"),
    ("conv_?transpose3d", "Use ConvTranspose2d, or Upsample and Conv3d"),
    ("topk|sort|argsort|median|mode|kthvalue|unique|argmax|argmin", "Take it on the decrypted outputs"),
    ("cummax|cummin|cumprod|logcumsumexp", "Take it on the decrypted outputs, or write it out for a few elements"),
    ("^(eq|ne|isnan|isinf|isclose)$", "Compare the size of the difference with a threshold"),
    ("floor|ceil|round|trunc|frac|fmod|remainder", "Leave rounding out: its steps are not polynomial"),
    ("lp_?pool", "Use AvgPool2d"),
    (
        "^(arc)?tan|asin|acos|atan2|sinh|cosh|lgamma|digamma|erfinv|bessel|i0|i1",
        "Name it in activations=, as it is a function of each element",
    ),
    ("rand|bernoulli|dropout|multinomial|normal_", "Remove randomness from the forward pass"),
    ("copy_|fill_|zero_|index_|scatter|gather|put", "Use operations that make new tensors, with constant indices"),
    ("fft|stft", "Multiply by the constant matrix of the transform"),
)
GENERIC_ADVICE = (
    "Express it by layers, products, sums, moves of axes and activations that are supported, name it in activations= "
    "if it is a function of each element, or register a lifting for it"
)


def advice_for(name: str) -> str:
    return next((text for pattern, text in _ADVICE if re.search(pattern, name.lower())), GENERIC_ADVICE)
