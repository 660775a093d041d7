"""What to do about an operation that can't be compiled."""

from __future__ import annotations

import re

# Advice by a pattern that occurs in the name of the operation; the first that matches is given.
_ADVICE: tuple[tuple[str, str], ...] = (
    ("^torchscript", "Call the Python function, without torch.jit.script"),
    ("maxpool|max_pool", "Use MaxPool2d, with a kernel (1, k) for sequences"),
    (
        "instance_?norm|layer_?norm|group_?norm|rms_?norm|local_?response",
        "Use BatchNorm2d or BatchNorm1d, whose statistics are constants in evaluation",
    ),
    ("batch_?norm", "Use BatchNorm1d or BatchNorm2d"),
    ("softmax|softmin", "End the model in it, so that the client computes it, or apply it to the decrypted outputs"),
    ("attention|transformer", "Attention divides and exponentiates encrypted data; use a convolutional model"),
    ("embedding|one_hot", "Look embeddings up before encryption and give the model their values"),
    ("^cat$|concat|stack", "Use sums (residual connections), or convolutions that are added up"),
    ("conv_?transpose|upsample|interpolate|pixel_?shuffle", "Upsample before encryption, or use Conv2d only"),
    ("conv1d|conv3d", "Use Conv2d, with a kernel (1, k) for sequences"),
    ("lstm|gru|rnn", "Recurrent layers are too deep for one ciphertext; use convolutions"),
    ("max|min|topk|sort|argmax|argmin|median", "Comparisons are not polynomial; take it on the decrypted outputs"),
    (
        "^(gt|lt|ge|le|eq|ne|where|sign|heaviside|isnan)$",
        "Comparisons are not polynomial; use ReLU or another smooth activation",
    ),
    ("matmul|bmm|einsum|^mm$|addmm|baddbmm", "Use Linear or Conv2d with constant weights, or elementwise products"),
    ("transpose|permute|movedim|swapaxes|^t$|^mt$", "Keep the order of the axes; permute weights instead"),
    ("avg_?pool1d|avg_?pool3d|lp_?pool", "Use AvgPool2d"),
    ("reflect|replicat|circular", "Pad with zeros"),
    (
        "abs|exp|log|sqrt|norm|div|reciprocal|std|var",
        "Only polynomials can be computed on encrypted data; compute it after decryption, use a supported activation, "
        "or name the elementwise module or function that it is a part of in activations=",
    ),
    ("rand|bernoulli|dropout", "Remove randomness from the forward pass"),
    ("copy_|fill_|zero_|index|scatter|gather", "Use operations that make new tensors, with constant slices"),
)
GENERIC_ADVICE = (
    "Express it by convolutions, linear layers, average pooling, sums, products and supported activations, or register "
    "a lifting for it"
)


def advice_for(name: str) -> str:
    return next((text for pattern, text in _ADVICE if re.search(pattern, name.lower())), GENERIC_ADVICE)
