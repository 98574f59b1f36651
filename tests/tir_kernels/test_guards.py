"""What kernels refuse: every function that a kernel may call is registered, and words are found by code as well."""

import pytest
import tvm

from tir_kernels import guards
from tir_kernels.guards import ARGUMENTS, REFUSALS, refuse

ARGS = {
    guards.RAISE_RANGE: ((3, 1, 7, 0, 5), "coords: row 3 has x 7, expected 0 to 5"),
    guards.RAISE_DUPLICATE: (
        (3, 1, "coords_out"),
        "coords_out: row 3 repeats the coordinates of row 1, expected every row to be different",
    ),
    guards.RAISE_SET_DUPLICATE: (
        (3, 1, 2),
        "coords: row 3 of set 2 repeats the coordinates of row 1 of it, expected every row of a set to be different",
    ),
    guards.RAISE_INDEX: ((2, 9, 0), "index: entry 2 is 9, expected -1, as there are no rows"),
    guards.RAISE_OFFSETS: (("k_offsets", 0, 0, 3, 4), "k_offsets: from 0 to 3, expected offsets from 0 to the 4 rows"),
    guards.RAISE_ROW: (("q_order", 2, 5, 4), "q_order: entry 2 is 5, expected a row from 0 to 3"),
}


def test_every_function_has_a_code():
    named = {value for name, value in vars(guards).items() if name.startswith("RAISE_")}
    assert sorted(refusal.function for refusal in REFUSALS.values()) == sorted(named)


@pytest.mark.parametrize("function", ARGS)
def test_functions_and_codes_have_the_same_words(function):
    arguments, words = ARGS[function]
    (code,) = (code for code, refusal in REFUSALS.items() if refusal.function == function)
    with pytest.raises(ValueError) as error:
        tvm.get_global_func(function)(*arguments)
    assert str(error.value) == words
    numbers = [ARGUMENTS.index(argument) if isinstance(argument, str) else argument for argument in arguments]
    with pytest.raises(ValueError) as error:
        refuse(code, *numbers)
    assert str(error.value) == words
