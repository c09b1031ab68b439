"""The DALS decoder in NumPy is the one that was trained with torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model_server.errors import ShapePriorError
from model_server.geometry.icosphere import icosphere
from model_server.priors import device as device_module
from model_server.priors.dals_arrays import ArrayDecoder, decoder_of
from model_server.priors.dals_decoder import DalsDecoder, DeviceDecoder
from model_server.priors.device import computes_on_cpu

LATENTS, HIDDEN, RADIUS = 7, (12, 9, 5), 0.6
SPHERE = icosphere(1).points


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    decoder = DalsDecoder(LATENTS, HIDDEN, RADIUS)
    with torch.no_grad():
        for norm in decoder.norms:  # as trained ones, not as they begin
            norm.weight.uniform_(0.5, 2.0)
            norm.bias.normal_()
    return {name: value.detach().numpy() for name, value in decoder.state_dict().items()}


@pytest.fixture(params=["shared", "own"])
def latents(request) -> np.ndarray:
    count = 1 if request.param == "shared" else len(SPHERE)
    return np.random.default_rng(1).normal(size=(count, LATENTS))


@pytest.fixture(scope="module")
def root() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(LATENTS, 4))


def test_vertices_are_those_of_torch(weights, latents):
    ours = ArrayDecoder.of(weights, HIDDEN, RADIUS).vertices(latents, SPHERE)
    theirs = DeviceDecoder.of(weights, RADIUS, "cpu").vertices(latents, SPHERE)
    assert ours.dtype == theirs.dtype == np.float64
    assert ours == pytest.approx(theirs, abs=2e-6)


def test_jacobians_are_those_of_torch(weights, latents, root):
    ours = ArrayDecoder.of(weights, HIDDEN, RADIUS).linear(latents, SPHERE, root)
    theirs = DeviceDecoder.of(weights, RADIUS, "cpu").linear(latents, SPHERE, root)
    assert ours[0] == pytest.approx(theirs[0], abs=2e-6)
    assert ours[1].shape == (len(SPHERE), 3, 4)
    assert ours[1] == pytest.approx(theirs[1], abs=1e-5 * np.abs(theirs[1]).max())


def test_jacobians_are_differences(weights, root):
    decoder = ArrayDecoder.of(weights, HIDDEN, RADIUS)
    z = np.random.default_rng(3).normal(size=(1, LATENTS))
    step = 1e-3
    moved = [decoder.vertices(z + sign * step * root[:, 0], SPHERE) for sign in (1.0, -1.0)]
    slope = (moved[0] - moved[1]) / (2.0 * step)
    jacobian = decoder.linear(z, SPHERE, root)[1][..., 0]
    # Single precision, and a few ReLUs that switch within the step.
    assert np.median(np.abs(slope - jacobian)) < 2e-3 * np.abs(jacobian).max()


@pytest.mark.parametrize("fault", ["missing", "more", "shape", "hidden"])
def test_arrays_of_another_network_are_refused(weights, fault):
    arrays, hidden = dict(weights), HIDDEN
    if fault == "missing":
        del arrays["last.bias"]
    elif fault == "more":
        arrays["layers.2.weight"] = np.zeros((5, 5))
    elif fault == "shape":
        arrays["layers.0.weight"] = arrays["layers.0.weight"].T
    else:
        hidden = HIDDEN[:2]
    with pytest.raises(ValueError, match="another network"):
        ArrayDecoder.of(arrays, hidden, RADIUS)


def test_on_a_cpu_numpy_decodes(weights):
    assert isinstance(decoder_of(weights, HIDDEN, RADIUS, "cpu"), ArrayDecoder)


def test_without_a_driver_torch_is_not_asked(monkeypatch):
    monkeypatch.setattr(device_module, "choose_device", lambda device: pytest.fail(device))
    monkeypatch.setattr(device_module, "_may_have_gpu", lambda: False)
    assert computes_on_cpu("cpu")
    assert computes_on_cpu("auto")


def test_with_a_driver_torch_decides(monkeypatch):
    asked = []
    monkeypatch.setattr(device_module, "_may_have_gpu", lambda: True)
    monkeypatch.setattr(
        device_module, "choose_device", lambda device: asked.append(device) or torch.device("cuda")
    )
    assert not computes_on_cpu("auto")
    assert computes_on_cpu("cpu")
    assert asked == ["auto"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_cuda_is_refused_where_there_is_none(weights):
    with pytest.raises(ShapePriorError, match="no CUDA device"):
        decoder_of(weights, HIDDEN, RADIUS, "cuda")
