"""Small nets on signals and sequences, written as an ordinary user writes them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.cases import Case
from benchmarks.zoo.outcomes import NETS


class SignalClassifier(nn.Module):
    """1-D convolutions with batch norms and both kinds of pools, on six channels of 64 samples."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(6, 12, 5, padding=2),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(12, 16, 3, padding=1),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.AvgPool1d(4),
        )
        self.head = nn.Linear(16 * 8, 6)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).flatten(1))
        return logits


class SignalBlock(nn.Module):
    """A residual block of 1-D convolutions."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(before, after, 7, stride, padding=3, bias=False)
        self.bn1 = nn.BatchNorm1d(after)
        self.conv2 = nn.Conv1d(after, after, 7, padding=3, bias=False)
        self.bn2 = nn.BatchNorm1d(after)
        self.shortcut = nn.Sequential(nn.Conv1d(before, after, 1, stride, bias=False), nn.BatchNorm1d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SignalResNet(nn.Module):
    """A 1-D ResNet, as for electrocardiograms: one channel of 96 samples."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(1, 8, 7, 2, 3, bias=False), nn.BatchNorm1d(8), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(SignalBlock(8, 8, 1), SignalBlock(8, 16, 2))
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.blocks(self.stem(x))).squeeze(-1))
        return logits


class EEGNet(nn.Module):
    """Convolutions over time, then over 8 electrodes, then separable ones; the output is permuted as some do."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Conv2d(1, 4, (1, 16), padding=(0, 8), bias=False), nn.BatchNorm2d(4))
        self.electrodes = nn.Sequential(
            nn.Conv2d(4, 8, (8, 1), groups=4, bias=False), nn.BatchNorm2d(8), nn.ELU(), nn.AvgPool2d((1, 4))
        )
        self.separable = nn.Sequential(
            nn.Conv2d(8, 8, (1, 8), padding=(0, 4), groups=8, bias=False),
            nn.Conv2d(8, 8, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ELU(),
            nn.AvgPool2d((1, 4)),
            nn.Dropout(0.25),
        )
        self.classify = nn.Conv2d(8, 4, (1, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.separable(self.electrodes(self.time(x)))
        x = self.classify(x).permute(0, 2, 3, 1)
        return x.flatten(1)


class LogPower(nn.Module):
    """The logarithm of the mean power of filtered signals, as in shallow networks for electroencephalograms."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Conv2d(1, 6, (1, 9))
        self.space = nn.Conv2d(6, 6, (4, 1), bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.pool = nn.AvgPool2d((1, 14), stride=(1, 7))
        self.head = nn.Linear(6 * 7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.space(self.time(x)))
        x = torch.log(self.pool(x * x) + 1e-2)
        logits: Tensor = self.head(x.flatten(1))
        return logits


class KeywordSpotting(nn.Module):
    """Depthwise-separable convolutions on 49 frames of 10 coefficients (DS-CNN)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(1, width, (10, 4), 2, (5, 1), bias=False)]
        for _ in range(2):
            convolutions.append(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False))
            convolutions.append(nn.Conv2d(width, width, 1, bias=False))
        layers = [layer for one in convolutions for layer in (one, nn.BatchNorm2d(width), nn.ReLU())]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.flatten(self.pool(self.features(x)), 1))
        return logits


class LSTMClassifier(nn.Module):
    """torch's LSTM over eight steps; the last output decides."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 10, batch_first=True)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.lstm(x)
        logits: Tensor = self.head(outputs[:, -1])
        return logits


class GRUClassifier(nn.Module):
    """torch's GRU over eight steps; the last state decides."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 10, batch_first=True)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.gru(x)
        logits: Tensor = self.head(state[-1])
        return logits


class WrittenLSTM(nn.Module):
    """An LSTM over four steps, written out gate by gate."""

    def __init__(self, features: int = 6, hidden: int = 8) -> None:
        super().__init__()
        self.hidden = hidden
        self.of_input, self.of_state = nn.Linear(features, 4 * hidden), nn.Linear(hidden, 4 * hidden)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = cell = torch.zeros(x.shape[0], self.hidden)
        for step in range(x.shape[1]):
            i, f, g, o = (self.of_input(x[:, step]) + self.of_state(state)).chunk(4, dim=1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            state = torch.sigmoid(o) * torch.tanh(cell)
        logits: Tensor = self.head(state)
        return logits


class EncoderLayer(nn.Module):
    """torch's TransformerEncoderLayer on eight tokens; their mean decides."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(self.embed(x)).mean(dim=1))
        return logits


CASES = (
    Case("signal_classifier", NETS, SignalClassifier, ((6, 64),)),
    Case("signal_resnet", NETS, SignalResNet, ((1, 96),)),
    Case("eegnet", NETS, EEGNet, ((1, 8, 64),)),
    Case("log_power", NETS, LogPower, ((1, 4, 64),)),
    Case("keyword_spotting", NETS, KeywordSpotting, ((1, 49, 10),)),
    Case("lstm", NETS, LSTMClassifier, ((8, 6),)),
    Case("gru", NETS, GRUClassifier, ((8, 6),)),
    Case("lstm_written_out", NETS, WrittenLSTM, ((4, 6),)),
    Case("transformer_encoder", NETS, EncoderLayer, ((8, 5),)),
)
