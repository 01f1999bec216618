"""Spec files: what they may say, and what is said about a file that is wrong."""

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headedit import HeadEditError
from headedit.io.strict import build
from headedit.specs import Spec, read_spec
from headedit.specs.registry import packaged_folder

GOOD = """\
model_types: [toy]
root: [model, text_model]
sites:
  attention:
    - path: layers.{layer}.self_attn.o_proj
      heads: {by_layer_type: {full_attention: num_attention_heads, sliding_attention: {config: swa_heads, times: 2}}}
      head_dim: {module: head_dim}
      position: gated
      layer_types: [full_attention]
      parent_class: "*Attention"
    - {path: "layers.{layer}.cross.o_proj", heads: 4}
  mlp: {path: "layers.{layer}.mlp.down_proj", heads: 1}
merge: {never: its weights are shared between layers}
refuse:
  - {reason: never calls the module, when: {slow_but_exact: true, pretraining_tp: ">1"}}
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / "toy.yaml"


def test_a_full_spec_is_read_and_written_again(file):
    file.write_text(GOOD)
    spec = read_spec(file)
    assert spec.source == str(file)
    assert [rule.path for rule in spec.rules("attention")] == [
        "layers.{layer}.self_attn.o_proj",
        "layers.{layer}.cross.o_proj",
    ]
    assert spec.rules("linear") == []
    again = build(Spec, spec.to_dict(), "again")
    assert again == spec
    assert again.digest() == spec.digest()


def test_the_digest_of_a_spec_ignores_comments_and_layout(file):
    file.write_text(GOOD)
    first = read_spec(file).digest()
    file.write_text("# a comment\n" + yaml.safe_dump(yaml.safe_load(GOOD)))
    assert read_spec(file).digest() == first
    file.write_text(GOOD.replace("heads: 4", "heads: 8"))
    assert read_spec(file).digest() != first


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model_types: [toy]", "model_type: [toy]", r"unknown key 'model_type'\. Did you mean 'model_types'\?"),
        ("model_types: [toy]", "model_types: toy", r"model_types: found 'toy' \(str\), expected a list of a text"),
        ("model_types: [toy]", "model_types: []", r"model_types: the list is empty"),
        ("model_types: [toy]\n", "", r"the key 'model_types' is missing"),
        ("  attention:", "  atention:", r"sites: the key 'atention': .*Did you mean 'attention'\?"),
        ("head_dim: {", "head_dimm: {", r"sites: attention\[0\]: unknown key 'head_dimm'\. Did you mean 'head_dim'\?"),
        ("{layer}.self_attn", "0.self_attn", r"attention\[0\]: path: found 'layers\.0\.self_attn\.o_proj', expected"),
        ("position: gated", "position: gatd", r"position: .*expected one of raw, gated\. Did you mean 'gated'\?"),
        (
            "heads: 4",
            "heads: [4]",
            r"attention\[1\]: heads: found \[4\] \(list\), expected a whole number or a text or",
        ),
        ("times: 2", "times: 0", r"times and divide must be 1 or more"),
        ("{module: head_dim}", "{module: a, config: b}", r"exactly one of config, module.*found 2"),
        ("{never: ", "{bias_key: a, never: ", r"merge: expected exactly one of bias_key, rehome, never"),
        ("reason: never", "reson: never", r"refuse\[0\]: unknown key 'reson'\. Did you mean 'reason'\?"),
        ("root: [model, text_model]", "root: [model", r"toy\.yaml: line \d+: not valid YAML"),
        ("root: [model, text_model]", "model_types: [b]", r"line 2: the key 'model_types' is given twice"),
        (GOOD, "model_types: [toy]", r"sites: nothing is given"),
        (GOOD, "", r"expected a mapping of keys to values, found None"),
        (GOOD, "!!python/object:os.system {}", r"not valid YAML"),
    ],
)
def test_a_faulty_spec_names_file_key_and_remedy(file, old, new, message):
    assert old in GOOD
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(HeadEditError, match=message) as caught:
        read_spec(file)
    assert str(caught.value).startswith(str(file))


def test_a_spec_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(HeadEditError, match=r"missing\.yaml: cannot be read \(No such file"):
        read_spec(tmp_path / "missing.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(HeadEditError, match=r"bytes\.yaml"):
        read_spec(tmp_path / "bytes.yaml")


LINES = GOOD.splitlines()
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.sampled_from(["model_types", "sites", "attention", "path", "heads", "config", "when", "merge", "reason", ""])
TREES = st.recursive(SCALARS, lambda t: st.lists(t, max_size=3) | st.dictionaries(KEYS, t, max_size=4), max_leaves=12)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(TREES.map(lambda tree: yaml.safe_dump(tree)), st.text(max_size=60), st.permutations(LINES).map("\n".join))
)
def test_no_file_raises_anything_but_a_headedit_error(file, text):
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    outcome: object
    try:
        outcome = read_spec(file)
    except HeadEditError as error:
        outcome = error
    assert isinstance(outcome, Spec) or str(outcome).startswith(str(file))


def test_every_packaged_spec_opens_with_a_comment_on_its_family():
    files = list(packaged_folder().glob("*.yaml"))
    assert files
    assert [file.name for file in files if not file.read_text().startswith("# ")] == []
