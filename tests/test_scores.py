"""From raw values to scores, against arithmetic in more digits."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.scores import from_bm25, from_cosine, from_dot, highest, logit, order, sigmoid

NEAR = [-745.2, -745.0, -40.0, -2.0, -1e-9, -0.0, 0.0, 1e-9, 0.5, 2.0, 36.0, 40.0, 800.0]


@pytest.mark.parametrize("value", NEAR)
def test_sigmoid_to_the_last_digits(value):
    with localcontext() as context:
        context.prec = 400
        exact = 1 / (1 + (-Decimal(value)).exp())
    assert sigmoid(value) == pytest.approx(float(exact), rel=4e-16, abs=5e-324)


def test_sigmoid_of_what_has_no_bound():
    assert [sigmoid(value) for value in (-math.inf, -1e300, 1e300, math.inf)] == [0.0, 0.0, 1.0, 1.0]


@given(st.floats(-700, 20))
def test_logit_is_the_inverse(value):
    assert logit(sigmoid(value)) == pytest.approx(value, rel=1e-12, abs=1e-6)


def test_logit_of_what_lies_outside():
    assert logit(-0.5) == logit(0.0) == -746.0
    assert logit(1.5) == logit(1.0) == 38.0
    assert [logit(0.9), logit(0.1)] == pytest.approx([2.1972245773362196, -2.1972245773362196])


def test_scores_by_hand():
    assert [from_cosine(value) for value in (-2.0, -1.0, -0.5, 0.0, 1.0, 1.5)] == [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]
    assert [from_dot(value) for value in (-1.0, 0.0, 1.0)] == [0.25, 0.5, 0.75]
    assert [from_bm25(value) for value in (0.0, 1.0, 9.0)] == [0.0, 0.5, 0.9]


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), max_size=12), st.integers(1, 14))
def test_the_highest_are_the_first_of_the_order(values, top):
    logits = np.array(values)
    ranked = sorted(range(len(values)), key=lambda place: -values[place])
    assert order(logits).tolist() == ranked
    assert highest(logits, top).tolist() == ranked[:top]
