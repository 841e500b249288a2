"""tests/conftest.py: which tests a run without flags leaves out."""

import importlib.util
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest

MODES = "litegraph", "vue"


@pytest.fixture(scope="module")
def conftest():
    spec = importlib.util.spec_from_file_location("conftest_of_all", Path(__file__).parents[1] / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def item(function, marked=False, **params):
    return SimpleNamespace(
        function=function,
        callspec=SimpleNamespace(params=params),
        get_closest_marker=lambda name: (marked and name == "slow") or None,
    )


def left_in(conftest, items) -> list[dict]:
    turns = conftest.take_turns(items)
    return [item.callspec.params for item in items if conftest.needed_flag(item, turns) is None]


def test_cases_take_turns(conftest):
    """Each case once, on frontends that change; in two modes a single case on both."""

    def several(): ...

    def drawn(): ...

    def single(): ...

    def single_drawn(): ...

    hosts = conftest.FRONTENDS
    items = [item(several, host=host, case=case) for host, case in product(hosts, range(6))]
    kept = left_in(conftest, items)
    assert sorted(params["case"] for params in kept) == [0, 1, 2, 3, 4, 5]
    by_case = [params["host"] for params in sorted(kept, key=lambda params: params["case"])]
    assert by_case in ([*hosts] * 3, [*hosts[::-1]] * 3)
    items = [item(drawn, host=host, mode=mode, case=case) for host, mode, case in product(hosts, MODES, "ab")]
    kept = {(params["host"], params["mode"], params["case"]) for params in left_in(conftest, items)}
    pinned, newest = (pair for pair in conftest.USUAL)
    assert kept in ({(*pinned, "a"), (*newest, "b")}, {(*pinned, "b"), (*newest, "a")})
    assert len(left_in(conftest, [item(single, host=host) for host in hosts])) == 1
    items = [item(single_drawn, host=host, mode=mode) for host, mode in product(hosts, MODES)]
    assert [tuple(params.values()) for params in left_in(conftest, items)] == list(conftest.USUAL)


def test_slow_ones_are_left_out(conftest):
    def anything(): ...

    items = [item(anything), item(anything, marked=True)]
    assert [conftest.needed_flag(one, {}) for one in items] == [None, "--slow"]
