import numpy as np
import pytest

from alignment.augment import policies
from alignment.errors import InputError

LABELS = np.array([0, 1, 2, 1])


def pictures():
    return np.random.default_rng(0).integers(0, 256, (4, 16, 12, 3), dtype=np.uint8)


def table():
    return np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)


@pytest.mark.parametrize("name", policies.PICTURES)
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_policies_of_pictures_keep_their_shape_and_label_them_by_shares(name, strength):
    x = pictures()
    out, y0_BK = policies.apply(name, x, LABELS, np.random.default_rng(1), num_classes=3, strength=strength)
    assert out.shape == x.shape and out.dtype == np.uint8 and y0_BK.dtype == np.float32
    np.testing.assert_allclose(y0_BK.sum(axis=1), 1, rtol=1e-6)
    again, _ = policies.apply(name, x, LABELS, np.random.default_rng(1), num_classes=3, strength=strength)
    np.testing.assert_array_equal(out, again)
    np.testing.assert_array_equal(x, pictures())  # what came in is left alone


@pytest.mark.parametrize("name", policies.ROWS)
def test_policies_of_tables_change_nothing_without_strength(name):
    x = table()
    out, y0_BK = policies.apply(name, x, LABELS, np.random.default_rng(1), num_classes=3, strength=0.0)
    np.testing.assert_allclose(out, x, rtol=1e-6)
    np.testing.assert_allclose(y0_BK, np.eye(3)[LABELS])
    strong, _ = policies.apply(name, x, LABELS, np.random.default_rng(1), num_classes=3, strength=1.0)
    assert (strong != x).any() and strong.dtype == np.float32


def test_operations_of_no_strength_leave_a_picture_as_it_is():
    picture = policies.PIL.Image.fromarray(pictures()[0])
    for name, operation in policies.OPERATIONS.items():
        if name not in ("autocontrast", "equalize"):  # which have no strength
            np.testing.assert_array_equal(np.asarray(operation(picture, 0.0, 1.0)), np.asarray(picture), err_msg=name)


def test_a_cut_box_shares_the_label_by_its_area():
    x = np.repeat(np.arange(4, dtype=np.uint8), 16 * 16 * 3).reshape(4, 16, 16, 3)
    out, y0_BK = policies.apply("cutmix", x, LABELS, np.random.default_rng(3), num_classes=3, strength=1.0)
    own_B = np.array([(picture == i).mean() for i, picture in enumerate(out)])
    for i in range(4):
        (other,) = set(np.unique(out[i])) - {i} or {i}
        expected = own_B[i] * np.eye(3)[LABELS[i]] + (1 - own_B[i]) * np.eye(3)[LABELS[other]]
        np.testing.assert_allclose(y0_BK[i], expected, atol=1e-6)


def test_a_mixture_has_the_means_of_values_and_of_labels():
    x = table()
    out, y0_BK = policies.apply("mixup", x, np.arange(4), np.random.default_rng(3), num_classes=4, strength=1.0)
    np.testing.assert_allclose(out, y0_BK @ x, atol=1e-5)


def test_swapped_columns_come_from_other_rows():
    x = table()
    out, _ = policies.apply("swap", x, LABELS, np.random.default_rng(3), num_classes=3, strength=0.5)
    assert all(np.isin(out[:, d], x[:, d]).all() for d in range(x.shape[1]))


def test_a_policy_that_does_not_fit_and_a_strength_that_is_none_are_refused():
    with pytest.raises(InputError, match=r"upstream='swap' is not one of: randaugment.*of pictures"):
        policies.check("swap", 0.5, is_pictures=True)
    with pytest.raises(InputError, match=r"upstream='cutmixx'.*of tables"):
        policies.check("cutmixx", 0.5, is_pictures=False)
    with pytest.raises(InputError, match=r"strength=1.5 must be in \[0, 1\]"):
        policies.check("noise", 1.5, is_pictures=False)
