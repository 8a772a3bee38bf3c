"""The expected calibration error and the temperature, against plain loops in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from mergestream.calibration import COLDEST, HOTTEST, CalibrationError, Temperature


@pytest.fixture(scope="module")
def predictions():
    """Logits that are three times too large, and labels drawn from the right probabilities."""
    draw = np.random.default_rng(0)
    right = draw.normal(size=(1000, 5)) * 1.5
    labels = [draw.choice(5, p=np.exp(z) / np.exp(z).sum()) for z in right]
    return torch.tensor(3 * right, dtype=torch.float32), torch.tensor(labels)


def softmax(logits, temperature=1.0):
    exponentials = [math.exp(z / temperature) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


def expected_error(logits, labels, temperature):
    bins = [[] for _ in range(15)]
    for z, label in zip(logits.tolist(), labels.tolist(), strict=True):
        probabilities = softmax(z, temperature)
        confidence = max(probabilities)
        bins[min(int(confidence * 15), 14)].append((confidence, probabilities.index(confidence) == label))
    gaps = (abs(sum(right for _, right in b) - sum(confidence for confidence, _ in b)) for b in bins)
    return sum(gaps) / len(labels)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_error_against_a_loop_and_torchmetrics(predictions, temperature):
    logits, labels = predictions
    error = CalibrationError(temperature)
    for part in torch.arange(len(labels)).split(64):
        error.update(logits[part], labels[part])
    assert error.compute() == pytest.approx(expected_error(logits, labels, temperature), abs=1e-9)
    theirs = multiclass_calibration_error((logits / temperature).softmax(-1), labels, num_classes=5, n_bins=15)
    assert error.compute() == pytest.approx(theirs.item(), abs=1e-5)


def test_the_error_by_hand():
    error = CalibrationError()
    # Confidences 0.5, 0.5 (one of them right) and 0.9 (wrong): (0 · 2 + 0.9 · 1) / 3.
    error.update(torch.tensor([[0.0, 0.0], [0.0, 0.0], [math.log(9), 0.0]]), torch.tensor([0, 1, 1]))
    assert error.compute() == pytest.approx(0.3, abs=1e-6)


def test_the_temperature_is_the_best_of_a_fine_grid(predictions):
    logits, labels = predictions
    temperature = Temperature()
    for part in torch.arange(len(labels)).split(64):
        temperature.update(logits[part], labels[part])
    found = temperature.compute()
    log_likelihoods = {}
    for candidate in np.exp(np.linspace(math.log(found) - 0.2, math.log(found) + 0.2, 81)):
        scaled = logits.double().numpy() / candidate
        normalisers = np.log(np.exp(scaled).sum(1))
        log_likelihoods[candidate] = (scaled[np.arange(len(labels)), labels.numpy()] - normalisers).sum()
    assert max(log_likelihoods, key=log_likelihoods.get) == pytest.approx(found, rel=1e-3)
    assert found == pytest.approx(3, rel=0.15)  # what the logits were multiplied by
    assert found == temperature.compute()
    cooled = expected_error(logits, labels, found)
    assert cooled < 0.5 * expected_error(logits, labels, 1.0)


def test_the_temperature_has_limits():
    for labels, limit in ([[0, 1], COLDEST], [[1, 0], HOTTEST]):
        temperature = Temperature()
        temperature.update(torch.tensor([[5.0, 0.0], [0.0, 5.0]]), torch.tensor(labels))
        assert temperature.compute() == limit
