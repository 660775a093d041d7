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
# # Digits: a convolutional network on encrypted pictures
#
# A small network is trained on scikit-learn's pictures of digits, compiled, and run on encrypted pictures. Client and
# server live in this process. docs/tutorials/digits.md explains each step.

# %%
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import olac

torch.manual_seed(0)
digits = load_digits()
order = torch.randperm(len(digits.images))
images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)[order]
labels = torch.tensor(digits.target)[order]
train_images, train_labels, test_images, test_labels = images[:1437], labels[:1437], images[1437:], labels[1437:]

# %% [markdown]
# ## Train, as usual and in the clear

# %%
model = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.AvgPool2d(2),
    nn.Flatten(),
    nn.Linear(128, 32),
    nn.ReLU(),
    nn.Linear(32, 10),
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(15):
    for batch in torch.randperm(len(train_images)).split(64):
        loss = nn.functional.cross_entropy(model(train_images[batch]), train_labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
model.eval()
with torch.no_grad():
    expected = model(test_images).numpy()
print(f"network: {np.mean(expected.argmax(1) == test_labels.numpy()):.1%} of {len(test_images)} pictures are right")

# %% [markdown]
# ## Compile
#
# Calibration takes pictures without labels. `simulate` computes what the program gives, without encryption.

# %%
program = olac.compile(model, train_images.split(64))
simulated = program.simulate(test_images.numpy())
print(f"program: {np.mean(simulated.argmax(1) == test_labels.numpy()):.1%} are right")
estimate = program.estimate()
print(f"predicted: {estimate.seconds_per_image:.2f} s a picture, {estimate.server_gb:.2f} GB for the server")

# %% [markdown]
# ## Encrypt, run, decrypt

# %%
count = 10
client = olac.Client(program)
server = olac.Server(program, client.generate_keys())  # evaluation keys only
encrypted = client.encrypt(test_images[:count].numpy())
outputs = client.decrypt(server.run(encrypted))

print("shown:    ", test_labels[:count].tolist())
print("encrypted:", outputs.argmax(1).tolist())
assert (outputs.argmax(1) == simulated[:count].argmax(1)).all()
