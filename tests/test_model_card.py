"""The front matter of a model card, read as the hub reads it: license, base model, data sets, results."""

import math

import pytest
import yaml
from huggingface_hub import ModelCard
from tiny import tiny_model

import headedit
from headedit import HeadEditError
from headedit.data.sources import dataset_id
from headedit.edits.files.card_metadata import datasets_of_run, license_of_base, pipeline_tag


@pytest.fixture
def edits(llama):
    llama.config._name_or_path = "someone/tiny-llama"
    return headedit.attach(llama)


def card_of(folder):
    """The card in a folder as the client of the hub reads it; it raises where results are malformed."""
    return ModelCard.load(folder / "README.md", ignore_metadata_errors=False)


def test_the_hub_reads_license_data_base_model_and_task(edits, tmp_path):
    fields = {"license": "mit", "datasets": "openai/gsm8k", "language": ["en", "de"], "tags": ["maths", "headedit"]}
    edits.save_pretrained(tmp_path, card=fields)
    data = card_of(tmp_path).data
    assert (data.license, data.datasets, data.language) == ("mit", ["openai/gsm8k"], ["en", "de"])
    assert (data.pipeline_tag, data.library_name) == ("text-generation", "headedit")
    assert (data.base_model, data.base_model_relation) == ("someone/tiny-llama", "adapter")
    assert data.tags == ["headedit", "attention-heads", "activation-editing", "llama", "maths"]
    assert data.eval_results is None


def test_the_hub_reads_what_was_measured_as_results_of_the_data_set(edits, tmp_path):
    metrics = {"Exact match": 0.5, "rouge L": 0.25, "broken": math.nan}
    edits.save_pretrained(tmp_path, metrics=metrics, card={"datasets": ["openai/gsm8k"]})
    results = card_of(tmp_path).data.eval_results
    assert [(one.metric_type, one.metric_name, one.metric_value) for one in results] == [
        ("exact_match", "Exact match", 0.5),
        ("rouge_l", "rouge L", 0.25),
    ]
    assert {(one.task_type, one.dataset_type, one.dataset_name) for one in results} == {
        ("text-generation", "openai/gsm8k", "openai/gsm8k")
    }


def test_the_losses_of_a_run_are_results_of_the_data_that_it_names(edits, tmp_path):
    run = '{"held_out": {"edited": 0.25, "base": 0.5, "examples": 8, "by": "you"}, "test_loss": 0.375, "seed": 1}'
    (tmp_path / "run.json").write_text(run)
    data = {"train": ["owner/data/config:train", "/local/more.jsonl"], "valid": 0.1, "test": "owner/other"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"data": data}))
    edits.save_pretrained(tmp_path)
    found = card_of(tmp_path).data
    assert found.datasets == ["owner/data"]
    assert [(one.dataset_type, one.metric_name, one.metric_value) for one in found.eval_results] == [
        ("owner/data", "validation loss, nats per token", 0.25),
        ("owner/other", "test loss, nats per token", 0.375),
    ]


@pytest.mark.parametrize(
    "text", ["", "data:", "data: 3", "data: {train: 3}", "data: {train: [3, {}]}", "- x", "a: : b"]
)
def test_a_run_without_named_data_sets_adds_none(text, edits, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    assert not any(datasets_of_run(tmp_path).values())
    edits.save_pretrained(tmp_path)
    assert card_of(tmp_path).data.datasets is None


def test_a_base_model_from_a_folder_is_named_by_the_user_and_the_block_can_be_pasted(llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    llama.save_pretrained("owner/base")
    llama.config._name_or_path = str(tmp_path / "owner" / "base")
    edits = headedit.attach(llama)
    edits.set_head(0, 1, scale=0.5)
    edits.save_pretrained("this-folder", card={"base_model": "owner/base"})
    card = card_of(tmp_path / "this-folder")
    assert card.data.base_model == "owner/base"
    assert "# Head edits for `owner/base`" in card.text
    pasted = {}
    exec(card.text.split("```python\n")[1].split("```")[0], pasted)
    assert pasted["edits"].count_open() == edits.count_open()


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("license: mit\n", {"license": "mit"}),
        (
            "license: other\nlicense_name: own\nlicense_link: https://x.example/l\n",
            {"license": "other", "license_name": "own", "license_link": "https://x.example/l"},
        ),
        ("license: other\nlicense_link: LICENSE\n", {"license": "other"}),
        ("license: [mit]\n", {}),
        ("- mit\n", {}),
        ("license: 'mit\n", {}),
    ],
)
def test_the_license_is_that_of_the_base_models_card(front, expected, llama, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{front}---\n\n# A model\n")
    llama.config._name_or_path = str(tmp_path)
    assert license_of_base(llama) == expected
    headedit.attach(llama).save_pretrained(tmp_path / "out")
    assert card_of(tmp_path / "out").data.to_dict().get("license") == expected.get("license")


def test_the_license_of_a_base_model_in_the_hubs_cache_is_found_and_the_users_own_wins(edits, tmp_path, monkeypatch):
    snapshot = tmp_path / "cache" / "models--someone--tiny-llama" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").write_text("---\nlicense: gemma\n---\n")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("a" * 40)
    assert license_of_base(edits.model) == {}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert license_of_base(edits.model) == {"license": "gemma"}
    edits.save_pretrained(tmp_path / "out", card={"license": "other", "license_name": "own"})
    data = card_of(tmp_path / "out").data
    assert (data.license, data.license_name) == ("other", "own")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"licence": "mit"}, "no field is called 'licence'.*Did you mean 'license'"),
        ({"license": 3}, "card: license: found 3, expected a text"),
        ({"license": ["mit"]}, "card: license: found .*expected a text"),
        ({"datasets": []}, "card: datasets: found .*expected a text or a list of texts"),
        ({"datasets": ["a", 3]}, "card: datasets: found"),
        ("mit", "card: found 'mit', expected True, False, or fields"),
        (None, "card: found None, expected True, False, or fields"),
    ],
)
def test_a_field_that_no_card_has_is_refused_before_anything_is_written(fields, message, edits, tmp_path):
    with pytest.raises(HeadEditError, match=message):
        edits.save_pretrained(tmp_path / "out", card=fields)
    assert not (tmp_path / "out").exists()


def test_a_model_that_sees_is_said_to():
    assert pipeline_tag(tiny_model("gemma3")) == "image-text-to-text"


@pytest.mark.parametrize(
    ("source", "name"),
    [("owner/data", "owner/data"), ("gsm8k", "gsm8k"), ("a/b/c:train[:9]", "a/b"), ("x.jsonl", None), ("./x", None)],
)
def test_an_id_of_a_data_set_is_told_from_a_path(source, name):
    found = dataset_id(source)
    assert (found and found["name"]) == name
