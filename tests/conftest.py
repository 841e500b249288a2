"""Fixtures that every test may use, and which tests run: the flags that add some, and what stays in one process."""

import zlib
from collections import Counter, defaultdict

import pytest
import torch
from PIL import Image

from internvlu_core import InternVLU
from support.checkpoints import CHECKPOINT, GOLDEN

# The networks of the tests are tiny: threads would spend more time waiting for each other than computing.
torch.set_num_threads(1)

FRONTENDS = "pinned", "newest"
# Of the tests that run in either mode of drawing nodes, these pairs of frontend and mode run without a flag.
USUAL = ("pinned", "litegraph"), ("newest", "vue")
LEFT_OUT = pytest.StashKey[Counter]()


def pytest_addoption(parser):
    parser.addoption(
        "--all-frontends",
        action="store_true",
        help="in the browser: every case on both frontends, and in both modes of drawing nodes",
    )
    parser.addoption("--slow", action="store_true", help="tests marked slow too")


def pytest_configure(config):
    config.stash[LEFT_OUT] = Counter()


def parameters(item) -> dict:
    return item.callspec.params if hasattr(item, "callspec") else {}


def case_of(item) -> str:
    """Which of its function's cases a test in the browser is, whatever its frontend and its mode of drawing nodes."""
    return repr({name: value for name, value in parameters(item).items() if name not in ("host", "mode")})


def take_turns(items) -> dict:
    """{(function, case): its frontend without a flag} of the tests in the browser.

    The cases of a function take turns, so that both frontends see it; a single case has either, by its name. Functions
    of one case in both modes of drawing nodes take turns themselves, so that both modes see a file's functions.
    """
    cases, modes, singles = defaultdict(list), set(), Counter()
    for item in items:
        if "host" in parameters(item):
            if case_of(item) not in cases[item.function]:
                cases[item.function].append(case_of(item))
            if "mode" in parameters(item):
                modes.add(item.function)
    turns = {}
    for function, own in cases.items():
        first = zlib.crc32(function.__name__.encode())
        if len(own) == 1 and function in modes:
            first = singles[function.__module__]
            singles[function.__module__] += 1
        for index, case in enumerate(own):
            turns[function, case] = FRONTENDS[(first + index) % 2]
    return turns


def needed_flag(item, turns: dict) -> str | None:
    """The flag without which this test is left out."""
    params = parameters(item)
    unusual = "mode" in params and (params["host"], params["mode"]) not in USUAL
    if unusual or params.get("host") != turns.get((item.function, case_of(item)), params.get("host")):
        return "--all-frontends"
    return "--slow" if item.get_closest_marker("slow") else None


def group(nodeid: str) -> str:
    """Tests of one group run in one process, one after the other: a file's, and all in the browser.

    They share what is slow to start: fixtures, servers, pages. A browser is several processes already, with pauses
    between them, and so goes better beside tests that compute than beside a second one.
    """
    path = nodeid.partition("::")[0]
    return "browser" if "/browser/" in path else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With --dist loadscope, groups are the scopes.

    Not by marks with --dist loadgroup: xdist 3.8 hands them on in node ids, which pytest 9 does not let it change.
    """
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    return Groups(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    left_out, turns = [], take_turns(items)
    for item in items.copy():
        if (flag := needed_flag(item, turns)) and not config.getoption(flag):
            config.stash[LEFT_OUT][flag] += 1
            left_out.append(item)
            items.remove(item)
    config.hook.pytest_deselected(items=left_out)


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # one of several processes
        session.config.workeroutput["left_out"] = dict(session.config.stash[LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    # Every process has left out the same.
    node.config.stash[LEFT_OUT] = Counter(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter, config):
    for flag, count in config.stash[LEFT_OUT].items():
        terminalreporter.write_line(f"{count} tests left out, which {flag} adds", yellow=True)


@pytest.fixture(scope="session")
def golden():
    """The folder of the recorded runs."""
    return GOLDEN


@pytest.fixture(scope="session")
def model():
    """The recorded runs' model. Calls leave it as it is, so all tests share it."""
    return InternVLU.from_pretrained(CHECKPOINT, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def photo():
    """A wide picture."""
    return Image.open(GOLDEN / "photo.png").convert("RGB")


@pytest.fixture(scope="session")
def tall():
    """A tall picture, of another size than photo."""
    return Image.open(GOLDEN / "tall.png").convert("RGB")


@pytest.fixture
def read_ids(model, monkeypatch):
    """Rows of ids that the language model reads while the test runs."""
    rows, embed = [], model.vlm.embed

    def spy(ids, *args):
        rows.append(ids[0].tolist())
        return embed(ids, *args)

    monkeypatch.setattr(model.vlm, "embed", spy)
    return rows
