"""Numbers that functions return."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from actors.functions.values import ValueRefusedError, as_number


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0),
        (True, 1.0),
        (0.25, 0.25),
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.int64(1), 1.0),
        (np.bool_(True), 1.0),
        (np.array(2.5), 2.5),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.tensor(True), 1.0),
        (Fraction(1, 2), 0.5),
        (Decimal("0.5"), 0.5),
    ],
)
def test_every_type_of_number_is_taken(value: object, number: float):
    found = as_number(value)
    assert (found, type(found)) == (number, float)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "gave nan: it must be a finite number"),
        (np.float32("inf"), "gave .*inf.*: it must be a finite number"),
        (torch.tensor(float("nan")), "finite"),
        (Decimal("1e999"), "finite"),
        (10**400, "finite"),
        (None, "gave None: it must be a number, not of type NoneType"),
        ("1.0", "gave '1.0': it must be a number, not of type str"),
        (1j, "type complex"),
        (np.complex64(1), "of complex64"),
        (np.array(1j), "of complex128"),
        (torch.tensor(1j), "of torch.complex64"),
        (np.str_("0.5"), "type str_"),
        (np.array("0.5"), "type ndarray"),
        ([1.0], "type list"),
        (np.array([0.5]), "type ndarray"),
        (torch.tensor([0.5]), "type Tensor"),
    ],
    ids=lambda given: str(given)[:20],
)
def test_a_value_that_is_no_number_is_refused_by_its_type(value: object, message: str):
    with pytest.raises(ValueRefusedError, match=message):
        as_number(value)
