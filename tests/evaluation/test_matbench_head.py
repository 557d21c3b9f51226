"""The correction head: what it learns, when it keeps still, and that its choice never sees the judged rows."""

from __future__ import annotations

import numpy as np
import pytest

from fieldflows.evaluation.matbench.head import Kernel, Regression, corrected, fit_head, susceptibility


def made(m: int = 120, noise: float = 0.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(m, 4))
    n = rng.uniform(1.4, 3.0, m)
    shift = 0.3 * np.tanh(features[:, 0]) + noise * rng.normal(size=m)
    return features, n, corrected(n, shift), [f"formula {k // 2}" for k in range(m)]


def test_a_shift_that_depends_on_a_feature_is_learned():
    features, n, labels, formulas = made()
    head = fit_head(labels, n, features, formulas)
    assert head.choice.kind != "none"
    assert head.choice.inner_mae < 0.3 * head.choice.inner_mae_without
    other, before, truth, _ = made(seed=1)
    after = np.abs(head.correct(before, other) - truth).mean()
    assert after < 0.3 * np.abs(before - truth).mean()
    # cross-validation says what new rows show
    assert after == pytest.approx(head.choice.inner_mae, rel=0.6)


def test_noise_is_left_alone():
    rng = np.random.default_rng(3)
    features, n = rng.normal(size=(80, 30)), rng.uniform(1.4, 3.0, 80)
    labels = corrected(n, 0.2 * rng.choice([-1.0, 1.0], 80))
    head = fit_head(labels, n, features, [str(k) for k in range(80)])
    assert head.choice.kind == "none"
    assert "one standard error" in head.choice.reason
    np.testing.assert_array_equal(head.correct(n, features), n)


def test_few_rows_give_no_head():
    features, n, labels, formulas = made(20)
    head = fit_head(labels, n, features, formulas)
    assert head.choice.kind == "none"
    assert "only 20 rows" in head.choice.reason
    np.testing.assert_array_equal(head.correct(n, features), n)
    empty = fit_head(np.zeros(0), np.zeros(0), np.zeros((0, 0)), [])
    assert empty.choice.rows == 0


def test_corrections_stay_within_those_of_the_fit():
    features, n, labels, formulas = made()
    head = fit_head(labels, n, features, formulas)
    target = susceptibility(labels) - susceptibility(n)
    far = head.correct(np.full(2, 2.0), np.array([[100.0, 0, 0, 0], [-100.0, 0, 0, 0]]))
    found = susceptibility(far) - susceptibility(2.0)
    assert target.min() - 1e-9 <= found.min()
    assert found.max() <= target.max() + 1e-9


def test_linear_ridge_is_the_closed_form():
    rng = np.random.default_rng(5)
    features, target = rng.normal(size=(40, 3)), rng.normal(size=40)
    found = Regression.fit(Kernel("linear", 2.0), features, target)
    x = (features - features.mean(axis=0)) / features.std(axis=0)
    # the primal solution of min |y − x w|² + λ d |w|²: the kernel has x·x′/d
    w = np.linalg.solve(x.T @ x + 2.0 * 3 * np.eye(3), x.T @ (target - target.mean()))
    expected = np.clip(target.mean() + x @ w, target.min(), target.max())
    np.testing.assert_allclose(found.predict(features), expected, atol=1e-10)


def test_no_susceptibility_is_no_trouble():
    assert np.isfinite(corrected(np.array([1.0, 1.0]), np.array([-3.0, 3.0]))).all()
    np.testing.assert_allclose(corrected(np.array([2.0]), np.array([0.0])), [2.0])
