import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.fairness import predictors


def drawn(outputs, num_classes, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((2, 5, outputs)).astype(np.float32)
    y = rng.integers(0, num_classes, (2, 5)) if num_classes else rng.standard_normal((2, 5)).astype(np.float32)
    weight = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 1]], np.float32)
    return logits, y, weight


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def slow_loss(logits, y, weight, loss):
    """One place, sample by sample; dice as 1 - 2 sum(p y) / (sum p + sum y), averaged over classes."""
    seen = weight > 0
    logits, y = logits[seen], y[seen]
    if loss == "dice":
        p, one_hot = softmax(logits), np.eye(logits.shape[-1])[y]
        return np.mean(1 - 2 * (p * one_hot).sum(0) / (p.sum(0) + one_hot.sum(0)))
    if loss == "softmax":
        return np.mean([-np.log(softmax(row)[k]) for row, k in zip(logits, y)])
    if loss == "logistic":
        p = 1 / (1 + np.exp(-logits[:, 0]))
        return np.mean(np.where(y == 1, -np.log(p), -np.log(1 - p)))
    return np.mean((logits[:, 0] - y) ** 2)


KINDS = [("softmax", 3, 3), ("logistic", 1, 2), ("squared", 1, 0)]


@pytest.mark.parametrize(("loss", "outputs", "classes"), [*KINDS, ("dice", 3, 3)])
def test_losses_of_places_are_those_of_their_own_samples(loss, outputs, classes):
    logits, y, weight = drawn(outputs, classes)
    found = predictors.place_losses(jnp.asarray(logits), jnp.asarray(y), jnp.asarray(weight), loss=loss)
    np.testing.assert_allclose(found, [slow_loss(*place, loss) for place in zip(logits, y, weight)], rtol=1e-5)
    assert predictors.num_outputs(loss, classes or 2) == (outputs if loss != "squared" else 1)


@pytest.mark.parametrize(("loss", "outputs", "classes"), KINDS)
def test_scores_leave_filling_out(loss, outputs, classes):
    logits, y, weight = drawn(outputs, classes)
    found = predictors.place_scores(jnp.asarray(logits), jnp.asarray(y), jnp.asarray(weight), loss=loss)
    predicted = np.asarray(predictors.predictions(jnp.asarray(logits), loss=loss))
    for s in range(2):
        seen = weight[s] > 0
        off = predicted[s][seen] - y[s][seen]
        wanted = -np.sqrt(np.mean(off**2)) if loss == "squared" else np.mean(off == 0)
        assert float(found[s]) == pytest.approx(wanted, rel=1e-5)
    overall = predictors.overall_score(found, jnp.ones(2), loss=loss)
    wanted = -np.sqrt(np.mean(np.square(found))) if loss == "squared" else np.mean(found)
    assert float(overall) == pytest.approx(float(wanted), rel=1e-5)


def test_networks_read_samples_and_samples_over_time():
    x = jnp.ones((3, 4, 2))
    for name, widths, wide in (("mlp", (5, 6), 6), ("lstm", (5,), 5)):
        network = predictors.build(name, 2, widths=widths)
        (outputs, encoding), _ = jax.jit(network.init_with_output)(jax.random.PRNGKey(0), x)
        assert outputs.shape == (3, 2) and encoding.shape == (3, wide)


def test_an_initial_deviation_and_the_ancestors_shape():
    network = predictors.build("mlp", 23, widths=(10,) * 7, activation="relu", init_std=0.5)
    params = jax.jit(network.init)(jax.random.PRNGKey(0), jnp.ones((1, 10)))["params"]
    kernels = np.concatenate([np.ravel(params[f"hidden_{i}"]["kernel"]) for i in range(7)])
    # a normal that is cut at two deviations has 0.88 of its deviation
    assert len(params) == 8 and kernels.std() == pytest.approx(0.44, abs=0.02) and np.abs(kernels).max() <= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(name="cnn", widths=(4,)), "predictor='cnn' is not one of: mlp, lstm"),
        (dict(name="mlp", widths=()), "a width each layer"),
        (dict(name="lstm", widths=(4, 4)), "an lstm has a single layer"),
        (dict(name="mlp", widths=(4,), activation="gelu"), "activation='gelu' is not one of: tanh, relu"),
    ],
)
def test_networks_that_cannot_be_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        predictors.build(options.pop("name"), 1, **options)
