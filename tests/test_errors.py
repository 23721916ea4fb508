import pickle

import pytest

from offprincipal.errors import CheckFailed, InputError, OffprincipalError, UsageError


@pytest.mark.parametrize(("kind", "code", "also"), [
    (InputError, 3, ValueError), (UsageError, 2, ValueError),
    (CheckFailed, 1, RuntimeError), (OffprincipalError, 3, Exception),
])  # fmt: skip
def test_family_exit_codes_and_pickling(kind, code, also):
    error = pickle.loads(pickle.dumps(kind("do a thing", "it is missing", "make it")))
    assert (type(error), error.exit_code, isinstance(error, also)) == (kind, code, True)
    assert str(error) == "cannot do a thing: it is missing; make it"
