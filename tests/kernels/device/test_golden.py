import pytest
from kernel_golden import CASES, check_case


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    check_case(CASES[name])
