"""What all tests share."""

import sys

import pytest
import tiny_mllm
import torch
from smoke import FILE, copy_of_the_code, run

torch.set_num_threads(1)  # of fixtures that modules share


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Tests that share a fixture of their module run in one process, so that it is made once."""
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs.values()
        shares = any(definitions[-1].scope == "module" for definitions in fixtures)
        if shares and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread a process, as the stages run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trusted_code(tmp_path_factory):
    """transformers copies the code of folders that are trusted here, not into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr("sys.path", list(sys.path))
        yield


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Checkpoints of tiny models by their names, which no test changes."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: tiny_mllm.make(name, root / name) for name in tiny_mllm.MODELS}


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """A copy of the repository in which `dvc repro` of the study `smoke` has run undisturbed."""
    folder = copy_of_the_code(tmp_path_factory.mktemp("pipeline"))
    done = run(folder, "dvc", "repro", FILE)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
