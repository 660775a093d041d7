# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # An activation of your own
#
# The network has a Bessel function for an activation, which olac does not know. docs/tutorials/own-activation.md
# explains each step.

# %%
import numpy as np
import torch
from torch import nn

import olac


class Ripple(nn.Module):
    """A Bessel function: a ripple that fades."""

    def forward(self, x):
        return torch.special.bessel_j0(2 * x)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 12), Ripple(), nn.Linear(12, 3)).eval()
inputs = torch.randn(512, 6)
for problem in olac.check(model, inputs[:4]):
    print(problem)

# %% [markdown]
# The activation is named in `activations=`. None means: what the module computes. Higher degrees are closer to it and
# take more levels.

# %%
with torch.no_grad():
    expected = model(inputs).numpy()
for degree in (3, 7, 11):
    tried = olac.approximate(model, inputs.split(64), activations={Ripple: None}, degree=degree)
    print(f"degree {degree}: largest error {np.abs(tried.simulate(inputs.numpy()) - expected).max():.4f}")

# %%
program = olac.compile(model, inputs.split(64), activations={Ripple: None}, degree=11)
client = olac.Client(program)
server = olac.Server(program, client.generate_keys())
outputs = client.decrypt(server.run(client.encrypt(inputs[:4].numpy())))
error = np.abs(outputs - expected[:4]).max()
print(f"encrypted: largest error {error:.4f}")
assert error < 0.01
