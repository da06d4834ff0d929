"""What no code here does: run what a file holds, listen to the network, write where a file says."""

import ast
import json
import socket
from pathlib import Path

import pytest
from PIL import Image
from smoke import ROOT

from infotok.data import source_options
from infotok.data.prepare import prepare
from infotok.errors import InfotokError
from pipeline.config.cells import parse_arm
from pipeline.config.params import load_params
from pipeline.config.study import Study
from pipeline.tracking import server

SOURCES = [path for name in ("infotok", "pipeline", "stages", "benchmarks") for path in (ROOT / name).rglob("*.py")]
# Modules whose reading runs what it reads.
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
METHODS = {"extract", "extractall", "unpack_archive"}  # that unpack archives to wherever they name
CALLS = {
    ("torch", "load"),
    ("torch", "save"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("np", "load"),
    ("numpy", "load"),
    ("pd", "read_pickle"),
    ("shutil", "unpack_archive"),
    ("os", "system"),
}
NAMES = {"eval", "exec", "compile", "__import__"}
TRUSTING = ("remote", "adapters/continuous", "adapters/llada")
ARGUMENTS = {"allow_pickle", "trust_remote_code", "shell"}  # that may not be true


def unsafe(tree: ast.AST) -> list[str]:
    """What of the above a module does."""
    found = []
    safe = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and reads_weights_alone(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            found += [node.module for alias in node.names if not alias.name.endswith("Error")]
        elif isinstance(node, ast.Attribute) and node.attr in METHODS:
            found.append(node.attr)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            wrong = (node.value.id, node.attr) in CALLS and id(node) not in safe
            found += [f"{node.value.id}.{node.attr}"] if wrong else []
        elif isinstance(node, ast.Call):
            found += [node.func.id] if isinstance(node.func, ast.Name) and node.func.id in NAMES else []
            wrong = [word for word in node.keywords if word.arg in ARGUMENTS]
            found += [w.arg for w in wrong if not (isinstance(w.value, ast.Constant) and w.value.value is False)]
    return found


def reads_weights_alone(call: ast.Call) -> bool:
    """torch.load(..., weights_only=True), which runs nothing that the file holds."""
    given = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
    return ast.unparse(call.func) == "torch.load" and given.get("weights_only") is True


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "from joblib import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f)",
        "exec(text)",
        "subprocess.run(c, shell=True)",
        "tarfile.open(f).extractall()",
        "archive.extract(member)",
    ],
)
def test_what_is_unsafe_is_seen(code):
    assert unsafe(ast.parse(code))


def test_no_pickle_no_archive_and_no_code_from_files_anywhere():
    assert len(SOURCES) > 80
    found = {str(path.relative_to(ROOT)): unsafe(ast.parse(path.read_text())) for path in SOURCES}
    # A model's own code runs where its user says `trust`: what comes before that is tested with each of these.
    trusting = {f"infotok/mllm/{name}.py": ["trust_remote_code"] for name in TRUSTING}
    # submitit hands jobs over as pickles, and jobs start before they have a clone to import this module from.
    own = {"pipeline/sweep/engines/slurm.py": ["cloudpickle"]}
    assert {path: what for path, what in found.items() if what} == trusting | own


def test_mlflow_listens_on_this_machine_alone(tmp_path, monkeypatch):
    commands = []

    def start(command, **_):
        commands.append(command)
        raise InfotokError("far enough")

    for name in ("MLFLOW_TRACKING_URI", "INFOTOK_TRACKING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(server.subprocess, "Popen", start)
    monkeypatch.setattr(server, "rebuild", lambda study: 0)
    monkeypatch.setattr(server, "initialise", lambda study: "1")
    (tmp_path / ".ckpt").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(InfotokError, match="far enough"):
        server.serve(Study("smoke", tmp_path), port)
    (command,) = commands
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command.count("--host") == 1


@pytest.mark.parametrize("arm", ["../none-0-0", "none-0-0/..", "ceb-0.01-1/../../x", "/ceb-0.01-1", "ceb-0.01-1\0"])
def test_a_cell_cannot_lead_out_of_the_results(arm):
    with pytest.raises(InfotokError):
        parse_arm(arm, "--arm")


def test_names_in_data_lead_nowhere(tmp_path):
    """Neither a line's split nor its image's path is where anything is written."""
    data, out = tmp_path / "in/data", tmp_path / "out/data"
    (data / "images").mkdir(parents=True)
    lines = []
    for index in range(40):
        Image.new("RGB", (16, 16), (index, 90, 5 * index)).save(data / f"images/{index}.png")
        lines.append({"image": f"images/{index}.png", "caption": f"a {index}"})
    lines += [{"image": "images/1.png", "caption": "a", "split": "../../escaped"}]
    lines += [{"image": "../../../etc/hostname", "caption": "a"}, {"image": "/etc/hostname", "caption": "a"}]
    (data / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    kinds = {one.__module__.rpartition(".")[-1]: one for one in source_options()}
    options = kinds["jsonl"](path=str(data), image_size=16, vocabulary=300, validation=0.3, test=0.3, max_rejects=100)
    prepare(options, out)
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    ours = {f"out/data/{name}" for name in ("manifest.json", "text.json", "rejects.jsonl")}
    ours |= {f"out/data/{name}.arrow" for name in ("train", "validation", "test")}
    assert {name for name in made if not name.startswith("in/data/")} == ours
    assert "hostname" in (out / "rejects.jsonl").read_text()


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:pathlib.Path.touch [{run}]", "!!python/name:os.system", "!run {{a: {run}}}", "[!!str 0]"],
)
def test_parameters_are_data(tmp_path, value):
    """A params.yaml cannot name code to run."""
    raw = (ROOT / "studies" / "smoke" / "params.yaml").read_text()
    path = Path(tmp_path / "params.yaml")
    path.write_text(raw.replace("seed: [0]", f"seed: {value.format(run=tmp_path / 'run')}"))
    with pytest.raises(InfotokError, match=r"params\.yaml:7: "):
        load_params(path)
    assert not (tmp_path / "run").exists()
