"""tests/conftest.py: which tests a run without flags leaves out, and which stay in one process."""

import importlib.util
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest

HOSTS, MODES = ("pinned", "newest"), ("litegraph", "vue")


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
    """Each case once, on frontends that change; of functions with a single case in two modes each."""

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
    items = [item(one, host=host, mode=mode) for one in (single_drawn, drawn) for host, mode in product(hosts, MODES)]
    assert [tuple(params.values()) for params in left_in(conftest, items)] == list(conftest.USUAL)


def test_slow_ones_are_left_out(conftest):
    def anything(): ...

    items = [item(anything), item(anything, marked=True)]
    assert [conftest.needed_flag(one, {}) for one in items] == [None, "--slow"]


class Node:
    """A process as xdist's scheduler sees it: told which tests to run, by their index."""

    shutting_down = False

    def __init__(self):
        self.gateway, self.told = SimpleNamespace(id=id(self)), []

    def send_runtest_some(self, indices: list[int]):
        self.told += indices

    def shutdown(self): ...


def test_a_file_and_the_browser_stay_in_one_process(conftest):
    """As xdist hands tests out: whoever has done its own gets the next group."""
    ids = [f"tests/browser/test_{name}.py::test[{host}-{case}]" for name, host, case in product("ab", HOSTS, range(9))]
    ids += [f"tests/{name}.py::test[{case}]" for name, case in product(("comfy/test_a", "core/test_b"), range(9))]
    values = {"dist": "loadscope", "tx": ["2*popen"]}
    config = SimpleNamespace(getvalue=values.get, option=SimpleNamespace(loadscopereorder=False))
    silent = SimpleNamespace(loadscopesched=lambda *words: None)
    scheduler, nodes = conftest.pytest_xdist_make_scheduler(config, silent), (Node(), Node())
    for node in nodes:
        scheduler.add_node(node)
        scheduler.add_node_collection(node, ids)
    scheduler.schedule()
    done = [0, 0]
    while any(len(node.told) > count for node, count in zip(nodes, done, strict=True)):
        for which, node in enumerate(nodes):
            for index in node.told[done[which] :]:
                scheduler.mark_test_complete(node, index)
                done[which] += 1
    assert sum(done) == len(ids)
    for part in ("browser/", "comfy/test_a", "core/test_b"):
        assert sum(any(part in ids[index] for index in node.told) for node in nodes) == 1, part
    values["dist"] = "load"
    assert conftest.pytest_xdist_make_scheduler(config, None) is None, "what a developer asks for"
