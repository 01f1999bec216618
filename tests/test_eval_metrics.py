"""Metrics of generated text: the libraries' own examples, the published code's values, and small cases by hand."""

import math
import subprocess
import sys

import pytest
import torch

from headedit import HeadEditError
from headedit.evaluation.scores.metrics import METRICS, bertscore, bleu, chrf, cider, compute, nist, rouge
from headedit.evaluation.scores.metrics.cider import tokens

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

# the example of sacrebleu's README
DOG = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
DOG_REFERENCES = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]
# captions with one, two and three references
CAPTIONS = [
    "A man is riding a horse on the beach.",
    "Two dogs play in the park with a ball.",
    "A child eats soup.",
    "A singer's on the stage.",
]
CAPTION_REFERENCES = [
    ["A man rides a horse on the beach.", "a man riding a horse near the sea"],
    ["Two dogs play with a red ball in the park.", "two dogs are playing", "dogs chasing a ball in a park"],
    ["The child doesn't eat her soup."],
    ["A well-known singer performs on stage, with 3.5 million fans!", "a singer on stage"],
]
WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "ran", "in", "park", "there", "is", "red", "blue", ",", "."]


def test_bleu_and_chrf_are_those_in_the_readme_of_sacrebleu():
    assert round(bleu(DOG, DOG_REFERENCES)["bleu"], 2) == 48.53
    assert round(chrf(DOG, DOG_REFERENCES)["chrf"], 2) == 59.73


def test_chrf_is_what_is_computed_by_hand():
    # of characters one in two and no pair, of words one in two and no pair: the mean of what each chrF looks at
    assert chrf(["a b"], [["a c"]]) == pytest.approx(
        {
            "chrf": 100 * (1 / 2 + 0) / 2,
            "chrf+": 100 * (1 / 2 + 0 + 1 / 2) / 3,
            "chrf++": 100 * (1 / 2 + 0 + 1 / 2 + 0) / 4,
        }
    )


@pytest.mark.parametrize("metric", [bleu, chrf])
def test_rows_may_have_different_numbers_of_references(metric):
    fewer = [DOG_REFERENCES[0], DOG_REFERENCES[1][:1], DOG_REFERENCES[2]]
    repeated = [DOG_REFERENCES[0], DOG_REFERENCES[1][:1] * 2, DOG_REFERENCES[2]]
    predictions = [DOG[0], "No one was surprised.", DOG[2]]
    assert metric(predictions, fewer) == metric(predictions, repeated)
    assert metric(predictions, fewer) != metric(predictions, DOG_REFERENCES)


def test_rouge_is_that_in_the_readme_of_rouge_score():
    figures = rouge(
        ["The quick brown dog jumps on the log."], [["The quick brown fox jumps over the lazy dog"]], stemmer=False
    )
    assert figures["rouge1"] == pytest.approx(100 * 2 * 0.75 * (6 / 9) / (0.75 + 6 / 9))
    assert figures["rougeL"] == pytest.approx(100 * 2 * 0.625 * (5 / 9) / (0.625 + 5 / 9))


def test_rouge_leaves_one_reference_out_at_a_time():
    prediction, good, fair, bad = "a b c d", "a b c d", "a b x y", "w x y z"  # F1 of unigrams 1, 1/2, 0
    assert rouge([prediction], [[bad, good, fair]])["rouge1"] == pytest.approx(100 * (1 + 1 + 0.5) / 3)
    assert rouge([prediction], [[bad, good, fair]], jackknife=False)["rouge1"] == pytest.approx(100)
    assert rouge([prediction], [[fair]])["rouge1"] == pytest.approx(50)


def test_rouge_stems_words():
    assert rouge(["dogs running"], [["dog runs"]])["rouge1"] == pytest.approx(100)
    assert rouge(["dogs running"], [["dog runs"]], stemmer=False)["rouge1"] == 0


# what mteval-v13a.pl prints for these, to ten digits
DODDINGTON = [
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "It is the guiding principle which guarantees the military forces always being under the command of the Party",
    "It is the practical guide for the army always to heed the directions of the party",
]
MTEVAL = [
    (
        ["It is a guide to action which ensures that the military always obeys the commands of the party"],
        [DODDINGTON],
        4.8285431671,
    ),
    (
        ["It is to insure the troops forever hearing the activity guidebook that party direct"],
        [DODDINGTON],
        2.0142816677,
    ),
    (
        [CAPTIONS[0], CAPTIONS[1], "A singer's on the stage, at 3.5 - 4 p.m."],
        [CAPTION_REFERENCES[0], CAPTION_REFERENCES[1][::2], CAPTION_REFERENCES[3]],
        3.7431876532,
    ),
    (["a dog", "the cat sat"], [["a dog runs in the park"], ["the cat sat down"]], 0.4557662546),
]


@pytest.mark.parametrize(("predictions", "references", "expected"), MTEVAL)
def test_nist_is_that_of_mteval(predictions, references, expected):
    assert nist(predictions, references)["nist"] == pytest.approx(expected, abs=1e-9)


def test_nist_is_what_is_computed_by_hand():
    # a word tells log2(5 words / 1), the pair "a b" log2(1 / 1): three words of four match, and that pair
    figures = nist(["a b d x"], [["a b c d e"]])
    penalty = math.exp(-math.log(2) * (math.log(4 / 5) / math.log(1.5)) ** 2)
    assert figures["nist"] == pytest.approx(3 * math.log2(5) / 4 * penalty)
    # words a, b: log2(8 / 2), c, d: log2(8); pair b c: log2(2 / 1), triple a b c: log2(2 / 1), all others 0;
    # four words against (2 + 6) / 2 have no penalty
    several = nist(["a b c d"], [["a b", "a b c d e f"]])["nist"]
    assert several == pytest.approx((2 + 2 + 3 + 3) / 4 + 1 / 3 + 1 / 2)
    # a word counts as often as the one reference that has it most: once, of two, and it tells log2(4 / 2)
    assert nist(["a a"], [["a b", "a c"]])["nist"] == pytest.approx(1 / 2)
    assert nist(["", ""], [["a"], ["b"]]) == {"nist": 0.0}


def test_cider_is_that_of_the_published_code():
    """With Stanford's tokeniser, as pycocoevalcap 1.2 runs it on these captions."""
    assert cider(CAPTIONS, CAPTION_REFERENCES)["cider"] == pytest.approx(2.351618207955569, abs=1e-12)


def test_cider_is_what_is_computed_by_hand():
    predictions, references = ["b a", "c"], [["a b"], ["c"]]
    # the first has both words but no pair, of four orders; the second its one word
    assert cider(predictions, references)["cider"] == pytest.approx(10 * (1 / 4 + 1 / 4) / 2)
    # one word more, all of them rare: cosine 2/(√2·√3), penalty exp(-1/72)
    longer = cider(["a b x", "c"], [["a b"], ["c"]])["cider"]
    one, two = 2 / math.sqrt(2 * 3), 1 / math.sqrt(2)
    assert longer == pytest.approx(10 * ((one + two) / 4 * math.exp(-1 / 72) + 1 / 4) / 2)
    # said three times where once was written: clipped to 1 / 3, and two words too long
    repeated = cider(["a a a", "c"], [["a"], ["c"]])["cider"]
    assert repeated == pytest.approx(10 * (1 / 3 * math.exp(-4 / 72) / 4 + 1 / 4) / 2)
    assert cider(["", "c"], references)["cider"] == pytest.approx(10 * (1 / 4) / 2)
    assert cider(["a b"], [["a b"]]) == {"cider": 0.0}, "in one row every n-gram is in all rows, so nothing is rare"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She doesn't, can't.", "she does n't ca n't"),
        ("A well-known singer's 3.5 million fans!", "a well-known singer 's 3.5 million fans"),
        ("U.S. troops, at 5:30 p.m. today...", "u.s. troops at 5:30 p.m. today"),
        ("Hello -- $30 or 50% we’re", "hello $ 30 or 50 % we 're"),
        ("", ""),
    ],
)
def test_cider_splits_words_as_the_stanford_tokenizer_does(text, expected):
    assert " ".join(tokens(text)) == expected


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny random BERT of 3 layers with a word tokenizer, as a folder."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    BertTokenizer(vocab=vocabulary, model_max_length=16).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return str(folder)


SEEN = ["the cat sat on a mat .", "a dog", "the red dog"]
SEEN_REFERENCES = [["the cat is on the mat .", "red"], ["a dog ran in the park"], ["dog", "the blue dog , ran", "a"]]


@torch.no_grad()
def naive_bertscore(folder, layer):
    """Zhang et al., equation 1, one pair and one word at a time."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def vectors(text):
        hidden = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[layer][0]
        return [v / v.norm() for v in hidden]

    def recall(of, others):
        words = of[1:-1]  # between [CLS] and [SEP], which may be matched with but are not counted
        return sum(max(float(word @ other) for other in others) for word in words) / len(words)

    rows = []
    for prediction, accepted in zip(SEEN, SEEN_REFERENCES, strict=True):
        pairs = [(recall(vectors(prediction), vectors(r)), recall(vectors(r), vectors(prediction))) for r in accepted]
        rows.append([max(x) for x in zip(*((p, r, 2 * p * r / (p + r)) for p, r in pairs), strict=True)])
    return [100 * sum(column) / len(rows) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_bertscore_is_greedy_matching_in_a_layer(encoder, layer):
    precision, recall, f1 = naive_bertscore(encoder, layer)
    figures = bertscore(SEEN, SEEN_REFERENCES, model=encoder, layer=layer)
    assert figures["bertscore_precision"] == pytest.approx(precision, abs=1e-3)
    assert figures["bertscore_recall"] == pytest.approx(recall, abs=1e-3)
    assert figures["bertscore"] == pytest.approx(f1, abs=1e-3)


def test_bertscore_is_that_of_the_package_bert_score(encoder):
    bert_score = pytest.importorskip("bert_score")
    scorer = bert_score.BERTScorer(model_type=encoder, num_layers=2, device="cpu")
    theirs = [100 * float(x.mean()) for x in scorer.score(SEEN, SEEN_REFERENCES)]
    ours = bertscore(SEEN, SEEN_REFERENCES, model=encoder, layer=2)
    figures = [ours[name] for name in ("bertscore_precision", "bertscore_recall", "bertscore")]
    assert figures == pytest.approx(theirs, abs=1e-3)


def test_bertscore_of_equal_empty_and_overlong_texts_is_defined(encoder):
    assert bertscore(["a dog ran"], [["a dog ran"]], model=encoder, layer=2)["bertscore"] == pytest.approx(
        100, abs=1e-3
    )
    assert bertscore([" "], [["a dog"]], model=encoder, layer=2)["bertscore"] == 0
    assert bertscore(["a dog"], [[""]], model=encoder, layer=2)["bertscore"] == 0
    long = " ".join(WORDS * 4)
    assert bertscore([long], [[long]], model=encoder, layer=2)["bertscore"] == pytest.approx(100, abs=1e-3)


def test_bertscore_does_not_depend_on_the_batch_size(encoder):
    one, all_ = (bertscore(SEEN, SEEN_REFERENCES, model=encoder, layer=2, batch_size=size) for size in (1, 64))
    assert one == pytest.approx(all_, abs=1e-3)


def test_bertscore_says_what_is_wrong_with_an_encoder(encoder, tmp_path):
    with pytest.raises(HeadEditError, match=r"no layer is known.*from 1 to 3"):
        bertscore(["a"], [["a"]], model=encoder)
    with pytest.raises(HeadEditError, match=r"layer 4 of .* it has 3"):
        bertscore(["a"], [["a"]], model=encoder, layer=4)
    with pytest.raises(HeadEditError, match=r"no encoder with a tokenizer could be loaded from .*nowhere"):
        bertscore(["a"], [["a"]], model=str(tmp_path / "nowhere"))


def test_compute_joins_metrics_and_passes_their_options(encoder):
    figures = compute({"bleu": {}, "bertscore": {"model": encoder, "layer": 1}}, SEEN, SEEN_REFERENCES)
    assert figures == bleu(SEEN, SEEN_REFERENCES) | bertscore(SEEN, SEEN_REFERENCES, model=encoder, layer=1)
    with pytest.raises(HeadEditError, match=r"no metric 'belu'\. Did you mean 'bleu'"):
        compute(["belu"], SEEN, SEEN_REFERENCES)
    with pytest.raises(HeadEditError, match=r"'rouge' has no option 'stemer'\. Did you mean 'stemmer'"):
        compute({"rouge": {"stemer": True}}, SEEN, SEEN_REFERENCES)


@pytest.mark.parametrize("name", sorted(METRICS))
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "list of predictions is empty"),
        (["a"], [["a"], ["b"]], "1 predictions and references for 2 rows"),
        (["a", "b"], [["a"], []], "Row 2: there is no reference"),
        (["a"], ["a"], "Row 1: the references are str, expected a list"),
        (["a", None], [["a"], ["b"]], "Row 2: the prediction is NoneType"),
        (["a"], [["a", 3]], "Row 1: a reference is int"),
    ],
)
def test_rows_that_cannot_be_scored_are_named(name, predictions, references, message):
    with pytest.raises(HeadEditError, match=message):
        METRICS[name](predictions, references)


@pytest.mark.parametrize(
    ("name", "module", "library"),
    [
        ("bleu", "sacrebleu", "sacrebleu"),
        ("rouge", "rouge_score.rouge_scorer", "rouge-score"),
        ("nist", "sacrebleu.tokenizers.tokenizer_13a", "sacrebleu"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(monkeypatch, name, module, library):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(HeadEditError, match=rf"needs {library}: pip install 'headedit\[eval\]'"):
        METRICS[name](["a"], [["a"]])


def test_naming_metrics_loads_no_library():
    code = (
        "import sys, headedit.evaluation.scores.metrics; print({'sacrebleu', 'rouge_score', 'nltk'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
