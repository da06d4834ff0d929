"""Bad configurations: one line that names file, line, key and remedy."""

from pathlib import Path

import pytest

from infotok.errors import InfotokError
from pipeline.params import load_params

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("  nuisance:", "  nuisanse:", "unknown key 'data.nuisanse'; did you mean 'nuisance'?"),
        ("  validation: 1000", "  validation: many", "'data.validation' is 'many'"),
        ("vib-0.003,", "vib--0.003,", "has a negative beta"),
        ("vib-0.003,", "vibe-0.003,", "unknown estimator; known: none, ceb, dib, hsic, vib"),
        ("vib-0.003,", "vib,", "is not <estimator>-<beta>"),
        ("tokens: [4, 8]", "tokens: [4, 5]", "possible token budgets: 1, 2, 4, 8, 16"),
        ("tokens: [4, 8]", "tokens: []", "'grid.tokens' is empty"),
        ("seed: [0, 1]", "seed: [0, 0]", "'grid.seed' repeats 0"),
        ("family: [ar]", "family: [arr]", "unknown family; known: ar, flow, mask"),
    ],
)
def test_a_bad_value_is_named_with_its_file_line_and_remedy(tmp_path, before, after, says):
    text = (ROOT / "params.yaml").read_text()
    assert before in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(before, after, 1))
    line = text[: text.index(before)].count("\n") + 1
    with pytest.raises(InfotokError) as caught:
        load_params(path)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert message.startswith(f"{path}:{line}:")


@pytest.mark.parametrize("path", ["params.yaml", "profiles/smoke/params.yaml", "profiles/full/params.yaml"])
def test_the_repositorys_own_parameters_are_valid(path):
    assert load_params(ROOT / path).cells()
