"""A model with an encoder and a decoder is refused in the same sentence wherever it is given."""

import pytest
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

import headedit
from headedit import HeadEditError
from headedit.cli.main import main
from headedit.demo import MODEL_FOLDER
from headedit.specs.draft import draft_spec

SENTENCE = (
    "A model of the type 't5' has an encoder and a decoder, and headedit edits causal LMs, which have a decoder alone, "
    "so give a causal LM in its place."
)


@pytest.fixture(scope="module")
def t5():
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4, "vocab_size": 64}
    return T5ForConditionalGeneration(T5Config(**sizes)).eval()


@pytest.fixture(scope="module")
def folder(t5, tmp_path_factory):
    place = tmp_path_factory.mktemp("t5")
    t5.save_pretrained(place)
    AutoTokenizer.from_pretrained(MODEL_FOLDER).save_pretrained(place)
    return str(place)


@pytest.mark.parametrize("call", [headedit.attach, headedit.doctor, draft_spec])
def test_an_encoder_decoder_is_refused_in_one_sentence(call, t5):
    with pytest.raises(HeadEditError) as caught:
        call(t5)
    assert str(caught.value) == SENTENCE


@pytest.mark.parametrize(
    "words",
    [
        ["doctor"],
        ["spec", "draft"],
        ["spec", "check"],
        ["plan", "--max-length", "8", "--memory", "1GiB", "--model"],
        ["eval", "--data", "x.jsonl", "--model"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_command_refuses_an_encoder_decoder_in_the_same_sentence(words, folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*words, folder])
    assert capsys.readouterr().err == f"headedit: {SENTENCE}\nTo read more: headedit errors models\n"
